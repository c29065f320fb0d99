"""`casemate up`: serve models in the foreground until Ctrl-C."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from casemate.cli.output import progress, say, style

if TYPE_CHECKING:
    from casemate.device.launch import Launchers
    from casemate.device.plan import DevicePlan


@click.command()
@click.option("--model", "models", multiple=True, metavar="NAME|FILE", help="Serve this model (repeatable).")
@click.option("--listen", metavar="HOST:PORT", help="Where the API listens (port 0 picks a free one).")
@click.option("--replay", "replays", multiple=True, metavar="NAME=FILE", hidden=True, help="Serve a recorded stream.")
def command(*, models: tuple[str, ...], listen: str | None, replays: tuple[str, ...]) -> int:
    """Serve models in the foreground.

    The first run makes the home, a keystore, the demo model (when none is named) and the app `default`, whose key is
    printed once. Ctrl-C stops everything within five seconds.
    """
    from casemate import config
    from casemate.cli.passphrase import sources
    from casemate.device import startup
    from casemate.device.home import Home

    settings = config.load({"listen": listen})
    home = Home(config.home_path())
    person = startup.Person(say=say, progress=progress, announce=_announce, sources=sources, show_key=_show_key)
    recorded = {name: _chunks(path) for name, _, path in (text.partition("=") for text in replays)}
    with startup.prepare(home, settings, models or settings["models"], recorded, person) as plan:
        return _run(plan)


def _run(plan: DevicePlan) -> int:
    """Run the agent: here, or as root in a child with a uid of its own."""
    from casemate.device.home import owner_of
    from casemate.device.spawner import serve_as

    owner = owner_of("agent")
    if owner is None:
        return _serve(plan, None)
    alone = dataclasses.replace(plan, unlock={}, notes={**plan.notes, "pid": os.getpid()})
    return serve_as(owner, plan.unlock, lambda launchers: _serve(alone, launchers))


def _serve(plan: DevicePlan, launchers: Launchers | None) -> int:
    import asyncio

    from casemate.cli.output import render_error
    from casemate.device.agent import Agent
    from casemate.errors import CasemateError

    try:
        asyncio.run(Agent(plan, launchers=launchers).run())
    except CasemateError as error:
        render_error(error, as_json=False)
        return error.exit_code
    say("stopped")
    return 0


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
