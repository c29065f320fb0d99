"""`casemate doctor`: try every defence this machine must offer, and say how to get what is missing."""

from __future__ import annotations

import click

from casemate.cli.output import emit, json_option, style


@click.command()
@json_option
def command(*, as_json: bool) -> int:
    """Check this machine; exits 0 when nothing is missing, 3 when something is weak, 12 when engines cannot start."""
    from casemate import config
    from casemate.device import doctor

    checks = doctor.examine(config.home_path())
    marks = {"ok": style("ok  ", "good"), "weak": style("weak", "warn"), "missing": style("no  ", "bad")}
    emit(
        {"checks": [check.row() for check in checks]},
        as_json=as_json,
        text=lambda: "\n".join(
            f"{marks[check.state]}  {check.what}" + (f"\n      fix: {check.fix}" if check.fix else "")
            for check in checks
        ),
    )
    states = {check.state for check in checks}
    return 12 if "missing" in states else 3 if "weak" in states else 0
