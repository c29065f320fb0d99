"""`casemate fleet rollout`: a generation to a fleet, twenty devices first."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from casemate.cli.fleet import dir_option, on_console
from casemate.cli.output import confirm, emit, json_option, table
from casemate.errors import UsageError

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_STATUS: Final = ("state", "batch", "offered", "good", "failed", "silent", "verdict", "why")


class Duration(click.ParamType[float]):
    """Seconds, as people write them: 90s, 30m, 4h, 2d."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return seconds."""
        found = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]{1,3})?)([smhd])", str(value))
        if not found:
            self.fail(f"{value!r} is no duration like 90s, 30m, 4h or 2d", param, ctx)
        return float(found[1]) * _UNITS[found[2]]


@click.group()
def command() -> None:
    """Roll a generation out: twenty devices, then more, as long as the numbers say that it is good."""


@command.command()
@click.argument("release")
@click.option("--group", metavar="G", help="Devices of this group; left out: every device.")
@click.option("--soak", type=Duration(), metavar="T", help="How long it must run on a device to count as good (4h).")
@click.option("--patience", type=Duration(), metavar="T", help="How much longer a device may be silent (1h).")
@click.option("--install", type=Duration(), metavar="T", help="How long fetching and trying it may take (6h).")
@click.option("--come", type=Duration(), metavar="T", help="How long an offer waits for a device (1d).")
@click.option("--baseline", type=click.FloatRange(0, 0.2, min_open=True), help="Share that fails anyway (0.005).")
@click.option("--first", type=click.IntRange(1), metavar="N", help="Devices of the first batch (20).")
@click.option("--second", type=click.IntRange(1), metavar="N", help="Devices of the second (200).")
@click.option("--shares", metavar="A,B,1", help="Then these shares of the fleet (0.01,0.05,0.2,1).")
@click.option("--control", type=click.FloatRange(0, 0.5), help="Share held back to compare with (0.05).")
@click.option("--window", metavar="HH:MM-HH:MM", help="Maintenance window, UTC.")
@click.option("--bandwidth", type=click.IntRange(0), metavar="B", help="Bytes per second of one site (group).")
@dir_option
@json_option
def create(*, release: str, group: str | None, directory: Path | None, as_json: bool, **given: Any) -> None:
    """Make a draft for RELEASE: its id, or a channel, which stands for what that channel offers now.

    Somebody else approves it; then `start` begins with the first batch.
    """
    from casemate.fleet.rollout import records, terms

    wanted = records.Wanted(release, group, terms.read(_terms(given)))

    async def work(console: Any) -> dict[str, Any]:
        async with console.fleet.store.write() as connection:
            now = console.fleet.clock.wall()
            name = await records.create(connection, console.fleet, wanted, console.actor, now)
            return await records.show(connection, name)

    made = on_console(directory, work)
    text = f"{made['id']} is a draft; `casemate fleet rollout approve {made['id']}` is for somebody else"
    emit(_shown(made) | {"id": made["id"]}, as_json=as_json, text=text)


def _terms(given: dict[str, Any]) -> dict[str, Any]:
    """Return the terms that were given.

    Raises:
        UsageError: a window or shares that cannot be read.

    """
    found = {key: value for key, value in given.items() if value is not None}
    if "window" in found:
        times = re.fullmatch(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)", found["window"])
        if not times:
            raise UsageError(f"{found['window']!r} is no window", hint="like 22:00-04:30, in UTC")
        start, until = (int(times[each]) * 60 + int(times[each + 1]) for each in (1, 3))
        found["window"] = {"start": start, "until": until}
    if "shares" in found:
        try:
            found["shares"] = [float(each) for each in found["shares"].split(",")]
        except ValueError as error:
            raise UsageError(f"{found['shares']!r} are no shares", hint="like 0.01,0.05,0.2,1") from error
    return found


@command.command("list")
@dir_option
@json_option
def list_rollouts(*, directory: Path | None, as_json: bool) -> None:
    """List rollouts, newest first."""
    from casemate.fleet.rollout import records

    async def work(console: Any) -> list[dict[str, Any]]:
        async with console.fleet.store.read() as connection:
            return await records.listed(connection)

    found = on_console(directory, work)
    rows = [
        (
            each["id"],
            each["channel"],
            each["group"] or "everybody",
            each["state"],
            f"{each['good']}/{each['offered']}",
            str(each["failed"] + each["silent"]),
            each["why"],
        )
        for each in found
    ]
    header = ("ROLLOUT", "CHANNEL", "FOR", "STATE", "GOOD", "FAILED", "WHY")
    emit({"rollouts": found}, as_json=as_json, text=lambda: table(rows, header))


@command.command()
@click.argument("rollout")
@dir_option
@json_option
def status(*, rollout: str, directory: Path | None, as_json: bool) -> None:
    """Show how far ROLLOUT is, and why."""
    from casemate.fleet.rollout import records

    async def work(console: Any) -> dict[str, Any]:
        async with console.fleet.store.read() as connection:
            return await records.show(connection, rollout)

    _emit(on_console(directory, work), as_json=as_json)


def _mover(verb: str, text: str) -> Callable[..., None]:
    """Make the command that moves a rollout by *verb*."""

    @click.argument("rollout")
    @click.option("--why", default="", metavar="TEXT", help="For the audit log and the page.")
    @dir_option
    @json_option
    def act(*, rollout: str, why: str, directory: Path | None, as_json: bool) -> None:
        _emit(_move(directory, rollout, verb, why=why), as_json=as_json)

    act.__doc__ = text
    return act


for _verb, _text in (
    ("approve", "Approve ROLLOUT; its author cannot, unless alone and ten minutes later."),
    ("start", "Start ROLLOUT with its first batch."),
    ("pause", "Offer ROLLOUT to nobody for now; who is in the middle of it stops."),
    ("resume", "Go on with ROLLOUT where it stopped."),
):
    command.command(_verb)(_mover(_verb, _text))


@command.command()
@click.argument("rollout")
@click.option("--roll-back", is_flag=True, help="Have devices that took it go back to what they ran before.")
@click.option("--why", default="", metavar="TEXT", help="For the audit log and the page.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@dir_option
@json_option
def abort(*, rollout: str, roll_back: bool, why: str, yes: bool, directory: Path | None, as_json: bool) -> None:
    """End ROLLOUT for good: nobody is offered it any more."""
    if not yes:
        confirm(f"end rollout {rollout} for good{', and have its devices go back' if roll_back else ''}?")
    _emit(_move(directory, rollout, "abort", why=why, roll_back=roll_back), as_json=as_json)


def _move(directory: Path | None, rollout: str, verb: str, *, why: str, roll_back: bool = False) -> dict[str, Any]:
    from casemate.fleet.rollout import records
    from casemate.fleet.rollout.states import Event

    async def work(console: Any) -> dict[str, Any]:
        now = console.fleet.clock.wall()
        wanted = records.Move(Event(verb), console.actor, now, why=why, roll_back=roll_back)
        async with console.fleet.store.write() as connection:
            await records.change(connection, console.fleet, rollout, wanted)
            return await records.show(connection, rollout)

    moved: dict[str, Any] = on_console(directory, work)
    return moved


def _emit(found: dict[str, Any], *, as_json: bool) -> None:
    emit(_shown(found), as_json=as_json, text=lambda: _words(found))


def _shown(found: dict[str, Any]) -> dict[str, Any]:
    return {key: found[key] for key in _STATUS}


def _words(found: dict[str, Any]) -> str:
    batch = f"batch {found['batch'] + 1} of {len(found['sizes'])}: {found['offered']} took it"
    counts = f"{found['good']} are good, {found['pending']} soak, {found['failed']} failed, {found['silent']} silent"
    lines = [f"{found['state']}: {found['why'] or 'nothing has happened yet'}", f"{batch}, {counts}"]
    lines += [f"  {each['asset']}: {each['why']}" for each in found["failures"][:10]]
    return "\n".join(lines)
