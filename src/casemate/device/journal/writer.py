"""The one writer: events in, durable entries out, and a signed tree over them.

`append` returns once its entries are durable (one write and one sync of the tail). `publish` then writes tiles and the
partial ones of this size, and last of all the checkpoint, durably: a checkpoint is never ahead of the entries. Now and
then `publish` also starts a new tail: full tiles and bundles are synced first, so the old tail is no longer needed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from casemate.clock import Clock
from casemate.crypto.record import EpochKey
from casemate.crypto.secret import Secret
from casemate.device.journal import entry, epochs, identity, recovery
from casemate.device.journal.files import LogFiles
from casemate.device.journal.tail import MAX_FRAME_ENTRIES, Tail
from casemate.errors import OperationError
from casemate.formats import event, event_schema, tlog

MAX_TAIL_ENTRIES: Final = 16_384
MAX_TAIL_BYTES: Final = 16 * 1024 * 1024
MAX_APPEND_BYTES: Final = 16 * 1024 * 1024
EPOCH_ENTRIES: Final = 65_536
MAX_UNWRITTEN: Final = 512
"""Full tiles that may wait for a disk that is full before `append` refuses as well."""


class JournalWriter:
    """An open journal. Not thread-safe; holds the lock until `close`."""

    def __init__(self, directory: Path, *, home_id: str, owner_public: bytes, clock: Clock) -> None:
        """Open the log in *directory*, or begin one; a new epoch starts, sealed to *owner_public*.

        Raises:
            BusyError: another process writes.
            UntrustedDataError: the log was altered (`check` says what); nothing was written.
            OperationError: the disk is full or not writable.

        """
        self._clock = clock
        self._closed = False
        self._stack = contextlib.ExitStack()
        self.files = LogFiles(directory)
        try:
            self._stack.enter_context(self.files.lock())
            self._open(home_id, owner_public)
        except BaseException:
            self._stack.close()
            raise

    # -- opening

    def _open(self, home_id: str, owner_public: bytes) -> None:
        fresh = not any(self.files.exists(name) for name in ("tail", recovery.CHECKPOINT, "tile", epochs.FOLDER))
        self.identity = identity.create(self.files, home_id) if fresh else identity.load(self.files)
        self._tail_key: Secret = self._stack.enter_context(self.identity.tail_key())
        if fresh:
            Tail.create(self.files, self._tail_key, tlog.TreeState(), []).close()
        recovered = recovery.recover(self.files, self.identity)
        self._state = recovered.state
        self._rest = recovered.rest
        self._unwritten = {name: recovered.known[name] for name in recovered.lost}
        self._unsynced = list(recovered.known)
        self.checkpoint = recovered.checkpoint
        self._tail = Tail(self.files, self._tail_key, recovered.content)
        self._stack.callback(self._close_tail)
        self._begin_epoch(recovered, owner_public)

    def _begin_epoch(self, recovered: recovery.Recovered, owner_public: bytes) -> None:
        """Start a fresh key and record what was found."""
        used = [entry.parse_entry(item, at=self.size - 1).epoch for item in recovered.content.entries[-1:]]
        number = max([epochs.last_epoch(self.files), *used]) + 1
        self._key: EpochKey
        self._key, record = epochs.open_epoch(self.origin, number, self.size, owner_public)
        self._epoch_start = self.size
        self.files.write(epochs.file_name(number), record, sync=True)
        self._append_entries([entry.pack_epoch(number, self.size, record)])
        now = self._clock.wall()
        found = [event.epoch_opened(epoch=number, first_index=self._epoch_start, now=now)]
        if recovered.content.torn:
            torn = recovered.content
            found.append(event.torn_tail_recovered(first_index=torn.size, lost_bytes=torn.torn, now=now))
        if recovered.taken:
            found.append(event.tiles_restored(count=recovered.taken, now=now))
        self.record(found, role="journal")
        self.publish()

    # -- state

    @property
    def origin(self) -> str:
        """Return the log's name."""
        return self.identity.origin

    @property
    def size(self) -> int:
        """Return how many entries are durable."""
        return self._state.size

    @property
    def epoch(self) -> int:
        """Return the number of the current epoch."""
        return self._key.epoch

    @property
    def published(self) -> int:
        """Return how many entries the newest checkpoint covers."""
        return self.checkpoint.size if self.checkpoint else 0

    # -- appending

    def record(self, events: Sequence[event.Event], *, role: str) -> int:
        """Check, stamp and append *events* as *role*; return the index of the last once all are durable.

        Raises:
            UntrustedDataError: `event` or `event-role`; none was appended.
            OperationError: not durable; none was appended.

        """
        now = self._clock.wall()
        for item in events:
            event_schema.check(item, role=role)
        return self.append([event_schema.stamp(item, role=role, device=self.origin, now=now) for item in events])

    def append(self, events: Sequence[bytes]) -> int:
        """Seal and append stamped *events* in one frame; return the index of the last once all are durable.

        Raises:
            OperationError: disk full or failed; none was appended.

        """
        if not 1 <= len(events) <= MAX_FRAME_ENTRIES or sum(map(len, events)) > MAX_APPEND_BYTES:
            raise OperationError("the journal takes 1 to 65536 events and 16 MiB at once")
        if self.size - self._epoch_start >= EPOCH_ENTRIES:
            self._next_epoch()
        first = self.size
        self._append_entries(
            [entry.seal_event(self._key, first + n, item, self.origin) for n, item in enumerate(events)]
        )
        return self.size - 1

    def _append_entries(self, entries: Sequence[bytes]) -> None:
        if len(self._unwritten) > MAX_UNWRITTEN or self._tail.length > 2 * MAX_TAIL_BYTES:
            self.publish()
        try:
            self._tail.append(self.size, entries, self.published)
        except OperationError:
            self._next_epoch()  # these indexes were used with this key; the bytes may still be somewhere on the disk
            raise
        for item in entries:
            self._rest.append(item)
            for tile in self._state.add(tlog.leaf_hash(item)):
                self._complete(tile)

    def _complete(self, tile: tlog.FullTile) -> None:
        names = {tlog.tile_path(tile.level, tile.index): tlog.pack_tile(tile.hashes)}
        if tile.level == 0:
            names[tlog.entries_path(tile.index)] = tlog.pack_bundle(self._rest)
            self._rest = []
        self._unwritten.update(names)
        self._unsynced += names

    def _next_epoch(self) -> None:
        self._key = self._key.next()
        self._epoch_start = self.size

    # -- publishing

    def publish(self) -> tlog.Checkpoint:
        """Write tiles, then a durable checkpoint over everything appended; return it.

        Raises:
            OperationError: the disk is full or failed. What was appended stays durable; publish again later.

        """
        if self.checkpoint and self.checkpoint.size == self.size and not self._unwritten:
            return self.checkpoint
        self._write_tiles()
        self._write_partial_tiles()
        checkpoint = tlog.Checkpoint(self.origin, self.size, self._state.root())
        self.files.write(recovery.CHECKPOINT, checkpoint.sign(self.identity.key), sync=True)
        self.checkpoint = checkpoint
        if self.size - self._tail.base >= MAX_TAIL_ENTRIES or self._tail.length >= MAX_TAIL_BYTES:
            self._new_tail()
        return checkpoint

    def _write_tiles(self) -> None:
        for name in list(self._unwritten):
            self.files.write(name, self._unwritten[name])
            del self._unwritten[name]
            self.files.remove_folder(f"{name}.p")

    def _write_partial_tiles(self) -> None:
        for name, data in recovery.partial_files(self._state, self._rest):
            self.files.write(name, data)

    def _new_tail(self) -> None:
        """Let go of the old tail: first everything it was needed for is made durable."""
        self.files.sync(self._unsynced)
        self._unsynced = []
        fresh = Tail.create(self.files, self._tail_key, self._state, self._rest)
        self._tail.close()
        self._tail = fresh

    def close(self) -> None:
        """Publish what is durable and let go of the lock; safe to call twice."""
        if self._closed:
            return
        self._closed = True
        with self._stack:
            try:
                if not self._tail.broken:
                    self.publish()
            except OperationError:
                pass  # a full disk: the tail holds every entry, and the next open publishes them

    def _close_tail(self) -> None:
        self._tail.close()

    @property
    def broken(self) -> bool:
        """Return whether the disk failed in a way that only a new start can judge."""
        return self._tail.broken

    def __enter__(self) -> Self:
        """Use as a context: closed at the end."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()
