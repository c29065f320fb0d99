"""One request and its answer: bounded reading, JSON or event-stream writing, noticing that the client left."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import msgspec
from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope, Send

from casemate.device.gateway import refusals
from casemate.device.gateway.refusals import ApiError

MAX_BODY: Final = 8 * 1024 * 1024
"""Bytes of one request; the engine's frames could carry twice that."""
BODY_IDLE_SECONDS: Final = 10.0
BODY_SECONDS: Final = 60.0
_JSON: Final = b"application/json"


class ClientGone(Exception):  # noqa: N818 - an event, not an error
    """The client closed its connection: nobody waits for an answer."""


class BodyBudget:
    """How many bytes of request bodies the process holds at one time, over all clients."""

    def __init__(self, limit: int = 4 * MAX_BODY) -> None:
        """Allow *limit* bytes."""
        self._left = limit

    def take(self, count: int) -> bool:
        """Reserve *count* bytes, or say that they do not fit."""
        if count > self._left:
            return False
        self._left -= count
        return True

    def give_back(self, count: int) -> None:
        """Return *count* bytes."""
        self._left += count


def host_name(value: str) -> str:
    """Return the name in a Host header: lower case, no port, no brackets, no final dot."""
    name = value.strip().lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.partition(":")[0].removesuffix(".")


class Exchange:
    """The ASGI triple of one request, with the few verbs the endpoints need."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Wrap one HTTP request."""
        self.scope = scope
        self._receive = receive
        self._send = send
        self.request_id = f"req_{secrets.token_hex(12)}"
        self.headers = Headers(scope=scope)
        self.status = 0
        self.streaming = False
        self._finished = False

    @property
    def client(self) -> str:
        """Return the peer's address ("local" for a socket that has none)."""
        peer = self.scope.get("client")
        return str(peer[0]) if peer else "local"

    @property
    def local(self) -> str:
        """Return the address this request came in on ("" for a socket that has none)."""
        own = self.scope.get("server")
        return str(own[0]) if own and own[1] is not None else ""

    @property
    def host(self) -> str | None:
        """Return the name in the Host header; None when there is not exactly one."""
        values = self.headers.getlist("host")
        return host_name(values[0]) if len(values) == 1 else None

    async def body(self, budget: BodyBudget, look: Callable[[bytes], ApiError | None]) -> bytes:
        """Read the whole body.

        *look* may name a better reason than "too large" from the first `MAX_BODY` bytes.

        Raises:
            ApiError: 408 too slow, 413 too large, 429 no room for it now.
            ClientGone: the client left.

        """
        parts: list[bytes] = []
        held = 0
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for part in self._parts():
                    if not budget.take(len(part)):
                        raise refusals.busy(1)
                    held += len(part)
                    parts.append(part)
                    if held > MAX_BODY:
                        large = refusals.too_large(f"a request may have at most {MAX_BODY} bytes")
                        raise look(b"".join(parts)) or large
        except TimeoutError:
            raise refusals.too_slow() from None
        finally:
            budget.give_back(held)
        return b"".join(parts)

    async def _parts(self) -> AsyncIterator[bytes]:
        while True:
            async with asyncio.timeout(BODY_IDLE_SECONDS):
                message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            if part := message.get("body", b""):
                yield part
            if not message.get("more_body", False):
                return

    @contextlib.asynccontextmanager
    async def while_connected(self) -> AsyncIterator[None]:
        """Cancel the block when the client leaves. The body must have been read.

        Raises:
            ClientGone: it left.

        """
        task = asyncio.current_task()
        left = False

        async def watch() -> None:
            nonlocal left
            while (await self._receive())["type"] != "http.disconnect":
                pass
            if task and not self._finished:
                left = True
                task.cancel()

        watcher = asyncio.ensure_future(watch())
        try:
            yield
        except asyncio.CancelledError:
            if left and task and task.uncancel() == 0:
                raise ClientGone from None
            raise
        finally:
            watcher.cancel()

    async def send(self, message: Message) -> None:
        """Pass one ASGI message on, noting the status."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self._send(message)

    async def reply(
        self, body: bytes, *, status: int = 200, kind: bytes = _JSON, headers: dict[str, str] | None = None
    ) -> None:
        """Send a whole answer."""
        lines = [(b"content-type", kind), (b"content-length", b"%d" % len(body))]
        lines += [(name.encode("latin-1"), value.encode("latin-1")) for name, value in (headers or {}).items()]
        await self.send({"type": "http.response.start", "status": status, "headers": lines})
        self._finished = True
        await self.send({"type": "http.response.body", "body": body})

    async def reply_json(self, value: Any) -> None:
        """Send *value* as JSON."""
        await self.reply(msgspec.json.encode(value))

    async def refuse(self, error: ApiError) -> None:
        """Send *error*: as an answer, or as the last event of a stream that has begun."""
        if self.streaming:
            await self.events(error.encode(self.request_id))
            await self.end_stream()
        elif not self.status:
            await self.reply(error.encode(self.request_id), status=error.status, headers=error.headers)

    async def start_stream(self) -> None:
        """Begin an event stream."""
        self.streaming = True
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"x-accel-buffering", b"no")]
        await self.send({"type": "http.response.start", "status": 200, "headers": headers})

    async def events(self, *lines: bytes) -> None:
        """Send events in one write; each of *lines* is one line of data."""
        body = b"".join(b"data: " + line + b"\n\n" for line in lines)
        await self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def end_stream(self) -> None:
        """Send the last byte."""
        self.streaming = False
        self._finished = True
        await self._send({"type": "http.response.body", "body": b""})
