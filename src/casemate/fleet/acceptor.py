"""Taking connections no faster than their handshakes can be done; the rest waits in the kernel, which costs nothing.

A handshake is twenty times a request. If ten thousand began at once none would end before its deadline, and all would
be begun again. Nobody holds the door either: one address may have only a few handshakes open, and they get less time
when it is crowded.

A handshake that is refused is counted by its reason: the application never hears of it.
"""

from __future__ import annotations

import asyncio
import collections
import logging
import socket
import ssl
from collections.abc import Callable, Mapping
from typing import Final

from casemate.fleet.admission import network_of

HANDSHAKES: Final = 256
"""Open at once."""
PER_ADDRESS: Final = 64
DEADLINE: Final = 10.0
CROWDED_DEADLINE: Final = 4.0
_EXHAUSTED: Final = 1.0
CROWDED: Final = "crowded"
LATE: Final = "handshake-time"
_EXPIRED: Final = 10
"""X509_V_ERR_CERT_HAS_EXPIRED."""
_REASONS: Final[Mapping[str | None, str]] = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "no-certificate",
    "CERTIFICATE_VERIFY_FAILED": "certificate",
}
_log = logging.getLogger("casemate.fleet")


class Acceptor:
    """One listening socket; shaped like `asyncio.Server` where uvicorn looks."""

    def __init__(
        self,
        sock: socket.socket,
        tls: ssl.SSLContext | None,
        protocol: Callable[[], asyncio.Protocol],
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Give each connection on *sock* a *protocol*, after a handshake if *tls*; *tell* hears of refusals."""
        self._sock = sock
        self._tls = tls
        self._protocol = protocol
        self._tell = tell
        self._free = asyncio.Semaphore(HANDSHAKES)
        self._open: collections.Counter[str] = collections.Counter()
        self._shaking: set[asyncio.Task[None]] = set()
        self._taking: asyncio.Task[None] | None = None
        self.refused = 0

    def start(self, backlog: int) -> None:
        """Listen."""
        self._sock.setblocking(False)
        self._sock.listen(backlog)
        self._taking = asyncio.create_task(self._take())

    def close(self) -> None:
        """Stop taking; connections that stand are not touched, handshakes that are not done end."""
        if self._taking:
            self._taking.cancel()
        self._sock.close()
        for each in self._shaking:
            each.cancel()

    async def wait_closed(self) -> None:
        """Wait until nothing of this is left."""
        parts = [*self._shaking, *([self._taking] if self._taking else [])]
        await asyncio.gather(*parts, return_exceptions=True)

    async def _take(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._free.acquire()
            try:
                connection, address = await loop.sock_accept(self._sock)
            except OSError as error:
                self._free.release()
                _log.warning("cannot take connections: %s", error.strerror)  # out of descriptors: some will come free
                await asyncio.sleep(_EXHAUSTED)
                continue
            who = network_of(address[0]) if self._tls and address else ""
            if who and self._open[who] >= PER_ADDRESS:
                self.refused += 1
                self._tell(CROWDED)
                self._free.release()
                connection.close()
                continue
            self._open[who] += 1
            task = asyncio.create_task(self._shake(loop, connection, who))
            self._shaking.add(task)
            task.add_done_callback(self._shaking.discard)

    async def _shake(self, loop: asyncio.AbstractEventLoop, connection: socket.socket, who: str) -> None:
        crowded = len(self._shaking) > HANDSHAKES // 2
        deadline = CROWDED_DEADLINE if crowded else DEADLINE
        try:
            await loop.connect_accepted_socket(
                self._protocol, connection, ssl=self._tls, ssl_handshake_timeout=deadline if self._tls else None
            )
        except ssl.SSLError as error:
            self._tell(reason_of(error))
        except (ConnectionAbortedError, TimeoutError):
            self._tell(LATE)
        except OSError:
            pass  # it left by itself
        finally:
            self._open[who] -= 1
            if not self._open[who]:
                del self._open[who]
            self._free.release()


def reason_of(error: ssl.SSLError) -> str:
    """Return what a failed handshake is counted as; what is not about a certificate is "tls"."""
    if isinstance(error, ssl.SSLCertVerificationError) and error.verify_code == _EXPIRED:
        return "certificate-expired"
    return _REASONS.get(error.reason, "tls")
