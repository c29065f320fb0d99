"""`casemate fleet alert email`: by which server, and who is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from casemate.cli.fleet import dir_option, on_console
from casemate.cli.output import emit, json_option


@click.group(
    "email",
    epilog="""\b
Examples:
  casemate fleet alert email server smtp.example.org:587 --from fleet@example.org --user fleet --password-file FILE
  casemate fleet alert email add ops@example.org
  casemate fleet alert email test""",
)
def command() -> None:
    """Tell people of alerts by e-mail. Approvals are told to those who may agree: `casemate fleet admin email`."""


@command.command()
@click.argument("address")
@click.option("--tls", default="starttls", show_default=True, metavar="KIND", help="starttls, tls or none (loopback).")
@click.option("--from", "sender", required=True, metavar="A", help="Whom mail is from.")
@click.option("--user", default="", metavar="U", help="Who we are to the server.")
@click.option("--password-file", type=click.Path(path_type=Path, exists=True), metavar="F", help="The user's password.")
@dir_option
@json_option
def server(
    *, address: str, tls: str, sender: str, user: str, password_file: Path | None, directory: Path | None, as_json: bool
) -> None:
    """Send mail by the server at ADDRESS (HOST:PORT). Every server of the fleet follows at once."""
    from casemate.fleet import mailing

    settings = mailing.parse_server(address, tls, sender, user)
    secret = password_file.read_bytes().strip() if password_file else b""
    on_console(directory, lambda console: mailing.set_server(console.fleet, settings, secret, console.actor))
    emit({"server": address, "tls": tls}, as_json=as_json, text=f"mail goes by {address} ({tls})")


@command.command()
@dir_option
@json_option
def off(*, directory: Path | None, as_json: bool) -> None:
    """Send no mail any more."""
    from casemate.fleet import mailing

    on_console(directory, lambda console: mailing.set_server(console.fleet, None, b"", console.actor))
    emit({"server": None}, as_json=as_json, text="no mail is sent")


@command.command()
@click.argument("address")
@dir_option
@json_option
def add(*, address: str, directory: Path | None, as_json: bool) -> None:
    """Tell ADDRESS of alerts from now on."""
    from casemate.fleet import mailing

    stored = on_console(directory, lambda console: mailing.add(console.fleet, address, console.actor))
    emit({"address": stored}, as_json=as_json, text=f"{stored} is told of alerts")


@command.command()
@click.argument("address")
@dir_option
@json_option
def remove(*, address: str, directory: Path | None, as_json: bool) -> None:
    """Tell ADDRESS no more."""
    from casemate.fleet import mailing

    on_console(directory, lambda console: mailing.remove(console.fleet, address, console.actor))
    emit({"address": address}, as_json=as_json, text=f"{address} is told no more")


@command.command("show")
@dir_option
@json_option
def show(*, directory: Path | None, as_json: bool) -> None:
    """Show the server, who is told, and how much waits."""
    from casemate.fleet import mailing

    found: dict[str, Any] = on_console(directory, lambda console: mailing.describe(console.fleet))
    server = found["server"]
    way = f"{server['host']}:{server['port']} ({server['tls']})" if server else "no mail is sent"
    emit(found, as_json=as_json, text="\n".join([way, *found["recipients"], f"{found['waiting']} waiting"]))


@command.command()
@dir_option
@json_option
def test(*, directory: Path | None, as_json: bool) -> None:
    """Send a message to everybody who is told, now, and say what the server says."""
    from casemate.fleet import mailing

    told = on_console(directory, lambda console: mailing.test(console.fleet))
    emit({"sent": told}, as_json=as_json, text="\n".join(f"sent to {address}" for address in told))
