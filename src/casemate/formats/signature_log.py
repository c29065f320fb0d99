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

from casemate.errors import UntrustedDataError
from casemate.formats import oms
from casemate.formats.tlog import VerifierKey, parse_proof

SCHEMA: Final = 1
_Hex = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]


class LogEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One signature. *time* is in seconds since the epoch, *signature* the digest of the whole bundle."""

    schema: int
    time: Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]
    signature: _Hex
    certificate: _Hex


class SignedRelease(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A model signature and the proof of when it was made; travels in the sealed part of a manifest."""

    bundle: bytes
    entry: bytes
    proof: bytes


def entry_of(bundle: bytes, certificate: bytes, now: float) -> bytes:
    """Return the entry that logs *bundle*, signed under *certificate* (DER), at *now*."""
    return msgspec.json.encode(LogEntry(SCHEMA, int(now), _digest(bundle), _digest(certificate)))


def verify(signed: SignedRelease, authorities: Sequence[bytes], logs: Sequence[VerifierKey]) -> dict[str, str]:
    """Prove a release's signature and its time; return the signed files: name -> SHA-256 in hex.

    Raises:
        UntrustedDataError: `signature-log`, `checkpoint-*`, `inclusion-proof`, `certificate-*` or `oms-*`.

    """
    signature = oms.parse(signed.bundle)
    try:
        entry = msgspec.json.decode(signed.entry, type=LogEntry)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UntrustedDataError("the log entry does not parse", check="signature-log") from error
    leaf = signature.chain[0] if signature.chain else b""
    if (entry.schema, entry.signature, entry.certificate) != (SCHEMA, _digest(signed.bundle), _digest(leaf)):
        raise UntrustedDataError("the log entry is about another signature", check="signature-log")
    if not logs:
        raise UntrustedDataError("no log of signatures is trusted", check="signature-log")
    _check_logged(signed, logs)
    return dict(oms.verify_certificate(signature, authorities, entry.time))


def _check_logged(signed: SignedRelease, logs: Sequence[VerifierKey]) -> None:
    """Check the proof against the one log that signed its checkpoint."""
    proof = parse_proof(signed.proof)
    for log in logs:
        try:
            proof.verify(signed.entry, [log])
        except UntrustedDataError as error:
            if error.check == "checkpoint-signature" and log != logs[-1]:
                continue
            raise
        return


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
