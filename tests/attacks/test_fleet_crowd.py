"""A crowd before the fleet's door: everybody at once, somebody who only holds doors, somebody who guesses.

Controls: with the limit lifted, the same guesser is heard every time, and the same holder keeps a device out.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time

import pytest
from bench_scale import Herd

from casemate.crypto import client_certificate
from casemate.crypto.ecdsa import EcKey
from casemate.fleet import acceptor, listeners
from casemate.fleet.acceptor import Acceptor
from support.fleet import Device, running

HOLDERS = 12


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running(tmp_path_factory.mktemp("crowd") / "fleet") as started:
        yield started


def herd(server, tmp_path, count):
    devices = [Device(server, tmp_path, f"herd-{number}").enrol() for number in range(4)]
    crowd = Herd(server, [server.context(device.identity) for device in devices], count)
    asyncio.run(crowd.run())
    assert len(crowd.entered) == count
    assert devices[0].checkin().status == 200


def test_devices_that_return_at_once_are_all_served(server, tmp_path):
    herd(server, tmp_path, 400)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_thousands_that_return_at_once_are_all_served(server, tmp_path):
    herd(server, tmp_path, 5_000)  # each side of a connection is a descriptor, and both are here


def test_who_guesses_tokens_is_heard_no_more_and_others_are(server, tmp_path):
    csr = client_certificate.make_request(EcKey.generate())
    statuses = [server.enrol(server.token("guess")[:-4] + "AAAA", csr).status]
    wrong = server.token("other")[:-4] + "AAAA"
    while statuses[-1] == 401 and len(statuses) < 60:
        answer = server.enrol(wrong, csr)
        statuses.append(answer.status)
    assert statuses[-1] == 429
    assert int(answer.headers["retry-after"]) >= 1
    assert len(statuses) > 15  # devices behind one address, some of them wrong, are not shut out together
    host, port = server.address("enrol")
    other = socket.create_connection((host, port), 10, source_address=("127.0.0.9", 0))
    with server.context().wrap_socket(other, server_hostname="127.0.0.1") as tls:
        tls.sendall(b"GET /.well-known/est/cacerts HTTP/1.1\r\nHost: f\r\n\r\n")
        assert tls.recv(64).startswith(b"HTTP/1.1 200")


class Echo(asyncio.Protocol):
    def connection_made(self, transport):
        transport.write(b"hello")


@contextlib.asynccontextmanager
async def door(context):
    """Give the port of an acceptor that shakes hands."""
    sock = socket.create_server(("127.0.0.1", 0))
    found = Acceptor(sock, context, Echo)
    found.start(64)
    try:
        yield found, sock.getsockname()[1]
    finally:
        found.close()
        await found.wait_closed()


async def greeted(port, context, address):
    """Return how long somebody from *address* waits for a greeting; None when it is not let in."""
    began = time.monotonic()
    try:
        async with asyncio.timeout(3):
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", port, ssl=context, server_hostname="127.0.0.1", local_addr=(address, 0)
            )
            heard = await reader.readexactly(5)
            writer.transport.abort()
    except (OSError, TimeoutError, asyncio.IncompleteReadError):
        return None
    assert heard == b"hello"
    return time.monotonic() - began


@pytest.mark.parametrize("limited", [True, False], ids=["limited", "control: not limited"])
def test_who_holds_the_door_without_a_word_keeps_nobody_out(server, limited, monkeypatch):
    """One address opens connections and says nothing: it may have a few open, the rest of the room stays others'."""
    monkeypatch.setattr(acceptor, "HANDSHAKES", HOLDERS)
    monkeypatch.setattr(acceptor, "PER_ADDRESS", HOLDERS // 2 if limited else 1000)
    monkeypatch.setattr(acceptor, "CROWDED_DEADLINE", 30.0)
    monkeypatch.setattr(acceptor, "DEADLINE", 30.0)
    context = listeners.server_context(server.directory / "tls" / "server.pem", server.directory / "tls" / "server.key")

    async def work():
        async with door(context) as (found, port):
            held = [
                await asyncio.open_connection("127.0.0.1", port, local_addr=("127.0.0.66", 0))
                for _ in range(2 * HOLDERS)
            ]
            await asyncio.sleep(0.2)
            result = await greeted(port, server.context(), "127.0.0.7")
            for _, writer in held:
                writer.transport.abort()
            await asyncio.sleep(0.05)
            return result, found.refused

    waited, refused = asyncio.run(work())
    assert (waited is not None) == limited
    assert (refused > 0) == limited


def test_a_handshake_that_is_never_finished_ends(server, monkeypatch):
    monkeypatch.setattr(acceptor, "DEADLINE", 0.3)
    context = listeners.server_context(server.directory / "tls" / "server.pem", server.directory / "tls" / "server.key")

    async def work():
        async with door(context) as (found, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            async with asyncio.timeout(10):
                assert await reader.read() == b""
            writer.close()
            async with asyncio.timeout(10):
                while found._open:  # noqa: ASYNC110 - its task ends a few turns of the loop after the connection
                    await asyncio.sleep(0.01)

    asyncio.run(work())
