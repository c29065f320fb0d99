"""`casemate device`: who this device is to those who release for it, and whose orders it obeys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from casemate.cli.output import confirm, emit, json_option, say, style, yes_option


@click.group()
def command() -> None:
    """Show who this device is; join a fleet and leave it."""


@command.group()
def key() -> None:
    """Show the key that releases are granted to."""


@key.command()
@json_option
def show(*, as_json: bool) -> None:
    """Show the recipient for `casemate release grant` (public); makes the keystore of a new device."""
    from casemate import config, keystores
    from casemate.cli.passphrase import sources
    from casemate.device.home import Home
    from casemate.device.transfer import format_owner

    home = Home(config.home_path()).create()
    found = sources(home)
    if not keystores.exists(home.keystore):
        with keystores.create(home, found) as made:
            say(made.story)
    recipient = format_owner(keystores.describe(home, found).owner_public)
    emit({"recipient": recipient}, as_json=as_json, text=recipient)


# --- the fleet --------------------------------------------------------------------------------------------------------


@command.command()
@json_option
@click.argument("url")
@click.option(
    "--token-file",
    required=True,
    type=click.Path(exists=True, dir_okay=True, allow_dash=True),
    help="The one-time token; '-' reads it from standard input.",
)
@click.option(
    "--ca", type=click.Path(exists=True, dir_okay=False), help="The fleet's root, instead of the token's pin."
)
def enrol(*, as_json: bool, url: str, token_file: str, ca: str | None) -> None:
    """Join the fleet whose enrolment listener is at URL.

    The device makes its key itself. The token is sent only to a server that proves itself with the fleet's root. Where
    the setting keystore.tpm names a TPM the device joins with it, and can prove to the fleet what it runs.
    """
    from casemate import config
    from casemate.clock import SystemClock
    from casemate.device.fleet import enrol as joining
    from casemate.device.home import Home
    from casemate.formats.enrolment import parse_token

    with click.open_file(token_file, encoding="utf-8", errors="replace") as file:
        token = parse_token(file.read(4096))
    home = Home(config.home_path())
    root = Path(ca).read_bytes() if ca else None
    member = joining.enrol(home, url, token, root, SystemClock(), tpm=config.load()["keystore.tpm"])
    emit(
        {"enrolled": True, "id": member.device, "fleet": member.fleet},
        as_json=as_json,
        text=f"{style('enrolled', 'good')}  this device is {member.device}\nfleet     {member.fleet} at {member.url}",
    )


@command.command()
@json_option
def status(*, as_json: bool) -> int:
    """Show whose orders this device obeys; exits 11 when it is quarantined or wiped."""
    state = membership_facts()
    emit(state, as_json=as_json, text=lambda: _render(state))
    return 11 if state["state"] in {"quarantined", "wiping", "wiped"} else 0


def membership_facts() -> dict[str, Any]:
    """Return the contract's object, from the home and, when a device runs, from its agent."""
    from casemate import config
    from casemate.device import admin
    from casemate.device.fleet.membership import read_member
    from casemate.device.fleet.orders import OrdersFile, State
    from casemate.device.home import Home
    from casemate.errors import CasemateError

    home = Home(config.home_path())
    member = read_member(home)
    found: dict[str, Any] = {"enrolled": False, "id": None, "fleet": None, "assurance": None, "state": "alone"}
    if member is None:
        return {**found, "quarantined": False}
    held = OrdersFile(home).read()
    try:
        running = admin.ask(home.run, "status")
    except CasemateError:
        running = {}
    return {
        "enrolled": True,
        "id": member.device,
        "fleet": member.fleet,
        "assurance": (running.get("assurance") or {}).get("level"),
        "state": held.state.value,
        "quarantined": held.state is State.QUARANTINED,
        "reason": held.reason,
        "since": held.since,
        "sequence": held.sequence,
        "url": member.url,
        "link": running.get("fleet"),
    }


def _render(state: dict[str, Any]) -> str:
    if not state["enrolled"]:
        return "belongs to no fleet\njoin one with: casemate device enrol URL --token-file F"
    word = style(state["state"], "good" if state["state"] == "serving" else "bad")
    lines = [f"{word}  device {state['id']}", f"fleet      {state['fleet']} at {state['url']}"]
    if state["reason"]:
        lines.append(f"because    {state['reason']}")
    if state["link"]:
        lines.append(f"contact    {state['link'].get('contact') or 'none yet'}")
        if state["link"].get("cut_off"):
            lines.append(f"{style('cut off', 'bad')}    {state['link']['link']}")
    return "\n".join(lines)


@command.command()
@json_option
@yes_option
def leave(*, as_json: bool, yes: bool) -> None:
    """Leave the fleet: destroy this device's identity in it. The fleet keeps its record.

    A device that is quarantined cannot leave: only its fleet releases it.
    """
    from casemate import config
    from casemate.clock import SystemClock
    from casemate.device.fleet import enrol as joining
    from casemate.device.home import Home

    if not yes:
        confirm("leave the fleet?")
    member = joining.leave(Home(config.home_path()), SystemClock())
    emit(
        {"enrolled": False, "id": member.device if member else None},
        as_json=as_json,
        text="this device belongs to no fleet now",
    )
