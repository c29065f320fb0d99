"""From an offer to a staged generation: fetch, open, prove, make containers, write it down. Can be called again.

What runs is not touched. Faults are told apart, because they are remembered differently: a source that lies, a full
disk or a lost network interrupts, and the next call goes on; content that is signed and still bad is denied for ever.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec

from casemate import __version__
from casemate.device.update import fetch, kinds, trust, unpack
from casemate.device.update.assembly import Fetched, Progress, Terms, Watch
from casemate.device.update.client import Client
from casemate.device.update.desk import FETCHED, Desk, Step
from casemate.device.update.generation import Generation, Item, item_of
from casemate.device.update.offer import Offer, Offered, is_picked, read_offer, require_acceptable, still_offered
from casemate.device.update.pace import DAY_MINUTES
from casemate.device.update.pacer import Pacer
from casemate.device.update.source import Source
from casemate.device.update.states import WAITING, Phase
from casemate.errors import (
    CasemateError,
    HostError,
    NotFoundError,
    OperationError,
    PolicyDeniedError,
    UntrustedDataError,
)
from casemate.formats import event, ipc, signature_log
from casemate.formats.manifest import File, SealedPart

_MARK: Final = "imported"
_NOT_PICKED: Final = "the fleet does not offer this to this device now"
_MALFORMED: Final = ("gguf-", "chat-template", "release-", "sealed-")
"""Checks that a full payload would fail as well."""
_NOBODYS_WORD: Final = ("grant-form", "payload-chunk", "payload-truncated")
"""What a mirror or a disk can cause: nobody signs a grant, so what does not open with one says nothing of content."""


class Found(msgspec.Struct, frozen=True):
    """What a check found. *bytes* are still to come with what this device has, *full_bytes* without it."""

    available: bool
    generation: int
    bytes: int
    full_bytes: int


class Obtained(msgspec.Struct, frozen=True):
    """A staged generation; *bytes* were its payloads, *saved* what full ones would have cost more."""

    number: int
    bytes: int
    saved: int


@dataclasses.dataclass(frozen=True)
class _Opened:
    """One member with everything needed to use it."""

    offered: Offered
    grant: bytes
    sealed: bytes
    part: SealedPart
    item: Item


class BadContent(Exception):  # noqa: N818 - carries the error that is raised in the end
    """The content of an update is at fault: it shall never be tried again."""

    def __init__(self, error: CasemateError) -> None:
        """Keep *error*."""
        super().__init__(error.message)
        self.error = error


def check(desk: Desk, source: Source) -> Found:
    """Look what the channel offers.

    Raises:
        UntrustedDataError: the repository lies.
        PolicyDeniedError: it offers what this device refuses: stopped, denied or below a floor.
        OperationError: it cannot be reached.

    """
    try:
        offer = read_offer(desk.client(source), _channel(desk))
    except UntrustedDataError as error:
        if desk.port.running:
            _record_refusal(desk, error, "")
        raise
    good = desk.good()
    if good and good.content_digest == offer.content_digest:
        return Found(available=False, generation=offer.generation, bytes=0, full_bytes=0)
    if not _picked(desk, offer):
        desk.say(_NOT_PICKED)
        return Found(available=False, generation=offer.generation, bytes=0, full_bytes=0)
    _require(desk, offer)
    wanted = full = 0
    for offered in offer.members:
        directory = _directory(desk, offered)
        full += offered.manifest.full.transfer_bytes
        if not _unchanged(offered, good):
            failed = fetch.failed_deltas(directory)
            wanted += fetch.choose(offered.manifest, _bases(offered, good), failed).transfer_bytes
    return Found(available=True, generation=offer.generation, bytes=wanted, full_bytes=full)


def obtain(desk: Desk, source: Source) -> Obtained | None:
    """Stage what the channel offers; None when it runs already, or the fleet has not picked it for this device.

    The caller is `Desk.alone`.

    Raises:
        UntrustedDataError: the repository lies, or the content is bad (then it is denied).
        PolicyDeniedError: this device refuses it.
        NotAuthorisedError: a release was not granted to this device.
        OperationError: the network, the disk: the next call goes on.

    """
    client = desk.client(source)
    try:
        offer = read_offer(client, _channel(desk))
        good = desk.good()
        if good and good.content_digest == offer.content_digest:
            _withdraw(desk, "the channel offers again what runs here")
            return None
        if not source.offline and not _picked(desk, offer):  # what a person brings by hand is that person's act
            desk.say(_NOT_PICKED)
            _withdraw(desk, _NOT_PICKED)
            return None
        _require(desk, offer)
    except UntrustedDataError as error:
        _record_refusal(desk, error, "")
        raise
    store = desk.store
    state = store.checked(offer.content_digest, [item.member.name for item in offer.members if _is_model(item)])
    _note_source(desk, offer if source.offline else None)
    if state.phase is Phase.STAGED:
        return Obtained(state.pending, 0, 0)
    store.fetching()
    watch = None if source.offline else Watch(lambda: _look_again(desk, client, offer))
    try:
        with desk.pacer() as pacer:
            done = _Work(desk, source, offer, good=good, number=state.pending, watch=watch, pacer=pacer).run()
    except BadContent as bad:
        store.fail(bad.error.message)
        _record_refusal(desk, bad.error, offer.content_digest)
        raise bad.error from bad
    except CasemateError as error:
        store.interrupted(error.message)
        raise
    desk.port.record(event.update_staged(generation=done.number, content=offer.content_digest, now=desk.clock.wall()))
    fetch.sweep(desk.directory / FETCHED)
    return done


def came_from_media(desk: Desk) -> bool:
    """Whether what is staged was imported: then nobody has to be asked again before it is armed."""
    with contextlib.suppress(OSError):
        return (desk.directory / _MARK).read_text(encoding="ascii") == desk.store.state().content
    return False


def _note_source(desk: Desk, imported: Offer | None) -> None:
    mark = desk.directory / _MARK
    if imported:
        mark.write_text(imported.content_digest, encoding="ascii")
    else:
        mark.unlink(missing_ok=True)


def _record_refusal(desk: Desk, error: CasemateError, content: str) -> None:
    failed = error.check if isinstance(error, UntrustedDataError) else error.code
    desk.port.record(event.update_refused(check=failed, reason=error.message, content=content, now=desk.clock.wall()))


def _channel(desk: Desk) -> str:
    return trust.load(desk.directory).channel


def _require(desk: Desk, offer: Offer) -> None:
    good = desk.good()
    held = [item.kind for item in good.items] if good else []
    gated = {item.artefact: item.security_version for item in good.items if item.gate} if good else {}
    require_acceptable(offer, desk.floors.read(), desk.store.state().denied, __version__, held=held, gated=gated)


def _picked(desk: Desk, offer: Offer) -> bool:
    return is_picked(offer, desk.direction(), int(desk.clock.wall()) // 60 % DAY_MINUTES)


def _look_again(desk: Desk, client: Client, offer: Offer) -> None:
    """Ask, in the middle of a download, whether it is still wanted.

    Raises:
        PolicyDeniedError: its publisher, or this device's fleet, stopped it.

    """
    still_offered(client, offer)
    if not _picked(desk, offer):
        raise PolicyDeniedError(_NOT_PICKED, hint="what was fetched is kept, for when it is offered again")


def _withdraw(desk: Desk, why: str) -> None:
    """Drop what waits: it is not for this device any more. Staged, it would still be armed."""
    if desk.store.state().phase in WAITING:
        desk.store.withdrawn(why)


def _directory(desk: Desk, offered: Offered) -> Path:
    return desk.directory / FETCHED / offered.member.release


def _is_model(offered: Offered) -> bool:
    return offered.member.kind == "model"


def _unchanged(offered: Offered, good: Generation | None) -> Item | None:
    """Return the good generation's item when it is this very release."""
    item = good.item(offered.member.kind) if good else None
    return item if item and item.release == offered.member.release else None


def _bases(offered: Offered, good: Generation | None) -> frozenset[str]:
    """Return the releases that a difference may be from: a gated one opens only beside the same gate."""
    item = good.item(offered.member.kind) if good else None
    opens = item and item.name == offered.member.name and item.gate in {"", _gate(offered)}
    return frozenset({item.release} if item and opens else ())


def _gate(offered: Offered) -> str:
    """Return what the fleet calls the model, when it is gated."""
    return offered.member.gate.model if offered.member.gate else ""


class _Work:
    """One generation on its way."""

    def __init__(
        self,
        desk: Desk,
        source: Source,
        offer: Offer,
        *,
        good: Generation | None,
        number: int,
        watch: Watch | None,
        pacer: Pacer,
    ) -> None:
        self._desk = desk
        self._source = source
        self._offer = offer
        self._good = good
        self._number = number
        self._watch = watch
        self._pacer = pacer
        self._bytes = self._saved = 0

    def run(self) -> Obtained:
        """Do it: 1 open and prove every release, 2 fetch, 3 make containers and files, 4 stage."""
        opened = [self._open(offered) for offered in self._offer.members]
        with contextlib.ExitStack() as held:
            files: dict[str, Iterable[bytes]] = {}
            for one in opened:
                if not self._kept(one):
                    files |= self._content(one, held)
            items = tuple(one.item for one in opened)
            chosen = self._offer.verified.set
            generation = Generation(1, self._number, chosen.channel, chosen.generation, chosen.content_digest, items)
            for one in opened:
                if self._kept(one):
                    files |= self._old_files(one)
            self._stage(generation, files)
        return Obtained(self._number, self._bytes, self._saved)

    def _stage(self, generation: Generation, files: Mapping[str, Iterable[bytes]]) -> None:
        try:
            self._desk.store.stage(generation, files)
            kinds.read_policy(generation, self._desk.store.directory(generation.number))
        except UntrustedDataError as error:
            raise BadContent(error) from error

    # -- 1

    def _open(self, offered: Offered) -> _Opened:
        manifest, gate = offered.manifest, offered.member.gate
        recipient = gate.recipient_id if gate else self._desk.recipient
        granted = fetch.fetch_grant(self._source, manifest.release, recipient)
        sealed = fetch.fetch_sealed(self._source, manifest, self._pacer.taken)
        kept = _unchanged(offered, self._good)
        container = ""
        if _is_model(offered):
            container = kept.container if kept else f"{offered.member.name}.g{self._number}"
        try:
            with self._proving(offered):
                part = self._desk.port.open_release(offered.raw, granted, sealed, _gate(offered))
            signature_log.verify_part(part, self._offer.signing)
            item = item_of(offered.member, part, requires=manifest.requires, container=container)
            if _is_model(offered):
                kinds.model_file(item)
        except UntrustedDataError as error:
            _raise_if_nobodys_word(error)
            raise BadContent(error) from error
        self._desk.client(self._source).learn_time(signature_log.signed_time(part))
        kinds.require_runtime(item)
        return _Opened(offered, granted, sealed, part, item)

    @contextlib.contextmanager
    def _proving(self, offered: Offered) -> Iterator[None]:
        """Note for the fleet that this device could not prove itself for a gated model: no fault of its content."""
        try:
            yield
        except (PolicyDeniedError, HostError) as error:
            if offered.member.gate:
                self._desk.unproven[self._offer.content_digest] = error.message
                _record_refusal(self._desk, error, self._offer.content_digest)
            raise

    def _kept(self, one: _Opened) -> bool:
        """Whether the good generation has this very release: nothing has to come."""
        return _unchanged(one.offered, self._good) is not None

    # -- 2 and 3

    def _fetch(self, one: _Opened, *, room: int) -> Fetched:
        directory = _directory(self._desk, one.offered)
        label = f"{one.item.name} {one.item.version}"

        def tell(progress: Progress) -> None:
            self._desk.tell(Step(label, progress.done, progress.total, progress.saved))

        terms = Terms(pacer=self._pacer, watch=self._watch, room={self._desk.directory.parent: room}, tell=tell)
        bases = _bases(one.offered, self._good)
        return fetch.fetch_release(self._source, one.offered, directory, bases=bases, terms=terms)

    def _count(self, fetched: Fetched) -> None:
        self._bytes += fetched.bytes
        self._saved += fetched.saved

    def _content(self, one: _Opened, held: contextlib.ExitStack) -> Mapping[str, Iterable[bytes]]:
        room = sum(file.size for file in one.part.files)
        fetched = self._fetch(one, room=room)
        try:
            made = self._make(one, fetched, held)
        except (UntrustedDataError, NotFoundError) as error:
            made, fetched = self._again(one, fetched, held, error, room)
        self._count(fetched)
        return made

    def _again(
        self, one: _Opened, fetched: Fetched, held: contextlib.ExitStack, error: CasemateError, room: int
    ) -> tuple[Mapping[str, Iterable[bytes]], Fetched]:
        """Try the full payload, once, when a difference did not work; else the content is bad."""
        bad = isinstance(error, UntrustedDataError) and error.check.startswith(_MALFORMED)
        if fetched.payload.role == "full":
            _raise_if_nobodys_word(error)
        if fetched.payload.role == "full" or (bad and not error.check.startswith("release-digest")):  # type: ignore[attr-defined]  # bad: it has one
            raise BadContent(error) from error
        self._desk.say(f"the difference for {one.item.name} did not work ({error.message}); fetching all of it")
        fetch.note_failed_delta(_directory(self._desk, one.offered), fetched.payload.id)
        whole = self._fetch(one, room=room)
        try:
            return self._make(one, whole, held), whole
        except UntrustedDataError as again:
            _raise_if_nobodys_word(again)
            raise BadContent(again) from again

    def _make(self, one: _Opened, fetched: Fetched, held: contextlib.ExitStack) -> Mapping[str, Iterable[bytes]]:
        if one.item.container:
            self._container(one, fetched)
            return {}
        return self._files(one, fetched, held)

    def _container(self, one: _Opened, fetched: Fetched) -> None:
        base = self._good.item("model") if self._good and fetched.payload.role == "delta" else None
        request = ipc.Transcode(
            0,
            one.offered.raw,
            one.grant,
            one.sealed,
            fetched.payload.id,
            kinds.model_file(one.item),
            one.item.container,
            base.container if base else "",
            _gate(one.offered),
        )
        self._desk.say(f"making {one.item.container} ({one.item.name} {one.item.version})")
        with _opened(fetched.path) as source, self._proving(one.offered):
            self._desk.port.transcode(request, source)

    def _files(self, one: _Opened, fetched: Fetched, held: contextlib.ExitStack) -> Mapping[str, Iterable[bytes]]:
        """Decrypt the payload into a file without a name; *held* closes it when all is staged."""
        plain = os.open(self._desk.directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        held.callback(os.close, plain)
        with _opened(fetched.path) as source:
            self._desk.port.open_payload(one.offered.raw, one.grant, fetched.payload.id, source, plain)
        base = None
        if self._good and fetched.payload.role == "delta":
            base = self._desk.store.directory(self._good.number) / one.item.kind
        if fetched.payload.role == "delta":  # now, while the full payload can still be fetched instead
            unpack.prove(one.part, fetched.payload.id, plain, base)
        made = unpack.files(one.part, fetched.payload.id, plain, base)
        return {f"{one.item.kind}/{path}": pieces for path, pieces in made.items()}

    def _old_files(self, one: _Opened) -> Mapping[str, Iterable[bytes]]:
        """Return the files of what did not change, from the good generation."""
        assert self._good
        directory = self._desk.store.directory(self._good.number) / one.item.kind
        return {f"{one.item.kind}/{file.path}": _pieces(directory / file.path, file) for file in one.item.tree}


def _raise_if_nobodys_word(error: CasemateError) -> None:
    """Raise *error* as it is, when nobody who signs is to blame for it: the next call tries again."""
    if isinstance(error, UntrustedDataError) and error.check in _NOBODYS_WORD:
        raise error


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise OperationError(f"cannot read {path}: {error.strerror}", hint="fetch it again") from error
    try:
        yield fd
    finally:
        os.close(fd)


def _pieces(path: Path, file: File) -> Iterator[bytes]:
    """Yield a file of the good generation. That this disk changed it is no fault of the update that keeps it."""
    digest, size = hashlib.sha256(), 0
    with _opened(path) as fd:
        while piece := os.read(fd, 1 << 20):
            digest.update(piece)
            size += len(piece)
            if size > file.size:
                break
            yield piece
    if (size, digest.hexdigest()) != (file.size, file.sha256):
        raise OperationError(f"{path.name} of the generation that runs was changed", hint="restart the device")
