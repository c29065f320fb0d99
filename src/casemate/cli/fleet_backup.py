"""`casemate fleet backup` and `casemate fleet restore`: the whole fleet in one file, and back."""

from __future__ import annotations

from pathlib import Path

import click

from casemate.cli.fleet import dir_option, directory_of, on_console
from casemate.cli.output import emit, json_option, say, style


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="F", help="Where to write it.")
@dir_option
@json_option
def backup(*, out: Path, directory: Path | None, as_json: bool) -> None:
    """Write keys, certificates and every record to F, while the server runs. F holds private keys: guard it."""
    made = on_console(directory, lambda console: console.backup(out))
    emit(made, as_json=as_json, text=f"{style('wrote', 'good')} {out}  {made['rows']} rows  sha256 {made['sha256']}")


@click.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--database", metavar="URL", help="An empty database; may be another kind than the backup's.")
@dir_option
@json_option
def restore(*, file: Path, database: str | None, directory: Path | None, as_json: bool) -> None:
    """Make the fleet of FILE again, in an empty directory and an empty database.

    Revoke again what was revoked since the backup; devices that renewed since then need a token to come back.
    """
    import asyncio
    import getpass

    from casemate.clock import SystemClock
    from casemate.fleet import backup as backups
    from casemate.fleet.home import FleetHome

    home = FleetHome(directory_of(directory))
    actor = f"console:{getpass.getuser()}"
    made = asyncio.run(backups.restore(file, home, SystemClock(), database, actor))
    emit(made, as_json=as_json, text=f"{style('restored', 'good')} {home.path}  as of {made['made']}")
    if not as_json:
        say(f"start it: `casemate fleet serve --dir {home.path}`")
