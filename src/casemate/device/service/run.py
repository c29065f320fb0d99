"""The agent when its processes are units: same supervisor, other launchers, and it tells the service manager."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from casemate import __version__
from casemate.config import Settings
from casemate.device import generation, startup
from casemate.device.agent import Agent
from casemate.device.attach import LINK_SOCKET
from casemate.device.fleet import orders
from casemate.device.fleet.membership import Member
from casemate.device.home import Home
from casemate.device.plan import DevicePlan, ServedModel
from casemate.device.service.facts import FILE_NAME, SCHEMA, Facts, parse
from casemate.device.units_link import LinkServer, UnitLaunchers
from casemate.errors import NotFoundError
from casemate.formats import ipc

_LIMIT: Final = 24 << 20  # a guard's data may be in it


def run(home: Home, settings: Settings, uids: Mapping[str, int]) -> None:
    """Serve until stopped, with processes that join from *uids*.

    Raises:
        NotFoundError: setup did not run.
        BusyError: a device runs on this home, or the port is taken.
        ConfigError: an address off loopback without TLS.

    """
    startup.require_tls(settings)
    home.open()
    with contextlib.ExitStack() as held:
        held.enter_context(home.lock())
        plan = dataclasses.replace(_plan(home, settings, held), update_uid=uids.get("update"))
        asyncio.run(_serve(plan, uids))


def _plan(home: Home, settings: Settings, held: contextlib.ExitStack) -> DevicePlan:
    member, ordered = orders.standing(home) or (None, None)
    if ordered and ordered.state is orders.State.WIPING:  # no keystore is left to serve with
        return _make(home, settings, held, Facts(SCHEMA, {}, base64.b64decode(ordered.owner), recovery=False), member)
    try:
        with (home.run / FILE_NAME).open("rb") as file:
            facts = parse(file.read(_LIMIT))
    except FileNotFoundError as error:
        raise NotFoundError("the home is not prepared", hint="systemctl restart casemate-setup") from error
    return _make(home, settings, held, facts, member)


def _make(
    home: Home, settings: Settings, held: contextlib.ExitStack, facts: Facts, member: Member | None
) -> DevicePlan:
    return DevicePlan(
        home=home,
        settings=settings,
        models=tuple(
            ServedModel(
                name,
                path,
                container=generation.container(name, Path(path)),
                gate=facts.gates.get(name, ""),
                digest=facts.claims.get(name, ""),
            )
            for name, path in facts.models.items()
        ),
        **startup.open_doors(held, settings),
        owner_public=base64.b64encode(facts.owner_public).decode(),
        unlock={},  # the vault brings its own
        policy=ipc.TakePolicy(facts.policies, facts.guard),
        policies=facts.digests,
        on_trial=facts.on_trial,
        generation=facts.generation,
        notes={"version": __version__, "recovery": facts.recovery, "units": True},
        member=member,
        announce=lambda endpoint: notify(f"STATUS=serving {endpoint}"),
    )


async def _serve(plan: DevicePlan, uids: Mapping[str, int]) -> None:
    server = LinkServer(plan.home.run / LINK_SOCKET, uids, {model.name for model in plan.models})
    server.start()
    notify("READY=1\nSTATUS=waiting for the other units")
    try:
        await Agent(plan, launchers=UnitLaunchers(server, plan.home.fleet)).run()
    finally:
        notify("STOPPING=1")
        server.close()


def notify(state: str) -> None:
    """Tell the service manager, if there is one (sd_notify)."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock, contextlib.suppress(OSError):
        sock.sendto(state.encode(), address)
