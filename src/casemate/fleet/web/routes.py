"""Every address of the console: method, path, permission, and the function that answers."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator
from typing import Final

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from casemate.fleet.accounts import sessions
from casemate.fleet.accounts.entry import CALLBACK
from casemate.fleet.accounts.passkeys import RelyingParty
from casemate.fleet.accounts.provider import Provider
from casemate.fleet.accounts.roles import Permission
from casemate.fleet.changes import ChangeReader
from casemate.fleet.commands import Commander
from casemate.fleet.context import Fleet
from casemate.fleet.rollout.records import NEEDS
from casemate.fleet.states import Event
from casemate.fleet.web import (
    bulk,
    devices,
    doors,
    health,
    inventory,
    oidc,
    records,
    render,
    rollouts,
    setup,
    usage,
    welcome,
)
from casemate.fleet.web.visit import COOKIE, EveryAnswer, Handler, Site, Visit, action, door, page

_YEAR: Final = "public, max-age=31536000, immutable"
LIVE_SECONDS: Final = 1.0
_LIVE_END: Final = 600.0
_KEEP_ALIVE: Final = 20


def attach(app: Starlette, fleet: Fleet, commander: Commander, party: RelyingParty) -> None:
    """Give *app* the console."""
    app.state.site = Site(fleet, commander, party, Provider(fleet.clock))
    app.router.routes.extend(routes())
    app.add_middleware(EveryAnswer)


def routes() -> list[BaseRoute]:
    """Return the table."""
    read, enrol, people = Permission.READ, Permission.ENROL, Permission.PEOPLE
    return [
        Route("/static/{name}", _static, methods=["GET"]),
        door("GET", "/sign-in", doors.show_sign_in),
        door("POST", "/sign-in/begin", doors.SIGN_IN.begin),
        door("POST", "/sign-in/finish", doors.SIGN_IN.finish),
        door("GET", "/sign-in/oidc", oidc.begin_sign_in),
        door("GET", CALLBACK, oidc.callback),
        door("POST", "/join/finish", doors.JOIN.finish),
        door("GET", "/join/{token}", doors.show_join),
        door("POST", "/join/{token}/begin", doors.JOIN.begin),
        door("POST", "/sign-out", doors.sign_out),
        page("/prove", read, doors.show_prove),
        page("/prove/oidc", read, oidc.begin_prove),
        action("/prove/begin", read, doors.PROVE.begin),
        action("/prove/finish", read, doors.PROVE.finish),
        page("/", read, devices.overview),
        page("/live", read, _live),
        page("/devices", read, devices.index),
        page("/devices/{device}", read, devices.show),
        action("/devices/{device}/approve", enrol, _change(Event.APPROVE)),
        action("/devices/{device}/quarantine", Permission.QUARANTINE, _change(Event.QUARANTINE)),
        action("/devices/{device}/revoke", Permission.QUARANTINE, _change(Event.REVOKE)),
        action("/devices/{device}/release", Permission.RELEASE, _change(Event.RELEASE)),
        action("/devices/{device}/wipe", Permission.WIPE, devices.ask_wipe),
        action("/approvals/{approval}/agree", Permission.WIPE, devices.agree),
        action("/approvals/{approval}/cancel", Permission.WIPE, devices.cancel),
        page("/inventory", read, inventory.index),
        page("/health", read, health.show),
        page("/releases", read, rollouts.show_releases),
        page("/rollouts", read, rollouts.index),
        page("/rollouts/{rollout}", read, rollouts.show),
        action("/rollouts", Permission.ROLLOUT, rollouts.create),
        *(
            action(f"/rollouts/{{rollout}}/{event}", permission, functools.partial(rollouts.change, event=event))
            for event, permission in NEEDS.items()
        ),
        page("/usage", read, usage.show),
        page("/welcome", read, welcome.show),
        page("/welcome/progress", read, welcome.progress),
        action("/welcome/token", enrol, welcome.make_token),
        page("/settings", read, setup.show),
        page("/bulk", read, bulk.ask),
        action("/bulk", read, bulk.look),
        page("/bulk/{order}", read, bulk.show),
        action("/bulk/{order}/confirm", read, bulk.confirm),
        page("/enrolment", read, records.show_enrolment),
        action("/enrolment/tokens", enrol, records.make_token),
        action("/enrolment/tokens/{token}/revoke", enrol, records.revoke_token),
        page("/policies", read, records.show_policies),
        page("/grants", read, records.show_grants),
        page("/alerts", read, records.show_alerts),
        action("/alerts/{alert:int}/close", Permission.ALERT, records.close_alert),
        page("/audit", Permission.AUDIT, records.show_audit),
        page("/people", read, records.show_people),
        action("/people/invite", people, records.invite),
        action("/people/disable", people, records.disable),
        action("/people/email", people, records.set_email),
        action("/people/tokens", people, records.make_api_token),
        # ending one never waits for a passkey
        action("/people/tokens/{token}/revoke", people, records.end_api_token, proof=False),
        # who has only stolen a session must not make it a passkey of their own
        action("/people/passkey/begin", read, doors.PASSKEY.begin, proof=True),
        action("/people/passkey/finish", read, doors.PASSKEY.finish, proof=True),
    ]


def _change(event: Event) -> Handler:
    return functools.partial(devices.change, event=event)


async def _static(request: Request) -> Response:
    name = request.path_params["name"]
    if name not in render.STATIC:
        return Response("nothing is here\n", 404, media_type="text/plain")
    return Response(render.static_bytes(name), 200, {"Cache-Control": _YEAR}, render.STATIC[name])


async def _live(visit: Visit) -> Response:
    """Tell an open page that something changed; it asks for what it shows by itself."""
    return StreamingResponse(_changes(visit), media_type="text/event-stream")


async def _changes(visit: Visit) -> AsyncIterator[bytes]:
    fleet, cookie = visit.site.fleet, visit.request.cookies.get(COOKIE, "")
    reader = ChangeReader(fleet.store)
    end = asyncio.get_running_loop().time() + _LIVE_END
    quiet = 0
    yield b"retry: 3000\n\n"
    while asyncio.get_running_loop().time() < end:
        now = fleet.clock.wall()
        async with fleet.store.read() as connection:
            if await sessions.find(connection, cookie, now) is None:
                break
        if news := await reader.poll():
            yield b"event: change\ndata: {}\n\n"
            if "" in news:  # of no device: a release or a rollout
                yield b"event: rollout\ndata: {}\n\n"
        elif (quiet := quiet + 1) % _KEEP_ALIVE == 0:
            yield b":\n\n"
        await asyncio.sleep(LIVE_SECONDS)
