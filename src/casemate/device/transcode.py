"""From a sealed payload and an old container to a new container, as a stream: the vault's part of an update.

    payload --open--> plain stream --delta against the old container, or as it is--> new file --encrypt--> container

No more than a few chunks are in memory, whatever the model's size, and plaintext is in no file. The new container has
no name until its content has the digest that the release names, its header is that of a GGUF model, and it is durable;
a failure or a kill before that leaves nothing. The old container is only read. A delta made against anything but this
very base is refused before a chunk of it is opened.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import select
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple, Self

import msgspec

from casemate.crypto.aead import TAG_BYTES, TagMismatch, preferred_algorithm
from casemate.crypto.secret import Secret
from casemate.device import containers, store
from casemate.device.home import Home
from casemate.errors import BusyError, NotFoundError, OperationError, UntrustedDataError
from casemate.formats import container as fmt
from casemate.formats import delta, frames
from casemate.formats.container import Header, Slot, SlotArea
from casemate.formats.delta import Identity
from casemate.formats.gate import Gate
from casemate.formats.gguf import GgufFacts, check_header
from casemate.formats.lease import LeasedKey
from casemate.formats.manifest import File, Payload, Step
from casemate.formats.payload import PayloadCipher
from casemate.keystores import UnlockedKeystore

Piece = bytes | bytearray | memoryview
Tick = Callable[[], None]
_STEP: Final = 1 << 20
_IDLE_SECONDS: Final = 0.2
_STALLED_SECONDS: Final = 60.0


class Job(msgspec.Struct, frozen=True):
    """One container to make: the *file* of a release, by *step* of the payload, beginning *skip* bytes into it.

    *gate*: its one slot is the fleet's; the home's keystore never opens it.
    """

    model: str
    base: str
    file: File
    step: Step
    skip: int
    licence: str
    security_version: int
    added: int
    gate: Gate | None = None


class Made(msgspec.Struct, frozen=True):
    """The container that is now there."""

    digest: str
    bytes: int
    existed: bool = False


def transcode(
    home: Home, keystore: UnlockedKeystore, job: Job, stream: Iterable[Piece], leased: LeasedKey | None = None
) -> Made:
    """Make the container `job.model`; *stream* is the plaintext of the payload. A second call finds the work done.

    *leased*: the fleet's key, for a gated one and to read a gated base.

    Raises:
        UntrustedDataError: `delta-...`, `payload-...`, `zstd`, `release-digest`, `gguf-...`: nothing was left behind.
        NotFoundError: there is no container `job.base`.
        BusyError: a different model has the name.
        PolicyDeniedError: it is gated, or its base is, and there is no leased key for it.
        OperationError: the disk is full.

    """
    keys = _Keys(keystore, leased)
    target = store.path_of(home, job.model)
    with contextlib.ExitStack() as held:
        held.enter_context(containers.models_lock(home.models, exclusive=False))
        containers.remove_leftovers(home.models)
        if target.exists():
            return _existing(home, keys, job)
        base = _open_base(home, keys, job, held) if job.step.base else None
        store.require_space(home.models, job.file.size)
        pieces = _file(job, _part(stream, job.skip, job.step.bytes), base)
        try:
            _write(target, keys, job, pieces)
        except OSError as error:
            raise OperationError(
                f"cannot write the model: {error.strerror}", hint="free space, then try again; nothing was left behind"
            ) from error
    return Made("sha256:" + job.file.sha256, job.file.size)


class _Keys(NamedTuple):
    """What opens and makes containers."""

    home: UnlockedKeystore
    leased: LeasedKey | None

    def slot(self, job: Job, header: Header, data_key: Secret) -> Slot:
        """Return the one slot of a new container."""
        if job.gate is None:
            return containers.home_slot(header, data_key, self.home)
        if self.leased is None:
            raise containers.gated(job.model)
        return containers.broker_slot(header, data_key, self.leased, job.gate.min_assurance)


def _existing(home: Home, keys: _Keys, job: Job) -> Made:
    if job.gate and keys.leased is None:
        raise containers.gated(job.model)
    with store.opened_model(home, keys.home, job.model, leased=keys.leased if job.gate else None) as (_, verified):
        if verified.labels.digest != "sha256:" + job.file.sha256:
            raise BusyError(f"there is already another model {job.model!r}", hint="remove it, or choose another name")
    return Made(verified.labels.digest, verified.header.plain_size, existed=True)


def _open_base(home: Home, keys: _Keys, job: Job, held: contextlib.ExitStack) -> ContainerReader:
    """Open the old container and hold it against what the release says its delta is made from."""
    if not job.base or job.step.base is None:
        raise NotFoundError("the payload is a delta and there is no base", hint="fetch the full payload")
    with containers.open_container(store.path_of(home, job.base)) as claimed:
        leased = keys.leased if claimed.container.gate else None
    opened, verified = held.enter_context(store.opened_model(home, keys.home, job.base, leased=leased))
    labels, wanted = verified.labels, job.step.base
    if (labels.digest, verified.header.plain_size) != ("sha256:" + wanted.sha256, wanted.size):
        raise UntrustedDataError(
            f"the delta was refused: it is not made against {job.base!r}",
            check="delta-base",
            hint="the full payload is fetched instead; nothing was changed",
        )
    return held.enter_context(ContainerReader(opened.fd, verified.header, functools.partial(fmt.open_chunk, verified)))


def _file(job: Job, part: Iterator[Piece], base: ContainerReader | None) -> Iterator[Piece]:
    """Yield the plain file; it raises at the end when it is not the one the release names."""
    file = Identity(job.file.size, bytes.fromhex(job.file.sha256))
    if base is not None and job.step.base is not None:
        was = Identity(job.step.base.size, bytes.fromhex(job.step.base.sha256))
        if job.step.codec == "same":
            return _checked(base.all(), file)
        return delta.apply(part, base.read, base=was, new=file)
    return _checked(frames.decompress_stream(part, file.size) if job.step.codec == "zstd" else part, file)


def _checked(pieces: Iterable[Piece], wanted: Identity) -> Iterator[Piece]:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
        yield piece
    if digest.digest() != wanted.sha256:
        raise UntrustedDataError(
            "the payload does not make the file that the release names", check="release-digest", hint="fetch it again"
        )


def _write(target: Path, keys: _Keys, job: Job, pieces: Iterator[Piece]) -> None:
    header = fmt.new_header(
        plain_size=job.file.size,
        algorithm=preferred_algorithm(),
        entropy=os.urandom(23),
        security_version=job.security_version,
    )
    with Secret.random() as data_key, containers.UnnamedFile(target.parent) as file:
        writer = containers.ContainerWriter(file.fd, header, data_key)
        for chunk in _cut(pieces, header):
            writer.put_chunk(chunk)
        facts = _inspect(file.fd, header, data_key)
        labels = fmt.Labels(job.model, "sha256:" + job.file.sha256, job.licence, job.added, facts)
        writer.finish(SlotArea(slots=(keys.slot(job, header, data_key),), labels=labels))
        file.commit(target, replace=False)
        containers.remove_records(target)


def _cut(pieces: Iterator[Piece], header: Header) -> Iterator[memoryview]:
    """Cut the file into the container's chunks, and read *pieces* to their end: only then they are good."""
    chunk = memoryview(bytearray(header.chunk_size))
    filled = total = 0
    for piece in pieces:
        view, total = memoryview(piece), total + len(piece)
        if total > header.plain_size:
            raise _wrong_size()
        while view.nbytes:
            taken = min(len(view), len(chunk) - filled)
            chunk[filled : filled + taken] = view[:taken]
            view, filled = view[taken:], filled + taken
            if filled == len(chunk):
                yield chunk
                filled = 0
    if total != header.plain_size:
        raise _wrong_size()
    if filled:
        yield chunk[:filled]
    chunk[:] = bytes(len(chunk))


def _wrong_size() -> UntrustedDataError:
    return UntrustedDataError(
        "the payload does not make a file of the size that the release names", check="release-digest", hint="fetch it"
    )


def _inspect(fd: int, header: Header, data_key: Secret) -> GgufFacts:
    """Check the new file's header, read back from what was written: a signed model can still be malformed."""
    stream = fmt.writing_stream(header, data_key)

    def open_chunk(index: int, sealed: memoryview, out: memoryview) -> None:
        try:
            stream.open_into(index, sealed, out, last=index == header.chunks - 1)
        except TagMismatch:
            raise OperationError("the disk did not keep what was written", hint="check it: `dmesg`") from None

    with ContainerReader(fd, header, open_chunk) as reader:
        return check_header(lambda offset, size: bytes(reader.read(offset, size)), header.plain_size).facts


class ContainerReader:
    """Random access to a container's plaintext; holds one chunk, which a walk in order opens once."""

    def __init__(self, fd: int, header: Header, open_chunk: Callable[[int, memoryview, memoryview], None]) -> None:
        """Read chunks of *fd*; *open_chunk* (index, sealed, out) verifies and decrypts one."""
        self._fd = fd
        self._header = header
        self._open = open_chunk
        self._sealed = memoryview(bytearray(header.chunk_size + TAG_BYTES))
        self._plain = memoryview(bytearray(header.chunk_size))
        self._index = -1

    def read(self, offset: int, length: int) -> bytearray:
        """Return *length* bytes at *offset*; fewer only at the end of the file."""
        stop = min(offset + length, self._header.plain_size)
        out = bytearray(max(0, stop - offset))
        done = 0
        while done < len(out):
            index, start = divmod(offset + done, self._header.chunk_size)
            chunk = self._chunk(index)[start : start + len(out) - done]
            out[done : done + len(chunk)] = chunk
            done += len(chunk)
        return out

    def all(self) -> Iterator[bytearray]:
        """Yield the whole file."""
        for offset in range(0, self._header.plain_size, _STEP):
            yield self.read(offset, _STEP)

    def _chunk(self, index: int) -> memoryview:
        span = self._header.chunk(index)
        if self._index != index:
            self._index = -1  # until it is proven
            sealed = self._sealed[: span.sealed_size]
            containers.read_into(self._fd, sealed, span.offset)
            self._open(index, sealed, self._plain[: span.plain_size])
            self._index = index
        return self._plain[: span.plain_size]

    def __enter__(self) -> Self:
        """Use as a context: zeroised at the end."""
        return self

    def __exit__(self, *_: object) -> None:
        """Zeroise."""
        self._plain[:] = bytes(len(self._plain))
        self._index = -1


# --- the payload ----------------------------------------------------------------------------------------------------


def open_stream(fd: int, payload: Payload, cipher: PayloadCipher, tick: Tick) -> Iterator[bytearray]:
    """Yield the plaintext of *payload* from its sealed chunks, which follow each other in *fd* (a file or a pipe).

    Raises:
        UntrustedDataError: `payload-chunk`, or `payload-truncated`: it ends early.
        OperationError: nothing came for a minute.

    """
    last = len(payload.chunks) - 1
    for index, chunk in enumerate(payload.chunks):
        tick()
        yield cipher.open(index, _read_exactly(fd, chunk.size, tick), last=index == last)


def _read_exactly(fd: int, size: int, tick: Tick) -> bytearray:
    out = bytearray(size)
    view, idle = memoryview(out), 0.0
    while view.nbytes:
        if not select.select([fd], [], [], _IDLE_SECONDS)[0]:
            tick()
            idle += _IDLE_SECONDS
            if idle > _STALLED_SECONDS:
                raise OperationError("the payload stopped coming", hint="try again: what was fetched is kept")
            continue
        count, idle = os.readv(fd, [view]), 0.0
        if not count:
            raise UntrustedDataError("the payload ends early", check="payload-truncated", hint="fetch it again")
        view = view[count:]
    return out


def _part(stream: Iterable[Piece], skip: int, size: int) -> Iterator[memoryview]:
    """Yield *size* bytes of *stream* after the first *skip*."""
    for piece in stream:
        view = memoryview(piece)
        passed = min(skip, len(view))
        view, skip = view[passed:], skip - passed
        if view.nbytes and size:
            yield view[:size]
            size -= min(size, len(view))
        if not size:
            return
