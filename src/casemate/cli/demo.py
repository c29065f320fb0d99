"""`casemate demo`: the guided tour, on a throw-away home."""

from __future__ import annotations

import click

from casemate.cli.output import emit_line, json_option, style


@click.command()
@json_option
def command(*, as_json: bool) -> int:
    """Show a device at work and five attacks being blocked; exits 0 only if all five are."""
    import tempfile
    from pathlib import Path

    from casemate.cli import tour

    good = True
    with tempfile.TemporaryDirectory(prefix="casemate-demo-") as scratch:
        Path(scratch).chmod(0o755)  # as root the device's processes have uids of their own
        for step, outcome in tour.walk(Path(scratch)):
            good &= outcome.ok
            if as_json:
                emit_line({"step": step.id, "ok": outcome.ok, "detail": outcome.detail, "entry": outcome.entry})
            else:
                click.echo(_render(step, outcome))
    if not as_json:
        click.echo(style("all five attacks were blocked", "good") if good else style("the demo failed", "bad"))
    return 0 if good else 1


def _render(step: object, outcome: object) -> str:
    from casemate.cli import tour

    assert isinstance(step, tour.Step)
    assert isinstance(outcome, tour.Outcome)
    word = "blocked" if step.id in tour.ATTACKS else "ok"
    mark = style(f"{word:>8}", "good") if outcome.ok else style("  FAILED", "bad")
    lines = [f"{mark}  {step.title}", f"          {outcome.detail}"]
    if outcome.entry:
        lines.append(style(f"          journal {outcome.entry}", "dim"))
    return "\n".join(lines)
