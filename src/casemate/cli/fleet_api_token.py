"""`casemate fleet api-token`: what programs show at `/api/v1`."""

from __future__ import annotations

from pathlib import Path

import click

from casemate.cli.fleet import dir_option, on_console
from casemate.cli.output import emit, json_option, say, table

_ROLES = ("viewer", "auditor", "operator", "security-officer", "release-manager", "owner", "ci-publisher")


@click.group()
def command() -> None:
    """Make, list and revoke tokens for the fleet's API. What needs a passkey no token can do."""


@command.command()
@click.argument("name")
@click.option("--role", type=click.Choice(_ROLES), default="viewer", show_default=True, help="What it may do.")
@click.option("--days", type=click.IntRange(1, 366), default=90, show_default=True, help="How long it is good.")
@dir_option
@json_option
def create(*, name: str, role: str, days: int, directory: Path | None, as_json: bool) -> None:
    """Make a token called NAME and print it, once."""
    from casemate.ids import parse_name

    checked = parse_name(name, "token")
    known, token = on_console(directory, lambda console: console.create_api_token(checked, role, days * 86400.0))
    emit({"id": known, "token": token, "role": role}, as_json=as_json, text=token)
    if not as_json:
        say("this is the only time it is shown; send it as `Authorization: Bearer TOKEN`")


@command.command("list")
@dir_option
@json_option
def list_tokens(*, directory: Path | None, as_json: bool) -> None:
    """List API tokens, never their secrets."""
    from casemate.cli.fleet_device import moment

    found = on_console(directory, lambda console: console.list_api_tokens())
    rows = [
        (each["id"], each["name"], each["role"], "revoked" if each["revoked"] else moment(each["expires"]))
        for each in found
    ]
    emit({"tokens": found}, as_json=as_json, text=lambda: table(rows, ("TOKEN", "NAME", "ROLE", "GOOD UNTIL")))


@command.command()
@click.argument("token")
@dir_option
@json_option
def revoke(*, token: str, directory: Path | None, as_json: bool) -> None:
    """End the API token with the id TOKEN, at once."""
    on_console(directory, lambda console: console.revoke_api_token(token))
    emit({"token": token, "revoked": True}, as_json=as_json, text=f"API token {token} is revoked")
