"""Exports: a container for somebody else. The ciphertext is copied as it is; only the wrapped key is new.

There is no plaintext export. Each chunk is verified while it is copied, so a damaged model is not passed on. The
receiver's `model add` checks everything again and encrypts under a data key that the sender does not know.
"""

from __future__ import annotations

from pathlib import Path

from casemate import keystores
from casemate.clock import SystemClock
from casemate.crypto.secret import Secret
from casemate.device import containers, store
from casemate.device.home import Home
from casemate.device.models import ShowProgress, no_progress
from casemate.device.record import record
from casemate.errors import OperationError, UsageError
from casemate.formats import container as fmt
from casemate.formats import event, grant
from casemate.formats.container import SlotArea
from casemate.keystores import Sources


def format_owner(public: bytes) -> str:
    """Return an owner's public key as people exchange it."""
    return grant.show_recipient(public)


def parse_owner(text: str) -> bytes:
    """Read an owner's public key.

    Raises:
        UsageError: it is not one.

    """
    try:
        return grant.parse_recipient(text)
    except UsageError as error:
        raise UsageError(
            f"{text[:60]!r} is not an owner key", hint="the receiver finds theirs with `casemate keystore status`"
        ) from error


def export_model(
    home: Home,
    sources: Sources,
    name: str,
    to: Path,
    *,
    recipient: bytes | None = None,
    passphrase: Secret | None = None,
    progress: ShowProgress = no_progress,
) -> int:
    """Write the container of *name* for *recipient* (an owner's public key) or *passphrase*; returns its size in bytes.

    Raises:
        NotFoundError: there is none of that name.
        UntrustedDataError: the container, or a chunk of it, does not verify; nothing is left at *to*.
        BusyError: *to* exists.
        OperationError: it cannot be written.

    """
    with containers.models_lock(home.models, exclusive=False), keystores.unlock(home, sources) as keystore:
        with store.opened_model(home, keystore, name) as (opened, verified):
            header, data_key = verified.header, containers.unwrap_for_home(opened.container, keystore)
            with data_key:
                slot: fmt.Slot
                if recipient is not None:
                    slot, whom = containers.recipient_slot(header, data_key, recipient), format_owner(recipient)
                elif passphrase is not None:
                    slot, whom = containers.passphrase_slot(header, data_key, passphrase), "passphrase"
                else:
                    raise UsageError("an export is for somebody", hint="give --recipient or --passphrase-file")
                area = fmt.seal_area(header, SlotArea(slots=(slot,), labels=verified.labels), data_key)
            _copy(opened, verified, area, to, progress)
        digest = verified.labels.digest
    record(home, event.model_exported(model=name, digest=digest, recipient=whom, now=SystemClock().wall()))
    return header.file_size


def _copy(
    opened: containers.OpenContainer, verified: fmt.VerifiedContainer, area: bytes, to: Path, progress: ShowProgress
) -> None:
    header = verified.header
    try:
        with containers.UnnamedFile(to.parent) as file, progress(header.plain_size, f"exporting {to.name}") as advance:
            containers.write_all(file.fd, header.raw + area, 0)
            for span, sealed, _ in containers.open_chunks(opened.fd, verified):
                containers.write_all(file.fd, sealed, span.offset)
                advance(span.plain_size)
            file.commit(to, replace=False)
    except OSError as error:
        raise OperationError(
            f"cannot write {to}: {error.strerror}", hint="check the directory and its free space; nothing was left"
        ) from error
