"""A POST that happens once, however often it is sent (Idempotency-Key, draft-ietf-httpapi-idempotency-key-header).

The key belongs to one token and is good for a day. The first request with it is carried out; the same request again
gets the same answer, another request with it is refused. Only successes are kept: what was refused changed nothing and
may be tried again. An answer may hold a secret (a token that is shown once), so it is kept sealed under the caller's
own token, of which the database has nothing but a digest.
"""

from __future__ import annotations

import contextlib
import hashlib
from typing import Final

import msgspec
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from casemate.crypto import aead, kdf
from casemate.crypto.secret import Secret
from casemate.errors import BusyError, CasemateError, NotAuthorisedError, UsageError
from casemate.fleet.api import tokens
from casemate.fleet.context import Fleet
from casemate.fleet.exchange import problem
from casemate.fleet.store import desk

HEADER: Final = "Idempotency-Key"
REPLAYED: Final = "Idempotency-Replayed"
KEPT: Final = 86400.0
LONGEST: Final = 255
_LABEL: Final = "idempotent-answer"
_ANSWER_LIMIT: Final = 256 * 1024
_SUCCESS: Final = range(200, 300)
IDEMPOTENCY: Final = {
    "name": HEADER,
    "in": "header",
    "required": False,
    "description": "Carry this request out once, and answer its repetitions with the first answer, for a day.",
    "schema": {"type": "string", "minLength": 1, "maxLength": LONGEST, "pattern": "^[ -~]+$"},
}
"""How the API's description says it."""
_request = desk.idempotent_request


class _Answer(msgspec.Struct, frozen=True, array_like=True):
    """What was answered."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes


class Once:
    """Middleware before the API."""

    def __init__(self, app: ASGIApp, fleet: Fleet) -> None:
        """Stand before *app*."""
        self._app = app
        self._fleet = fleet

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or give the answer that its key has."""
        headers = Headers(scope=scope) if scope["type"] == "http" else Headers()
        key = headers.get(HEADER)
        if key is None or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        try:
            answer = await self._answer(scope, receive, headers, key)
        except NotAuthorisedError:
            answer = None  # the API says it better
        except CasemateError as error:
            answer = problem(error)
        await (answer or self._app)(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, headers: Headers, key: str) -> Response:
        if not 0 < len(key) <= LONGEST or not key.isascii() or not key.isprintable():
            raise UsageError(f"an {HEADER} is 1 to {LONGEST} printable characters")
        now = self._fleet.clock.wall()
        async with self._fleet.store.read() as connection:
            await tokens.find(connection, headers.get("authorization", ""), now)
        token = headers["authorization"].partition(" ")[2]
        body = await _read(receive)
        name = _digest(token.encode(), key.encode())
        fingerprint = _digest(scope["method"].encode(), scope["path"].encode(), scope["query_string"], body)
        held = await self._begin(name, fingerprint, now)
        if held is not None:
            return held if isinstance(held, Response) else _response(_open(held, token, name), replayed=True)
        answer: _Answer | None = None
        try:
            answer = await _carry_out(self._app, scope, body)
        finally:  # whatever happened: a request that failed may be tried again
            await self._end(name, answer, token)
        return _response(answer, replayed=False)

    async def _begin(self, name: str, fingerprint: str, now: float) -> Response | bytes | None:
        """Return None when the request is ours to carry out, else the sealed answer or a refusal."""
        row = sa.select(_request.c.fingerprint, _request.c.answer).where(_request.c.id == name)
        values = {"id": name, "fingerprint": fingerprint, "expires": now + KEPT}
        with contextlib.suppress(IntegrityError):  # somebody with the same key was faster: their row is read below
            async with self._fleet.store.write() as connection:
                await connection.execute(sa.delete(_request).where(_request.c.id == name, _request.c.expires <= now))
                if (await connection.execute(row)).first() is None:
                    await connection.execute(sa.insert(_request).values(**values))
                    return None
        async with self._fleet.store.read() as connection:
            found = (await connection.execute(row)).one_or_none()
        if found is not None and found.fingerprint != fingerprint:
            refusal = UsageError(f"this {HEADER} was used for another request", hint="a new request has a new key")
            return _with_status(problem(refusal), 422)
        if found is None or found.answer is None:
            busy = BusyError(
                "a request with this key is being carried out, or was cut off",
                hint="ask again; if it stays so, look whether it was done before you use a new key",
            )
            return _with_status(problem(busy), 409)
        return bytes(found.answer)

    async def _end(self, name: str, answer: _Answer | None, token: str) -> None:
        keep = answer is not None and answer.status in _SUCCESS and len(answer.body) <= _ANSWER_LIMIT
        mine = _request.c.id == name
        async with self._fleet.store.write() as connection:
            if keep and answer is not None:
                sealed = _seal(answer, token, name)
                await connection.execute(sa.update(_request).where(mine).values(answer=sealed))
            else:
                await connection.execute(sa.delete(_request).where(mine))


async def prune(connection: AsyncConnection, now: float) -> None:
    """Forget answers whose day is over."""
    await connection.execute(sa.delete(_request).where(_request.c.expires <= now))


async def _read(receive: Receive) -> bytes:
    parts: list[bytes] = []
    while True:  # bounded by what stands before us
        message = await receive()
        if message["type"] != "http.request":
            raise UsageError("the request ended before its body did")
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


async def _carry_out(app: ASGIApp, scope: Scope, body: bytes) -> _Answer:
    """Have *app* answer, and keep what it says."""
    asked = [{"type": "http.request", "body": body, "more_body": False}]
    status, parts = 500, []
    headers: tuple[tuple[bytes, bytes], ...] = ()

    async def receive() -> Message:
        return asked.pop() if asked else {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        nonlocal status, headers
        if message["type"] == "http.response.start":
            status, headers = message["status"], tuple(tuple(each) for each in message["headers"])
        elif message["type"] == "http.response.body":
            parts.append(message.get("body", b""))

    await app(scope, receive, send)
    return _Answer(status, headers, b"".join(parts))


def _response(answer: _Answer, *, replayed: bool) -> Response:
    response = Response(answer.body, answer.status)
    response.raw_headers = list(answer.headers)
    if replayed:
        response.headers[REPLAYED] = "true"
    return response


def _seal(answer: _Answer, token: str, name: str) -> bytes:
    with Secret(token.encode()) as secret, kdf.derive(secret, _LABEL, name.encode()) as key:
        return aead.wrap(key, Secret(msgspec.msgpack.encode(answer)), name.encode())


def _open(sealed: bytes, token: str, name: str) -> _Answer:
    with Secret(token.encode()) as secret, kdf.derive(secret, _LABEL, name.encode()) as key:
        return msgspec.msgpack.decode(aead.unwrap(key, sealed, name.encode()).reveal(), type=_Answer)


def _with_status(response: Response, status: int) -> Response:
    response.status_code = status
    if "retry-after" in response.headers:
        del response.headers["retry-after"]
    return response


def _digest(*parts: bytes) -> str:
    """Return the SHA-256 of *parts*, each with its length: no part runs into the next."""
    found = hashlib.sha256()
    for part in parts:
        found.update(len(part).to_bytes(8, "big") + part)
    return found.hexdigest()
