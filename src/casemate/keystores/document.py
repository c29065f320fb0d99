"""Where keystore.json is and what can be read from it before it is opened."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Protocol

from casemate.errors import NotFoundError
from casemate.formats import keystore as document_format
from casemate.formats.keystore import Document, KeyfileSlot, PassphraseSlot, RecoverySlot, Slot, TpmSlot
from casemate.keystores.files import read_small

FILE_NAME: Final = "keystore.json"
_KINDS: Final[dict[type, str]] = {
    TpmSlot: "tpm",
    PassphraseSlot: "passphrase",
    KeyfileSlot: "keyfile",
    RecoverySlot: "recovery",
}


class HomePlace(Protocol):
    """What a keystore needs to know about a home."""

    path: Path
    keystore: Path

    @property
    def id(self) -> str:
        """Its identifier."""
        ...


def exists(directory: Path) -> bool:
    """Whether a home's keystore *directory* holds a keystore."""
    return (directory / FILE_NAME).exists()


def read_document(home: HomePlace) -> Document:
    """Read keystore.json, without proof: for display and to learn which secret to ask for.

    Raises:
        NotFoundError: there is none.
        UntrustedDataError: it does not parse.

    """
    path = home.keystore / FILE_NAME
    try:
        return document_format.parse(read_small(path, document_format.DOCUMENT_LIMIT, "keystore"))
    except NotFoundError as error:
        raise NotFoundError(
            f"no keystore in {home.path}", hint="`casemate up` or `casemate model add` makes one"
        ) from error


def slot_kind(slot: Slot) -> str:
    """Return the tag of *slot*: tpm, passphrase, keyfile or recovery."""
    return _KINDS[type(slot)]


def main_kind(document: Document) -> str:
    """Return the main way in: tpm, passphrase or keyfile (a keystore reduced to its recovery code: recovery)."""
    return next((slot_kind(slot) for slot in document.slots if not isinstance(slot, RecoverySlot)), "recovery")
