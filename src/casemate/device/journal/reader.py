"""Reading the log with the owner's key: every entry shown was decrypted *and* proved to stand in the signed tree."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import msgspec

from casemate.crypto.secret import Secret
from casemate.device.journal import entry, epochs, identity, tail
from casemate.device.journal.files import LogFiles
from casemate.device.journal.recovery import CHECKPOINT
from casemate.device.journal.tree import TileTree, read_full_or_partial
from casemate.errors import NotFoundError, UntrustedDataError
from casemate.formats import event_schema, tlog


@dataclasses.dataclass(frozen=True, slots=True)
class Shown:
    """One event as it was recorded. *published* says whether a checkpoint covers it already."""

    index: int
    epoch: int
    published: bool
    raw: bytes

    def event(self) -> event_schema.OcsfEvent:
        """Return the event, checked."""
        return event_schema.decode(self.raw)

    def fields(self) -> dict[str, object]:
        """Return the event as a plain JSON object."""
        found: dict[str, object] = msgspec.json.decode(self.raw)
        return found


class Reader:
    """Reads a device's own log, also while it is being written."""

    def __init__(self, files: LogFiles, owner_private: Secret) -> None:
        """Decrypt with *owner_private* (X25519), which must outlive the reader."""
        self._files = files
        records = (epochs.parse_record(files.read(f"{epochs.FOLDER}/{name}")) for name in files.names(epochs.FOLDER))
        self._keys = epochs.EpochKeys(owner_private, {record.epoch: record for record in records})

    def size(self) -> int:
        """Return how many entries are durable."""
        return self._tail().size

    def events(self, start: int = 0, stop: int | None = None) -> Iterator[Shown]:
        """Yield the events of entries *start* .. *stop* - 1 (to the end unless given); epoch records are left out.

        Raises:
            UntrustedDataError: an entry is not the one in the tree, or does not decrypt.
            NotAuthorisedError: the owner key opens none of it.

        """
        signed = self._checkpoint()
        content = self._tail()
        tree = TileTree(self._files, signed.size)
        if tree.root() != signed.root:
            raise UntrustedDataError("the tiles have another root than the checkpoint", check="root")
        for index, data in self._entries(content, max(0, start), content.size if stop is None else stop):
            if index < signed.size:
                proof = tree.inclusion(index)
                tlog.check_inclusion(tlog.leaf_hash(data), index, signed.size, proof, signed.root)
            shown = self._decrypt(entry.parse_entry(data, at=index), signed)
            if shown:
                yield shown

    def _entries(self, content: tail.TailContent, start: int, stop: int) -> Iterator[tuple[int, bytes]]:
        """Yield raw entries: bundles up to the tail's base, then the tail."""
        index = start
        while index < min(stop, content.base):
            number, place = divmod(index, tlog.TILE_WIDTH)
            bundle = tlog.parse_bundle(read_full_or_partial(self._files, tlog.entries_path(number)))
            for data in bundle[place : place + min(stop, content.base) - index]:
                yield index, data
                index += 1
        for data in content.entries[max(0, index - content.base) : max(0, stop - content.base)]:
            yield index, data
            index += 1

    def _decrypt(self, item: entry.Entry, signed: tlog.Checkpoint) -> Shown | None:
        if item.is_epoch:
            self._keys.learn(epochs.parse_record(item.body))
            return None
        raw = entry.open_event(self._keys.key_for(item.epoch), item, signed.origin)
        return Shown(item.index, item.epoch, item.index < signed.size, raw)

    def _checkpoint(self) -> tlog.Checkpoint:
        try:
            return tlog.open_checkpoint(self._files.read(CHECKPOINT), [identity.load_verifier(self._files)])
        except FileNotFoundError as error:
            raise NotFoundError("there is no journal here yet", hint="run `casemate up`, which begins one") from error

    def _tail(self) -> tail.TailContent:
        with identity.load(self._files).tail_key() as key:
            try:
                return tail.scan(self._files.read(tail.NAME), key)
            except FileNotFoundError as error:
                raise NotFoundError("the journal has no tail", hint="run `casemate journal verify`") from error


def prove(files: LogFiles, index: int) -> tuple[tlog.ProofFile, bytes]:
    """Return the offline proof of entry *index* and the entry's bytes.

    Raises:
        NotFoundError: no published entry has that number.
        UntrustedDataError: the tiles do not fit the checkpoint.

    """
    signed = files.read(CHECKPOINT)
    known = identity.load_verifier(files)
    checkpoint = tlog.open_checkpoint(signed, [known])
    tree = TileTree(files, checkpoint.size)
    proof = tlog.ProofFile(index, tuple(tree.inclusion(index)), signed)
    number, place = divmod(index, tlog.TILE_WIDTH)
    width = min(tlog.TILE_WIDTH, checkpoint.size - number * tlog.TILE_WIDTH)
    data = tlog.parse_bundle(read_full_or_partial(files, tlog.entries_path(number, width)))[place]
    proof.verify(data, [known])
    return proof, data
