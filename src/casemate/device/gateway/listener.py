"""uvicorn on sockets that are already bound, with the deadlines it lacks.

uvicorn bounds an idle connection, not one that sends a header byte a minute, a header without end, or a body that
never ends. `PatientProtocol` does: it is what stands between slow-loris and the event loop.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import socket
import ssl
from collections.abc import Iterator
from typing import Any, Final

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from casemate.device.gateway.exchange import BODY_SECONDS, MAX_BODY

HEAD_SECONDS: Final = 10.0
HEAD_BYTES: Final = 64 * 1024
MESSAGE_SECONDS: Final = BODY_SECONDS + 30.0
MESSAGE_BYTES: Final = 16 * MAX_BODY
"""What is read (and thrown away beyond `MAX_BODY`) so that a client still gets its 413."""
HANDSHAKE_SECONDS: Final = 10.0
KEEP_ALIVE_SECONDS: Final = 30
STALL_SECONDS: Final = 60.0
"""How long a client may leave what was sent to it unread."""
MAX_CONNECTIONS: Final = 256
MAX_PER_ADDRESS: Final = 128
MAX_PIPELINED: Final = 8
"""Requests that may wait behind one that is being answered: nobody sends them ahead but to fill the memory."""


class _TooManyAhead(Exception):  # noqa: N818 - stops the parser; the connection is gone already
    """A client sent more requests than may wait."""


class PatientProtocol(HttpToolsProtocol):
    """HTTP/1.1 with a deadline and a size for the head, and for the whole message, of every request."""

    per_address: collections.Counter[str] = collections.Counter()  # noqa: RUF012 - one table for all connections
    _timer: asyncio.TimerHandle | None = None
    _stall: asyncio.TimerHandle | None = None
    _in_head = True
    _completed = False
    _count = 0
    _counted = ""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Refuse one address that holds too many connections; else begin to wait for a head."""
        super().connection_made(transport)
        address = self.client[0] if self.client else "local"
        if self.per_address[address] >= MAX_PER_ADDRESS:
            transport.abort()
            return
        self._counted = address
        self.per_address[address] += 1
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._stop_timer()
        if self._stall:
            self._stall.cancel()
        if self._counted:
            self.per_address[self._counted] -= 1
            if not self.per_address[self._counted]:
                del self.per_address[self._counted]
            self._counted = ""
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count what came; a head or a message that is too long ends the connection."""
        if self._timer is None and self._in_head:
            self._wait_for_head()  # the first byte after a pause
        self._completed = False
        super().data_received(data)
        if not self._completed:
            self._count += len(data)
        if self._count > (HEAD_BYTES if self._in_head else MESSAGE_BYTES) and not self.transport.is_closing():
            self.transport.abort()

    def on_headers_complete(self) -> None:
        """Begin to wait for the rest of the message; cut off who sends requests ahead without end."""
        if len(self.pipeline) >= MAX_PIPELINED:
            self.transport.abort()
            raise _TooManyAhead
        self._in_head = False
        self._count = 0
        self._restart_timer(MESSAGE_SECONDS)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Stop waiting: from here the time is ours, until the next request's first byte."""
        self._stop_timer()
        self._in_head = self._completed = True
        self._count = 0
        super().on_message_complete()

    def pause_writing(self) -> None:
        """Wait for a client that does not read, but not for ever."""
        self._stall = self.loop.call_later(STALL_SECONDS, self._too_slow)
        super().pause_writing()

    def resume_writing(self) -> None:
        """Go on: it reads again."""
        if self._stall:
            self._stall.cancel()
        super().resume_writing()

    def _wait_for_head(self) -> None:
        self._in_head = True
        self._count = 0
        self._restart_timer(HEAD_SECONDS)

    def _restart_timer(self, seconds: float) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(seconds, self._too_slow)

    def _stop_timer(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        if self.transport and not self.transport.is_closing():
            self.transport.abort()


class Listener(uvicorn.Server):
    """One application on one bound socket; the process, not uvicorn, handles signals."""

    def __init__(self, app: Any, sock: socket.socket, tls: ssl.SSLContext | None = None) -> None:
        """Serve *app* on *sock*, with *tls* when given."""
        config = uvicorn.Config(
            app,
            loop="asyncio",
            http=PatientProtocol,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=1,
            limit_concurrency=MAX_CONNECTIONS,
        )
        super().__init__(config)
        self._sock = sock
        self._tls = tls

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen; unlike uvicorn, with a deadline for the TLS handshake."""
        del sockets

        def protocol() -> PatientProtocol:
            return PatientProtocol(config=self.config, server_state=self.server_state, app_state={})

        loop = asyncio.get_running_loop()
        handshake = HANDSHAKE_SECONDS if self._tls else None
        server = await loop.create_server(protocol, sock=self._sock, ssl=self._tls, ssl_handshake_timeout=handshake)
        self.servers = [server]
        self.started = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield
