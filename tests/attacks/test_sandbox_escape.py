"""Every way out that we know, tried from inside the engine's sandbox; each works outside (the positive control).

The suite is the one behind `casemate sandbox test`. The second half takes one layer away at a time: what then gets out
shows that the layer matters, and what does not shows that the table's "stopped by" column tells the truth.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from casemate.device.escape.catalogue import PROBES
from casemate.device.escape.suite import run_suite
from casemate.device.home import owner_of
from casemate.device.sandbox import landlock

LAYERS = {"B": "bwrap", "L": "landlock", "S": "seccomp"}
PRIVATE_BY_DESIGN = {"write_tmp"}  # Landlock leaves the sandbox's /tmp, which is the host's when bubblewrap is gone


def run(without=()):
    owner = owner_of("engine")
    return run_suite(owner.uid if owner else None, owner.gid if owner else None, without=without)


def escaped(report):
    return {verdict.id for verdict in report.probes if verdict.sandboxed == "escaped"}


@pytest.fixture(scope="module")
def report():
    return run()


def test_nothing_gets_out(report):
    assert escaped(report) == set()
    assert len(report.probes) >= 35


def test_every_control_fires_or_says_why_it_cannot(report):
    silent = [(verdict.id, verdict.why) for verdict in report.probes if verdict.control == "not-fired"]
    assert silent == []
    assert all(verdict.why for verdict in report.probes if verdict.control == "not-testable")


@pytest.mark.root
def test_as_root_nearly_everything_fires_outside(report):
    assert report.count("fired") >= 30


@pytest.mark.parametrize("layer", ["B", "L", "S"])
def test_one_layer_alone_stops_what_the_table_says(layer):
    """Take the other two away: every probe that names this layer must still be stopped."""
    if layer == "L" and landlock.abi() < 6:
        pytest.skip("this kernel's Landlock knows no sockets yet: the other layers stop those")
    left_out = {name for key, name in LAYERS.items() if key != layer}
    named = {probe.id for probe in PROBES if layer in probe.layer.split()}
    got_out = escaped(run(without=left_out))
    assert got_out, "with two layers gone something must get out, or the probes prove nothing"
    assert got_out & named <= (PRIVATE_BY_DESIGN if layer == "L" else set())


def test_without_seccomp_what_only_seccomp_stops_gets_out():
    only = {probe.id for probe in PROBES if probe.layer == "S"}
    got_out = escaped(run(without={"seccomp"}))
    assert {"netlink", "keyctl", "add_key", "io_uring_setup", "memfd_exec", "mmap_wx", "fork_200"} <= got_out
    assert got_out <= only


def test_without_landlock_the_mounted_tree_is_readable():
    assert "list_host_dir" in escaped(run(without={"landlock"}))


def test_probes_leave_nothing_behind(report):
    del report
    for directory in ("/tmp", "/etc", "/dev/shm", "/dev/mqueue"):
        if Path(directory).is_dir():
            assert not [name for name in os.listdir(directory) if name.startswith("casemate-probe")]
    assert "casemate-probe" not in Path("/proc/self/mountinfo").read_text("ascii")
    assert "CASEMATE_PROBE_SECRET" not in os.environ


def test_the_command_prints_the_contract():
    done = subprocess.run(
        [sys.executable, "-m", "casemate", "sandbox", "test", "--json"], capture_output=True, text=True, check=False
    )
    said = json.loads(done.stdout)
    assert done.returncode == 0, done.stderr
    assert said["schema"] == 1
    assert said["escaped"] == 0
    assert {"id", "tries", "layer", "control", "why", "sandboxed"} <= set(said["probes"][0])
    assert {probe["sandboxed"] for probe in said["probes"]} == {"blocked"}


def test_a_missing_layer_or_an_escape_is_not_success():
    done = subprocess.run(
        [sys.executable, "-m", "casemate", "sandbox", "test", "--json", "--without", "seccomp"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3
    assert json.loads(done.stdout)["escaped"] > 5
