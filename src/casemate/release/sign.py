"""Signing a release and checking it again: a fresh key, a certificate of minutes, an entry in the log, then no key.

The key is made in memory for one signature and forgotten. Its certificate is valid for a quarter of an hour; the log's
entry says when the signature was made. `verify_directory` is what a person runs on files at hand.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from casemate.crypto import x509
from casemate.crypto.ecdsa import EcKey
from casemate.errors import UntrustedDataError
from casemate.formats import oms, signature_log
from casemate.release.repository import Repository
from casemate.release.siglog import SignatureLog

LEAF_SECONDS: Final = 15 * 60
_SKEW_SECONDS: Final = 60
_BLOCK: Final = 1 << 20


def sign(repository: Repository, subject: str, digests: Mapping[str, str]) -> signature_log.SignedRelease:
    """Sign *digests* (name -> SHA-256 in hex) under the repository's newest authority and log the signature.

    Raises:
        NotAuthorisedError: the authority's key is not here, or its passphrase is wrong.

    """
    now = repository.now()
    name, root = _newest(repository.description.authorities)
    key = EcKey.generate()
    leaf = x509.issue_leaf(
        repository.keys.authority(name),
        x509.from_pem(root),
        key.public,
        f"casemate release {repository.description.id}",
        not_before=now - _SKEW_SECONDS,
        not_after=now + LEAF_SECONDS,
    )
    bundle = oms.sign_with_certificate(oms.statement(subject, digests), key, [leaf, x509.from_pem(root)])
    entry = signature_log.entry_of(bundle, leaf, now)
    proof = log_of(repository).append(entry, repository.keys.signing(_newest(repository.description.logs)[0]))
    return signature_log.SignedRelease(bundle.decode(), entry.decode(), proof.decode())


def log_of(repository: Repository) -> SignatureLog:
    """Return the repository's log of signatures."""
    name, vkey = _newest(repository.description.logs)
    return SignatureLog(repository.public / "log" / name, vkey.partition("+")[0])


def trust_of(repository: Repository) -> signature_log.SigningTrust:
    """Return whom devices of this repository trust to sign releases."""
    return signature_log.parse_trust(repository.read_target("targets", signature_log.TRUST_PATH))


def digest_directory(directory: Path, signature: str = "") -> dict[str, str]:
    """Return the SHA-256 (hex) of every file below *directory* but the one called *signature*: name -> digest.

    Nothing is left out for its name: what a signature would ignore is listed too, and so becomes an unsigned file.

    Raises:
        UntrustedDataError: `oms-file-type` a link, device, socket or FIFO is among them.

    """
    found: dict[str, str] = {}
    buffer = memoryview(bytearray(_BLOCK))
    for folder, names, leaves in os.walk(directory):
        for name in (*names, *leaves):
            path = Path(folder) / name
            mode = path.lstat().st_mode
            relative = path.relative_to(directory).as_posix()
            if stat.S_ISDIR(mode) or relative == signature:
                continue
            if not stat.S_ISREG(mode):
                raise UntrustedDataError(f"{relative!r} is not a regular file", check="oms-file-type")
            found[relative] = _digest(path, buffer)
    return found


def verify_directory(
    directory: Path, signed: signature_log.SignedRelease, trust: signature_log.SigningTrust, signature: str = ""
) -> None:
    """Check that *directory* is what was signed, no file more and none less.

    Raises:
        UntrustedDataError: names the rule that failed.

    """
    names = signature_log.verify(signed, trust.roots(), trust.keys())
    oms.check_files(names, digest_directory(directory, signature))


def encode(signed: signature_log.SignedRelease) -> str:
    """Return what `SealedPart.signature` holds."""
    return msgspec.json.encode(signed).decode()


def _digest(path: Path, buffer: memoryview) -> str:
    digest = hashlib.sha256()
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        while count := os.readv(fd, [buffer]):
            digest.update(buffer[:count])
    finally:
        os.close(fd)
    return digest.hexdigest()


def _newest(named: Mapping[str, str]) -> tuple[str, str]:
    """Return the key with the highest number, and what belongs to it."""
    name = max(named, key=lambda item: int(item.rpartition("-")[2]))
    return name, named[name]
