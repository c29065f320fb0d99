"""`casemate fleet audit`: the fleet's own log of who did what. It can be proven complete."""

from __future__ import annotations

from pathlib import Path

import click

from casemate.cli.fleet import dir_option, on_console
from casemate.cli.output import emit, emit_line, json_option, style


@click.group()
def command() -> None:
    """Show the fleet's audit log, and prove that it was neither cut nor rewritten."""


@command.command()
@click.option("--limit", type=click.IntRange(1, 1_000_000), default=100, show_default=True, help="The newest so many.")
@dir_option
@json_option
def show(*, limit: int, directory: Path | None, as_json: bool) -> None:
    """Show the newest entries, oldest first."""
    from casemate.cli.fleet_device import moment

    for entry in on_console(directory, lambda console: console.audit_entries(limit)):
        if as_json:
            emit_line(entry)
        else:
            about = entry["asset"] or entry["device"] or ""
            click.echo(f"{entry['seq']:6}  {moment(entry['time'])}  {entry['actor']:16} {entry['action']:20} {about}")


@command.command()
@click.option(
    "--against", type=click.Path(path_type=Path, exists=True), metavar="F", help="A checkpoint that you kept elsewhere."
)
@dir_option
@json_option
def verify(*, against: Path | None, directory: Path | None, as_json: bool) -> None:
    """Recompute the whole log and compare it with its newest checkpoint. Exit 0 or 10."""
    kept = against.read_bytes() if against else None
    found = on_console(directory, lambda console: console.verify_audit(kept))
    result = {"origin": found.origin, "size": found.size, "root": found.root.hex()}
    emit(result, as_json=as_json, text=f"{style('intact', 'good')} {found.size} entries, root {found.root.hex()}")


@command.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="F", help="Where to keep it.")
@dir_option
@json_option
def checkpoint(*, out: Path, directory: Path | None, as_json: bool) -> None:
    """Write the newest signed checkpoint to F. Keep it where nobody who can change the log can change it."""
    note = on_console(directory, lambda console: console.audit_checkpoint())
    out.write_bytes(note)
    emit({"checkpoint": str(out)}, as_json=as_json, text=str(out))
