"""Before a server says that it is ready it attacks its own devices' listener: no certificate, and one of a stranger.

In TLS 1.3 a client has finished its handshake before the server looks at its certificate, so a connection that stands
proves nothing: the test is that no byte of an answer comes back. Last, a certificate of ours must get one: a listener
that refuses everybody passes the first two.
"""

from __future__ import annotations

import asyncio
import ssl
import tempfile
import uuid
from pathlib import Path
from typing import Final

from casemate.crypto import authority, x509
from casemate.crypto.authority import Issuer
from casemate.crypto.ecdsa import EcKey
from casemate.errors import HostError
from casemate.fleet.pki import Authority

_SECONDS: Final = 10.0
_REQUEST: Final = b"GET /device/v1/events HTTP/1.1\r\nHost: selftest\r\nConnection: close\r\n\r\n"
_FIX: Final = "this build of Python, OpenSSL or uvicorn does not check client certificates: do not use it"


async def prove_that_strangers_are_refused(host: str, port: int, ours: Authority, now: float) -> None:
    """Connect three times.

    Raises:
        HostError: a stranger got an answer, or one of ours did not.

    """
    name, key = str(uuid.uuid4()), EcKey.generate()  # a device nobody has enrolled
    stranger = Issuer(EcKey.generate(), b"")
    stranger = Issuer(stranger.key, authority.make_root(stranger.key, "stranger", now, 1))
    rogue = stranger.device(key.public, name, now, 60.0)
    own = ours.issuer.device(key.public, name, now, 60.0)
    if await _answer(host, port, ours, None):
        raise HostError("a connection without a certificate got an answer", hint=_FIX)
    if await _answer(host, port, ours, (rogue, key)):
        raise HostError("a connection with a stranger's certificate got an answer", hint=_FIX)
    if not (await _answer(host, port, ours, (own, key))).startswith(b"HTTP/1.1 401"):
        raise HostError("the devices' listener does not answer its own devices", hint=_FIX)


async def _answer(host: str, port: int, ours: Authority, identity: tuple[bytes, EcKey] | None) -> bytes:
    """Return the first bytes that come back, empty when the connection is refused at any point."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # we ask whom it lets in, not who it is
    context.load_verify_locations(cadata=x509.to_pem(ours.root))
    if identity:
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "identity.pem"
            path.touch(mode=0o600)
            path.write_bytes(identity[1].pem() + x509.to_pem(identity[0]).encode())
            context.load_cert_chain(path)
    try:
        async with asyncio.timeout(_SECONDS):
            reader, writer = await asyncio.open_connection(host, port, ssl=context, server_hostname=host)
            try:
                writer.write(_REQUEST)
                await writer.drain()
                return await reader.read(1024)
            finally:
                writer.close()
    except (ssl.SSLError, ConnectionError):
        return b""
