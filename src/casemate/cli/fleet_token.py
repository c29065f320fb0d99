"""`casemate fleet token`: what turns a machine into a device of the fleet, once."""

from __future__ import annotations

from pathlib import Path

import click

from casemate.cli.fleet import dir_option, on_console
from casemate.cli.output import emit, json_option, say, table


@click.group()
def command() -> None:
    """Make, list and revoke one-time enrolment tokens."""


@command.command()
@dir_option
@click.option("--asset", metavar="TAG", help="The asset tag of the device it makes.")
@click.option("--group", default="", metavar="G", help="The group it joins.")
@click.option("--device", metavar="ID", help="Instead: a new certificate for a device whose own has expired.")
@click.option("--hours", type=click.IntRange(1, 24 * 90), default=24, show_default=True, help="How long it is good.")
@click.option("--approve", is_flag=True, help="A person must say yes before the certificate is given.")
@json_option
def create(
    *,
    directory: Path | None,
    asset: str | None,
    group: str,
    device: str | None,
    hours: int,
    approve: bool,
    as_json: bool,
) -> None:
    """Make a token and print it, once. It holds the fingerprint of the fleet's root."""
    from casemate.errors import UsageError
    from casemate.fleet.enrolment import Wanted
    from casemate.ids import parse_name

    if (asset is None) == (device is None):
        raise UsageError("a token is for an --asset or for a --device")
    wanted = Wanted(
        asset=parse_name(asset, "asset") if asset else "",
        group=parse_name(group, "group") if group else "",
        renews=device,
        needs_approval=approve,
        seconds=hours * 3600.0,
    )
    made = on_console(directory, lambda console: console.create_token(wanted))
    emit({"id": made.id, "token": made.token, "expires": round(made.expires)}, as_json=as_json, text=made.token)
    if not as_json:
        say("this is the only time it is shown; it works once")


@command.command("list")
@dir_option
@json_option
def list_tokens(*, directory: Path | None, as_json: bool) -> None:
    """List tokens, never their secrets."""
    from casemate.cli.fleet_device import moment

    found = on_console(directory, lambda console: console.list_tokens())
    rows = [(each["id"], each["asset"], each["group_name"], each["state"], moment(each["expires"])) for each in found]
    emit({"tokens": found}, as_json=as_json, text=lambda: table(rows, ("TOKEN", "ASSET", "GROUP", "STATE", "EXPIRES")))


@command.command()
@click.argument("token")
@dir_option
@json_option
def revoke(*, token: str, directory: Path | None, as_json: bool) -> None:
    """Make the token with the id TOKEN worthless."""
    on_console(directory, lambda console: console.revoke_token(token))
    emit({"token": token, "revoked": True}, as_json=as_json, text=f"token {token} is revoked")
