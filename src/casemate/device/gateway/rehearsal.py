"""A prompt that a release brought along, asked the way an app asks: schema, limits, guard, engine, guard.

No listener and no key take part: there is no app key that exists for this, so there is none to steal. Everything after
the key is what every request runs through.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import msgspec
from starlette.types import Message

from casemate.device.apps import App
from casemate.device.gateway.chat import chat
from casemate.device.gateway.context import Gateway
from casemate.device.gateway.exchange import Exchange
from casemate.device.gateway.refusals import ApiError
from casemate.formats import ipc
from casemate.formats.policy import AppPolicy
from casemate.ids import AppName

_APP: Final = App(AppName("casemate-update"), "", "", AppPolicy(requests_per_minute=0, canary=False))
_DATA: Final = b"data: "


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta = msgspec.field(default_factory=_Delta)
    finish_reason: str | None = None


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    error: dict[str, Any] | None = None


class _Listener:
    """The client's side of one exchange: says the body, hears the events."""

    def __init__(self, gateway: Gateway, body: bytes) -> None:
        self._gateway = gateway
        self._body: bytes | None = body
        self._began = gateway.clock.monotonic()
        self._pending = b""
        self.text = ""
        self.error = ""
        self.first_token = 0.0

    async def receive(self) -> Message:
        if self._body is None:
            await asyncio.Event().wait()  # this client never leaves
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(self, message: Message) -> None:
        if message["type"] != "http.response.body":
            return
        *whole, self._pending = (self._pending + message.get("body", b"")).split(b"\n\n")
        for event in whole:
            self._hear(event.removeprefix(_DATA))

    def _hear(self, line: bytes) -> None:
        if line == b"[DONE]":
            return
        event = msgspec.json.decode(line, type=_Event)
        if event.error:
            self.error = str(event.error.get("code"))
        for choice in event.choices:
            if choice.delta.content and not self.text:
                self.first_token = self._gateway.clock.monotonic() - self._began
            self.text += choice.delta.content or ""
            if choice.finish_reason == "content_filter":
                self.error = "content_filter"


async def rehearse(gateway: Gateway, wanted: ipc.Rehearse) -> ipc.Rehearsed:
    """Ask what is *wanted* and return how it was answered; never raises for an answer that went wrong."""
    body = {
        "model": wanted.model,
        "messages": [{"role": "user", "content": wanted.prompt}],
        "temperature": 0,
        "seed": 1,
        "max_tokens": wanted.max_tokens,
        "stream": True,
    }
    listener = _Listener(gateway, msgspec.json.encode(body))
    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": []}
    exchange = Exchange(scope, listener.receive, listener.send)
    try:
        async with asyncio.timeout(wanted.seconds):
            await chat(gateway, exchange, _APP)
    except TimeoutError:
        return ipc.Rehearsed(wanted.id, error="deadline_exceeded")
    except ApiError as error:
        return ipc.Rehearsed(wanted.id, error=error.code)
    return ipc.Rehearsed(wanted.id, listener.text, listener.error, round(listener.first_token, 6))
