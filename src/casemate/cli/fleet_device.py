"""`casemate fleet device`: which devices there are, and what is ordered of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from casemate.cli import fleet_bulk
from casemate.cli.fleet import dir_option, on_console
from casemate.cli.output import confirm, emit, json_option, style, table, yes_option

_COLOURS: Final = {"enrolled": "good", "pending": "warn", "quarantined": "warn"}


@click.group(
    epilog="""\b
Examples:
  casemate fleet device list --state quarantined
  casemate fleet device show till-7
  casemate fleet device quarantine till-7 --reason "seen in another town"
  casemate fleet device quarantine --group shops --dry-run
  casemate fleet device wipe till-7 --yes"""
)
def command() -> None:
    """List and show devices; ask, approve, quarantine, release, revoke and wipe them.

    DEVICE is an id, or the asset tag it carries.
    """


@command.command("list")
@dir_option
@click.option(
    "--state",
    type=click.Choice(["pending", "enrolled", "quarantined", "wiping", "wiped", "revoked", "replaced"]),
    help="Only these.",
)
@click.option("--group", metavar="G", help="Only of this group.")
@click.option("--asset", default="", metavar="PREFIX", help="Only tags that begin so.")
@click.option("--limit", type=click.IntRange(1, 1_000_000), default=1_000_000, help="At most so many.")
@json_option
def list_devices(
    *, directory: Path | None, state: str | None, group: str | None, asset: str, limit: int, as_json: bool
) -> None:
    """List devices in the order of their asset tags."""
    from casemate.fleet.listing import Filter
    from casemate.fleet.states import State

    chosen = Filter(State(state) if state else None, group, asset)
    found = on_console(directory, lambda console: console.list_devices(chosen, limit))
    header = ("ASSET", "STATE", "ASSURANCE", "LAST SEEN", "CERTIFICATE", "ID")
    emit({"devices": found}, as_json=as_json, text=lambda: table([_row(each) for each in found], header))


@command.command()
@click.argument("device")
@dir_option
@json_option
def show(*, device: str, directory: Path | None, as_json: bool) -> None:
    """Show DEVICE, its certificates and commands, and the history of its asset tag."""
    found = on_console(directory, lambda console: console.show_device(device))
    emit({"device": found}, as_json=as_json, text=lambda: _page(found))


def _order(name: str, help_text: str, *, asks: str = "", many: bool = False) -> None:
    """Add the verb *name*; one that *asks* takes --yes, one for *many* takes a filter in place of DEVICE."""

    def order(
        *, device: str | None, directory: Path | None, reason: str, as_json: bool, yes: bool = True, **given: Any
    ) -> None:
        from casemate.fleet.states import Event

        one = _single(device, given)
        if one is None:
            fleet_bulk.order(name, directory, as_json=as_json, reason=reason, **given)
            return
        if not yes:
            confirm(asks.format(device))
        state, known = on_console(directory, lambda console: console.change_device(one, Event(name), reason))
        result = {"id": known, "device": device, "state": str(state)}
        emit(result, as_json=as_json, text=f"{device} is {_coloured(str(state))}")

    options: list[Callable[[Any], Any]] = [
        click.argument("device", required=not many),
        *([fleet_bulk.options] if many else []),
        dir_option,
        click.option("--reason", default="", metavar="TEXT", help="Why; goes into the audit log."),
        json_option,
    ]
    for option in reversed([*options, yes_option] if asks else options):
        order = option(order)
    command.command(name, help=help_text)(order)


def _single(device: str | None, given: dict[str, Any]) -> str | None:
    """Return the one device that is named, None when a filter says which.

    Raises:
        UsageError: both, or neither.

    """
    from casemate.errors import UsageError

    filtered = any(given.get(name) is not None for name in ("group", "state", "asset"))
    if filtered == (device is not None):
        raise UsageError("name one DEVICE, or say which: --group, --state, --asset")
    if not filtered and (given.get("dry_run") or given.get("count") is not None):
        raise UsageError("--dry-run and --count are for orders with --group, --state or --asset")
    return device


_order("approve", "Let DEVICE in that asked with a token that needs a yes, or back in when its certificate has ended.")
_order("revoke", "Shut DEVICE out: its certificates are void within a second, on open connections too.", many=True)
_order("quarantine", "Cut DEVICE off from everything but this fleet, and stop its engine.", many=True)
_order("release", "End the quarantine of DEVICE.", many=True)
_order(
    "wipe",
    "Have DEVICE destroy its keys at its next contact; nothing is granted to it any more.",
    asks="wipe {}? its keys are destroyed for ever",
)


@command.command()
@click.argument("device", required=False)
@click.option("--to-group", required=True, metavar="G", help="Where to.")
@fleet_bulk.options
@dir_option
@json_option
def move(*, device: str | None, to_group: str, directory: Path | None, as_json: bool, **given: Any) -> None:
    """Put DEVICE, or many, into another group."""
    from casemate.ids import parse_name

    group = parse_name(to_group, "group")
    one = _single(device, given)
    if one is None:
        fleet_bulk.order("move", directory, as_json=as_json, to_group=group, **given)
        return
    known = on_console(directory, lambda console: console.move_device(one, group))
    emit({"id": known, "device": device, "group": group}, as_json=as_json, text=f"{device} is in {group}")


def _ask(name: str, help_text: str) -> None:
    """Add the verb *name*, which changes nothing about a device."""

    @command.command(name, help=help_text)
    @click.argument("device")
    @dir_option
    @json_option
    def ask(*, device: str, directory: Path | None, as_json: bool) -> None:
        from casemate.formats.envelope import Verb

        known = on_console(directory, lambda console: console.ask_device(device, Verb(name)))
        emit({"id": known, "device": device, "asked": name}, as_json=as_json, text=f"{device} is asked to {name}")


_ask("ping", "Ask DEVICE for a sign of life: a signed answer.")
_ask("attest", "Ask DEVICE to prove anew what it runs.")


def moment(seconds: float | None) -> str:
    """Return a moment as people read it, UTC."""
    from datetime import UTC, datetime

    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M") if seconds else "-"


def _coloured(state: str) -> str:
    return style(state, _COLOURS.get(state, "bad"))


def _row(device: dict[str, Any]) -> tuple[str, ...]:
    seen, expires = moment(device["last_seen"]), moment(device["certificate_expires"])
    return device["asset"], device["state"], device["assurance"], seen, expires, device["id"]


def _page(device: dict[str, Any]) -> str:
    moments = ("last_seen", "certificate_expires", "created")
    plain = {key: value for key, value in device.items() if not isinstance(value, list) and key != "returns"}
    if asks := device["returns"]:
        said = f"approved by {asks['approved_by']}" if asks["approved"] else "`casemate fleet device approve` lets it"
        plain["asks to come back"] = f"since {moment(asks['asked'])}; {said}"
    shown = {key: moment(value) if key in moments else value for key, value in plain.items()}
    lines = [f"{key.replace('_', ' '):20} {'-' if value in {None, ''} else value}" for key, value in shown.items()]
    history = [f"  {moment(each['time'])}  {each['actor']:12} {each['action']}" for each in reversed(device["history"])]
    return "\n".join([*lines, "history", *history])
