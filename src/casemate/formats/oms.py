"""OpenSSF model signatures (OMS) v1.0: a DSSE-signed in-toto statement with the digest of every file of a directory.

Building emits what the specification says and what the PyPI `model-signing` package accepts. Reading is stricter than
both: one signature, one subject, only predicate v1.0, only whole-file SHA-256, no symlinks, no ignored path beyond
git's own four and the signature file, no name twice, names in their one canonical form. The caller compares the
resources with the files it has; `check_files` wants both sides equal, so an unsigned file is a refusal.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal

import msgspec

from casemate.crypto import x509
from casemate.crypto.ecdsa import EcKey, EcPublic
from casemate.errors import UntrustedDataError
from casemate.formats import dsse
from casemate.formats.decoding import MALFORMED

BUNDLE_TYPE: Final = "application/vnd.dev.sigstore.bundle.v0.3+json"
STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE: Final = "https://model_signing/signature/v1.0"
IGNORED: Final = (".git", ".gitattributes", ".github", ".gitignore")
BUNDLE_LIMIT: Final = 16 << 20
NAME_LIMIT: Final = 1024

Hex = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
Short = Annotated[str, msgspec.Meta(max_length=256)]


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Unknown keys are refused."""


class _Signature(_Strict, frozen=True):
    sig: str
    keyid: Short | None = None


class _Envelope(_Strict, frozen=True, rename="camel"):
    payload: str
    payload_type: str
    signatures: Annotated[tuple[_Signature, ...], msgspec.Meta(min_length=1, max_length=1)]


class _PublicKey(_Strict, frozen=True, rename="camel"):
    hint: Short = ""
    raw_bytes: str = ""  # written by model-signing before 1.1
    key_details: str | int = ""


class _Certificate(_Strict, frozen=True, rename="camel"):
    raw_bytes: str


class _Chain(_Strict, frozen=True):
    certificates: Annotated[tuple[_Certificate, ...], msgspec.Meta(min_length=1, max_length=8)]


class _Material(_Strict, frozen=True, rename="camel", omit_defaults=True):
    public_key: _PublicKey | None = None
    x509_certificate_chain: _Chain | None = msgspec.field(name="x509CertificateChain", default=None)
    tlog_entries: Annotated[tuple[Any, ...], msgspec.Meta(max_length=0)] | None = None


class _Bundle(_Strict, frozen=True, rename="camel"):
    media_type: Literal["application/vnd.dev.sigstore.bundle.v0.3+json"]
    verification_material: _Material
    dsse_envelope: _Envelope


class _Digest(_Strict, frozen=True):
    sha256: Hex


class _Subject(_Strict, frozen=True):
    name: Annotated[str, msgspec.Meta(max_length=NAME_LIMIT)]
    digest: _Digest


class _Resource(_Strict, frozen=True):
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=NAME_LIMIT)]
    algorithm: Literal["sha256"]
    digest: Hex


class _Serialization(_Strict, frozen=True, omit_defaults=True):
    method: Literal["files"]
    hash_type: Literal["sha256"]
    allow_symlinks: bool = False
    ignore_paths: tuple[Short, ...] = ()


class _Predicate(_Strict, frozen=True):
    serialization: _Serialization
    resources: Annotated[tuple[_Resource, ...], msgspec.Meta(min_length=1, max_length=100_000)]


class _Statement(_Strict, frozen=True, rename={"type": "_type", "predicate_type": "predicateType"}):
    type: Literal["https://in-toto.io/Statement/v1"]
    subject: Annotated[tuple[_Subject, ...], msgspec.Meta(min_length=1, max_length=1)]
    predicate_type: Literal["https://model_signing/signature/v1.0"]
    predicate: _Predicate


_bundles: Final = msgspec.json.Decoder(_Bundle)
_statements: Final = msgspec.json.Decoder(_Statement)


class Signature(msgspec.Struct, frozen=True):
    """A parsed bundle. Nothing is proven: `verify` and `check_files` do that."""

    payload: bytes
    signature: bytes
    hint: str
    chain: tuple[bytes, ...]  # DER, leaf first; empty for a bundle that names a key

    def verify(self, public: EcPublic) -> Mapping[str, str]:
        """Check the signature with *public* and return the signed files: name -> SHA-256 in hex.

        Raises:
            UntrustedDataError: `oms-signature`, or `oms-statement` for a signed statement that breaks a rule.

        """
        if self.hint and self.hint != public.hint():
            raise UntrustedDataError("the model was signed with another key", check="oms-signature")
        if not public.verify(self.signature, dsse.pae(self.payload)):
            raise UntrustedDataError("the model's signature does not fit", check="oms-signature")
        return _read_statement(self.payload)


def statement(subject: str, files: Mapping[str, str], ignore: Sequence[str] = ()) -> bytes:
    """Return the statement over *files* (name -> SHA-256 in hex), in the specification's order of names."""
    resources = [{"name": _canonical(name), "algorithm": "sha256", "digest": files[name]} for name in sorted(files)]
    serialization = {"method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": sorted(ignore)}
    return msgspec.json.encode(
        {
            "_type": STATEMENT_TYPE,
            "subject": [{"name": subject, "digest": {"sha256": _root(files[name] for name in sorted(files))}}],
            "predicateType": PREDICATE_TYPE,
            "predicate": {"serialization": serialization, "resources": resources},
        }
    )


def sign_with_key(payload: bytes, key: EcKey) -> bytes:
    """Return the bundle of *payload* (a statement) signed by a bare key."""
    return _bundle(payload, key, {"publicKey": {"hint": key.public.hint()}})


def sign_with_certificate(payload: bytes, key: EcKey, chain: Sequence[bytes]) -> bytes:
    """Return the bundle of *payload* signed by the key of the first certificate of *chain* (DER, leaf first)."""
    certificates = [{"rawBytes": dsse.encode64(item)} for item in chain]
    return _bundle(payload, key, {"x509CertificateChain": {"certificates": certificates}})


def _bundle(payload: bytes, key: EcKey, material: dict[str, Any]) -> bytes:
    envelope = {
        "payload": dsse.encode64(payload),
        "payloadType": dsse.IN_TOTO,
        "signatures": [{"sig": dsse.encode64(key.sign(dsse.pae(payload))), "keyid": ""}],
    }
    return msgspec.json.encode(
        {
            "mediaType": BUNDLE_TYPE,
            "verificationMaterial": {**material, "tlogEntries": []},
            "dsseEnvelope": envelope,
        }
    )


def parse(data: bytes) -> Signature:
    """Read a bundle; nothing in it is verified yet.

    Raises:
        UntrustedDataError: `oms-bundle`.

    """
    if len(data) > BUNDLE_LIMIT:
        raise UntrustedDataError("the signature bundle is too large", check="oms-bundle")
    try:
        bundle = _bundles.decode(data)
    except MALFORMED as error:
        raise UntrustedDataError(f"not a model signature: {error}", check="oms-bundle") from error
    material, envelope = bundle.verification_material, bundle.dsse_envelope
    if (material.public_key is None) == (material.x509_certificate_chain is None):
        raise UntrustedDataError("the bundle names neither one key nor one chain", check="oms-bundle")
    if envelope.payload_type != dsse.IN_TOTO:
        raise UntrustedDataError("the bundle holds no in-toto statement", check="oms-bundle")
    chain = material.x509_certificate_chain
    return Signature(
        payload=dsse.decode64(envelope.payload, "oms-bundle"),
        signature=dsse.decode64(envelope.signatures[0].sig, "oms-bundle"),
        hint=material.public_key.hint if material.public_key else "",
        chain=tuple(dsse.decode64(item.raw_bytes, "oms-bundle") for item in chain.certificates) if chain else (),
    )


def verify_certificate(signature: Signature, authorities: Sequence[bytes], at: float) -> Mapping[str, str]:
    """Check a certificate-mode signature made at *at* (a proven moment) under one of *authorities* (DER roots).

    Raises:
        UntrustedDataError: `certificate-*`, `oms-signature` or `oms-statement`.

    """
    if not signature.chain:
        raise UntrustedDataError("the model was signed by a bare key, not a certificate", check="certificate-issuer")
    if not authorities:
        raise UntrustedDataError("no release authority is trusted", check="certificate-issuer")
    problem: UntrustedDataError | None = None
    for root in authorities:
        try:
            leaf = x509.verify_leaf(signature.chain[0], root, at)
        except UntrustedDataError as error:
            problem = error if problem is None or error.check != "certificate-issuer" else problem
            continue
        return signature.verify(leaf.public)
    raise problem or UntrustedDataError("no authority", check="certificate-issuer")


def check_files(signed: Mapping[str, str], found: Mapping[str, str]) -> None:
    """Check that *found* (every file there is: name -> SHA-256) is what was *signed*, no more and no less.

    Raises:
        UntrustedDataError: `oms-unsigned-file`, `oms-missing-file` or `oms-digest`.

    """
    for extra in sorted(found.keys() - signed.keys()):
        raise UntrustedDataError(f"{extra!r} is not covered by the signature", check="oms-unsigned-file")
    for missing in sorted(signed.keys() - found.keys()):
        raise UntrustedDataError(f"{missing!r} was signed and is not there", check="oms-missing-file")
    for name in sorted(signed):
        if signed[name] != found[name]:
            raise UntrustedDataError(f"{name!r} is not what was signed", check="oms-digest")


def _read_statement(payload: bytes) -> dict[str, str]:
    try:
        body = _statements.decode(payload)
    except MALFORMED as error:
        raise UntrustedDataError(f"not a model statement: {error}", check="oms-statement") from error
    how = body.predicate.serialization
    allowed = set(IGNORED)
    own = [path for path in how.ignore_paths if path not in allowed]
    if how.allow_symlinks or len(own) > 1 or any("/" in _canonical(path) for path in own):
        raise UntrustedDataError("the statement leaves paths or links unsigned", check="oms-statement")
    files: dict[str, str] = {}
    for item in body.predicate.resources:
        if _canonical(item.name) in files:
            raise UntrustedDataError(f"{item.name!r} is signed twice", check="oms-statement")
        files[item.name] = item.digest
    if _root(item.digest for item in body.predicate.resources) != body.subject[0].digest.sha256:
        raise UntrustedDataError("the root digest does not fit the files", check="oms-statement")
    return files


def _root(digests: Any) -> str:
    return hashlib.sha256(b"".join(bytes.fromhex(item) for item in digests)).hexdigest()


def _canonical(name: str) -> str:
    """Return *name* when it is a relative path in its one spelling."""
    parts = name.split("/")
    if not name or any(part in {"", ".", ".."} for part in parts) or "\0" in name or "\\" in name:
        raise UntrustedDataError(f"{name[:80]!r} is not a canonical relative path", check="oms-statement")
    return name
