"""A device with a software TPM and measured boot, speaking to a real fleet server."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

from casemate.clock import SystemClock
from casemate.crypto import client_certificate
from casemate.device.attester.book import Book
from casemate.device.attester.keys import KeyRing
from casemate.fleet.tpm_enrolment import ek_digest
from casemate.formats import evidence, tpm
from casemate.formats.lease import LeasedKey
from casemate.keystores import tss
from support.evidence import event
from support.fleet import Answer, Device, Server
from support.swtpm import SoftwareTpm

STACK = tuple(event(kind) for kind in ("agent", "sandbox", "engine"))
FIRMWARE = {0: b"f" * 32, 7: b"s" * 32}


class TpmDevice(Device):
    """A device whose TPM proves it. `book` is the log of this boot."""

    def __init__(self, server: Server, directory: Path, asset: str, chip: SoftwareTpm) -> None:
        super().__init__(server, directory, asset)
        self.chip = chip
        self._place = directory / "attester"
        self._place.mkdir(exist_ok=True)
        self.book = Book(self._place)
        self.ring = KeyRing(self._place, SystemClock())

    def boot(self, events: Any = STACK, firmware: Any = None) -> TpmDevice:
        """Do what happens at power-on: firmware measures itself, the attester measures *events*."""
        self.chip.power_cycle()
        with tss.open_tpm(self.chip.tcti) as opened:
            for pcr, value in (FIRMWARE if firmware is None else firmware).items():
                opened.extend(pcr, value)
            self.book = Book(self._place)
            self.book.open(opened)
            self.book.measure(opened, events)
        return self

    def keys(self) -> tuple[bytes, bytes, bytes]:
        with tss.open_tpm(self.chip.tcti) as opened:
            certificate, ek = opened.endorsement()
            return certificate, ek, opened.attestation_key()

    @property
    def ek_digest(self) -> str:
        return ek_digest(tpm.parse_public(self.keys()[1]))

    def hello(self, token: str = "", **changes: Any) -> Answer:
        certificate, ek, ak = self.keys()
        fields = {"ek_public": ek, "ak_public": ak, "csr": client_certificate.make_request(self.key)}
        body = {name: _text(value) for name, value in {**fields, "ek_certificate": certificate, **changes}.items()}
        if token:
            body["token"] = token
        return self.open("enroll/tpm/challenge", body)

    def open(self, path: str, body: Any) -> Answer:
        return self.server.ask("enrol", "POST", f"/device/v1/{path}", json.dumps(body).encode())

    def activate(self, sealed: dict[str, Any]) -> bytes:
        identity, encrypted = (base64.b64decode(sealed[name]) for name in ("identity", "encrypted"))
        with tss.open_tpm(self.chip.tcti) as opened:
            return opened.activate(identity, encrypted)

    def join(self, token: str = "") -> TpmDevice:
        """Enrol with the TPM."""
        answer = self.hello(token)
        assert answer.status == 200, answer.body
        done = self.open("enroll/tpm/complete", {"secret": _text(self.activate(answer.json()))})
        assert done.status == 200, done.body
        chain = [base64.b64decode(each) for each in done.json()["chain"]]
        self.certificate = chain[0]
        leaves = [client_certificate.read(each) for each in chain]
        self.identity.write_bytes(self.key.pem() + client_certificate.to_pem(leaves))
        return self

    def challenge(self) -> Any:
        answer = self.ask("POST", "/device/v1/attest/challenge", {})
        assert answer.status == 200, answer.body
        return answer.json()

    def evidence(self, challenge: Any) -> evidence.UntrustedEvidence:
        with tss.open_tpm(self.chip.tcti) as opened:
            return self.book.answer(opened, base64.b64decode(challenge["nonce"]), frozenset(challenge["pcrs"]))

    def show(self, given: evidence.UntrustedEvidence) -> Answer:
        raw = evidence.encode(given)
        return self.server.ask("devices", "POST", "/device/v1/attest/evidence", raw, identity=self.identity)

    def attest(self) -> Any:
        """Answer a challenge; returns the judgement."""
        answer = self.show(self.evidence(self.challenge()))
        assert answer.status == 200, answer.body
        return answer.json()

    def ask_key(self, model: str, nonce: bytes | None = None) -> Answer:
        nonce = self.ring.begin(model) if nonce is None else nonce
        return self.ask("POST", f"/device/v1/keys/{quote(model)}/release", {"nonce": _text(nonce)})

    def take_key(self, model: str, answer: dict[str, Any]) -> int:
        """Keep the key in *answer* as the attester does; returns its lease in seconds."""
        parts = [base64.b64decode(answer[name]) for name in ("identity", "encrypted", "terms", "wrapped")]
        with tss.open_tpm(self.chip.tcti) as opened:
            return self.ring.take(opened, model, (parts[0], parts[1]), (parts[2], parts[3]))

    def use_key(self, model: str) -> LeasedKey:
        with tss.open_tpm(self.chip.tcti) as opened:
            return self.ring.use(opened, model)[0]


def _text(value: bytes) -> str:
    return base64.b64encode(value).decode()
