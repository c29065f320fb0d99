"""Strangers at the fleet's listeners: every way in that is not a device's own certificate, and how many got through.

Control: the same requests by an enrolled device are answered; a listener that does not insist on a certificate is
caught by the server's own self-test; TLS alone lets a revoked certificate in.
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import json
import resource
import socket
import ssl
import time
import uuid
from urllib.parse import quote

import pytest
from cryptography import x509 as lib
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from casemate.clock import SystemClock
from casemate.crypto import authority, client_certificate, x509
from casemate.crypto.authority import Issuer
from casemate.crypto.ecdsa import EcKey
from casemate.errors import HostError
from casemate.fleet import listeners, pki, selftest
from casemate.fleet.home import FleetHome
from support import databases
from support.fleet import Device, checkin, exchange, running, until

CHECKIN = "/device/v1/checkin"
BODY = json.dumps(checkin()).encode()


@dataclasses.dataclass
class Scene:
    server: object
    device: Device
    scratch: object

    def identity(self, certificate: bytes, key: EcKey):
        path = self.scratch / f"{uuid.uuid4()}.pem"
        path.write_bytes(key.pem() + x509.to_pem(certificate).encode())
        return path

    def ask(self, identity=None, headers=None, body=BODY, path=CHECKIN):
        """Return the status of a check-in, 0 when the connection is refused without an answer."""
        try:
            return self.server.ask("devices", "POST", path, body, headers, identity=identity).status
        except (ssl.SSLError, ConnectionError, OSError):
            return 0

    def our_issuer(self) -> Issuer:
        """Return the intermediate itself, as a thief of nothing but certificates would not have it."""
        return pki.load(FleetHome(self.server.directory), SystemClock()).issuer


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    directory = tmp_path_factory.mktemp("strangers")
    with running(directory / "fleet") as server:
        yield Scene(server, Device(server, directory, "honest").enrol(), directory)


def no_certificate(scene):
    return scene.ask()


def of_a_stranger_with_our_names(scene):
    """A CA of the attacker's that calls itself as ours does, and the device as it is called."""
    key, leaf = EcKey.generate(), EcKey.generate()
    root = authority.make_root(key, "Casemate fleet devices 1", time.time(), 10)
    forged = Issuer(key, root).device(leaf.public, scene.device.id, time.time(), 3600)
    return scene.ask(scene.identity(forged, leaf))


def never_recorded(scene):
    """Signed with our own intermediate, for a device that exists, and in no record of ours."""
    key = EcKey.generate()
    return scene.ask(scene.identity(scene.our_issuer().device(key.public, scene.device.id, time.time(), 3600), key))


def expired(scene):
    key = EcKey.generate()
    old = scene.our_issuer().device(key.public, scene.device.id, time.time() - 30 * 86400, 7 * 86400)
    return scene.ask(scene.identity(old, key))


def of_the_server_itself(scene):
    """A certificate for a listener is no device's."""
    key = EcKey.generate()
    return scene.ask(scene.identity(scene.our_issuer().server(key.public, ["localhost"], time.time(), 3600), key))


def revoked(scene):
    device = Device(scene.server, scene.scratch, "gone").enrol()
    scene.server.cli("device", "revoke", "gone")
    until(lambda: scene.ask(device.identity) != 200, 5)
    return scene.ask(device.identity)


def with_a_header_for_a_certificate(scene):
    """What a proxy would send, sent by the attacker."""
    honest = quote(x509.to_pem(scene.device.certificate))
    names = ("X-Casemate-Client-Cert", "X-Client-Cert", "X-SSL-Client-Cert", "X-Forwarded-Client-Cert")
    return scene.ask(headers=dict.fromkeys(names, honest))


def with_a_header_and_a_certificate_of_another(scene):
    device = Device(scene.server, scene.scratch, "other").enrol()
    scene.server.cli("device", "revoke", "other")
    until(lambda: scene.ask(device.identity) != 200, 5)
    return scene.ask(device.identity, {"X-Casemate-Client-Cert": quote(x509.to_pem(scene.device.certificate))})


def over_tls_1_2(scene):
    context = scene.server.context(scene.device.identity)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    try:
        with socket.create_connection(scene.server.address("devices"), 10) as raw:
            tls = context.wrap_socket(raw, server_hostname="127.0.0.1")
            tls.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            return int(tls.recv(99).split()[1])
    except (ssl.SSLError, OSError):
        return 0


def in_clear(scene):
    with socket.create_connection(scene.server.address("devices"), 10) as raw:
        raw.sendall(b"POST /device/v1/checkin HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        return 200 if b"HTTP/1.1 2" in raw.recv(99) else 0


def oversized(scene):
    return scene.ask(scene.device.identity, body=b'{"x":"' + b"a" * (2 << 20) + b'"}')


def oversized_without_saying_so(scene):
    """Chunked: no length to look at."""
    chunks = (b"a" * 65536 for _ in range(64))
    with scene.server.connection("devices", scene.device.identity) as connection:
        try:
            connection.request("POST", CHECKIN, chunks, encode_chunked=True)
            return connection.getresponse().status
        except OSError:
            return 0


def nested(scene):
    return scene.ask(scene.device.identity, body=b'{"health":' + b"[" * 500_000)


def a_million_packages(scene):
    body = b'{"items":[' + b",".join([b'{"kind":"dpkg","name":"a","version":"1"}'] * 1_000_000) + b"]}"
    return scene.ask(scene.device.identity, path="/device/v1/inventory", body=body)


def an_unknown_field(scene):
    return scene.ask(scene.device.identity, body=json.dumps(checkin(assurance="L3")).encode())


def a_command_of_nobody(scene):
    return scene.ask(scene.device.identity, path="/device/v1/commands/0/ack", body=b'{"acknowledgement":"AAAA"}')


def a_command_that_no_database_could_name(scene):
    return scene.ask(scene.device.identity, path="/device/v1/commands/%00/ack", body=b'{"acknowledgement":"AAAA"}')


ATTACKS = {
    each.__name__: (each, expected)
    for each, expected in (
        (no_certificate, {0}),
        (of_a_stranger_with_our_names, {0}),
        (never_recorded, {401}),
        (expired, {0}),
        (of_the_server_itself, {0, 401}),
        (revoked, {401}),
        (with_a_header_for_a_certificate, {0}),
        (with_a_header_and_a_certificate_of_another, {401}),
        (over_tls_1_2, {0}),
        (in_clear, {0}),
        (oversized, {413}),
        (oversized_without_saying_so, {0, 413}),
        (nested, {400}),
        (a_million_packages, {413}),
        (an_unknown_field, {400}),
        (a_command_of_nobody, {404}),
        (a_command_that_no_database_could_name, {400}),
    )
}


@pytest.mark.parametrize("name", ATTACKS)
def test_nobody_gets_in_who_is_no_device_of_ours(scene, name):
    attack, expected = ATTACKS[name]
    assert attack(scene) in expected


def test_control_the_same_request_of_an_enrolled_device_is_answered(scene):
    assert scene.ask(scene.device.identity) == 200


def test_control_tls_alone_lets_a_revoked_device_in(scene):
    """The handshake and an answer work: without the look-up on every request it would still be one of ours."""
    device = Device(scene.server, scene.scratch, "tls-only").enrol()
    scene.server.cli("device", "revoke", "tls-only")
    until(lambda: scene.ask(device.identity) == 401, 5)
    with scene.server.connection("devices", device.identity) as connection:
        assert exchange(connection, "POST", CHECKIN, BODY).status == 401
        assert connection.sock.version() == "TLSv1.3"


@pytest.mark.parametrize("years", [-2, 2, 30])
def test_a_device_whose_clock_is_years_off_is_answered_and_told_the_time(scene, years):
    """What it says of the time is kept for people and decides nothing: its certificate is judged by our clock."""
    off = years * 365 * 86400
    answer = scene.device.checkin(clock=time.time() + off)
    assert answer.status == 200
    assert abs(answer.json()["server_time"] - time.time()) < 300
    until(lambda: abs((scene.server.device("honest")["clock_skew"] or 0) - off) < 300)


def test_refusals_are_counted(scene):
    line = 'casemate_fleet_refusals_total{listener="devices",reason="not_authorised"}'
    before = scene.server.metric(line)
    never_recorded(scene)
    assert scene.server.metric(line) == before + 1


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


# --- enrolment --------------------------------------------------------------------------------------------------------


def request_of(key, name="EVIL"):
    subject = lib.Name([lib.NameAttribute(lib.NameOID.COMMON_NAME, name)])
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    builder = lib.CertificateSigningRequestBuilder().subject_name(subject)
    names = [lib.DNSName("admin.example"), lib.UniformResourceIdentifier("urn:uuid:" + str(uuid.UUID(int=1)))]
    builder = builder.add_extension(lib.SubjectAlternativeName(names), critical=False)
    builder = builder.add_extension(lib.BasicConstraints(ca=True, path_length=None), critical=True)
    return builder.sign(key, algorithm).public_bytes(serialization.Encoding.DER)


def forged_request():
    """The key of somebody else under our own signature."""
    data = bytearray(request_of(ec.generate_private_key(ec.SECP256R1())))
    data[-1] ^= 1
    return bytes(data)


WEAK = {
    "rsa-1024": lambda: request_of(rsa.generate_private_key(65537, 1024)),
    "rsa-2048": lambda: request_of(rsa.generate_private_key(65537, 2048)),
    "p-192": lambda: request_of(ec.generate_private_key(ec.SECP192R1())),
    "secp256k1": lambda: request_of(ec.generate_private_key(ec.SECP256K1())),
    "p-521": lambda: request_of(ec.generate_private_key(ec.SECP521R1())),
    "ed25519": lambda: request_of(ed25519.Ed25519PrivateKey.generate()),
    "forged": forged_request,
    "empty": lambda: b"",
    "noise": lambda: b"0" * 500,
    "oversized": lambda: b"\x30" + b"0" * 20_000,
}


@pytest.mark.parametrize("kind", WEAK)
def test_a_weak_or_broken_request_gets_no_certificate_and_burns_no_token(scene, kind):
    token = scene.server.token(f"weak-{kind}")
    assert scene.server.enrol(token, WEAK[kind]()).status == 400
    assert Device(scene.server, scene.scratch, f"weak-{kind}").enrol(token).checkin().status == 200


def test_no_name_and_no_right_of_a_request_reaches_its_certificate(scene):
    answer = scene.server.enrol(scene.server.token("evil-1"), request_of(ec.generate_private_key(ec.SECP256R1())))
    (leaf,) = client_certificate.of_pkcs7(base64.b64decode(answer.body))
    text = lib.load_der_x509_certificate(leaf.der)
    assert b"EVIL" not in leaf.der
    assert b"admin.example" not in leaf.der
    assert leaf.device == scene.server.device("evil-1")["id"]
    assert not text.extensions.get_extension_for_class(lib.BasicConstraints).value.ca
    assert text.not_valid_after_utc.timestamp() - time.time() < 7.1 * 86400


def test_a_token_makes_one_device_however_many_ask_at_once(scene):
    token = scene.server.token("race-1")

    async def ask(loop):
        return await loop.run_in_executor(
            None, lambda: scene.server.enrol(token, client_certificate.make_request(EcKey.generate())).status
        )

    async def work():
        loop = asyncio.get_running_loop()
        return await asyncio.gather(*(ask(loop) for _ in range(8)))

    assert sorted(asyncio.run(work())) == [200] + [401] * 7


def test_the_enrolment_listener_serves_no_device_path(scene):
    for path in (CHECKIN, "/device/v1/events", "/.well-known/est/simplereenroll", "/metrics", "/api/v1/devices"):
        assert scene.server.ask("enrol", "POST", path, b"{}", identity=scene.device.identity).status == 404


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


def test_a_header_without_end_is_cut_off(scene):
    raw = socket.create_connection(scene.server.address("enrol"), 10)
    tls = scene.server.context().wrap_socket(raw, server_hostname="127.0.0.1")
    with tls, pytest.raises(OSError):  # noqa: PT012 - somewhere in it the connection is gone
        tls.sendall(b"GET / HTTP/1.1\r\nX: ")
        for _ in range(200):
            tls.sendall(b"a" * 65536)
    assert scene.ask(scene.device.identity) == 200
