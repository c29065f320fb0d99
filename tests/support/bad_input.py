"""Where bad input is tried: a server, devices it knows, software TPMs, and what came back in one shape."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import io
import itertools
import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import sqlalchemy as sa

from casemate.cli.main import run
from casemate.clock import SystemClock
from casemate.crypto import x509
from casemate.crypto.authority import Issuer
from casemate.crypto.ecdsa import EcKey
from casemate.fleet import pki
from casemate.fleet.home import FleetHome
from casemate.fleet.store import Store, tables
from support.fleet import Answer, Device, Server, until
from support.swtpm import SoftwareTpm
from support.tpm_device import TpmDevice

IGNORED = "ignored"
"""The word for a defect that was taken note of and had no effect."""


class Said(NamedTuple):
    """What came back. `status` 0: no HTTP answer; `word`: the check that failed, the kind of problem, the TLS alert."""

    status: int
    word: str = ""

    @property
    def accepted(self) -> bool:
        return 200 <= self.status < 300 and self.word != IGNORED


def said(answer: Answer) -> Said:
    if answer.headers.get("content-type") != "application/problem+json":
        return Said(answer.status)
    body = answer.json()
    assert body["title"], body
    return Said(answer.status, body.get("check") or body["type"].rpartition(":")[2])


class Scene:
    """One server and whoever comes to it. Each row has an address of its own: none is refused for another's guesses."""

    def __init__(self, server: Server, scratch: Path, chips: tuple[SoftwareTpm, SoftwareTpm]) -> None:
        self.server = server
        self.scratch = scratch
        self.chips = chips
        self.results: dict[str, Said] = {}
        self._names = itertools.count()
        self._addresses = itertools.count(1)
        self.honest = self.device()

    # --- names, addresses, devices ---

    def name(self) -> str:
        return f"unit-{next(self._names)}"

    def from_elsewhere(self) -> None:
        number = next(self._addresses)
        self.server.source = f"127.0.{1 + number // 250}.{1 + number % 250}"

    def device(self) -> Device:
        return Device(self.server, self.scratch, self.name()).enrol()

    @functools.cached_property
    def gone(self) -> Device:
        """A device that was revoked, and is known to be."""
        device = self.device()
        self.server.cli("device", "revoke", device.asset)
        until(lambda: device.checkin().status == 401)
        return device

    def identity(self, certificate: bytes, key: EcKey) -> Path:
        path = self.scratch / f"{uuid.uuid4()}.pem"
        path.write_bytes(key.pem() + x509.to_pem(certificate).encode())
        return path

    def our_issuer(self) -> Issuer:
        """Return the intermediate itself, as a thief of nothing but certificates would not have it."""
        return pki.load(FleetHome(self.server.directory), SystemClock()).issuer

    def write(self, statement: Any) -> None:
        """Change the records behind the server's back: what only time would do."""

        async def work() -> None:
            store = Store(FleetHome(self.server.directory).settings().database)
            async with store.write() as connection:
                await connection.execute(statement)
            await store.close()

        asyncio.run(work())

    def end_certificates(self, device: str) -> None:
        cert = tables.device_cert
        self.write(sa.update(cert).where(cert.c.device_id == device).values(not_after=1.0))

    # --- what is asked ---

    def post(self, path: str, body: bytes, *, by: Device | None = None, headers: dict[str, str] | None = None) -> Said:
        """Ask the devices' listener."""
        identity = (by or self.honest).identity
        return said(self.server.ask("devices", "POST", path, body, headers, identity=identity))

    @functools.cached_property
    def api_token(self) -> dict[str, str]:
        made = self.server.cli("api-token", "create", "matrix", "--role", "owner")["token"]
        return {"Authorization": f"Bearer {made}", "Content-Type": "application/json"}

    # --- TPMs ---

    @functools.cached_property
    def proven(self) -> TpmDevice:
        """A device that joined with its TPM, judged by a policy that was learned from it."""
        author = self.scratch / "author"
        self.server.cli("policy", "trust", offline("policy", "author", author)["public"])
        maker = self.scratch / "issuer.pem"
        maker.write_bytes(self.chips[0].maker)
        self.server.cli("tpm", "maker", str(maker), "--software")
        device = self._with_chip(0).boot()
        device.join(self.server.token(device.asset, "--group", "proven"))
        assert device.attest()["status"] == "none"
        assert self.new_policy(device) == Said(200)
        return device

    def stranger(self) -> TpmDevice:
        """Return somebody with a TPM that the fleet does not know: what it knew of it is taken out of its records."""
        identity, proven = tables.tpm_identity, self.proven.id
        self.write(sa.delete(identity).where(identity.c.device_id != proven))
        return self._with_chip(1)

    def _with_chip(self, number: int) -> TpmDevice:
        name = self.name()
        return TpmDevice(self.server, self.scratch / name, name, self.chips[number])

    def signed_policy(self, device: TpmDevice, author: str = "author") -> Path:
        """Learn a policy from what *device* proved last, and sign it."""
        proposal, signed = (self.scratch / f"{uuid.uuid4()}.{kind}" for kind in ("proposal", "signed"))
        self.server.cli("policy", "learn", device.asset, "--out", str(proposal))
        offline("policy", "sign", proposal, "--key-file", self.scratch / author, "--out", signed)
        return signed

    def new_policy(self, device: TpmDevice) -> Said:
        return self.add_policy(self.signed_policy(device))

    def add_policy(self, signed: Path) -> Said:
        answer = command("policy", "add", str(signed), "--dir", str(self.server.directory))
        error = answer.get("error")
        return Said(0, error["check"]) if error else Said(200)

    # --- what was counted ---

    def refusals(self, listener: str, reason: str) -> float:
        return self.server.metric(f'casemate_fleet_refusals_total{{listener="{listener}",reason="{reason}"}}')

    def audited(self, action: str) -> float:
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            run(["fleet", "audit", "show", "--limit", "200", "--dir", str(self.server.directory), "--json"])
        return sum(json.loads(line)["action"] == action for line in out.getvalue().splitlines())


def offline(*words: object) -> Any:
    """Run a verb that needs no fleet: what a policy's author does at a desk."""
    found = command(*map(str, words))
    assert "error" not in found, found
    return found


def command(*words: str) -> Any:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        run(["fleet", *words, "--json"])
    return json.loads(out.getvalue())


@contextlib.contextmanager
def moved(count: Callable[[], float]) -> Iterator[None]:
    """Require that what *count* returns grows. An answer may be there a moment before its count."""
    before = count()
    yield
    until(lambda: count() > before)
