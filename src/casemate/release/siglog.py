"""The log of release signatures, a C2SP tlog-tiles directory that any web server can serve.

One writer, a handful of entries a day: each append writes the tiles it touches, then the signed checkpoint, last and
durably. What is on disk is verified against its own checkpoint before anything is added.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from casemate.crypto.signing import SigningKey
from casemate.errors import BusyError, UntrustedDataError
from casemate.formats import tlog
from casemate.formats.tlog.proof_file import ProofFile
from casemate.release import files

CHECKPOINT: Final = "checkpoint"


class SignatureLog:
    """An append-only log in *directory*, called *origin*."""

    def __init__(self, directory: Path, origin: str) -> None:
        """Use *directory*, which need not exist yet."""
        self.directory = directory
        self.origin = origin

    def append(self, entry: bytes, key: SigningKey) -> bytes:
        """Add *entry*, sign the new tree and return the proof that it is in it (a tlog-proof file).

        Raises:
            UntrustedDataError: what is on disk does not fit its checkpoint.
            BusyError: another process appends.

        """
        with self._lock():
            entries = self.entries(tlog.VerifierKey(self.origin, key.public))
            entries.append(entry)
            hashes = [tlog.leaf_hash(item) for item in entries]
            self._write_tiles(entries, hashes)
            signed = tlog.Checkpoint(self.origin, len(entries), tlog.root_of(hashes)).sign(key)
            files.replace(self.directory / CHECKPOINT, signed)
        index = len(entries) - 1
        proof = tlog.prove_inclusion(index, len(entries), lambda first, count: tlog.root_of(hashes[first:][:count]))
        return ProofFile(index, tuple(proof), signed).pack()

    def entries(self, known: tlog.VerifierKey) -> list[bytes]:
        """Return every entry after checking them against the checkpoint.

        Raises:
            UntrustedDataError: `checkpoint-*`, or `signature-log` when the tree is another.

        """
        path = self.directory / CHECKPOINT
        if not path.exists():
            if (self.directory / "tile").exists():
                raise UntrustedDataError("the log has entries and no checkpoint", check="signature-log")
            return []
        checkpoint = tlog.open_checkpoint(files.read(path, "checkpoint"), [known])
        found: list[bytes] = []
        for index in range((checkpoint.size + tlog.TILE_WIDTH - 1) // tlog.TILE_WIDTH):
            width = min(tlog.TILE_WIDTH, checkpoint.size - index * tlog.TILE_WIDTH)
            data = files.read(self.directory / tlog.entries_path(index, width), "bundle of log entries")
            found += tlog.parse_bundle(data)
        if len(found) != checkpoint.size or tlog.root_of([tlog.leaf_hash(item) for item in found]) != checkpoint.root:
            raise UntrustedDataError("the log of signatures was altered", check="signature-log")
        return found

    def _write_tiles(self, entries: list[bytes], hashes: list[bytes]) -> None:
        """Write the tiles that the last entry is in: the full ones it completed, and the partial ones."""
        size, level, row = len(entries), 0, hashes
        start = (size - 1) // tlog.TILE_WIDTH * tlog.TILE_WIDTH
        bundle = tlog.entries_path(start // tlog.TILE_WIDTH, size - start)
        files.replace(self.directory / bundle, tlog.pack_bundle(entries[start:]))
        while row:
            first = (len(row) - 1) // tlog.TILE_WIDTH * tlog.TILE_WIDTH
            path = tlog.tile_path(level, first // tlog.TILE_WIDTH, len(row) - first)
            files.replace(self.directory / path, tlog.pack_tile(row[first:]))
            full = len(row) // tlog.TILE_WIDTH
            row = [tlog.root_of(row[n * tlog.TILE_WIDTH : (n + 1) * tlog.TILE_WIDTH]) for n in range(full)]
            level += 1

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        self.directory.mkdir(parents=True, exist_ok=True)
        fd = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError:
            raise BusyError("another release is being signed", hint="wait for it, then try again") from None
        finally:
            os.close(fd)
