"""`casemate up`: serve models in the foreground until Ctrl-C."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from casemate.cli.output import progress, say, style


@click.command()
@click.option("--model", "models", multiple=True, metavar="NAME|FILE", help="Serve this model (repeatable).")
@click.option("--listen", metavar="HOST:PORT", help="Where the API listens (port 0 picks a free one).")
@click.option("--replay", "replays", multiple=True, metavar="NAME=FILE", hidden=True, help="Serve a recorded stream.")
def command(*, models: tuple[str, ...], listen: str | None, replays: tuple[str, ...]) -> None:
    """Serve models in the foreground.

    The first run makes the home, a keystore, the demo model (when none is named) and the app `default`, whose key is
    printed once. Ctrl-C stops everything within five seconds.
    """
    import asyncio

    from casemate import config
    from casemate.cli.passphrase import sources
    from casemate.device import startup
    from casemate.device.agent import Agent
    from casemate.device.home import Home

    settings = config.load({"listen": listen})
    home = Home(config.home_path())
    person = startup.Person(say=say, progress=progress, announce=_announce, sources=sources, show_key=_show_key)
    recorded = {name: _chunks(path) for name, _, path in (text.partition("=") for text in replays)}
    wanted = models or settings["models"]
    with startup.prepare(home, settings, wanted, recorded, person) as plan:
        asyncio.run(Agent(plan).run())
    say("stopped")


def _announce(endpoint: str) -> None:
    say(f"{style('ready', 'good')}  {endpoint}/v1   chat page: {endpoint}/")


def _show_key(key: str) -> bool:
    import sys

    if not sys.stderr.isatty():
        return False
    say(f"app key of 'default', shown once: {style(key, 'bold')}")
    return True


def _chunks(path: str) -> tuple[str, ...]:
    rows: Any = json.loads(Path(path).read_text(encoding="utf-8"))
    return tuple(str(row) for row in rows)
