"""`casemate fleet model`: models whose key only proven devices get."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from casemate.cli.fleet import dir_option, on_console
from casemate.cli.output import emit, json_option, say, table


@click.group()
def command() -> None:
    """Gate models: their keys go to devices that proved themselves, and to no other."""


@command.command()
@click.argument("model")
@click.option("--min-assurance", type=click.Choice(["L2", "L3"]), default="L3", show_default=True, help="What it asks.")
@click.option("--lease-hours", type=click.FloatRange(0.02, 720), default=24.0, show_default=True, metavar="H",
              help="How long a device may go on without proving itself again.")  # fmt: skip
@click.option(
    "--licence-until", type=click.DateTime(["%Y-%m-%d"]), metavar="DATE", help="No key from this day on (UTC)."
)
@dir_option
@json_option
def gate(
    *, model: str, min_assurance: str, lease_hours: float, licence_until: Any, directory: Path | None, as_json: bool
) -> None:
    """Make the key of MODEL, or change what it asks for."""
    import datetime as dt

    from casemate.fleet import keybroker, policies
    from casemate.formats import grant

    ends = licence_until.replace(tzinfo=dt.UTC).timestamp() if licence_until else None
    asked = keybroker.Gate(min_assurance, round(lease_hours * 3600), ends)
    key, recipient = on_console(
        directory, lambda console: keybroker.gate_model(console.fleet, model, asked, console.actor)
    )
    lacking = on_console(directory, lambda console: policies.without_model(console.fleet, model))
    if lacking:
        say(f"not yet in the reference policy of: {', '.join(lacking)}; a device that serves it would be warned of")
        say(f"before that: `casemate fleet policy learn DEVICE --model {model}=sha256:DIGEST`, then sign and add it")
    named = grant.show_recipient(recipient)
    result: dict[str, Any] = {"model": model, "key": key, "min_assurance": min_assurance, "lease_s": asked.lease_s}
    result |= {"policies_without": lacking, "recipient": named}
    text = f"{model} asks for {min_assurance}; its key is {key}\nreleases of it name the recipient {named}"
    emit(result, as_json=as_json, text=text)


@command.command("list")
@dir_option
@json_option
def list_models(*, directory: Path | None, as_json: bool) -> None:
    """List gated models and what they ask for."""
    from casemate.fleet import keybroker

    found: list[dict[str, Any]] = on_console(directory, lambda console: keybroker.list_models(console.fleet))
    rows = [
        (each["model"], each["min_assurance"], f"{each['lease_s'] // 60} min", each["key_id"], each["recipient"])
        for each in found
    ]
    emit({"models": found}, as_json=as_json, text=lambda: table(rows, ("MODEL", "ASKS", "LEASE", "KEY", "RECIPIENT")))


@command.command()
@dir_option
@json_option
def grants(*, directory: Path | None, as_json: bool) -> None:
    """List the newest answers of the key broker: grants and refusals, with the reason."""
    from casemate.cli.fleet_device import moment
    from casemate.fleet import keybroker

    found: list[dict[str, Any]] = on_console(directory, lambda console: keybroker.list_grants(console.fleet))
    rows = [
        (moment(each["created"]), each["device_id"], each["model"], "yes" if each["granted"] else "no", each["reason"])
        for each in found
    ]
    emit({"grants": found}, as_json=as_json, text=lambda: table(rows, ("WHEN", "DEVICE", "MODEL", "KEY", "WHY")))
