"""An open keystore: the keys in locked memory, and what may be done with them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Self

from casemate.crypto import aead, hpke, kdf
from casemate.crypto.aead import TagMismatch
from casemate.crypto.keystore import Assurance
from casemate.crypto.secret import Secret
from casemate.errors import UntrustedDataError
from casemate.formats.keystore import Document, check_mac, key_id


@dataclasses.dataclass(frozen=True)
class UnlockedKeystore:
    """What `unlock` returns. `kek` wraps data keys; `previous` is the one before while a rotation is unfinished."""

    path: Path
    document: Document
    kek: Secret
    previous: Secret | None
    assurance: Assurance
    opened_by: str  # the kind of the slot

    @property
    def key_id(self) -> str:
        """Return the name of the KEK."""
        return self.document.kek

    @property
    def owner_public(self) -> bytes:
        """Return the owner's X25519 public key."""
        return self.document.owner_public

    @property
    def story(self) -> str:
        """Return one line for whoever just made it."""
        spoken = {"keyfile": "a key file", "passphrase": "a passphrase", "tpm": "the TPM"}.get(
            self.opened_by, self.opened_by
        )
        return f"made a keystore opened by {spoken}; assurance {self.assurance.level}: {self.assurance.reasons[0]}"

    def key_for(self, name: str) -> Secret | None:
        """Return the KEK called *name*, or None when it is not of this home."""
        if name == self.document.kek:
            return self.kek
        if self.document.previous and name == self.document.previous.key:
            return self.previous
        return None

    def owner_private(self) -> Secret:
        """Return the owner's X25519 private key; the caller wipes it.

        Raises:
            UntrustedDataError: `keystore-owner`.

        """
        try:
            with kdf.derive(self.kek, "owner-wrap") as key:
                return aead.unwrap(key, self.document.owner_wrapped, self.document.owner_public)
        except TagMismatch:
            raise UntrustedDataError(
                "the owner key in keystore.json does not open", check="keystore-owner", hint="restore it from a backup"
            ) from None

    def wipe(self) -> None:
        """Zeroise the keys."""
        self.kek.wipe()
        if self.previous:
            self.previous.wipe()

    def __enter__(self) -> Self:
        """Use as a context: wiped at the end."""
        return self

    def __exit__(self, *_: object) -> None:
        """Wipe."""
        self.wipe()


def new_owner(kek: Secret) -> tuple[bytes, bytes]:
    """Make an owner key pair; returns the public key and the private key wrapped by *kek*."""
    private, public = hpke.generate()
    with private:
        return public, wrap_owner(kek, private, public)


def wrap_owner(kek: Secret, private: Secret, public: bytes) -> bytes:
    """Wrap the owner's private key."""
    with kdf.derive(kek, "owner-wrap") as key:
        return aead.wrap(key, private, public)


def wrap_previous(kek: Secret, previous: Secret) -> bytes:
    """Wrap the KEK before this one."""
    with kdf.derive(kek, "previous-wrap") as key:
        return aead.wrap(key, previous, key_id(previous).encode("ascii"))


def open_document(path: Path, document: Document, kek: Secret, assurance: Assurance, kind: str) -> UnlockedKeystore:
    """Prove *document* with *kek* and bring out what it wraps.

    Raises:
        UntrustedDataError: it was changed by somebody without the key.

    """
    check_mac(document, kek)
    return UnlockedKeystore(path, document, kek, _unwrap_previous(document, kek), assurance, kind)


def _unwrap_previous(document: Document, kek: Secret) -> Secret | None:
    if document.previous is None:
        return None
    with kdf.derive(kek, "previous-wrap") as key:
        return aead.unwrap(key, document.previous.wrapped, document.previous.key.encode("ascii"))
