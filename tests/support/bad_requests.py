"""Attempts on a fleet's listeners by somebody without a TPM: connections, headers, bodies, requests for certificates.

Each is a function of the scene that says what came back. Each defect stands alone: all else of the attempt is right.
"""

from __future__ import annotations

import base64
import gzip
import json
import socket
import ssl
import time
import uuid
from collections.abc import Callable
from concurrent import futures
from urllib.parse import quote

import sqlalchemy as sa
from cryptography import x509 as lib
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from casemate.crypto import authority, client_certificate, x509
from casemate.crypto.authority import Issuer
from casemate.crypto.ecdsa import EcKey
from casemate.fleet.enrolment import digest
from casemate.fleet.store import tables
from support.bad_input import IGNORED, Said, Scene, said
from support.fleet import Device, checkin, exchange, until

CHECKIN = "/device/v1/checkin"
INVENTORY = "/device/v1/inventory"
BODY = json.dumps(checkin()).encode()
DAY = 86_400.0
YEAR = 365 * DAY
ITEM = b'{"kind":"dpkg","name":"a","version":"1"}'


# --- connections ------------------------------------------------------------------------------------------------------


def greeted(scene: Scene, identity=None, *, listener="devices", newest=None) -> Said:
    """Shake hands and listen: what a server says to a client that it does not let in is a TLS alert."""
    context = scene.server.context(identity)
    if newest:
        context.maximum_version = newest
    try:
        with (
            socket.create_connection(scene.server.address(listener), 10) as raw,
            context.wrap_socket(raw, server_hostname="127.0.0.1") as tls,
        ):
            heard = tls.recv(1)
    except ssl.SSLError as error:
        return Said(0, (error.reason or "").partition("_ALERT_")[2].lower())
    except OSError as error:
        return Said(0, type(error).__name__)
    return Said(200 if heard else 0, "let in")


def no_certificate(scene: Scene) -> Said:
    return greeted(scene)


def of_a_stranger_with_our_names(scene: Scene) -> Said:
    """A CA of the attacker's that calls itself as ours does, and the device as it is called."""
    key, leaf = EcKey.generate(), EcKey.generate()
    root = authority.make_root(key, "Casemate fleet devices 1", time.time(), 10)
    forged = Issuer(key, root).device(leaf.public, scene.honest.id, time.time(), 3600)
    return greeted(scene, scene.identity(forged, leaf))


def expired(scene: Scene) -> Said:
    key = EcKey.generate()
    old = scene.our_issuer().device(key.public, scene.honest.id, time.time() - 30 * DAY, 7 * DAY)
    return greeted(scene, scene.identity(old, key))


def of_the_server_itself(scene: Scene) -> Said:
    """A certificate for a listener is no device's."""
    key = EcKey.generate()
    return greeted(scene, scene.identity(scene.our_issuer().server(key.public, ["localhost"], time.time(), 3600), key))


def over_tls_1_2(scene: Scene) -> Said:
    return greeted(scene, scene.honest.identity, newest=ssl.TLSVersion.TLSv1_2)


def in_clear(scene: Scene) -> Said:
    with socket.create_connection(scene.server.address("devices"), 10) as raw:
        raw.sendall(b"POST /device/v1/checkin HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        try:
            heard = raw.recv(99)
        except ConnectionError:
            heard = b""
    return Said(200, "let in") if b"HTTP/1.1 2" in heard else Said(0)


def no_http(scene: Scene) -> Said:
    raw = socket.create_connection(scene.server.address("enrol"), 10)
    with scene.server.context().wrap_socket(raw, server_hostname="127.0.0.1") as tls:
        tls.sendall(b"\x00\x01\x02 nothing\r\n\r\n")
        return Said(int(tls.recv(99).split()[1]))


def a_header_without_end(scene: Scene) -> Said:
    raw = socket.create_connection(scene.server.address("enrol"), 10)
    with scene.server.context().wrap_socket(raw, server_hostname="127.0.0.1") as tls:
        try:
            tls.sendall(b"GET / HTTP/1.1\r\nX: ")
            for _ in range(200):
                tls.sendall(b"a" * 65536)
            heard = tls.recv(99)
        except OSError:
            heard = b""
    return Said(200, "read it") if heard else Said(0)


# --- certificates that TLS believes -----------------------------------------------------------------------------------


def ask(scene: Scene, identity, headers=None, *, body=BODY, path=CHECKIN, method="POST") -> Said:
    return said(scene.server.ask("devices", method, path, body, headers, identity=identity))


def never_recorded(scene: Scene) -> Said:
    """Signed with our own intermediate, for a device that exists, and in no record of ours."""
    key = EcKey.generate()
    made = scene.our_issuer().device(key.public, scene.honest.id, time.time(), 3600)
    return ask(scene, scene.identity(made, key))


def ended_in_the_records(scene: Scene) -> Said:
    """Its own text says that it holds for days; ours says that it ended."""
    device = scene.device()
    scene.end_certificates(device.id)
    until(lambda: device.checkin().status == 401)
    return ask(scene, device.identity)


def revoked(scene: Scene) -> Said:
    return ask(scene, scene.gone.identity)


def revoked_on_a_kept_line(scene: Scene) -> Said:
    """The handshake and an answer work: without the look-up on every request it would still be one of ours."""
    device = scene.device()
    with scene.server.connection("devices", device.identity) as connection:
        assert exchange(connection, "POST", CHECKIN, BODY).status == 200
        scene.server.cli("device", "revoke", device.asset)
        until(lambda: exchange(connection, "POST", CHECKIN, BODY).status == 401)
        return said(exchange(connection, "POST", CHECKIN, BODY))


def revoked_at_the_wake_stream(scene: Scene) -> Said:
    return ask(scene, scene.gone.identity, path="/device/v1/events", method="GET", body=None)


def revoked_asks_for_its_next_certificate(scene: Scene) -> Said:
    csr = client_certificate.make_request(EcKey.generate())
    return ask(scene, scene.gone.identity, path="/.well-known/est/simplereenroll", body=csr)


# --- headers ----------------------------------------------------------------------------------------------------------

HEADERS = ("X-Casemate-Client-Cert", "X-Client-Cert", "X-SSL-Client-Cert", "X-Forwarded-Client-Cert", "Forwarded")


def header_without_a_certificate(scene: Scene) -> Said:
    """What a proxy would send, sent by the attacker."""
    honest = quote(x509.to_pem(scene.honest.certificate))
    try:
        return ask(scene, None, dict.fromkeys(HEADERS, honest))
    except OSError:
        return Said(0)


def header_beside_a_certificate_of_another(scene: Scene) -> Said:
    return ask(scene, scene.gone.identity, dict.fromkeys(HEADERS, quote(x509.to_pem(scene.honest.certificate))))


def header_at_enrolment(scene: Scene) -> Said:
    """No token, and a header that says who this is."""
    honest = quote(x509.to_pem(scene.honest.certificate))
    csr = client_certificate.make_request(EcKey.generate())
    path = "/.well-known/est/simpleenroll"
    return said(scene.server.ask("enrol", "POST", path, csr, dict.fromkeys(HEADERS, honest)))


def device_path_at_enrolment(scene: Scene) -> Said:
    return said(scene.server.ask("enrol", "POST", CHECKIN, BODY, identity=scene.honest.identity))


# --- bodies -----------------------------------------------------------------------------------------------------------


def oversized(scene: Scene) -> Said:
    return scene.post(CHECKIN, b'{"x":"' + b"a" * (2 << 20) + b'"}')


def oversized_without_saying_so(scene: Scene) -> Said:
    """Chunked: no length to look at."""
    chunks = (b"a" * 65536 for _ in range(64))
    with scene.server.connection("devices", scene.honest.identity) as connection:
        try:
            connection.request("POST", CHECKIN, chunks, encode_chunked=True)
            return Said(connection.getresponse().status)
        except OSError:
            return Said(0)


def nested(scene: Scene) -> Said:
    return scene.post(CHECKIN, b'{"health":' + b"[" * 500_000)


def nested_in_an_unknown_field(scene: Scene) -> Said:
    return scene.post(CHECKIN, b'{"x":' + b"[" * 200_000 + b"]" * 200_000 + b"}")


def nested_evidence(scene: Scene) -> Said:
    return scene.post("/device/v1/attest/evidence", b"[" * 100_000)


def nested_at_enrolment(scene: Scene) -> Said:
    body = b'{"token":' + b'{"a":' * 100_000
    return said(scene.server.ask("enrol", "POST", "/device/v1/enroll/tpm/challenge", body))


def api(scene: Scene, body) -> Said:
    return said(scene.server.ask("people", "POST", "/api/v1/enrolments/tokens", body, scene.api_token))


def oversized_at_the_api(scene: Scene) -> Said:
    return api(scene, b'{"asset":"' + b"a" * (2 << 20) + b'"}')


def oversized_at_the_api_without_saying_so(scene: Scene) -> Said:
    chunks = (b"a" * 65536 for _ in range(64))
    with scene.server.connection("people") as connection:
        try:
            path = "/api/v1/enrolments/tokens"
            connection.request("POST", path, chunks, scene.api_token, encode_chunked=True)
            return Said(connection.getresponse().status)
        except OSError:
            return Said(0)


def nested_at_the_api(scene: Scene) -> Said:
    return api(scene, b'{"asset":' + b"[" * 200_000 + b"]" * 200_000 + b"}")


def nested_at_the_door(scene: Scene) -> Said:
    """Somebody signs in with a passkey's answer that nests."""
    page = scene.server.addresses["people"].replace("127.0.0.1", "localhost")
    origin = {"Origin": page, "Content-Type": "application/json"}
    return said(scene.server.ask("people", "POST", "/sign-in/finish", b'{"answer":' + b"[" * 200_000, origin))


def a_million_packages(scene: Scene) -> Said:
    return scene.post(INVENTORY, b'{"items":[' + b",".join([ITEM] * 1_000_000) + b"]}")


def a_million_packages_packed(scene: Scene) -> Said:
    """Forty megabytes that travel as a few: nothing here unpacks what it is sent."""
    body = gzip.compress(b'{"items":[' + b",".join([ITEM] * 1_000_000) + b"]}", 1)
    return scene.post(INVENTORY, body, headers={"Content-Encoding": "gzip"})


def packages_that_fit_and_are_too_many(scene: Scene) -> Said:
    return scene.post(INVENTORY, b'{"items":[' + b",".join([ITEM] * 20_001) + b"]}")


def an_unknown_field(scene: Scene) -> Said:
    return scene.post(CHECKIN, json.dumps(checkin(assurance="L3")).encode())


# --- tokens -----------------------------------------------------------------------------------------------------------


def enrol(scene: Scene, token: str) -> Said:
    return said(scene.server.enrol(token, client_certificate.make_request(EcKey.generate())))


def token_used(scene: Scene) -> Said:
    token = scene.server.token(scene.name())
    assert enrol(scene, token) == Said(200)
    return enrol(scene, token)


def token_revoked(scene: Scene) -> Said:
    made = scene.server.cli("token", "create", "--asset", scene.name())
    scene.server.cli("token", "revoke", made["id"])
    return enrol(scene, made["token"])


def token_expired(scene: Scene) -> Said:
    token, table = scene.server.token(scene.name()), tables.enrolment_token
    scene.write(sa.update(table).where(table.c.digest == digest(token)).values(expires=1.0))
    return enrol(scene, token)


def token_guessed(scene: Scene) -> Said:
    return enrol(scene, scene.server.token(scene.name())[:-5] + "AAAAA")


def token_at_once(scene: Scene) -> Said:
    """Eight ask at once with one token: one of them is the device."""
    token = scene.server.token(scene.name())
    with futures.ThreadPoolExecutor(8) as pool:
        answers = sorted(pool.map(lambda _: enrol(scene, token), range(8)))
    first, others = answers[0], set(answers[1:])
    assert first == Said(200), answers
    return others.pop() if len(others) == 1 else Said(200, "two devices")


# --- requests for certificates ----------------------------------------------------------------------------------------


def request_of(key) -> bytes:
    """A request that asks for everything: another name, an authority's rights."""
    subject = lib.Name([lib.NameAttribute(lib.NameOID.COMMON_NAME, "EVIL")])
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    builder = lib.CertificateSigningRequestBuilder().subject_name(subject)
    names = [lib.DNSName("admin.example"), lib.UniformResourceIdentifier("urn:uuid:" + str(uuid.UUID(int=1)))]
    builder = builder.add_extension(lib.SubjectAlternativeName(names), critical=False)
    builder = builder.add_extension(lib.BasicConstraints(ca=True, path_length=None), critical=True)
    return builder.sign(key, algorithm).public_bytes(serialization.Encoding.DER)


def foreign_names(scene: Scene) -> Said:
    """Answered, and nothing but the key was read: no name and no right of the request is in the certificate."""
    asset = scene.name()
    answer = scene.server.enrol(scene.server.token(asset), request_of(ec.generate_private_key(ec.SECP256R1())))
    (leaf,) = client_certificate.of_pkcs7(base64.b64decode(answer.body))
    text = lib.load_der_x509_certificate(leaf.der)
    clean = (
        not any(each in leaf.der for each in (b"EVIL", b"admin.example", str(uuid.UUID(int=1)).encode()))
        and leaf.device == scene.server.device(asset)["id"]
        and not text.extensions.get_extension_for_class(lib.BasicConstraints).value.ca
        and text.not_valid_after_utc.timestamp() - time.time() < 7.1 * DAY
    )
    return Said(answer.status, IGNORED if clean else "as asked")


def foreign_at_renewal(scene: Scene) -> Said:
    """A device renews and asks for another's name: it gets its own."""
    device, body = scene.device(), request_of(ec.generate_private_key(ec.SECP256R1()))
    answer = scene.server.ask("devices", "POST", "/.well-known/est/simplereenroll", body, identity=device.identity)
    (leaf,) = client_certificate.of_pkcs7(base64.b64decode(answer.body))
    return Said(answer.status, IGNORED if leaf.device == device.id and b"EVIL" not in leaf.der else "as asked")


def _forged() -> bytes:
    """The key of somebody else under our own signature."""
    data = bytearray(request_of(ec.generate_private_key(ec.SECP256R1())))
    data[-1] ^= 1
    return bytes(data)


WEAK: dict[str, tuple[Callable[[], bytes], str]] = {
    "rsa-1024": (lambda: request_of(rsa.generate_private_key(65537, 1024)), "csr-key"),
    "rsa-2048": (lambda: request_of(rsa.generate_private_key(65537, 2048)), "csr-key"),
    "p-192": (lambda: request_of(ec.generate_private_key(ec.SECP192R1())), "csr-key"),
    "secp256k1": (lambda: request_of(ec.generate_private_key(ec.SECP256K1())), "csr-key"),
    "p-521": (lambda: request_of(ec.generate_private_key(ec.SECP521R1())), "csr-key"),
    "ed25519": (lambda: request_of(ed25519.Ed25519PrivateKey.generate()), "csr-key"),
    "forged": (_forged, "csr-signature"),
    "empty": (lambda: b"", "csr-format"),
    "noise": (lambda: b"0" * 500, "csr-format"),
    "oversized": (lambda: b"\x30" + b"0" * 20_000, "csr-size"),
}


def weak_request(kind: str) -> Callable[[Scene], Said]:
    def attempt(scene: Scene) -> Said:
        """Refused, and the token is as good as before."""
        asset = scene.name()
        token = scene.server.token(asset)
        answer = said(scene.server.enrol(token, WEAK[kind][0]()))
        Device(scene.server, scene.scratch, asset).enrol(token)
        return answer

    return attempt


# --- commands and clocks ----------------------------------------------------------------------------------------------


def ordered(scene: Scene) -> tuple[Device, dict]:
    device = scene.device()
    scene.server.cli("device", "ping", device.asset)
    return device, until(lambda: device.checkin().json().get("commands"))[0]


def answer_by_another_key(scene: Scene) -> Said:
    device, delivery = ordered(scene)
    device.key = EcKey.generate()
    return said(device.answer(delivery))


def answer_for_another_device(scene: Scene) -> Said:
    """One device says that another did as it was told."""
    _, delivery = ordered(scene)
    return said(scene.device().answer(delivery))


def answer_that_changes_its_mind(scene: Scene) -> Said:
    device, delivery = ordered(scene)
    assert device.answer(delivery).status == 204
    return said(device.answer(delivery, outcome="refused"))


def answer_to_nothing(scene: Scene) -> Said:
    return scene.post("/device/v1/commands/0/ack", b'{"acknowledgement":"AAAA"}')


def answer_that_no_database_could_name(scene: Scene) -> Said:
    return scene.post("/device/v1/commands/%00/ack", b'{"acknowledgement":"AAAA"}')


def clock_off(years: float) -> Callable[[Scene], Said]:
    def attempt(scene: Scene) -> Said:
        """What a device says of the time is kept for people and decides nothing; it is told the right one."""
        off = years * YEAR
        device = scene.device()
        answer = device.checkin(clock=time.time() + off)
        until(lambda: abs((scene.server.device(device.asset)["clock_skew"] or 0) - off) < 300)
        right = abs(answer.json()["server_time"] - time.time()) < 300
        return Said(answer.status, IGNORED if right and device.checkin().status == 200 else "believed")

    return attempt


# --- the same without a defect ----------------------------------------------------------------------------------------


def good_checkin(scene: Scene) -> Said:
    return scene.post(CHECKIN, BODY)


def good_inventory(scene: Scene) -> Said:
    return scene.post(INVENTORY, b'{"items":[' + ITEM + b"]}")


def good_enrolment(scene: Scene) -> Said:
    return enrol(scene, scene.server.token(scene.name()))


def good_renewal(scene: Scene) -> Said:
    csr = client_certificate.make_request(EcKey.generate())
    return ask(scene, scene.device().identity, path="/.well-known/est/simplereenroll", body=csr)


def good_answer(scene: Scene) -> Said:
    device, delivery = ordered(scene)
    return said(device.answer(delivery))


def good_api(scene: Scene) -> Said:
    return api(scene, json.dumps({"asset": scene.name()}).encode())


def good_stream(scene: Scene) -> Said:
    with scene.honest.stream() as stream:
        return Said(200) if stream.event() == "hello" else Said(0)
