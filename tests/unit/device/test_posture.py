"""What is weaker than it should be is said, with its repair; what is as it should be is not mentioned."""

from __future__ import annotations

import dataclasses

import pytest

from casemate import keystores
from casemate.device import posture
from casemate.device.home import Home
from casemate.device.posture import Facts, weaknesses

GOOD = Facts(
    separate_uids=True,
    assurance="L1",
    assurance_reasons=(),
    recovery=True,
    bubblewrap=True,
    landlock_abi=7,
    memlock=-1,
    swap=False,
    disk_free=10 << 30,
    key_file="",
    needs_triage=(),
)
FLAWS = {
    "needs-triage": {"needs_triage": ("saffron",)},
    "no-bubblewrap": {"bubblewrap": False},
    "no-landlock": {"landlock_abi": 0},
    "old-landlock": {"landlock_abi": 2},
    "shared-uid": {"separate_uids": False},
    "weak-keystore": {"assurance": "L0"},
    "no-recovery": {"recovery": False},
    "memlock": {"memlock": 65536},
    "swap": {"swap": True},
    "disk": {"disk_free": 1 << 20},
    "key-in-file": {"key_file": "/home/run/default-app.key"},
}


def test_a_sound_device_has_nothing_to_say():
    assert weaknesses(GOOD) == []


@pytest.mark.parametrize(("code", "flaw"), FLAWS.items(), ids=FLAWS)
def test_each_weakness_is_said_alone_with_its_repair(code, flaw):
    (found,) = weaknesses(dataclasses.replace(GOOD, **flaw))
    assert found.code == code
    assert found.what
    assert found.fix


def test_every_rule_is_tried_here():
    assert {rule.code for rule in posture.RULES} == set(FLAWS)


def test_the_gravest_comes_first():
    everything = dataclasses.replace(GOOD, **{k: v for flaw in FLAWS.values() for k, v in flaw.items()})
    assert weaknesses(everything)[0].code == "needs-triage"


@pytest.mark.parametrize(
    ("swaps", "on"),
    [("Filename\tType\n", False), ("Filename\tType\n/dev/zram0 partition 1 0 100\n", True), (None, True)],
    ids=["off", "on", "cannot tell"],
)
def test_swap_that_cannot_be_ruled_out_is_reported(tmp_path, monkeypatch, swaps, on):
    table = tmp_path / "swaps"
    if swaps is not None:
        table.write_text(swaps)
    monkeypatch.setattr(posture, "Path", lambda _: table)
    assert posture._swap_is_on() is on


def test_the_keystore_itself_says_whether_there_is_a_way_back(home_path, monkeypatch):
    home = Home(home_path).create()
    (home_path.parent / "words").write_text("correct horse battery")
    monkeypatch.setenv("CASEMATE_PASSPHRASE_FILE", str(home_path.parent / "words"))
    sources = keystores.from_environment(home)
    running = {"assurance": {"level": "L1", "reasons": ["typed"], "recovery": False}}
    with keystores.create(home, sources) as keystore:
        assert posture.gather(home_path, running).recovery is False
        keystores.add_recovery(keystore, lambda _code: None)
    facts = posture.gather(home_path, running)
    assert (facts.assurance, facts.assurance_reasons, facts.recovery) == ("L1", ("typed",), True)
    stopped = posture.gather(home_path, {})
    assert (stopped.assurance, stopped.recovery) == (keystores.describe(home, sources).level, True)


def test_bubblewrap_is_looked_for_where_engines_look(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert posture.gather(tmp_path, {}).bubblewrap is True


def test_what_is_not_known_counts_as_weak(tmp_path):
    facts = posture.gather(tmp_path, {})
    assert facts.assurance == "L0"
    assert facts.recovery is False
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "default-app.key").write_text("cmk_x")
    assert posture.gather(tmp_path, {}).key_file == str(tmp_path / "run" / "default-app.key")
    assert posture.gather(tmp_path, {"models": [{"name": "m", "state": "needs triage"}]}).needs_triage == ("m",)
