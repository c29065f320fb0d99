"""Checking a whole log without any key: everything on disk must fit what was signed, and what others saw.

Steps, in this order, each naming the check that fails:
 (0) `checkpoint-*`, `log-key`: the checkpoint is signed by the log's key and says this log's name
 (1) `tail-*`: where a device keeps its own log, its tail is whole and reaches the checkpoint (`entries-missing`)
 (2) `bundle-format`, `entry-index`, `entry-epoch`, `epoch-record`: every entry is in its place, every epoch has a key
 (3) `entries`, `tile`, `tile-missing`: every tile on disk is the one these entries make
 (4) `root`: and their root is the signed one
 (5) `tail-entries`: the tail says the same as the bundles
 (6) `against-*`: a checkpoint that somebody kept is of this log, and this log extends it

Without (6) a log that was cut back, or signed anew with a stolen key, passes: only a checkpoint kept elsewhere tells.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Final

from casemate.device.journal import entry, epochs, identity, tail
from casemate.device.journal.files import LogFiles
from casemate.device.journal.recovery import CHECKPOINT
from casemate.device.journal.tree import TileTree, read_full_or_partial
from casemate.errors import NotFoundError, UntrustedDataError
from casemate.formats import tlog

_RETRIES: Final = 5


@dataclasses.dataclass(frozen=True, slots=True)
class Verified:
    """A log that passed: *size* entries under a signed *root*, and *pending* durable ones that no checkpoint covers."""

    origin: str
    size: int
    root: bytes
    pending: int
    epochs: int
    checkpoint: bytes


def verify(
    files: LogFiles,
    *,
    verifier: tlog.VerifierKey | None = None,
    own: bool = True,
    against: bytes | None = None,
    progress: Callable[[int], None] = lambda _bytes: None,
) -> Verified:
    """Check the log in *files*, which may be growing.

    *verifier* is the key to trust (else `log.vkey` beside the log). *own* False: an exported copy, which has no tail.
    *against* is a checkpoint that somebody kept. *progress* is called with the number of bytes read.

    Raises:
        NotFoundError: there is no log.
        UntrustedDataError: a check failed.

    """
    if not files.names(".") or not any(files.exists(name) for name in (CHECKPOINT, "tile", tail.NAME, identity.VKEY)):
        raise NotFoundError("there is no journal here yet", hint="run `casemate up`, which begins one")
    for attempt in range(_RETRIES):
        signed = _read_checkpoint(files)
        try:
            return _verify(files, signed, verifier, own=own, against=against, progress=progress)
        except UntrustedDataError:
            # a running device may have published meanwhile and replaced what was being read
            if attempt == _RETRIES - 1 or _read_checkpoint(files) == signed:
                raise
    raise AssertionError


def _verify(
    files: LogFiles,
    signed: bytes,
    verifier: tlog.VerifierKey | None,
    *,
    own: bool,
    against: bytes | None,
    progress: Callable[[int], None],
) -> Verified:
    known = verifier or identity.load_verifier(files)
    checkpoint = tlog.open_checkpoint(signed, [known])  # (0)
    content = _read_tail(files, checkpoint) if own else None  # (1)
    walk = _Walk(files, checkpoint.size, keep_from=content.base if content else checkpoint.size)
    walk.run(progress)  # (2), (3)
    if walk.state.root() != checkpoint.root:  # (4)
        raise UntrustedDataError("the tree of these entries has another root than the checkpoint", check="root")
    pending = _compare_tail(content, walk.kept, checkpoint.size) if content else 0  # (5)
    if against is not None:
        _compare_outside(files, known, checkpoint, against)  # (6)
    return Verified(checkpoint.origin, checkpoint.size, checkpoint.root, pending, walk.epochs, signed)


def _read_checkpoint(files: LogFiles) -> bytes:
    try:
        return files.read(CHECKPOINT)
    except FileNotFoundError as error:
        raise UntrustedDataError("the journal's checkpoint is missing", check="checkpoint-missing") from error


def _read_tail(files: LogFiles, checkpoint: tlog.Checkpoint) -> tail.TailContent:
    try:
        data = files.read(tail.NAME)
    except FileNotFoundError as error:
        raise UntrustedDataError("the journal's tail is missing", check="tail-missing") from error
    with identity.load(files).tail_key() as key:
        content = tail.scan(data, key)
    if content.size < checkpoint.size:
        raise UntrustedDataError(
            f"the checkpoint covers {checkpoint.size} entries, only {content.size} are in the log",
            check="entries-missing",
        )
    return content


class _Walk:
    """One pass over all bundles, building the tree and comparing every tile with it."""

    def __init__(self, files: LogFiles, size: int, *, keep_from: int) -> None:
        self._files = files
        self._size = size
        self._keep_from = keep_from
        self._epoch = -1
        self.state = tlog.TreeState()
        self.kept: list[bytes] = []
        self.epochs = 0

    def run(self, progress: Callable[[int], None]) -> None:
        for first in range(0, self._size, tlog.TILE_WIDTH):
            width = min(tlog.TILE_WIDTH, self._size - first)
            progress(self._bundle(first, width))
        for level, index, width in tlog.partial_tiles(self._size):
            self._compare(tlog.tile_path(level, index, width), self.state.levels[level])

    def _bundle(self, first: int, width: int) -> int:
        name = tlog.entries_path(first // tlog.TILE_WIDTH, width)
        bundle = read_full_or_partial(self._files, name)
        entries = tlog.parse_bundle(bundle)[:width]
        if len(entries) != width:
            raise UntrustedDataError(f"{name} holds {len(entries)} entries, not {width}", check="bundle-format")
        sha256 = hashlib.sha256
        leaves = [sha256(b"\x00" + data).digest() for data in entries]
        tile = tlog.tile_path(0, first // tlog.TILE_WIDTH, width)
        self._compare(tile, leaves, check="entries", what=name)
        self._headers(first, entries)
        for full in self.state.add_tile(leaves):
            self._compare(tlog.tile_path(full.level, full.index), full.hashes)
        if first + width > self._keep_from:
            self.kept += leaves[max(0, self._keep_from - first) :]
        return len(bundle)

    def _compare(self, name: str, hashes: list[bytes] | tuple[bytes, ...], check: str = "tile", what: str = "") -> None:
        found = read_full_or_partial(self._files, name)[: len(hashes) * tlog.HASH_SIZE]
        if found != tlog.pack_tile(hashes):
            raise UntrustedDataError(
                f"{what} does not fit {name}" if what else f"{name} is not what the entries make", check=check
            )

    def _headers(self, first: int, entries: list[bytes]) -> None:
        """Check each entry's place, that epochs only go up, and that each epoch's key record is as it was logged."""
        for at, data in enumerate(entries, first):
            if int.from_bytes(data[:8], "big") != at or len(data) < entry.HEADER_BYTES:
                raise UntrustedDataError(f"entry {at} says it is another", check="entry-index")
            marked = int.from_bytes(data[8:12], "big")
            number = marked & entry.MAX_EPOCH
            if number < self._epoch or (number == self._epoch and marked != number):
                raise UntrustedDataError(f"entry {at} belongs to an epoch that had ended", check="entry-epoch")
            self._epoch = number
            if marked != number:
                self._epoch_record(number, data[entry.HEADER_BYTES :])

    def _epoch_record(self, number: int, body: bytes) -> None:
        epochs.parse_record(body)
        name = epochs.file_name(number)
        try:
            same = self._files.read(name) == body
        except FileNotFoundError as error:
            raise UntrustedDataError(f"{name} is missing", check="epoch-record") from error
        if not same:
            raise UntrustedDataError(f"{name} is not the record that was logged", check="epoch-record")
        self.epochs += 1


def _compare_tail(content: tail.TailContent, kept: list[bytes], size: int) -> int:
    """Return how many entries of the tail no checkpoint covers."""
    covered = content.entries[: max(0, size - content.base)]
    for at, (data, leaf) in enumerate(zip(covered, kept, strict=True), content.base):
        if tlog.leaf_hash(data) != leaf:
            raise UntrustedDataError(f"entry {at} differs between the tail and its bundle", check="tail-entries")
    return content.size - size


def _compare_outside(files: LogFiles, known: tlog.VerifierKey, checkpoint: tlog.Checkpoint, against: bytes) -> None:
    """Check that the log extends a checkpoint that somebody kept elsewhere."""
    try:
        kept = tlog.open_checkpoint(against, [known])
    except UntrustedDataError as error:
        raise UntrustedDataError(f"the kept checkpoint is not of this log: {error}", check="against-log") from error
    if kept.size > checkpoint.size:
        raise UntrustedDataError(
            f"a checkpoint of {kept.size} entries was seen, this log has {checkpoint.size}: it was cut back",
            check="against-size",
        )
    if TileTree(files, checkpoint.size).root(kept.size) != kept.root:
        raise UntrustedDataError(
            f"the first {kept.size} entries are not those of the kept checkpoint: history was rewritten",
            check="against-root",
        )
