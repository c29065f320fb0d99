"""How outcomes become verdicts: pure, so every host can be played."""

from __future__ import annotations

import dataclasses

import pytest

from casemate.device.escape.catalogue import BY_ID, PROBES
from casemate.device.escape.probe import CAPABILITIES, Gate, Probe
from casemate.device.escape.suite import Host, Outcome, Report, judge, judge_control, read_host

ROOT = Host(root=True, capabilities=(1 << 41) - 1, switches={})
USER = Host(root=False, capabilities=0, switches={})
PROBE = Probe("p", "tries", "S", lambda _: None)
STOPPED = Outcome("stopped", "EPERM")
FIRED = Outcome("fired", "")


def control(outcome, host=ROOT, **changes):
    return judge_control(dataclasses.replace(PROBE, **changes), outcome, host)


def test_a_control_that_worked_fired():
    assert control(FIRED) == ("fired", "")


def test_a_control_that_failed_without_a_reason_did_not_fire():
    assert control(STOPPED) == ("not-fired", "EPERM")
    assert control(Outcome("died", "SIGSEGV")) == ("not-fired", "SIGSEGV")
    assert control(Outcome("hung", "silent")) == ("not-fired", "silent")


@pytest.mark.parametrize(
    ("outcome", "host", "changes", "why"),
    [
        (Outcome("untestable", "no disk"), ROOT, {}, "no disk"),
        (Outcome("stopped", "ENOSYS"), ROOT, {}, "ENOSYS"),
        (Outcome("stopped", "EAFNOSUPPORT"), ROOT, {}, "EAFNOSUPPORT"),
        (Outcome("stopped", "ENOENT"), ROOT, {"absent": (2,)}, "ENOENT"),
        (Outcome("died", "SIGSEGV"), ROOT, {"fatal_means_absent": True}, "SIGSEGV"),
        (STOPPED, USER, {"needs": ("CAP_SYS_ADMIN",)}, "needs root"),
        (STOPPED, Host(root=True, capabilities=0, switches={}), {"needs": ("CAP_MKNOD",)}, "needs CAP_MKNOD"),
        (
            STOPPED,
            Host(root=False, capabilities=0, switches={"kernel/x": "1"}),
            {"gates": (Gate("kernel/x", ("1",)),)},
            "kernel.x=1",
        ),
    ],
)
def test_a_host_that_cannot_show_it_says_why(outcome, host, changes, why):
    verdict, said = control(outcome, host, **changes)
    assert verdict == "not-testable"
    assert why in said


def test_an_open_gate_or_a_gate_before_root_is_no_excuse():
    gates = (Gate("kernel/x", ("1",)),)
    assert control(STOPPED, Host(root=False, capabilities=0, switches={"kernel/x": "0"}), gates=gates)[0] == "not-fired"
    assert control(STOPPED, Host(root=True, capabilities=0, switches={"kernel/x": "1"}), gates=gates)[0] == "not-fired"


@pytest.mark.parametrize(
    ("load", "run", "verdict"),
    [
        (STOPPED, STOPPED, "blocked"),
        (STOPPED, FIRED, "escaped"),
        (FIRED, STOPPED, "escaped"),
        (Outcome("died", "SIGSYS"), STOPPED, "blocked"),
        (Outcome("untestable", ""), STOPPED, "blocked"),
        (Outcome("hung", "silent"), STOPPED, "escaped"),
    ],
)
def test_blocked_means_stopped_under_both_filters(load, run, verdict):
    stages = {"load": {"p": load}, "run": {"p": run}}
    assert judge(PROBE, {"p": FIRED}, stages, ROOT).sandboxed == verdict


def verdicts(*pairs):
    return Report(
        tuple(
            dataclasses.replace(
                judge(PROBE, {"p": FIRED}, {"load": {"p": STOPPED}, "run": {"p": STOPPED}}, ROOT),
                control=outside,
                sandboxed=inside,
            )
            for outside, inside in pairs
        )
    )


@pytest.mark.parametrize(
    ("pairs", "passed"),
    [
        ([("fired", "blocked"), ("not-testable", "blocked")], True),
        ([("not-fired", "blocked")], False),
        ([("fired", "escaped")], False),
    ],
)
def test_the_suite_passes_only_when_nothing_is_open(pairs, passed):
    assert verdicts(*pairs).passed is passed


def test_the_catalogue_is_sound():
    assert len(BY_ID) == len(PROBES) >= 35
    for probe in PROBES:
        assert probe.tries
        assert probe.layer
        assert set(probe.needs) <= set(CAPABILITIES)


def test_this_host_can_be_read():
    host = read_host()
    assert host.capabilities >= 0
