"""`casemate fleet demo`: a whole fleet on this machine, thrown away afterwards."""

from __future__ import annotations

import click

from casemate.cli.output import emit_line, json_option, say, style


@click.command("demo")
@click.option("--no-stay", is_flag=True, help="End after the last step; else the console stays open until Ctrl-C.")
@json_option
def command(*, no_stay: bool, as_json: bool) -> int:
    """Show a server and three devices: joining, proving, quarantine, a rewritten journal, a wipe.

    Everything lives in a directory that is removed at the end. Exits 0 only if each step did what it must.
    """
    import contextlib
    import signal
    import tempfile
    from pathlib import Path

    from casemate.cli import fleet_stage, fleet_tour

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stopped from outside it cleans up as after Ctrl-C
    good = True
    with tempfile.TemporaryDirectory(prefix="cmf-", ignore_cleanup_errors=True) as place:  # socket paths are short
        scratch = Path(place)
        scratch.chmod(0o755)  # as root the devices' processes have uids of their own
        tour = fleet_stage.FleetTour(scratch)
        with contextlib.closing(tour):
            for step, outcome in fleet_tour.walk(tour):
                good &= outcome.ok
                if as_json:
                    emit_line({"step": step.id, "ok": outcome.ok, "detail": outcome.detail})
                else:
                    mark = style("    ok", "good") if outcome.ok else style("FAILED", "bad")
                    click.echo(f"{mark}  {step.title}: {outcome.detail}")
            if not as_json:
                click.echo(style("every step did what it must", "good") if good else style("the demo failed", "bad"))
            if not no_stay and tour.said:
                say(f"console  {tour.said.get('admin_link') or tour.said['people']}")
                say("         open until Ctrl-C; then everything is removed")
                with contextlib.suppress(KeyboardInterrupt):
                    tour.stay()
    return 0 if good else 1
