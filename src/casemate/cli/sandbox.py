"""`casemate sandbox test`: try every known way out of the engine's sandbox, and prove that each works without it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from casemate.cli.output import emit, json_option, style, table

if TYPE_CHECKING:
    from casemate.device.escape.suite import Report, Verdict

_FINDINGS: Final = 3
_STYLES: Final = {"blocked": "good", "escaped": "bad", "fired": "good", "not-fired": "bad", "not-testable": "dim"}


@click.group()
def command() -> None:
    """Prove that the engine cannot get out."""


@command.command()
@click.option(
    "--without",
    type=click.Choice(["bwrap", "landlock", "seccomp"]),
    multiple=True,
    help="Leave a layer out, to see what it is for.",
)
@json_option
def test(*, without: tuple[str, ...], as_json: bool) -> int:
    """Try every probe outside (it must work) and inside (it must not).

    Each probe runs three times: as you, and twice in the engine's sandbox, as it is while a model loads and while it
    serves. Nothing is left behind.

    Exit code 0: nothing escaped, and every control fired or cannot be tested here. Otherwise 3.
    """
    from casemate.device.escape.suite import run_suite
    from casemate.device.home import owner_of

    owner = owner_of("engine")
    report = run_suite(owner.uid if owner else None, owner.gid if owner else None, without=without)
    if not without:
        _journal(report)
    emit(report.as_json(), as_json=as_json, text=lambda: render(report))
    return 0 if report.passed else _FINDINGS


def _journal(report: Report) -> None:
    """Record the result, when this machine has a home to record it in."""
    from casemate import config
    from casemate.clock import SystemClock
    from casemate.device.home import Home
    from casemate.device.record import record
    from casemate.formats import event

    home = Home(config.home_path())
    if home.exists:
        probes, escaped = len(report.probes), report.escaped
        record(home.open(), event.sandbox_tested(probes=probes, escaped=escaped, now=SystemClock().wall()))


def render(report: Report) -> str:
    """Return the table and the closing line."""
    lines = table(
        [_row(verdict) for verdict in report.probes], ("PROBE", "TRIES TO", "STOPPED BY", "INSIDE", "OUTSIDE")
    )
    legend = "U own uid, B bubblewrap namespaces, L Landlock, S seccomp: each one named is enough by itself"
    return f"{lines}\n\n{style(legend, 'dim')}\n{summary(report)}"


def summary(report: Report) -> str:
    """Return the result in one line."""
    blocked = len(report.probes) - report.escaped
    text = (
        f"{blocked} of {len(report.probes)} blocked inside, {report.escaped} escaped; "
        f"outside {report.count('fired')} work, {report.count('not-testable')} cannot be tested here, "
        f"{report.count('not-fired')} did not fire"
    )
    return style(text, "good" if report.passed else "bad")


def _row(verdict: Verdict) -> tuple[str, str, str, str, str]:
    outside = f"{verdict.control}: {verdict.why}" if verdict.why else verdict.control
    return (verdict.id, verdict.tries, verdict.layer, verdict.sandboxed, outside)
