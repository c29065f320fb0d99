"""The fleet's listeners when the ground under them gives way: no certificates asked for, no disk, no database.

Control: a listener that insists on certificates passes the server's own self-test, and once there is room again the
same request is answered. What strangers and devices send: test_fleet_bad_input.py.
"""

from __future__ import annotations

import asyncio
import resource
import ssl

import pytest

from casemate.clock import SystemClock
from casemate.crypto import client_certificate, x509
from casemate.crypto.ecdsa import EcKey
from casemate.errors import HostError
from casemate.fleet import listeners, pki, selftest
from casemate.fleet.home import FleetHome
from support import databases
from support.fleet import Device, running, until

# --- the self-test ----------------------------------------------------------------------------------------------------


async def answer_everybody(scope, receive, send):
    del scope, receive
    await send({"type": "http.response.start", "status": 401, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def self_test(directory, mode):
    home, clock = FleetHome(directory), SystemClock()
    home.create()
    pki.create(home, "0" * 32, clock)
    ours = pki.load(home, clock)

    async def work():
        sock = listeners.bind("127.0.0.1:0")
        certificate = pki.listener_certificate(home, ("localhost", "127.0.0.1"), clock)
        context = listeners.device_context(*certificate, [x509.to_pem(each) for each in ours.chain()])
        context.verify_mode = mode
        server = listeners.Listener(answer_everybody, sock, context)
        task = asyncio.create_task(server.serve())
        while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.01)
        try:
            await selftest.prove_that_strangers_are_refused(*sock.getsockname(), ours, clock.wall())
        finally:
            server.should_exit = True
            await task

    asyncio.run(work())


def test_a_server_that_asks_nobody_for_a_certificate_refuses_to_start(tmp_path):
    with pytest.raises(HostError, match="without a certificate"):
        self_test(tmp_path / "fleet", ssl.CERT_NONE)


def test_a_server_to_which_a_certificate_is_optional_refuses_to_start(tmp_path):
    with pytest.raises(HostError, match="without a certificate"):
        self_test(tmp_path / "fleet", ssl.CERT_OPTIONAL)


def test_control_the_self_test_passes_when_a_certificate_is_required(tmp_path):
    self_test(tmp_path / "fleet", ssl.CERT_REQUIRED)


def test_without_an_authority_nothing_listens(tmp_path):
    home, clock = FleetHome(tmp_path / "fleet"), SystemClock()
    home.create()
    pki.create(home, "0" * 32, clock)
    certificate = pki.listener_certificate(home, ("localhost",), clock)
    with pytest.raises(HostError, match="refusing to listen"):
        listeners.device_context(*certificate, [])


# --- faults -----------------------------------------------------------------------------------------------------------


def test_a_full_disk_is_an_answer_and_nothing_half_done(tmp_path):
    with running(tmp_path / "fleet") as server:
        device = Device(server, tmp_path, "full-1").enrol()
        token = server.token("full-2")
        pid = server.process.pid
        before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (4096, before[1]))
        refused = server.enrol(token, client_certificate.make_request(EcKey.generate()))
        assert refused.status == 503
        assert "Retry-After" in {name.title() for name in refused.headers}
        assert device.checkin().status == 200  # it is remembered, and written when there is room
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)
        until(lambda: server.enrol(token, client_certificate.make_request(EcKey.generate())).status == 200)
        until(lambda: server.device("full-1")["last_seen"])
        assert server.cli("audit", "verify")["size"] >= 4


def test_a_database_that_is_restarted_in_the_middle_of_a_request_burns_no_token(tmp_path):
    url = databases.new("postgresql", tmp_path)
    with running(tmp_path / "fleet", database=url) as server:
        token = server.token("restart-1")
        server.enrol("x", b"")  # the pool is warm: its connections are what a restart cuts
        with databases.session(url) as sql:
            sql("BEGIN; LOCK TABLE enrolment_token IN ACCESS EXCLUSIVE MODE")

            async def work():
                loop = asyncio.get_running_loop()
                request = client_certificate.make_request(EcKey.generate())
                asked = loop.run_in_executor(None, lambda: server.enrol(token, request).status)
                await loop.run_in_executor(None, databases.wait_for_lock, url)
                await loop.run_in_executor(None, databases.cut_connections, url)
                return await asked

            assert asyncio.run(work()) == 503
            sql("ROLLBACK")
        assert Device(server, tmp_path, "restart-1").enrol(token).checkin().status == 200
