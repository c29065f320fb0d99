"""`casemate fleet alert`: what needs a person, and who is told."""

from __future__ import annotations

from pathlib import Path

import click

from casemate.cli import fleet_email
from casemate.cli.fleet import dir_option, on_console
from casemate.cli.output import emit, json_option, say, table


@click.group()
def command() -> None:
    """List alerts, and set where they are sent."""


@command.command("list")
@click.option("--all", "everything", is_flag=True, help="Closed ones too.")
@dir_option
@json_option
def list_alerts(*, everything: bool, directory: Path | None, as_json: bool) -> None:
    """List open alerts, newest first."""
    from casemate.cli.fleet_device import moment

    found = on_console(directory, lambda console: console.list_alerts(everything))
    rows = [
        (str(each["id"]), each["kind"], each["asset"], moment(each["opened"]), moment(each["closed"]), each["detail"])
        for each in found
    ]
    header = ("ALERT", "KIND", "ASSET", "OPENED", "CLOSED", "WHAT")
    emit({"alerts": found}, as_json=as_json, text=lambda: table(rows, header))


command.add_command(fleet_email.command)


@command.command()
@click.argument("url")
@dir_option
@json_option
def webhook(*, url: str, directory: Path | None, as_json: bool) -> None:
    """Send alerts to URL ("off": to nobody), signed with a secret that is printed now.

    Every server of the fleet follows at once. The receiver checks the header Casemate-Signature: sha256= and the
    HMAC-SHA-256 of the body in hex.
    """
    secret = on_console(directory, lambda console: console.set_webhook("" if url == "off" else url))
    emit({"webhook": url, "secret": secret}, as_json=as_json, text=secret or "alerts are sent to nobody")
    if secret and not as_json:
        say("this is the receiver's secret; it is shown once")
