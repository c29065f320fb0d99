"""`casemate fleet ca`: the fleet's certificate authority. Its root is better kept offline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from casemate.cli.fleet import dir_option, directory_of, on_console
from casemate.cli.output import emit, json_option, say


@click.group()
def command() -> None:
    """Show the authority, take its root offline, make the next intermediate."""


@command.command()
@dir_option
@json_option
def show(*, directory: Path | None, as_json: bool) -> None:
    """Show which certificates are believed, and until when."""
    from casemate.cli.fleet_device import moment
    from casemate.clock import SystemClock
    from casemate.crypto import authority
    from casemate.fleet import pki
    from casemate.fleet.home import FleetHome

    home = FleetHome(directory_of(directory))
    found = pki.load(home, SystemClock())
    root_here = (home.ca / "root.key").exists()
    until = [authority.facts(each).not_after for each in found.intermediates]
    result: dict[str, Any] = {
        "root": {
            "sha256": authority.fingerprint(found.root),
            "expires": authority.facts(found.root).not_after,
            "file": str(home.root),
            "key_here": root_here,
        },
        "intermediates": [
            {"sha256": authority.fingerprint(each), "expires": end}
            for each, end in zip(found.intermediates, until, strict=True)
        ],
    }
    lines = [
        f"root          {result['root']['sha256']}  until {moment(authority.facts(found.root).not_after)}",
        f"root key      {'on this server: `casemate fleet ca export-root` takes it away' if root_here else 'offline'}",
        *(
            f"intermediate  {authority.fingerprint(each)}  until {moment(end)}"
            for each, end in zip(found.intermediates, until, strict=True)
        ),
    ]
    emit(result, as_json=as_json, text="\n".join(lines))


@command.command("export-root")
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="F", help="Where the key goes.")
@dir_option
@json_option
def export_root(*, out: Path, directory: Path | None, as_json: bool) -> None:
    """Move the root's private key to F (PEM, in clear: guard it) and away from this server."""
    on_console(directory, lambda console: console.export_root(out))
    emit({"root_key": str(out)}, as_json=as_json, text=str(out))
    if not as_json:
        say("it is no longer on this server; bring it for `casemate fleet ca rotate --root-key FILE`")


@command.command()
@click.option(
    "--root-key", type=click.Path(path_type=Path, exists=True), metavar="F", help="The root's key, if offline."
)
@dir_option
@json_option
def rotate(*, root_key: Path | None, directory: Path | None, as_json: bool) -> None:
    """Make the next intermediate. The one before is believed until it ends; restart the server to use the new one."""
    made = on_console(directory, lambda console: console.rotate_intermediate(root_key))
    emit({"intermediate": str(made)}, as_json=as_json, text=str(made))
    if not as_json:
        say("restart the server: devices get certificates of the new one when they renew")
