"""A small fleet in one process: a real CA, real TLS 1.3 with client certificates, every answer as the test wants it.

What the device must withstand needs a server that lies; `casemate fleet serve` does not. Both speak the same paths.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import datetime as dt
import ipaddress
import os
import ssl
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import uvicorn
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import pkcs7
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from casemate.crypto import client_certificate
from casemate.crypto.ecdsa import EcKey
from casemate.crypto.signing import SigningKey
from casemate.formats import enrolment, envelope
from casemate.formats.envelope import Command
from casemate.formats.tlog import VerifierKey
from support.netns import Network

DER, PEM = serialization.Encoding.DER, serialization.Encoding.PEM
_PKCS8 = (PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


class Authority:
    """Root, intermediate, and whatever they issue."""

    def __init__(self, name: str = "fleet") -> None:
        self.root_key, self.key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
        self.root = self._issue(name, self.root_key, None, self.root_key, ca=True)
        self.issuer = self._issue(f"{name} online", self.key, self.root, self.root_key, ca=True)

    def _issue(self, name, key, parent, parent_key, *, ca=False, sans=(), usage=None, days=(-1, 30)):
        now = dt.datetime.now(dt.UTC)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        public = key.public_key() if hasattr(key, "public_key") else key
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(parent.subject if parent else subject)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + dt.timedelta(days=days[0]))
            .not_valid_after(now + dt.timedelta(days=days[1]))
            .add_extension(x509.BasicConstraints(ca, None), critical=True)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(parent_key.public_key()), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        )
        if sans:
            builder = builder.add_extension(x509.SubjectAlternativeName(list(sans)), critical=False)
        if usage:
            builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        return builder.sign(parent_key, hashes.SHA256())

    def server(self, directory: Path, *, days=(-1, 30), hosts=("127.0.0.1",)) -> tuple[Path, Path]:
        """Write a server's chain and key, return both paths."""
        key = ec.generate_private_key(ec.SECP256R1())
        sans = [x509.IPAddress(ipaddress.ip_address(host)) for host in hosts]
        usage = ExtendedKeyUsageOID.SERVER_AUTH
        leaf = self._issue("server", key, self.issuer, self.key, sans=sans, usage=usage, days=days)
        stem = directory / f"server-{os.urandom(4).hex()}"
        chain, secret = stem.with_suffix(".crt"), stem.with_suffix(".key")
        chain.write_bytes(leaf.public_bytes(PEM) + self.issuer.public_bytes(PEM))
        secret.write_bytes(key.private_bytes(*_PKCS8))
        return chain, secret

    def device(self, public, device: str):
        sans = [x509.UniformResourceIdentifier(f"urn:uuid:{device}")]
        usage = ExtendedKeyUsageOID.CLIENT_AUTH
        return self._issue(device, public, self.issuer, self.key, sans=sans, usage=usage, days=(-1, 7))

    @property
    def root_der(self) -> bytes:
        return self.root.public_bytes(DER)


class Listener:
    """One uvicorn over TLS 1.3 in a thread, on a free port of *host*."""

    def __init__(
        self, app: Any, pair: tuple[Path, Path], clients: bytes | None, host: str, net: Network | None = None
    ) -> None:
        self._net = net

        def context(config: Any, default: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
            made = default()
            made.minimum_version = ssl.TLSVersion.TLSv1_3
            if clients:
                made.load_verify_locations(cadata=clients)
                made.verify_mode = ssl.CERT_REQUIRED
            return made

        config = uvicorn.Config(
            app,
            host=host,
            port=0,
            ssl_certfile=str(pair[0]),
            ssl_keyfile=str(pair[1]),
            ssl_context_factory=context,
            log_level="error",
            lifespan="off",
            timeout_graceful_shutdown=1,
        )
        self.server = uvicorn.Server(config)
        self.loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        while not self.server.started:
            assert self._thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        self.port = self.server.servers[0].sockets[0].getsockname()[1]

    def _run(self) -> None:
        if self._net:
            self._net.move_thread()

        async def serve() -> None:
            self.loop = asyncio.get_running_loop()
            await self.server.serve()

        asyncio.run(serve())

    def stop(self) -> None:
        self.server.should_exit = True
        self.server.force_exit = True
        self._thread.join(10)


class FleetServer:
    """Enrolment and devices' listeners; what devices said is in lists, what they are told is what the test queued."""

    def __init__(
        self,
        directory: Path,
        *,
        host: str = "127.0.0.1",
        authority: Authority | None = None,
        net: Network | None = None,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.authority = authority or Authority()
        self.fleet = os.urandom(16).hex()
        self.commander = SigningKey.generate()
        self.witness = VerifierKey("fleet-witness", SigningKey.generate().public)
        self.token = enrolment.make_token(os.urandom(32), self.authority.root_der)
        self.tokens = {self.token}
        self.checkins: list[dict[str, Any]] = []
        self.answers: list[tuple[str, bytes]] = []
        self.posts: list[tuple[str, bytes]] = []
        self.replies: dict[str, tuple[int, bytes]] = {}
        self.waiting: dict[str, bytes] = {}
        self.certificates: dict[str, x509.Certificate] = {}
        self.interval = 60.0
        self.clock: Callable[[], float] = time.time
        self.acknowledge = True
        self._wakes: set[asyncio.Queue[None]] = set()
        self._sequence = 0
        pair = self.authority.server(directory, hosts=(host,))
        enrol = [
            Route("/.well-known/est/cacerts", self._cacerts),
            Route("/.well-known/est/simpleenroll", self._enroll, methods=["POST"]),
            Route("/device/v1/enroll/bundle", self._bundle),
        ]
        devices = [
            Route("/.well-known/est/cacerts", self._cacerts),
            Route("/.well-known/est/simplereenroll", self._reenroll, methods=["POST"]),
            Route("/device/v1/checkin", self._checkin, methods=["POST"]),
            Route("/device/v1/events", self._events),
            Route("/device/v1/commands/{id}/ack", self._ack, methods=["POST"]),
            Route("/device/v1/{rest:path}", self._post, methods=["POST"]),
        ]
        trusted = self.authority.root_der + self.authority.issuer.public_bytes(DER)
        self.devices = Listener(Starlette(routes=devices), pair, trusted, host, net)
        self.enrol = Listener(Starlette(routes=enrol), pair, None, host, net)
        self.devices_url = f"https://{host}:{self.devices.port}"
        self.enrol_url = f"https://{host}:{self.enrol.port}"

    # -- what a test does

    def command(self, device: str, verb: str, **changes: Any) -> bytes:
        """Sign the next command for *device*."""
        self._sequence += 1
        now = int(self.clock())
        good = Command(1, self.fleet, device, self._sequence, verb, now, now + 3600, "test")
        return envelope.sign_command(msgspec.structs.replace(good, **changes), self.commander)

    def send(self, raw: bytes, name: str | None = None) -> str:
        """Queue an envelope and wake every device; return the name it is answered under."""
        name = name or uuid.uuid4().hex
        self.waiting[name] = raw
        self.wake()
        return name

    def order(self, device: str, verb: str, within: float = 15.0) -> envelope.Answer:
        """Send a command and return the device's proven answer."""
        raw = self.command(device, verb)
        name = self.send(raw)
        deadline = time.monotonic() + within
        while time.monotonic() < deadline:
            for answered, body in list(self.answers):
                if answered == name:
                    return self.proven(device, raw, body)
            time.sleep(0.01)
        raise AssertionError(f"no answer to {verb}")

    def proven(self, device: str, raw: bytes, body: bytes) -> envelope.Answer:
        public = client_certificate.read(self.certificates[device].public_bytes(DER)).public
        return envelope.verify_answer(body, public=public, device=device, command=raw).answer

    def wake(self) -> None:
        for queue in list(self._wakes):
            assert self.devices.loop
            self.devices.loop.call_soon_threadsafe(queue.put_nowait, None)

    def wait(self, what: Callable[[], Any], within: float = 15.0) -> Any:
        deadline = time.monotonic() + within
        while not (found := what()):
            assert time.monotonic() < deadline, "it did not happen"
            time.sleep(0.01)
        return found

    @property
    def listening(self) -> int:
        return len(self._wakes)

    def stop(self) -> None:
        self.devices.stop()
        self.enrol.stop()

    # -- what devices ask

    def _pkcs7(self, *certificates: x509.Certificate) -> Response:
        body = base64.b64encode(pkcs7.serialize_certificates(list(certificates), DER))
        return Response(body, media_type="application/pkcs7-mime")

    async def _cacerts(self, request: Request) -> Response:
        return self._pkcs7(self.authority.issuer, self.authority.root)

    async def _enroll(self, request: Request) -> Response:
        scheme, _, text = request.headers.get("authorization", "").partition(" ")
        token = base64.b64decode(text).decode().partition(":")[2]
        if scheme != "Basic" or token not in self.tokens:
            return Response(status_code=401)
        self.tokens.discard(token)
        return await self._issue(request, str(uuid.uuid4()))

    async def _reenroll(self, request: Request) -> Response:
        return await self._issue(request, next(iter(self.certificates)))

    async def _issue(self, request: Request, device: str) -> Response:
        asked = x509.load_der_x509_csr(base64.b64decode(await request.body()))
        assert asked.is_signature_valid
        self.certificates[device] = self.authority.device(asked.public_key(), device)
        return self._pkcs7(self.certificates[device])

    async def _bundle(self, request: Request) -> Response:
        charter = enrolment.Charter(1, self.fleet, self.commander.public, str(self.witness), int(self.clock()))
        signed = enrolment.sign_charter(charter, EcKey(self.authority.root_key))
        return Response(enrolment.encode_bundle(enrolment.Bundle(1, signed, self.devices_url)))

    async def _checkin(self, request: Request) -> Response:
        self.checkins.append(msgspec.json.decode(await request.body()))
        commands = [{"id": name, "envelope": raw} for name, raw in self.waiting.items()]
        answer = {"server_time": self.clock(), "next_checkin_s": self.interval, "commands": commands}
        return Response(msgspec.json.encode(answer))

    async def _events(self, request: Request) -> Response:
        queue: asyncio.Queue[None] = asyncio.Queue()
        self._wakes.add(queue)

        async def stream():
            try:
                yield b": hello\n\n"
                while True:
                    await queue.get()
                    yield b"event: wake\ndata: {}\n\n"
            finally:
                self._wakes.discard(queue)

        return StreamingResponse(stream(), media_type="text/event-stream")

    async def _ack(self, request: Request) -> Response:
        if not self.acknowledge:
            return Response(status_code=503)
        body = msgspec.json.decode(await request.body())
        name = request.path_params["id"]
        self.answers.append((name, base64.b64decode(body["acknowledgement"])))
        self.waiting.pop(name, None)
        return Response(status_code=204)

    async def _post(self, request: Request) -> Response:
        path = request.path_params["rest"]
        self.posts.append((path, await request.body()))
        status, body = self.replies.get(path, (404, b""))
        return Response(body, status_code=status)


@contextlib.contextmanager
def serving(directory: Path, **options: Any) -> Iterator[FleetServer]:
    server = FleetServer(directory, **options)
    try:
        yield server
    finally:
        server.stop()
