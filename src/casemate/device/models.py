"""The store of models: `<home>/models/<name>.cmodel`, one container each. What the command line and `up` ask for.

Adding goes: open once, check the header in a sandboxed child, then one pass that hashes and encrypts into a file
without a name, which gets its name when it is complete and durable. Only the vault process decrypts into memory for an
engine; `verify` here decrypts into a small private buffer to prove a container.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final, NoReturn

from casemate import keystores
from casemate.clock import SystemClock
from casemate.crypto.aead import preferred_algorithm
from casemate.crypto.secret import Secret
from casemate.device import containers, store
from casemate.device.containers import SUFFIX, OpenContainer
from casemate.device.home import Home
from casemate.device.inspector import Inspection, inspect_file
from casemate.device.record import record
from casemate.durable import sync_directory
from casemate.errors import (
    BusyError,
    CasemateError,
    NotFoundError,
    OperationError,
    PolicyDeniedError,
    UntrustedDataError,
    UsageError,
)
from casemate.formats import container as fmt
from casemate.formats import event
from casemate.formats.container import (
    BrokerSlot,
    Header,
    Slot,
    SlotArea,
    UntrustedContainer,
    VerifiedContainer,
    gate_of,
)
from casemate.formats.gguf import HEADER_LIMIT, GgufFacts
from casemate.ids import parse_name
from casemate.keystores import Sources, UnlockedKeystore

ShowProgress = Callable[[int, str], AbstractContextManager[Callable[[int], None]]]
"""As `cli.output.progress`: (total bytes, label) -> a context that yields advance(bytes)."""

WrapForGate = Callable[[str, Header, Secret], Slot]
"""(name, header, data key) -> the container's only slot; see `device.gating`."""

_GENERATION: Final = re.compile(r"\.g[1-9][0-9]{0,15}\Z")  # how updates call the containers they make
_LICENCE: Final = re.compile(r"[\x20-\x7e]{0,64}\Z")


@dataclasses.dataclass(frozen=True)
class ModelInfo:
    """A container in the store, by what it claims; `problem` names the failed check of one that cannot be read."""

    name: str
    path: Path
    digest: str = ""
    bytes: int = 0
    format: str = "gguf"
    licence: str = ""
    added: int = 0
    facts: GgufFacts | None = None
    problem: str = ""
    gate: BrokerSlot | None = None
    """Whose broker has its key; None: this device's own keystore."""


@contextlib.contextmanager
def no_progress(_total: int, _label: str) -> Iterator[Callable[[int], None]]:
    """Show nothing."""
    yield lambda _count: None


# --- looking --------------------------------------------------------------------------------------------------------


def name_for(path: Path) -> str:
    """Derive a model's name from a file's: `Llama-3.2 1B.gguf` becomes `llama-3.2-1b`."""
    text = re.sub(r"[^a-z0-9._-]+", "-", path.name.lower().removesuffix(SUFFIX).removesuffix(".gguf"))
    return re.sub(r"\.{2,}", ".", text).strip("._-")[:63] or "model"


def list_models(home: Home) -> list[ModelInfo]:
    """Return every container of the store by name, damaged ones too. Claims, not proof: see `verify_model`."""
    containers.remove_leftovers(home.models)
    return [_look(home.models / (name + SUFFIX)) for name in store.names(home)]


def show_model(home: Home, name: str) -> ModelInfo:
    """Return one container's claims.

    Raises:
        NotFoundError: there is none of that name.

    """
    path = store.path_of(home, name)
    if not path.exists():
        raise store.unknown(home, name)
    return _look(path)


def _look(path: Path) -> ModelInfo:
    name = path.name.removesuffix(SUFFIX)
    try:
        with containers.open_container(path) as opened:
            return _info(path, name, opened.container)
    except UntrustedDataError as error:
        return ModelInfo(name, path, problem=error.check)


def _info(path: Path, name: str, container: UntrustedContainer) -> ModelInfo:
    labels = container.claimed
    return ModelInfo(
        name,
        path,
        digest=labels.digest,
        bytes=container.header.plain_size,
        licence=labels.licence,
        added=labels.added,
        facts=labels.facts,
        gate=container.gate,
    )


# --- proving --------------------------------------------------------------------------------------------------------


def verify_model(home: Home, sources: Sources, name: str, progress: ShowProgress = no_progress) -> str:
    """Decrypt everything once and compare the whole digest; returns the check that failed, or "".

    Raises:
        NotFoundError: there is none of that name.

    """
    now = SystemClock().wall()
    with keystores.unlock(home, sources) as keystore:
        try:
            with store.opened_model(home, keystore, name) as (opened, verified):
                _prove_content(opened, verified, progress)
        except UntrustedDataError as error:
            record(home, event.model_refused(model=name, check=error.check, reason=error.message, now=now))
            return error.check
    record(home, event.model_verified(model=name, digest=verified.labels.digest, now=now))
    return ""


def _prove_content(opened: OpenContainer, verified: VerifiedContainer, progress: ShowProgress) -> None:
    digest = hashlib.sha256()
    with progress(verified.header.plain_size, "verifying") as advance:
        for span, _, plain in containers.open_chunks(opened.fd, verified):
            digest.update(plain)
            advance(span.plain_size)
    if "sha256:" + digest.hexdigest() != verified.labels.digest:
        raise UntrustedDataError(
            "the content does not have the digest it was added with", check="digest", hint="remove it and add it again"
        )


# --- adding ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Plaintext:
    """A source of plaintext to encrypt: a GGUF file, or an export of another home."""

    size: int
    chunk_size: int
    security_version: int
    inspection: Inspection
    chunks: Callable[[], Iterator[memoryview]]


def add_model(
    home: Home,
    sources: Sources,
    path: Path,
    *,
    name: str | None = None,
    licence: str = "",
    replace: bool = False,
    passphrase: Secret | None = None,
    gate: WrapForGate | None = None,
    progress: ShowProgress = no_progress,
) -> ModelInfo:
    """Check, encrypt and store the GGUF file (or the exported container) at *path*.

    *passphrase* opens an export. *gate* wraps the data key of a gated model, whose fleet then has the only way in.
    Nothing is left behind when this fails or is killed.

    Raises:
        UntrustedDataError: the file is refused.
        BusyError: the name is taken and *replace* is false.
        NotFoundError: no such file.
        OperationError: the disk is full, or the file changed while it was read.

    """
    name = parse_name(name or name_for(path), "model")
    target = store.path_of(home, name)
    if not _LICENCE.match(licence):
        raise UsageError("a licence is at most 64 printable ASCII characters", hint="give an SPDX identifier")
    with contextlib.ExitStack() as held:
        held.enter_context(containers.models_lock(home.models, exclusive=False))
        containers.remove_leftovers(home.models)
        if not replace and target.exists():
            raise BusyError(f"there is already a model {name!r}", hint="use --replace, or another --name")
        unlock = functools.cache(lambda: held.enter_context(keystores.unlock(home, sources)))
        try:
            source = held.enter_context(_plaintext(_open_source(path, held), path, passphrase, unlock))
            store.require_space(home.models, source.size)
            wrap = gate or functools.partial(_wrap_for_home, unlock())
            info = _encrypt(wrap, source, _Target(target, name, licence, replace), progress)
        except UntrustedDataError as error:
            _record_refusal(home, name, error)
            raise
    try:
        record(
            home,
            event.model_added(model=name, digest=info.digest, size=info.bytes, licence=info.licence, now=info.added),
        )
    except BaseException:
        if not replace:
            target.unlink(missing_ok=True)  # what the journal does not know is not in the store
        raise
    return info


def _record_refusal(home: Home, name: str, error: UntrustedDataError) -> None:
    """Journal what was refused; a journal that cannot take it must not hide the refusal itself."""
    with contextlib.suppress(CasemateError):
        now = SystemClock().wall()
        record(home, event.model_refused(model=name, check=error.check, reason=error.message, now=now))


def _open_source(path: Path, held: contextlib.ExitStack) -> int:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO must not hang us
    except FileNotFoundError as error:
        raise NotFoundError(f"no file {path}", hint="check the path") from error
    except OSError as error:
        raise OperationError(f"cannot read {path}: {error.strerror}", hint="check its owner and mode") from error
    held.callback(os.close, fd)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        raise UntrustedDataError(f"{path} is not a regular file", check="format", hint="give a GGUF file")
    return fd


@contextlib.contextmanager
def _plaintext(
    fd: int, path: Path, passphrase: Secret | None, unlock: Callable[[], UnlockedKeystore]
) -> Iterator[Plaintext]:
    size = os.fstat(fd).st_size
    if containers.read_exact(fd, 0, len(fmt.MAGIC)) == fmt.MAGIC:
        with _exported(fd, path, passphrase, unlock()) as source:
            yield source
        return
    inspection = inspect_file(fd, size)
    yield Plaintext(size, fmt.CHUNK_BYTES, 0, inspection, lambda: _file_chunks(fd, size))


def _file_chunks(fd: int, size: int) -> Iterator[memoryview]:
    buffer = memoryview(bytearray(fmt.CHUNK_BYTES))
    for offset in range(0, size, fmt.CHUNK_BYTES):
        chunk = buffer[: min(fmt.CHUNK_BYTES, size - offset)]
        containers.read_into(fd, chunk, offset)
        yield chunk


@contextlib.contextmanager
def _exported(fd: int, path: Path, passphrase: Secret | None, keystore: UnlockedKeystore) -> Iterator[Plaintext]:
    """Open an export. Its header is checked like any other file's: whoever made it may be hostile."""
    size = os.fstat(fd).st_size
    container = fmt.parse(containers.read_exact(fd, 0, min(fmt.HEAD_BYTES, size)), size)
    with containers.unwrap_export(container, passphrase=passphrase, keystore=keystore) as data_key:
        verified = fmt.verify(container, data_key)
    opened = OpenContainer(fd, path, container)
    head = _head_in_memory(opened, verified)
    try:
        inspection = inspect_file(head, verified.header.plain_size)
    finally:
        os.close(head)
    yield Plaintext(
        verified.header.plain_size,
        verified.header.chunk_size,
        verified.header.security_version,
        inspection,
        lambda: (plain for _, _, plain in containers.open_chunks(fd, verified)),
    )


def _head_in_memory(opened: OpenContainer, verified: VerifiedContainer) -> int:
    """Decrypt as much as a header may be long into a memory file for the inspector."""
    memory = os.memfd_create("head", os.MFD_CLOEXEC)
    for span, _, plain in containers.open_chunks(opened.fd, verified):
        containers.write_all(memory, plain, span.plain_offset)
        if span.plain_offset + span.plain_size >= HEADER_LIMIT:
            break
    return memory


@dataclasses.dataclass(frozen=True)
class _Target:
    """Where a new container goes and what it is called."""

    path: Path
    name: str
    licence: str
    replace: bool


def _wrap_for_home(keystore: UnlockedKeystore, _name: str, header: Header, data_key: Secret) -> Slot:
    return containers.home_slot(header, data_key, keystore)


def _encrypt(wrap: WrapForGate, source: Plaintext, target: _Target, progress: ShowProgress) -> ModelInfo:
    """Hash and encrypt in one pass. The data key exists only here, in locked memory, and wrapped in the slot area."""
    header = fmt.new_header(
        plain_size=source.size,
        algorithm=preferred_algorithm(),
        entropy=os.urandom(23),
        chunk_size=source.chunk_size,
        security_version=source.security_version,
    )
    try:
        with Secret.random() as data_key, containers.UnnamedFile(target.path.parent) as file:
            writer = containers.ContainerWriter(file.fd, header, data_key)
            digest = _Digest(source.inspection)
            with progress(source.size, f"encrypting {target.name}") as advance:
                for chunk in source.chunks():
                    digest.update(chunk)
                    writer.put_chunk(chunk)
                    advance(len(chunk))
            labels = fmt.Labels(
                name=target.name,
                digest=digest.finish(),
                licence=target.licence or _ascii(source.inspection.facts.licence),
                added=int(SystemClock().wall()),
                facts=source.inspection.facts,
            )
            slot = wrap(target.name, header, data_key)
            writer.finish(SlotArea(slots=(slot,), labels=labels))
            file.commit(target.path, replace=target.replace)
            containers.remove_records(target.path)
    except OSError as error:
        raise OperationError(
            f"cannot write the model: {error.strerror}", hint="free space, then try again; nothing was left behind"
        ) from error
    return ModelInfo(
        target.name,
        target.path,
        digest=labels.digest,
        bytes=source.size,
        licence=labels.licence,
        added=labels.added,
        facts=labels.facts,
        gate=gate_of((slot,)),
    )


class _Digest:
    """SHA-256 of everything, and of the leading bytes that the header check saw: both readings must be one file."""

    def __init__(self, inspection: Inspection) -> None:
        self._inspection = inspection
        self._whole = hashlib.sha256()
        self._head = hashlib.sha256()
        self._left = inspection.checked

    def update(self, chunk: memoryview) -> None:
        self._whole.update(chunk)
        if self._left:
            part = chunk[: self._left]
            self._head.update(part)
            self._left -= len(part)
            if not self._left and self._head.digest() != self._inspection.sha256:
                _changed()

    def finish(self) -> str:
        if self._left:
            _changed()
        return "sha256:" + self._whole.hexdigest()


def _changed() -> NoReturn:
    raise UntrustedDataError(
        "the file changed between its check and its encryption",
        check="changed-while-read",
        hint="stop whatever writes to it, then add it again",
    )


def _ascii(text: str) -> str:
    return text.encode("ascii", "replace").decode("ascii")[:64]


# --- removing -------------------------------------------------------------------------------------------------------


def remove_model(home: Home, name: str) -> None:
    """Remove the container of *name*. Its data key was only in it: a deleted container cannot be opened again.

    Raises:
        NotFoundError: there is none of that name.
        PolicyDeniedError: a generation may need it.

    """
    path = store.path_of(home, name)
    info = show_model(home, name)
    if _GENERATION.search(name) and (home.path / "update" / "state").exists():
        raise PolicyDeniedError(
            f"{name!r} belongs to an update", hint="updates remove what they no longer need: `casemate update status`"
        )
    try:
        path.unlink()
        containers.remove_records(path)
        sync_directory(home.models)
    except OSError as error:
        raise OperationError(f"cannot remove {path}: {error.strerror}", hint="check its owner") from error
    record(home, event.model_removed(model=name, digest=info.digest, now=SystemClock().wall()))
