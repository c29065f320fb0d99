"""`casemate restore`: bring a saved home back."""

from __future__ import annotations

import datetime as dt
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from casemate.cli.output import emit, human_bytes, json_option, progress, warn, yes_option

if TYPE_CHECKING:
    from casemate.device.restore import Restored
    from casemate.formats.archive import Header


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--home", "place", type=click.Path(path_type=Path), metavar="DIR", help="Where to (default: the home).")
@click.option("--sha256", default="", metavar="HEX", help="The digest that `casemate backup` printed.")
@yes_option
@json_option
def command(*, file: Path, place: Path | None, sha256: str, yes: bool, as_json: bool) -> None:
    """Bring the home saved in FILE back: all of it, checked, or nothing. A home that is there is never replaced."""
    from casemate import config
    from casemate.device import restore
    from casemate.device.home import Home

    home = Home((place or config.home_path()).absolute())
    if not yes and sys.stdin.isatty():
        click.confirm(f"{_told(restore.read_header(file))}\nrestore it to {home.path}?", abort=True, err=True)
    restored = restore.restore(file, home, progress=progress, expect=sha256)
    if restored.journal:
        warn(f"the restoration is not in the journal: {restored.journal}")
    emit(_as_json(restored), as_json=as_json, text=lambda: _as_text(restored))


def _told(header: Header) -> str:
    when = dt.datetime.fromtimestamp(header.created, dt.UTC)
    return f"home {header.home}, saved {when:%Y-%m-%d %H:%M} UTC, {header.files} files, {human_bytes(header.bytes)}"


def _as_json(restored: Restored) -> dict[str, object]:
    return {
        "home": str(restored.home),
        "id": restored.id,
        "created": restored.created,
        "files": restored.files,
        "bytes": restored.bytes,
        "keys": restored.keys,
        "models": list(restored.models),
        "journaled": not restored.journal,
    }


def _as_text(restored: Restored) -> str:
    after = (
        "give it a new way in: casemate keystore rotate --recovery --to passphrase"
        if restored.keys == "recovery"
        else "put keystore.json back into its keystore directory"
    )
    return (
        f"restored {restored.home}  {human_bytes(restored.bytes)}, {restored.files} files\n"
        f"models   {', '.join(restored.models) or 'none'}\n"
        f"next     {after}"
    )
