"""Before a server says that it is ready it attacks its own devices' listener: no certificate, and one of a stranger.

In TLS 1.3 a client has finished its handshake before the server looks at its certificate, so a connection that stands
proves nothing: the test is that no byte of an answer comes back. Last, a certificate of ours must get one: a listener
that refuses everybody passes the first two.

Behind a proxy the handshake is the proxy's word, and cannot be tried from here. What can is what its socket believes: a
header with a stranger's certificate, two headers, none; and that nobody but the proxy's group can write there.
"""

from __future__ import annotations

import asyncio
import ssl
import stat
import tempfile
import uuid
from pathlib import Path
from typing import Final
from urllib.parse import quote

from casemate.crypto import authority, x509
from casemate.crypto.authority import Issuer
from casemate.crypto.ecdsa import EcKey
from casemate.errors import HostError
from casemate.fleet.peer import HEADER
from casemate.fleet.pki import Authority

_SECONDS: Final = 10.0
_REQUEST: Final = b"GET /device/v1/events HTTP/1.1\r\nHost: selftest\r\nConnection: close\r\n\r\n"
_NOBODY: Final = b"a device's certificate is needed"
_UNKNOWN: Final = b"not one of an enrolled device"
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


async def prove_that_a_socket_believes_no_stranger(path: Path, ours: Authority, now: float) -> None:
    """Ask over the unix socket at *path* as a proxy would that was lied to.

    Raises:
        HostError: others may write to the socket, a stranger was believed, or one of ours was not.

    """
    if stat.S_IMODE(path.stat().st_mode) & stat.S_IRWXO:  # noqa: ASYNC240 - once, before anything is served
        raise HostError(f"everybody may write to {path}", hint="it is for the proxy's group alone: mode 0660")
    name, key = str(uuid.uuid4()), EcKey.generate()
    stranger = Issuer(EcKey.generate(), b"")
    stranger = Issuer(stranger.key, authority.make_root(stranger.key, "stranger", now, 1))
    rogue, own = (issuer.device(key.public, name, now, 60.0) for issuer in (stranger, ours.issuer))
    if _UNKNOWN not in await _told(path, own):
        raise HostError("the devices' listener does not know its own devices", hint=_FIX)
    for lie in ((), (rogue,), (own, own), (own, rogue)):
        if _NOBODY not in await _told(path, *lie):
            raise HostError("a header of a stranger was believed", hint=_FIX)


async def _told(path: Path, *certificates: bytes) -> bytes:
    """Return what the listener says to a request with a header for each of *certificates*."""
    headers = b"".join(f"{HEADER}: {quote(x509.to_pem(each))}\r\n".encode() for each in certificates)
    async with asyncio.timeout(_SECONDS):
        reader, writer = await asyncio.open_unix_connection(path)
        try:
            writer.write(_REQUEST[:-2] + headers + b"\r\n")
            await writer.drain()
            answer = await reader.read()
        finally:
            writer.close()
    return answer if answer.startswith(b"HTTP/1.1 401") else b""


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
