"""`casemate fleet admin`: the people of the fleet, from its server; the way back for an owner without one."""

from __future__ import annotations

from pathlib import Path

import click

from casemate.cli.fleet import dir_option, on_console
from casemate.cli.output import emit, json_option, say, table


@click.group()
def command() -> None:
    """Invite people, and bring back an owner who lost every passkey."""


@command.command()
@click.argument("name")
@dir_option
@click.option(
    "--role", default="owner", show_default=True, help="owner, security-officer, operator, auditor, viewer ..."
)
@click.option("--url", metavar="URL", help="The address people open, if the server does not remember one.")
@json_option
def invite(*, name: str, directory: Path | None, role: str, url: str | None, as_json: bool) -> None:
    """Make a one-time link for NAME. For somebody who is here already it replaces their passkeys."""
    from casemate.errors import UsageError
    from casemate.fleet.accounts.roles import Role

    known = {one.value: one for one in Role}
    if role not in known:
        raise UsageError(f"there is no role {role!r}", hint=f"roles: {', '.join(known)}")
    link = on_console(directory, lambda console: console.invite(name, known[role], url))
    emit({"link": link}, as_json=as_json, text=link)
    if not as_json:
        say("it opens once, for a day; the person makes a passkey there")


@command.command("list")
@dir_option
@json_option
def list_people(*, directory: Path | None, as_json: bool) -> None:
    """List the people and their roles."""
    rows = on_console(directory, lambda console: console.list_people())
    shown = [[row["name"], row["role"], row["state"], row["email"] or "-"] for row in rows]
    emit({"people": rows}, as_json=as_json, text=table(shown, ("name", "role", "state", "e-mail")))


@command.command()
@click.argument("name")
@click.argument("address")
@dir_option
@json_option
def email(*, name: str, address: str, directory: Path | None, as_json: bool) -> None:
    """Note the e-mail ADDRESS of NAME ("none": they have none).

    Approvals that wait for them are told there, and a sign-in provider that verified the address lets them in as NAME.
    """
    given = "" if address == "none" else address
    stored = on_console(directory, lambda console: console.set_email(name, given))
    emit({"name": name, "email": stored}, as_json=as_json, text=f"{name}: {stored or 'no address'}")


@command.command()
@click.argument("name")
@dir_option
@json_option
def disable(*, name: str, directory: Path | None, as_json: bool) -> None:
    """Let NAME in no more: their passkeys, sessions and tokens end at once."""
    on_console(directory, lambda console: console.disable_person(name))
    emit({"disabled": name}, as_json=as_json, text=f"{name} is out")
