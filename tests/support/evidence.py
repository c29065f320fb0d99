"""A TPM's answers without a TPM: a key that signs what it is told to. A real one: tests/system/test_tpm.py."""

from __future__ import annotations

import dataclasses
import hashlib
import struct

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils

from casemate.crypto.signing import SigningKey
from casemate.crypto.tpm import sized
from casemate.crypto.tpm_policy import pcr_digest
from casemate.fleet.verifier import KnownTpm
from casemate.formats import evidence, reference_policy, tpm
from casemate.formats.evidence import Event, EventKind, UntrustedEvidence
from casemate.formats.reference_policy import Allowed, ReferencePolicy

NOW = 1_800_000_000.0
NONCE = b"n" * 32
FIRMWARE = {0: b"f" * 32, 7: b"s" * 32}
AK_ATTRIBUTES = 0x50072
AUTHOR = SigningKey.generate()


def event(kind, name="", digest="", version="1"):
    kind = EventKind(kind)
    return Event(kind, name or f"the-{kind}", version, digest or hashlib.sha256(kind.encode()).hexdigest())


STACK = tuple(event(kind) for kind in ("agent", "sandbox", "engine"))
FULL = (*STACK, *(event(kind) for kind in ("policy", "guard", "generation", "model")))


def log_of(events):
    return tuple(evidence.record(number, one) for number, one in enumerate(events))


def ak_public(key, attributes=AK_ATTRIBUTES):
    numbers = key.public_key().public_numbers()
    head = struct.pack(">HHI", 0x23, 0x0B, attributes) + sized(b"") + b"\x00\x10\x00\x18\x00\x0b\x00\x03\x00\x10"
    return head + sized(numbers.x.to_bytes(32, "big")) + sized(numbers.y.to_bytes(32, "big"))


@dataclasses.dataclass
class Signer:
    """Signs whatever it is given, as a TPM would not."""

    key: ec.EllipticCurvePrivateKey = dataclasses.field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    attributes: int = AK_ATTRIBUTES
    resets: int = 3
    clock: int = 1000

    @property
    def public(self):
        return ak_public(self.key, self.attributes)

    @property
    def known(self):
        return KnownTpm(self.public, trusted=True)

    def attest(self, nonce, pcrs, *, selection=None, digest=None, signer=None):
        signer = signer or tpm.qualified_name(tpm.parse_public(self.public))
        bitmap = sum(1 << index for index in (pcrs if selection is None else selection)).to_bytes(3, "little")
        head = struct.pack(">IH", 0xFF544347, 0x8018) + sized(signer) + sized(nonce)
        middle = struct.pack(">QIIBQ", self.clock, self.resets, 0, 1, 7) + struct.pack(">IHB", 1, 0x0B, 3) + bitmap
        return head + middle + sized(digest or pcr_digest(pcrs))

    def sign(self, message):
        r, s = utils.decode_dss_signature(self.key.sign(message, ec.ECDSA(hashes.SHA256())))
        return struct.pack(">HH", 0x18, 0x0B) + sized(r.to_bytes(32, "big")) + sized(s.to_bytes(32, "big"))

    def answer(self, events=FULL, *, nonce=NONCE, firmware=FIRMWARE, log=None):
        """Return the evidence of an honest device that measured *events*."""
        log = log_of(events) if log is None else log
        pcrs = {**firmware, **evidence.replay(log_of(events))[1]}
        attest = self.attest(nonce, pcrs)
        return UntrustedEvidence(1, nonce, attest, self.sign(attest), pcrs, log)


def policy(events=FULL, *, firmware=FIRMWARE, version=1, **changes):
    fields = {
        "schema": 1,
        "name": "default",
        "version": version,
        "issued": int(NOW) - 100,
        "expires": int(NOW) + 86_400,
        "pcrs": {index: (value.hex(),) for index, value in firmware.items()},
        "events": tuple(Allowed(one.kind, one.name, one.digest, one.version) for one in events),
    }
    return ReferencePolicy(**{**fields, **changes})


def verified(*arguments, **keywords):
    return reference_policy.verify(reference_policy.sign(policy(*arguments, **keywords), AUTHOR), public=AUTHOR.public)
