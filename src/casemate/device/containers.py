"""Container files: opening them, reading chunks, making them, and changing their slots without touching a chunk.

A new container is written to a file without a name and gets its name only when it is complete and on disk, so a killed
or failed `add` leaves nothing. Slots change through a redo record: the new slot area goes durably to a file beside the
container first, then over the old one; whoever opens the container next finishes what a crash left. There is one slot
area, so every byte of a container is covered by a tag or the MAC.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Self

from casemate.crypto import aead, hpke, kdf
from casemate.crypto.aead import TagMismatch
from casemate.crypto.secret import Secret
from casemate.durable import sync_directory
from casemate.errors import (
    BusyError,
    NotAuthorisedError,
    NotFoundError,
    OperationError,
    PolicyDeniedError,
    UntrustedDataError,
)
from casemate.formats import container as fmt
from casemate.formats import gate
from casemate.formats.container import (
    BrokerSlot,
    Header,
    HomeSlot,
    PassphraseSlot,
    RecipientSlot,
    SlotArea,
    Span,
    UntrustedContainer,
    VerifiedContainer,
)
from casemate.formats.lease import LeasedKey, Level
from casemate.keystores import UnlockedKeystore

SUFFIX: Final = ".cmodel"
_REDO_SUFFIX: Final = ".slots"
_TEMPORARY_PREFIX: Final = ".new-"
OWNER_HINT: Final = "run it as the user this home belongs to (root for /var/lib/casemate)"

Progress = Callable[[int], None]  # called with the number of plaintext bytes just done


@dataclasses.dataclass
class OpenContainer:
    """An open file and what it claims. The descriptor stays the same file whatever happens to its name."""

    fd: int
    path: Path
    container: UntrustedContainer

    def close(self) -> None:
        """Close the file."""
        os.close(self.fd)

    def __enter__(self) -> Self:
        """Use as a context: closed at the end."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()


def open_container(path: Path) -> OpenContainer:
    """Open and parse; nothing is proven yet.

    Raises:
        NotFoundError: no such file.
        UntrustedDataError: not a well-formed container.

    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise NotFoundError(f"no model file {path}", hint="see `casemate model list`") from error
    except OSError as error:
        raise OperationError(f"cannot open {path}: {error.strerror}", hint="check its owner and mode") from error
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise UntrustedDataError(  # noqa: TRY301 - the descriptor is closed below on every failure
                f"{path} is not a file", check="container-magic", hint="see `casemate model list`"
            )
        head = read_exact(fd, 0, min(fmt.HEAD_BYTES, info.st_size))
        pending = _read_record(redo_path(path, fmt.parse_header(head)))
        return OpenContainer(fd, path, fmt.parse(head, info.st_size, area=pending))
    except BaseException:
        os.close(fd)
        raise


def read_exact(fd: int, offset: int, size: int) -> bytes:
    """Read *size* bytes at *offset*; fewer only at the end of the file."""
    pieces = bytearray()
    while len(pieces) < size:
        piece = os.pread(fd, size - len(pieces), offset + len(pieces))
        if not piece:
            break
        pieces += piece
    return bytes(pieces)


# --- keys -----------------------------------------------------------------------------------------------------------


def home_slot(header: Header, data_key: Secret, keystore: UnlockedKeystore) -> HomeSlot:
    """Wrap a data key for this home."""
    with kdf.derive(keystore.kek, "container-wrap", header.digest) as key:
        wrapped = aead.wrap(key, data_key, fmt.slot_context(header, "home" + keystore.key_id))
    return HomeSlot(key=keystore.key_id, wrapped=wrapped)


def gated(name: str) -> PolicyDeniedError:
    """Return why this device's keystore does not open the container of *name*."""
    return PolicyDeniedError(
        f"{name!r} is gated: its key comes from the fleet, for a lease, to the running device alone",
        hint="it proves itself at each start; to export or re-wrap a model, use its source",
    )


def unwrap_for_home(container: UntrustedContainer, keystore: UnlockedKeystore) -> Secret:
    """Take out the data key with this home's keystore.

    Raises:
        UntrustedDataError: `wrong-keystore` the container belongs to another home; `container-slot` it was changed.
        PolicyDeniedError: it is gated.

    """
    if container.gate:
        raise gated(container.claimed.name)
    for slot in container.slots:
        if not isinstance(slot, HomeSlot):
            continue
        kek = keystore.key_for(slot.key)
        if kek is None:
            continue
        with kdf.derive(kek, "container-wrap", container.header.digest) as key:
            try:
                return aead.unwrap(key, slot.wrapped, fmt.slot_context(container.header, "home" + slot.key))
            except TagMismatch:
                raise UntrustedDataError(
                    "the wrapped key of this container was changed, or belongs to another file",
                    check="container-slot",
                    hint="`casemate model rm` it and add the model again from its source",
                ) from None
    raise UntrustedDataError(
        "this container was made for another keystore",
        check="wrong-keystore",
        hint="if it is an export, add it: `casemate model add FILE --passphrase-file F`",
    )


def broker_slot(header: Header, data_key: Secret, leased: LeasedKey, asks: Level) -> BrokerSlot:
    """Wrap a data key for whoever a fleet's broker gives the model's key to, while that is at least to *asks*."""
    context = fmt.slot_context(header, _broker_context(leased.fleet, leased.model, leased.key, asks))
    with kdf.derive(leased.secret, "container-wrap", header.digest) as key:
        wrapped = aead.wrap(key, data_key, context)
    return BrokerSlot(leased.fleet, leased.model, leased.key, asks, wrapped)


def unwrap_leased(container: UntrustedContainer, leased: LeasedKey) -> Secret:
    """Take out the data key of a gated container.

    Raises:
        UntrustedDataError: `wrong-lease` another fleet's, model's or key's; `container-slot` it was changed.
        PolicyDeniedError: the fleet gives the key to devices that prove less than the container asks for.

    """
    slot = container.gate
    if slot is None or (slot.fleet, slot.model, slot.key) != (leased.fleet, leased.model, leased.key):
        raise UntrustedDataError(
            "the fleet's key is not the one this container was made with",
            check="wrong-lease",
            hint="add the model again with this fleet: `casemate model add FILE --min-assurance L2 --replace`",
        )
    if not gate.reaches(leased.min_assurance, slot.min_assurance):
        raise PolicyDeniedError(
            f"the container asks for {slot.min_assurance}, the fleet gives {slot.model!r} to {leased.min_assurance}",
            hint=f"on the fleet: `casemate fleet model gate {slot.model} --min-assurance {slot.min_assurance}`",
        )
    named = _broker_context(slot.fleet, slot.model, slot.key, slot.min_assurance)
    with kdf.derive(leased.secret, "container-wrap", container.header.digest) as key:
        try:
            return aead.unwrap(key, slot.wrapped, fmt.slot_context(container.header, named))
        except TagMismatch:
            raise UntrustedDataError(
                "the wrapped key of this container was changed, or belongs to another file",
                check="container-slot",
                hint="`casemate model rm` it and add the model again from its source",
            ) from None


def _broker_context(fleet: str, model: str, key: str, level: str) -> str:
    return f"broker\0{fleet}\0{model}\0{key}\0{level}"


def passphrase_slot(header: Header, data_key: Secret, passphrase: Secret) -> PassphraseSlot:
    """Wrap a data key for whoever knows *passphrase*."""
    salt = os.urandom(kdf.SALT_BYTES)
    with kdf.stretch(passphrase, salt, kdf.DEFAULT_COST) as key:
        wrapped = aead.wrap(key, data_key, fmt.slot_context(header, "passphrase"))
    return PassphraseSlot(salt=salt, cost=kdf.DEFAULT_COST, wrapped=wrapped)


def recipient_slot(header: Header, data_key: Secret, public: bytes) -> RecipientSlot:
    """Seal a data key to the owner key of another home."""
    context = fmt.slot_context(header, "recipient")
    return RecipientSlot(public=public, wrapped=hpke.seal(public, context, public, data_key.view()))


def unwrap_export(
    container: UntrustedContainer, *, passphrase: Secret | None, keystore: UnlockedKeystore | None
) -> Secret:
    """Take the data key out of an export, with a passphrase or with this home's owner key.

    Raises:
        NotAuthorisedError: neither opens it.

    """
    header = container.header
    for slot in container.slots:
        if isinstance(slot, PassphraseSlot) and passphrase is not None:
            with kdf.stretch(passphrase, slot.salt, slot.cost) as key, contextlib.suppress(TagMismatch):
                return aead.unwrap(key, slot.wrapped, fmt.slot_context(header, "passphrase"))
        if isinstance(slot, RecipientSlot) and keystore is not None and slot.public == keystore.owner_public:
            with keystore.owner_private() as private, contextlib.suppress(TagMismatch):
                opened = hpke.open(private, fmt.slot_context(header, "recipient"), slot.public, slot.wrapped)
                return Secret(opened)
    raise NotAuthorisedError(
        "neither the passphrase nor this home's key opens the export",
        hint="give the passphrase it was made with: `--passphrase-file F`",
    )


# --- chunks ---------------------------------------------------------------------------------------------------------


_AHEAD_EVERY: Final = 8
"""Chunks between two hints to read ahead; each hint covers twice as many."""


def open_chunks(fd: int, container: VerifiedContainer) -> Iterator[tuple[Span, memoryview, memoryview]]:
    """Yield (place, ciphertext, plaintext) of every chunk in order: read, verified, decrypted into a private buffer.

    The buffers are used again for the next chunk, and the plaintext is zeroised at the end: copy what must stay.

    Raises:
        UntrustedDataError: a chunk does not verify; no byte of its plaintext was yielded.

    """
    header = container.header
    sealed = memoryview(bytearray(header.chunk_size + aead.TAG_BYTES))
    plain = memoryview(bytearray(header.chunk_size))
    try:
        for index in range(header.chunks):
            span = header.chunk(index)
            if index % _AHEAD_EVERY == 0:  # the disk reads on while we decrypt
                os.posix_fadvise(fd, span.offset, 2 * _AHEAD_EVERY * span.sealed_size, os.POSIX_FADV_WILLNEED)
            ciphertext, plaintext = sealed[: span.sealed_size], plain[: span.plain_size]
            read_into(fd, ciphertext, span.offset)
            fmt.open_chunk(container, index, ciphertext, plaintext)
            yield span, ciphertext, plaintext
    finally:
        plain[:] = bytes(header.chunk_size)


def read_into(fd: int, buffer: memoryview, offset: int) -> None:
    """Fill *buffer* from *offset*.

    Raises:
        UntrustedDataError: the file is shorter than it was.

    """
    done = 0
    while done < len(buffer):
        count = os.preadv(fd, [buffer[done:]], offset + done)
        if not count:
            raise UntrustedDataError(
                "the file became shorter while it was read",
                check="changed-while-read",
                hint="something else writes to it: stop that, then try again",
            )
        done += count


def write_all(fd: int, data: memoryview | bytes, offset: int) -> None:
    """Write all of *data* at *offset*."""
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, offset)
        view, offset = view[done:], offset + done


# --- making ---------------------------------------------------------------------------------------------------------


class UnnamedFile:
    """A file in a directory that has no name until `commit`; closed without it, nothing remains, even after a kill."""

    def __init__(self, directory: Path) -> None:
        """Make the file in *directory*."""
        self._directory = directory
        self._name: Path | None = None
        try:
            self.fd = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError:  # a file system without unnamed files: a named one
            self._name = self._fresh_name()
            self.fd = os.open(self._name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(self.fd, fcntl.LOCK_EX)  # says "alive" to `remove_leftovers`

    def _fresh_name(self) -> Path:
        return self._directory / f"{_TEMPORARY_PREFIX}{secrets.token_hex(8)}"

    def commit(self, path: Path, *, replace: bool) -> None:
        """Make the content durable, then give the file its name.

        Raises:
            BusyError: the name is taken and *replace* is false.

        """
        self._give_to_directory_owner()
        os.fsync(self.fd)
        if self._name is None and not replace:
            self._link(path)
        else:
            self._rename(path, replace=replace)
        sync_directory(self._directory)

    def _give_to_directory_owner(self) -> None:
        directory, own = self._directory.stat(), os.fstat(self.fd)
        if os.geteuid() == 0 and (own.st_uid, own.st_gid) != (directory.st_uid, directory.st_gid):
            os.fchown(self.fd, directory.st_uid, directory.st_gid)

    def _rename(self, path: Path, *, replace: bool) -> None:
        if not replace and path.exists():
            raise _taken(path)
        if self._name is None:
            name = self._fresh_name()
            self._link(name)
            self._name = name
        self._name.replace(path)
        self._name = None

    def _link(self, path: Path) -> None:
        """Add a name; unlike rename, this never replaces."""
        at = os.open(self._directory, os.O_PATH | os.O_CLOEXEC)
        try:  # with a directory descriptor Python calls linkat, which can follow /proc to the file
            os.link(f"/proc/self/fd/{self.fd}", path, src_dir_fd=at, follow_symlinks=True)
        except FileExistsError:
            raise _taken(path) from None
        finally:
            os.close(at)

    def close(self) -> None:
        """Close; a leftover name goes."""
        if self._name is not None:
            self._name.unlink(missing_ok=True)
        os.close(self.fd)

    def __enter__(self) -> Self:
        """Use as a context: closed at the end."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()


def _taken(path: Path) -> BusyError:
    return BusyError(f"{path.name.removesuffix(SUFFIX)!r} is already there", hint="choose another name, or --replace")


class ContainerWriter:
    """Writes a container into an open file: the header at once, chunks in order, the slot area last."""

    def __init__(self, fd: int, header: Header, data_key: Secret) -> None:
        """Write *header* to *fd*."""
        self._fd = fd
        self._header = header
        self._data_key = data_key
        self._stream = fmt.writing_stream(header, data_key)
        self._sealed = memoryview(bytearray(header.chunk_size + aead.TAG_BYTES))
        self._next = 0
        write_all(fd, header.raw, 0)

    def put_chunk(self, plain: memoryview) -> None:
        """Encrypt and write the next chunk."""
        span = self._header.chunk(self._next)
        sealed = self._sealed[: span.sealed_size]
        self._stream.seal_into(self._next, plain, sealed, last=span.last)
        write_all(self._fd, sealed, span.offset)
        self._next += 1

    def finish(self, area: SlotArea) -> None:
        """Write the slot area; the container is then whole."""
        if self._next != self._header.chunks:
            raise ValueError("a container without all its chunks is a bug")
        write_all(self._fd, fmt.seal_area(self._header, area, self._data_key), fmt.HEADER_BYTES)


def remove_leftovers(directory: Path) -> None:
    """Remove temporary files whose writer is gone."""
    for path in directory.glob(f"{_TEMPORARY_PREFIX}*"):
        with contextlib.suppress(OSError):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
            finally:
                os.close(fd)


# --- changing slots -------------------------------------------------------------------------------------------------


def redo_path(path: Path, header: Header) -> Path:
    """Return where the redo record of this very container lies: one left by another of the same name is never taken."""
    return path.with_name(f".{path.name}.{header.file_id.hex()}{_REDO_SUFFIX}")


def remove_records(path: Path) -> None:
    """Remove redo records of containers that were at *path* and are gone."""
    for record in path.parent.glob(f".{path.name}.*{_REDO_SUFFIX}"):
        record.unlink(missing_ok=True)


def _read_record(record: Path) -> bytes | None:
    """Return the slot area of an unfinished change. The record got its name when it was whole."""
    try:
        fd = os.open(record, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    with os.fdopen(fd, "rb") as file:
        return file.read(fmt.AREA_BYTES + 1)


def replace_area(path: Path, header: Header, area: SlotArea, data_key: Secret) -> None:
    """Change the slots and labels of the container at *path*, surviving a crash at any point.

    The caller holds `models_lock` exclusively.
    """
    sealed = fmt.seal_area(header, area, data_key)
    record = redo_path(path, header)
    with UnnamedFile(path.parent) as file:
        write_all(file.fd, sealed, 0)
        file.commit(record, replace=True)
    _apply(path, record, sealed)


def finish_pending(opened: OpenContainer, *, locked: bool) -> None:
    """Finish a change that a crash left, once `verify` has proven its area. *locked*: the caller holds `models_lock`.

    Without the lock or the right to write it is left for later: the record counts as long as it is there.
    """
    record = redo_path(opened.path, opened.container.header)
    if not record.exists():
        return
    with contextlib.suppress(PermissionError, BusyError), contextlib.ExitStack() as held:
        if not locked:
            held.enter_context(models_lock(opened.path.parent, exclusive=True))
        if _read_record(record) == opened.container.area:  # nobody was faster
            _apply(opened.path, record, opened.container.area)


def _apply(path: Path, record: Path, area: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        write_all(fd, area, fmt.HEADER_BYTES)
        os.fsync(fd)
    finally:
        os.close(fd)
    record.unlink(missing_ok=True)
    sync_directory(path.parent)


@contextlib.contextmanager
def models_lock(directory: Path, *, exclusive: bool) -> Iterator[None]:
    """Hold the directory: rotation excludes adding and exporting.

    Raises:
        BusyError: somebody else holds it.
        OperationError: it cannot be opened.

    """
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise OperationError(f"cannot open {directory}: {error.strerror}", hint=OWNER_HINT) from error
    try:
        try:
            fcntl.flock(fd, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(
                "another command is changing the models", hint="wait for it to end, then try again"
            ) from None
        yield
    finally:
        os.close(fd)
