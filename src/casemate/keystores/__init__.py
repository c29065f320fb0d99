"""The home's keystore: make it, open it, change the ways in. See `crypto.keystore` for levels.

One main way in (TPM, passphrase or key file) and at most one recovery code. Rotation makes a new KEK in two durable
steps, so that a crash at any point leaves a keystore that opens every container: `begin_rotation` writes the new KEK
with the old one wrapped under it, the caller re-wraps the containers, `finish_rotation` drops the old one.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from casemate.crypto.aead import TagMismatch
from casemate.crypto.keystore import Assurance
from casemate.crypto.secret import Secret
from casemate.errors import BusyError, CasemateError, NotAuthorisedError, NotFoundError, OperationError
from casemate.formats import keystore as document_format
from casemate.formats.keystore import Document, Previous, RecoverySlot, Slot
from casemate.keystores.document import FILE_NAME, HomePlace, exists, main_kind, read_document, slot_kind
from casemate.keystores.files import locked_directory, replace_small
from casemate.keystores.keyfile import KeyfileKeystore
from casemate.keystores.passphrase import PassphraseKeystore
from casemate.keystores.recovery import RecoveryKeystore, format_code
from casemate.keystores.sources import (
    Sources,
    default_keyfile,
    from_environment,
    from_handover,
    no_passphrase,
    no_tpm,
    only_recovery,
)
from casemate.keystores.tpm import HandedTpmKeystore, TpmKeystore
from casemate.keystores.unlocked import UnlockedKeystore, new_owner, open_document, wrap_owner, wrap_previous

__all__ = [
    "Assurance",
    "Description",
    "HomePlace",
    "Sources",
    "UnlockedKeystore",
    "add_recovery",
    "begin_rotation",
    "create",
    "default_keyfile",
    "describe",
    "exists",
    "finish_rotation",
    "from_environment",
    "from_handover",
    "main_kind",
    "read_document",
    "recovery_only",
    "slot_kind",
    "unlock",
]

_Way = PassphraseKeystore | KeyfileKeystore | RecoveryKeystore | TpmKeystore | HandedTpmKeystore


class Description(msgspec.Struct, frozen=True):
    """What can be said about a keystore without opening it. Unproven: `unlock` proves it."""

    kind: str  # tpm | passphrase | keyfile | recovery
    level: str
    reasons: tuple[str, ...]
    recovery: bool
    rotating: bool
    owner_public: bytes


def describe(home: HomePlace, sources: Sources | None = None) -> Description:
    """Describe the home's keystore from its file and from the evidence about its main way in.

    Raises:
        NotFoundError: there is none.
        UntrustedDataError: keystore.json does not parse.

    """
    document = read_document(home)
    kind = main_kind(document)
    assurance = judge(kind, sources or from_environment(home))
    return Description(
        kind=kind,
        level=assurance.level,
        reasons=assurance.reasons,
        recovery=any(isinstance(slot, RecoverySlot) for slot in document.slots),
        rotating=document.previous is not None,
        owner_public=document.owner_public,
    )


def judge(kind: str, sources: Sources) -> Assurance:
    """Judge a main way in from evidence, reading no secret."""
    if kind == "passphrase":
        return sources.passphrase_evidence()
    if kind == "recovery":
        return Assurance("L1", ("restored from a backup: only the recovery code opens it",))
    if kind == "tpm":
        return _judge_tpm(sources)
    try:
        return sources.keyfile_keystore().assurance()
    except OSError:
        return Assurance("L0", ("the key file cannot be seen from here",))


def _judge_tpm(sources: Sources) -> Assurance:
    way = sources.tpm_keystore()
    if way is None:
        return Assurance("L0", ("no TPM is named here: set keystore.tpm",))
    try:
        return way.assurance()
    except CasemateError as error:
        return Assurance("L0", (f"the TPM cannot be seen from here: {error.message}",))


def create(home: HomePlace, sources: Sources) -> UnlockedKeystore:
    """Make the home's keystore: with the TPM when one is named, else a passphrase if there is one, else a key file.

    Raises:
        BusyError: the home already has one.
        OperationError: it cannot be written.

    """
    if exists(home.keystore):
        raise BusyError(f"{home.path} already has a keystore", hint="see `casemate keystore status`")
    way: _Way = sources.tpm_keystore() or sources.passphrase_keystore(new=True) or sources.keyfile_keystore()
    kek = Secret.random()
    public, wrapped = new_owner(kek)
    slot = _enrol(home.id, way, kek)
    document = Document(
        schema=document_format.SCHEMA,
        home=home.id,
        kek=document_format.key_id(kek),
        owner_public=public,
        owner_wrapped=wrapped,
        slots=(slot,),
    )
    path = home.keystore / FILE_NAME
    return _save(path, document, kek, way.assurance(), way.kind, replacing=None)


def unlock(home: HomePlace, sources: Sources) -> UnlockedKeystore:
    """Open the keystore with the recovery code when one is given, else by its main way in.

    Raises:
        NotFoundError: there is no keystore.
        NotAuthorisedError: no secret, or a wrong one.
        UntrustedDataError: keystore.json was changed.

    """
    document = read_document(home)
    slot, way = _choose(document, sources)
    with way.recall(slot) as secret:  # type: ignore[arg-type]  # _choose pairs them
        try:
            kek = document_format.unwrap_slot(home.id, slot, secret)
        except TagMismatch:
            raise NotAuthorisedError(f"the {_spoken(way)} does not open this keystore", hint=_HINTS[way.kind]) from None
    return open_document(home.keystore / FILE_NAME, document, kek, way.assurance(), way.kind)


def add_recovery(keystore: UnlockedKeystore, show: Callable[[str], None]) -> UnlockedKeystore:
    """Make a recovery code, replacing an older one; *show* gets it once, before anything depends on it.

    Raises:
        OperationError: the keystore cannot be written; the shown code is void.

    """
    slot, code = _new_recovery(keystore.document.home, keystore.kek)
    show(code)
    slots = tuple(old for old in keystore.document.slots if not isinstance(old, RecoverySlot))
    document = msgspec.structs.replace(keystore.document, slots=(*slots, slot))
    return _save(
        keystore.path, document, keystore.kek, keystore.assurance, keystore.opened_by, replacing=keystore.document
    )


def recovery_only(keystore: UnlockedKeystore) -> bytes:
    """Return keystore.json for a backup: the same keys, opened by the recovery code and by nothing else.

    Raises:
        NotFoundError: there is no recovery code.

    """
    slots = tuple(slot for slot in keystore.document.slots if isinstance(slot, RecoverySlot))
    if not slots:
        raise NotFoundError("the keystore has no recovery code", hint="make one: `casemate keystore add-recovery`")
    return document_format.encode(msgspec.structs.replace(keystore.document, slots=slots), keystore.kek)


def begin_rotation(
    keystore: UnlockedKeystore, way: PassphraseKeystore | KeyfileKeystore | TpmKeystore, show: Callable[[str], None]
) -> UnlockedKeystore:
    """Make a new KEK, reached by *way* alone; the old one stays openable until `finish_rotation`.

    Slots that *way* cannot renew do not survive: an old recovery code would still open a stolen old keystore, so a
    new one is made when there was one, and *show* gets it.

    Raises:
        OperationError: an earlier rotation is unfinished, or the keystore cannot be written.

    """
    old = keystore.document
    if old.previous is not None:
        raise OperationError("an earlier rotation is unfinished", hint="run `casemate keystore rotate` to finish it")
    kek = Secret.random()
    slot = _enrol(old.home, way, kek)
    slots: tuple[Slot, ...] = (slot,)
    if any(isinstance(slot, RecoverySlot) for slot in old.slots):
        recovery, code = _new_recovery(old.home, kek)
        show(code)
        slots = (*slots, recovery)
    with keystore.owner_private() as private:
        owner = wrap_owner(kek, private, old.owner_public)
    document = msgspec.structs.replace(
        old,
        kek=document_format.key_id(kek),
        owner_wrapped=owner,
        slots=slots,
        previous=Previous(key=old.kek, wrapped=wrap_previous(kek, keystore.kek)),
    )
    return _save(keystore.path, document, kek, way.assurance(), way.kind, replacing=old)


def finish_rotation(keystore: UnlockedKeystore) -> UnlockedKeystore:
    """Forget the old KEK, once no container needs it."""
    document = msgspec.structs.replace(keystore.document, previous=None)
    return _save(
        keystore.path, document, keystore.kek, keystore.assurance, keystore.opened_by, replacing=keystore.document
    )


# --- helpers --------------------------------------------------------------------------------------------------------

_HINTS: Final = {
    "tpm": "keystore.json was changed: restore it from a backup, or use the recovery code",
    "passphrase": "try again; if it is lost, use the recovery code: `casemate keystore rotate --recovery`",
    "keyfile": "the key file has the right key but keystore.json was changed: restore it from a backup",
    "recovery": "restore keystore.json from a backup",
}


def _spoken(way: _Way) -> str:
    return {"keyfile": "key file", "recovery": "recovery code", "tpm": "TPM"}.get(way.kind, way.kind)


def _choose(document: Document, sources: Sources) -> tuple[Slot, _Way]:
    """Pair a slot with the way that opens it."""
    by_kind: dict[str, Slot] = {slot_kind(slot): slot for slot in document.slots}
    if sources.recovery is not None:
        if "recovery" not in by_kind:
            raise NotAuthorisedError("this keystore has no recovery code", hint="use its passphrase or key file")
        return by_kind["recovery"], RecoveryKeystore(sources.recovery)
    if "tpm" in by_kind:
        chip = sources.tpm_keystore()
        if chip is None:
            raise no_tpm()
        return by_kind["tpm"], chip
    if "passphrase" in by_kind:
        way = sources.passphrase_keystore()
        if way is None:
            raise no_passphrase()
        return by_kind["passphrase"], way
    if "keyfile" not in by_kind:
        raise only_recovery()
    return by_kind["keyfile"], sources.keyfile_keystore()


def _enrol(home: str, way: Any, kek: Secret) -> Slot:
    slot: Slot
    slot, secret = way.enrol()
    with secret:
        return document_format.wrap_slot(home, slot, secret, kek)


def _new_recovery(home: str, kek: Secret) -> tuple[Slot, str]:
    with Secret.random() as secret:
        slot = _enrol(home, RecoveryKeystore(secret), kek)
        return slot, format_code(secret)


def _save(
    path: Path, document: Document, kek: Secret, assurance: Assurance, kind: str, *, replacing: Document | None
) -> UnlockedKeystore:
    """Put *document* in the place of *replacing* and of nothing else, and read back: what is returned is on the disk.

    Two commands that change the keystore at once must not undo each other: a KEK that is lost so takes models with it.
    """
    with locked_directory(path.parent):
        current = document_format.parse(path.read_bytes()) if path.exists() else None
        if (current and current.mac) != (replacing and replacing.mac):
            raise BusyError("the keystore was changed by another command meanwhile", hint="try again")
        replace_small(path, document_format.encode(document, kek), "keystore")
        written = document_format.parse(path.read_bytes())
    return open_document(path, written, kek, assurance, kind)
