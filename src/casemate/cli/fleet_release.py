"""`casemate fleet release`: what the fleet's server knows of a release repository."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from casemate.cli.fleet import dir_option, on_console
from casemate.cli.output import emit, json_option, table


@click.group()
def command() -> None:
    """Read a release repository, and list what of it can be rolled out."""


@command.command("import")
@click.argument("place", metavar="DIR|URL")
@click.option(
    "--root",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="F",
    help="The repository's first root (1.root.json); needed once, and to trust another repository.",
)
@dir_option
@json_option
def bring_in(*, place: str, root: Path | None, directory: Path | None, as_json: bool) -> None:
    """Read the repository at DIR or URL; the server reads it again every quarter of an hour.

    Everything in it is verified from the root, as a device does. From the first import on this server directs its
    devices: they take from their channel what a rollout gives them, and nothing by themselves.
    """
    from casemate.fleet.rollout import releases

    first = root.read_bytes() if root else None
    found: list[dict[str, Any]] = on_console(
        directory, lambda console: releases.bring_in(console.fleet, releases.Import(place, console.actor, first))
    )
    emit({"releases": found}, as_json=as_json, text=lambda: _table(found))


@command.command("list")
@dir_option
@json_option
def list_releases(*, directory: Path | None, as_json: bool) -> None:
    """List what channels offered, newest first."""
    from casemate.fleet.rollout import releases

    async def work(console: Any) -> list[dict[str, Any]]:
        async with console.fleet.store.read() as connection:
            return await releases.listed(connection, console.fleet.clock.wall())

    found = on_console(directory, work)
    emit({"releases": found}, as_json=as_json, text=lambda: _table(found))


def _table(found: list[dict[str, Any]]) -> str:
    rows = [
        (
            each["id"],
            each["channel"],
            str(each["generation"]),
            " + ".join(f"{one['kind']} {one['name']} {one['version']}" for one in each["members"]),
            "yes" if each["usable"] else f"no: {each['fault']}",
        )
        for each in found
    ]
    return table(rows, ("RELEASE", "CHANNEL", "GENERATION", "WHAT", "CAN BE ROLLED OUT"))
