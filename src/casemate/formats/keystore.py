"""keystore.json: the home's key-encryption key, wrapped once per way in, and the owner's key pair.

Every slot wraps the same KEK. The whole document is under a MAC keyed from the KEK, so whoever unlocks it knows that
nobody without the KEK changed it: not the owner's public key, not a slot. While a rotation is unfinished `previous`
holds the old KEK wrapped by the new one.
"""

from __future__ import annotations

from typing import Annotated, Final, TypeVar

import msgspec

from casemate.crypto import aead, kdf
from casemate.crypto.secret import Secret
from casemate.errors import UntrustedDataError
from casemate.formats.decoding import MALFORMED

SCHEMA: Final = 1
DOCUMENT_LIMIT: Final = 64 * 1024
SLOT_LIMIT: Final = 4

KeyId = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{16}\Z")]
WrappedKey = Annotated[bytes, msgspec.Meta(max_length=256)]
TpmBlob = Annotated[bytes, msgspec.Meta(max_length=1024)]
PcrIndex = Annotated[int, msgspec.Meta(ge=0, le=23)]
PcrValue = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
Salt = Annotated[bytes, msgspec.Meta(min_length=kdf.SALT_BYTES, max_length=kdf.SALT_BYTES)]


class PassphraseSlot(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="passphrase"):
    """Opened by Argon2id of a passphrase."""

    salt: Salt
    cost: kdf.Argon2Cost
    wrapped: WrappedKey = b""


class KeyfileSlot(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="keyfile"):
    """Opened by a random key in a file elsewhere; `key` says which line."""

    key: KeyId
    wrapped: WrappedKey = b""


class RecoverySlot(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="recovery"):
    """Opened by a random code that was shown once."""

    key: KeyId
    wrapped: WrappedKey = b""


class Sealed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A secret as one TPM keeps it for us: useless elsewhere. *parent* is the Name of the storage key above it."""

    parent: TpmBlob
    public: TpmBlob
    private: TpmBlob


class Approval(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Leave to open under one policy: these *pcrs*, and a counter of at most *limit*; signed by the approver."""

    pcrs: Annotated[dict[PcrIndex, PcrValue], msgspec.Meta(min_length=1, max_length=24)]
    limit: Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]
    signature: TpmBlob  # TPMT_SIGNATURE


class TpmSlot(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="tpm"):
    """Opened by a TPM under a policy that *approver* (PEM) has signed. *counter*: the NV index the policy reads."""

    sealed: Sealed
    approver: TpmBlob
    approval: Approval
    counter: Annotated[int, msgspec.Meta(ge=0x01000000, le=0x01FFFFFF)]
    wrapped: WrappedKey = b""


Slot = PassphraseSlot | KeyfileSlot | RecoverySlot | TpmSlot
AnySlot = TypeVar("AnySlot", PassphraseSlot, KeyfileSlot, RecoverySlot, TpmSlot, Slot)


class Previous(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The KEK before this one, wrapped by this one: containers not yet re-wrapped still open."""

    key: KeyId
    wrapped: WrappedKey


class Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """keystore.json. `kek` names the KEK; `mac` covers everything else."""

    schema: int
    home: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{16}\Z")]
    kek: KeyId
    owner_public: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
    owner_wrapped: WrappedKey
    slots: Annotated[tuple[Slot, ...], msgspec.Meta(min_length=1, max_length=SLOT_LIMIT)]
    previous: Previous | None = None
    mac: Annotated[bytes, msgspec.Meta(max_length=kdf.MAC_BYTES)] = b""


_decoder: Final = msgspec.json.Decoder(Document)


def parse(data: bytes) -> Document:
    """Read keystore.json; nothing is proven before `check_mac`.

    Raises:
        UntrustedDataError: `keystore-format`.

    """
    try:
        if len(data) > DOCUMENT_LIMIT:
            raise msgspec.DecodeError("it is too large")
        document = _decoder.decode(data)
    except MALFORMED as error:
        raise _refused(f"keystore.json does not parse ({error})", "keystore-format") from error
    if document.schema != SCHEMA:
        raise _refused(f"keystore.json has schema {document.schema}", "keystore-format")
    return document


def encode(document: Document, kek: Secret) -> bytes:
    """Return the bytes of keystore.json, with its MAC."""
    sealed = msgspec.structs.replace(document, mac=_mac(document, kek))
    return msgspec.json.format(msgspec.json.encode(sealed), indent=2) + b"\n"


def check_mac(document: Document, kek: Secret) -> None:
    """Prove the document with the KEK that one of its slots gave.

    Raises:
        UntrustedDataError: `keystore-mac`: somebody without the key changed it.

    """
    if document.kek != key_id(kek) or not kdf.same(document.mac, _mac(document, kek)):
        raise _refused("keystore.json was changed by somebody without its key", "keystore-mac")


def key_id(key: Secret) -> str:
    """Return the public name of a key: 8 bytes of a value derived from it, in hex."""
    with kdf.derive(key, "key-id") as name:
        return bytes(name.view()[:8]).hex()


def wrap_slot(document_home: str, slot: AnySlot, slot_secret: Secret, kek: Secret) -> AnySlot:
    """Put the KEK into *slot*."""
    with kdf.derive(slot_secret, "keystore-slot") as key:
        return msgspec.structs.replace(slot, wrapped=aead.wrap(key, kek, _slot_context(document_home, slot)))


def unwrap_slot(document_home: str, slot: Slot, slot_secret: Secret) -> Secret:
    """Take the KEK out of *slot*.

    Raises:
        TagMismatch: another secret, another home, or changed parameters.

    """
    with kdf.derive(slot_secret, "keystore-slot") as key:
        return aead.unwrap(key, slot.wrapped, _slot_context(document_home, slot))


def _slot_context(home: str, slot: Slot) -> bytes:
    """Bind a wrapped KEK to its home and to every parameter of its slot, so costs and salts cannot be swapped."""
    bare = msgspec.structs.replace(slot, wrapped=b"")
    return b"casemate/1/keystore-slot\0" + home.encode("ascii") + msgspec.json.encode(bare)


def _mac(document: Document, kek: Secret) -> bytes:
    bare = msgspec.structs.replace(document, mac=b"")
    with kdf.derive(kek, "keystore-document") as key:
        return kdf.mac(key, msgspec.json.encode(bare))


def _refused(what: str, check: str) -> UntrustedDataError:
    return UntrustedDataError(what, check=check, hint="restore it from a backup; the models need it")
