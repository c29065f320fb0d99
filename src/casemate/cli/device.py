"""`casemate device`: who this device is to those who release for it."""

from __future__ import annotations

import click

from casemate.cli.output import emit, json_option, say


@click.group()
def command() -> None:
    """Show who this device is."""


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
