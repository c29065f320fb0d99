"""`casemate config show`: the settings in force and the layer each came from."""

from __future__ import annotations

import click

from casemate.cli.output import emit, json_option, table


@click.group()
def command() -> None:
    """Show settings and where they come from."""


@command.command()
@click.option("--origin", is_flag=True, help="Show which layer set each value.")
@json_option
def show(*, origin: bool, as_json: bool) -> None:
    """Print every setting."""
    from casemate import config

    settings = config.load()
    rows = [
        {"key": row.key, "value": settings[row.key], "origin": settings.origin[row.key], "variable": row.variable}
        for row in config.SETTINGS
    ]
    shown = [
        (row.key, _plain(settings[row.key]), settings.origin[row.key] if origin else row.help)
        for row in config.SETTINGS
    ]
    emit(
        {"home": str(config.home_path()), "settings": rows},
        as_json=as_json,
        text=lambda: table(shown, ("SETTING", "VALUE", "ORIGIN" if origin else "WHAT IT DOES")),
    )


def _plain(value: object) -> str:
    return ", ".join(value) or "-" if isinstance(value, tuple) else str(value) or "-"
