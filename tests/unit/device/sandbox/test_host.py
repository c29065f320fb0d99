from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from casemate.device.sandbox import host, landlock, seccomp
from casemate.errors import HostError


def broken(error):
    def check(*_args, **_options):
        raise error

    return check


@pytest.fixture
def whole(monkeypatch):
    """A host on which every layer works."""
    monkeypatch.setattr(host, "find_bwrap", lambda: "/usr/bin/bwrap")
    monkeypatch.setattr(host.subprocess, "run", lambda *_a, **_k: subprocess.CompletedProcess([], 0, b"", b""))
    monkeypatch.setattr(landlock, "abi", lambda: 2)
    monkeypatch.setattr(seccomp, "library", lambda: None)
    return monkeypatch


def test_a_whole_host_misses_nothing(whole):
    assert host.missing_layers() == []
    host.require_layers()


def test_each_missing_layer_is_named_with_its_fix(whole):
    whole.setattr(host, "find_bwrap", broken(HostError("bubblewrap is missing", hint="apt install bubblewrap")))
    whole.setattr(landlock, "abi", lambda: 0)
    whole.setattr(seccomp, "library", broken(HostError("libseccomp is missing", hint="apt install libseccomp2")))
    faults = host.missing_layers()
    assert [fault.exit_code for fault in faults] == [12, 12, 12]
    assert all(fault.hint for fault in faults)
    with pytest.raises(HostError, match="bubblewrap"):
        host.require_layers()


@pytest.mark.parametrize(
    ("name", "value", "fix"),
    [
        ("kernel/unprivileged_userns_clone", "0", "sysctl -w kernel.unprivileged_userns_clone=1"),
        ("user/max_user_namespaces", "0", "sysctl -w user.max_user_namespaces=15000"),
        ("kernel/apparmor_restrict_unprivileged_userns", "1", "kernel.apparmor_restrict_unprivileged_userns=0"),
        ("kernel/other", "0", "allow user namespaces"),
    ],
)
def test_no_user_namespaces_names_the_switch(whole, name, value, fix):
    refusal = subprocess.CompletedProcess([], 1, b"", b"bwrap: No permissions to create new namespace\n")
    whole.setattr(host.subprocess, "run", lambda *_a, **_k: refusal)
    switches = {f"/proc/sys/{name}": value}

    def read_text(path, *_args):
        if str(path) not in switches:
            raise FileNotFoundError
        return switches[str(path)]

    whole.setattr(Path, "read_text", read_text)
    (fault,) = host.missing_layers()
    assert "No permissions" in fault.message
    assert fix in fault.hint


def test_a_bubblewrap_that_hangs_is_missing(whole):
    whole.setattr(host.subprocess, "run", broken(subprocess.TimeoutExpired("bwrap", 10)))
    assert [fault.exit_code for fault in host.missing_layers()] == [12]
