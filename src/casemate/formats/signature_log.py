"""Entries of the log of release signatures: what was signed, by which certificate, and when.

The log is a C2SP tlog. Its signed checkpoint, with the inclusion proof, says that the log's operator saw this signature
and wrote this time; the time must lie inside the certificate's validity (`crypto.x509.verify_leaf`). So a stolen
short-lived key is worthless once its certificate has ended, and every signature ever made is on a public list.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Annotated, Final

import msgspec

from casemate.crypto import x509
from casemate.errors import UntrustedDataError
from casemate.formats import oms
from casemate.formats.decoding import MALFORMED
from casemate.formats.manifest import SealedPart
from casemate.formats.tlog import VerifierKey, parse_proof

SCHEMA: Final = 1
TRUST_PATH: Final = "trust/signing.json"
MLBOM: Final = "mlbom.cdx.json"
PROVENANCE: Final = "provenance.intoto.json"
_Hex = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]


class LogEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One signature. *time* is in seconds since the epoch, *signature* the digest of the whole bundle."""

    schema: int
    time: Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]
    signature: _Hex
    certificate: _Hex


class SignedRelease(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A model signature (its JSON text), its log entry and tlog-proof: `SealedPart.signature` holds this as JSON."""

    bundle: str
    entry: str
    proof: str


class SigningTrust(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who may sign releases: certificate authorities (PEM) and logs (vkeys). A target of the offline targets role.

    An import from local media may accept a timestamp and a snapshot that expired up to *offline_days* days ago: a
    weaker freshness, allowed by the offline keys, and never used over a network.
    """

    schema: int
    authorities: Annotated[tuple[str, ...], msgspec.Meta(min_length=1, max_length=8)]
    logs: Annotated[tuple[str, ...], msgspec.Meta(min_length=1, max_length=8)]
    offline_days: Annotated[int, msgspec.Meta(ge=0, le=365)] = 0

    def roots(self) -> list[bytes]:
        """Return the authorities' certificates (DER)."""
        return [x509.from_pem(text) for text in self.authorities]

    def keys(self) -> list[VerifierKey]:
        """Return the logs' keys."""
        return [VerifierKey.parse(text) for text in self.logs]


def entry_of(bundle: bytes, certificate: bytes, now: float) -> bytes:
    """Return the entry that logs *bundle*, signed under *certificate* (DER), at *now*."""
    return msgspec.json.encode(LogEntry(SCHEMA, int(now), _digest(bundle), _digest(certificate)))


def verify(signed: SignedRelease, authorities: Sequence[bytes], logs: Sequence[VerifierKey]) -> dict[str, str]:
    """Prove a release's signature and its time; return the signed files: name -> SHA-256 in hex.

    Raises:
        UntrustedDataError: `signature-log`, `checkpoint-*`, `inclusion-proof`, `certificate-*` or `oms-*`.

    """
    bundle = signed.bundle.encode("utf-8")
    signature = oms.parse(bundle)
    try:
        entry = msgspec.json.decode(signed.entry, type=LogEntry)
    except MALFORMED as error:
        raise UntrustedDataError("the log entry does not parse", check="signature-log") from error
    leaf = signature.chain[0] if signature.chain else b""
    if (entry.schema, entry.signature, entry.certificate) != (SCHEMA, _digest(bundle), _digest(leaf)):
        raise UntrustedDataError("the log entry is about another signature", check="signature-log")
    if not logs:
        raise UntrustedDataError("no log of signatures is trusted", check="signature-log")
    _check_logged(signed, logs)
    return dict(oms.verify_certificate(signature, authorities, entry.time))


def verify_part(part: SealedPart, trust: SigningTrust) -> None:
    """Prove that what a sealed part lists is what was signed: every file, the ML-BOM and the provenance.

    Raises:
        UntrustedDataError: as `verify` and `oms.check_files`.

    """
    try:
        signed = msgspec.json.decode(part.signature, type=SignedRelease)
    except MALFORMED as error:
        raise UntrustedDataError("the release is not signed", check="signature-log") from error
    found = {file.path: file.sha256 for file in part.files}
    found |= {MLBOM: part.mlbom_sha256, PROVENANCE: part.provenance_sha256}
    oms.check_files(verify(signed, trust.roots(), trust.keys()), found)


def signed_time(part: SealedPart) -> int:
    """Return when a sealed part was signed, in seconds since the epoch: true once `verify_part` has accepted it.

    Raises:
        UntrustedDataError: `signature-log`: it is not signed.

    """
    try:
        signed = msgspec.json.decode(part.signature, type=SignedRelease)
        return msgspec.json.decode(signed.entry, type=LogEntry).time
    except MALFORMED as error:
        raise UntrustedDataError("the release is not signed", check="signature-log") from error


def parse_trust(raw: bytes) -> SigningTrust:
    """Read the target `TRUST_PATH`, whose bytes TUF has verified.

    Raises:
        UntrustedDataError: `signing-trust`, `certificate-format` or `vkey`.

    """
    try:
        trust = msgspec.json.decode(raw, type=SigningTrust)
    except MALFORMED as error:
        raise UntrustedDataError("the signing trust does not parse", check="signing-trust") from error
    if trust.schema != SCHEMA:
        raise UntrustedDataError(f"the signing trust has schema {trust.schema}", check="signing-trust")
    trust.roots()
    trust.keys()
    return trust


def _check_logged(signed: SignedRelease, logs: Sequence[VerifierKey]) -> None:
    """Check the proof against the one log that signed its checkpoint."""
    proof = parse_proof(signed.proof.encode("utf-8"))
    for log in logs:
        try:
            proof.verify(signed.entry.encode("utf-8"), [log])
        except UntrustedDataError as error:
            if error.check == "checkpoint-signature" and log != logs[-1]:
                continue
            raise
        return


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
