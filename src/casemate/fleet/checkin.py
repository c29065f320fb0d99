"""What an enrolled device says and fetches: check-in, wake stream, acknowledgements, inventory."""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from casemate.errors import CasemateError
from casemate.fleet import commands, devices, inventory, wake
from casemate.fleet.audit import Act
from casemate.fleet.devices import Change
from casemate.fleet.exchange import DeviceCall, admit, device_route, problem, reply, require_text
from casemate.fleet.peer import Peer
from casemate.fleet.rollout import director
from casemate.fleet.states import Event, State, Use
from casemate.formats import fleet_api
from casemate.formats.envelope import Verb

_INTERVALS: Final = ((10_000, 60.0), (100_000, 300.0))
_SLOWEST: Final = 900.0
_JITTER: Final = 0.1
ATTEST_AHEAD: Final = 300.0
"""Seconds before an attestation result ends in which a device is asked for the next."""


async def checkin(call: DeviceCall) -> Response:
    """Take a check-in; say when to come again and what waits."""
    message = fleet_api.parse(call.body, fleet_api.CheckIn)
    fleet, device, now = call.fleet, call.device, call.now
    fleet.seen.put(device.id, message, now)
    fleet.metrics.checkins.inc()
    waiting: tuple[fleet_api.Delivery, ...] = ()
    if device.commands_waiting:
        async with fleet.store.read() as connection:
            waiting = await commands.waiting(connection, device.id, now)
    wanted = False
    if message.inventory and message.inventory != device.inventory and device.state is not State.WIPING:
        wanted = not await inventory.link(fleet, device.id, message.inventory)
    answer = fleet_api.CheckInAnswer(
        server_time=now,
        next_checkin_s=next_checkin(fleet.device_count),
        commands=waiting,
        inventory_wanted=wanted,
        attest_wanted=device.attests and device.assurance_expires < now + ATTEST_AHEAD,
        pick=await director.deliver(fleet, device, message.pick, now),
    )
    return reply(answer)


def next_checkin(count: int) -> float:
    """Return the seconds until the next check-in of one of *count* devices: longer for more, never the same twice."""
    interval = next((seconds for most, seconds in _INTERVALS if count <= most), _SLOWEST)
    return round(interval * random.uniform(1 - _JITTER, 1 + _JITTER), 1)  # noqa: S311 - jitter, no secret


async def acknowledge(call: DeviceCall) -> Response:
    """Take a device's signed answer to a command; its wipe is believed when it proves it."""
    message = fleet_api.parse(call.body, fleet_api.Acknowledgement)
    name = call.request.path_params["name"]
    require_text(name)
    async with call.fleet.store.write() as connection:
        verified, first = await commands.acknowledge(
            connection,
            name,
            call.device.id,
            certificate=call.peer.certificate,
            raw=message.acknowledgement,
            now=call.now,
        )
        if not first:
            return Response(status_code=204)
        answer = verified.answer
        detail: dict[str, Any] = {"verb": answer.verb, "outcome": answer.outcome, "facts": answer.facts}
        if answer.detail:
            detail["why"] = answer.detail
        act = Act("device", "command.answer", call.device.id, call.device.asset, detail)
        await call.fleet.audit.append(connection, act, call.now)
        if answer.verb == Verb.WIPE and answer.outcome == "done":
            change = Change(Event.WIPED, "device", call.now)
            await devices.apply(connection, call.fleet.audit, call.device.id, change)
    call.fleet.directory.forget(call.device.id)
    call.fleet.metrics.commands.labels(answer.verb, answer.outcome).inc()
    return Response(status_code=204)


async def take_word(call: DeviceCall) -> Response:
    """Take a device's signed word about a generation."""
    message = fleet_api.parse(call.body, fleet_api.GenerationWord)
    await director.hear(call.fleet, call.device, message.word, call.peer.certificate, call.now)
    return Response(status_code=204)


async def report_inventory(call: DeviceCall) -> Response:
    """Take everything a device has installed; equal sets are stored once."""
    message = fleet_api.parse(call.body, fleet_api.Inventory)
    await inventory.store(call.fleet, call.device.id, message)
    return Response(status_code=204)


class WakeStream:
    """`GET /device/v1/events` as plain ASGI: one task and one timer per idle device is what a stream may cost."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Admit, then hold the response open."""
        request = Request(scope, receive)
        fleet = request.app.state.fleet
        try:
            fleet.load.enter(fleet.clock.monotonic())
            try:
                peer, device = await admit(request, Use.CHECK_IN)
            finally:
                fleet.load.leave()
        except CasemateError as error:
            fleet.metrics.refused("devices", error)
            await problem(error)(scope, receive, send)
            return

        async def admitted() -> bool:
            return await _still(request, peer)

        headers = [
            (b"content-type", b"text/event-stream"),
            (b"cache-control", b"no-store"),
            (b"connection", b"close"),  # a stream that ends has ended, and its TLS session with it
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        fleet.metrics.streams.inc()
        stream = fleet.hub.join(device.id)
        watcher = asyncio.create_task(_until_gone(receive, stream))
        try:
            async for part in wake.events(stream, admitted):
                await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            watcher.cancel()
            fleet.hub.leave(stream)
            fleet.metrics.streams.dec()


async def _still(request: Request, peer: Peer) -> bool:
    """Return whether the device behind *peer* may still hold a stream; not being able to tell is a no."""
    try:
        await request.app.state.fleet.directory.admit(peer.serial, Use.CHECK_IN)
    except CasemateError:
        return False
    return True


async def _until_gone(receive: Receive, stream: wake.Stream) -> None:
    with contextlib.suppress(asyncio.CancelledError):
        while (await receive())["type"] != "http.disconnect":
            pass
        stream.end()


ROUTE: Final = device_route("POST", "/device/v1/checkin", Use.CHECK_IN, checkin)
"""What a fleet asks all the time."""
ROUTES: Final[list[Route]] = [
    ROUTE,
    Route("/device/v1/events", WakeStream(), methods=["GET"]),
    device_route("POST", "/device/v1/commands/{name}/ack", Use.CHECK_IN, acknowledge),
    device_route("POST", "/device/v1/inventory", Use.REPORT, report_inventory),
    device_route("POST", "/device/v1/generation", Use.REPORT, take_word),
]
