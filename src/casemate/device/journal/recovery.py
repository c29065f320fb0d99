"""Opening a log that is already there: replay the tail, prove that nothing older is missing, refuse what was altered.

Rules, in the order they are checked:
 (1) the tail's head and frames carry good MACs; only the end of the last frame may be missing (torn);
 (2) the checkpoint is signed by this log and is not older than the tail says was published;
 (3) the tail reaches the checkpoint: what was shown to anyone is still here;
 (4) the replayed tree has the checkpoint's root;
 (5) files that the tail still knows are as the tail says, or as a power cut leaves them (missing, short, zeros);
 (6) every full tile and bundle older than the tail exists with its size, upper tiles and the newest bundles fit.
After that a torn end is dropped, for it was never acknowledged, and what a power cut took is written again. Older
bundles in full are `casemate journal verify`'s work.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Final

from casemate.device.journal import tail
from casemate.device.journal.files import LogFiles
from casemate.device.journal.identity import LogIdentity
from casemate.errors import UntrustedDataError
from casemate.formats import tlog

CHECKPOINT: Final = "checkpoint"
NEWEST_CHECKED: Final = 16
ARCHIVE_HINT: Final = "keep it as evidence and start anew with `casemate journal archive`"


@dataclasses.dataclass
class Recovered:
    """A log ready to continue: the tree and the entries since its last full bundle.

    *known* are full tiles and bundles that the tail still holds; *lost* names those that are not on disk. *taken*
    counts files that a checkpoint had covered and that are gone all the same: a power cut, or somebody's hand.
    """

    state: tlog.TreeState
    rest: list[bytes]
    content: tail.TailContent
    checkpoint: tlog.Checkpoint | None
    known: dict[str, bytes]
    lost: list[str]
    taken: int


def recover(files: LogFiles, identity: LogIdentity) -> Recovered:
    """Return the log's state.

    Raises:
        UntrustedDataError: the log was altered; `check` names the rule.

    """
    try:
        data = files.read(tail.NAME)
    except FileNotFoundError as error:
        raise _altered("the journal's tail is missing", "tail-missing") from error
    with identity.tail_key() as key:
        content = tail.scan(data, key)  # (1)
    checkpoint = _checkpoint(files, identity, content)  # (2)
    if checkpoint and checkpoint.size > content.size:  # (3)
        raise _altered(
            f"the checkpoint covers {checkpoint.size} entries, only {content.size} are in the log", "entries-missing"
        )
    recovered, published = _replay(content, checkpoint)  # (4)
    expected = {**published, **recovered.known}
    gone = {name for name, data in expected.items() if _lost(files, name, data)}  # (5)
    recovered.lost = [name for name in recovered.known if name in gone]
    recovered.taken = len(gone.intersection(published))
    _check_older(files, content)  # (6)
    return recovered


def _checkpoint(files: LogFiles, identity: LogIdentity, content: tail.TailContent) -> tlog.Checkpoint | None:
    """Read the checkpoint; a log that never published one has none."""
    try:
        checkpoint = tlog.open_checkpoint(files.read(CHECKPOINT), [identity.verifier])
    except FileNotFoundError as error:
        if content.base or content.published:
            raise _altered("the journal's checkpoint is missing", "checkpoint-missing") from error
        return None
    published = max(content.base, content.published)
    if checkpoint.size < published:
        raise _altered(
            f"the checkpoint covers {checkpoint.size} entries, but {published} were published", "checkpoint-old"
        )
    return checkpoint


def _replay(content: tail.TailContent, checkpoint: tlog.Checkpoint | None) -> tuple[Recovered, dict[str, bytes]]:
    """Return the log's state after the tail, and those files the tail still knows that the checkpoint covers."""
    state = content.state()
    rest: list[bytes] = []
    known: dict[str, bytes] = {}
    published: dict[str, bytes] = {}
    for entry in [None, *content.entries]:
        if entry is not None:
            rest.append(entry)
            for tile in state.add(tlog.leaf_hash(entry)):
                known[tlog.tile_path(tile.level, tile.index)] = tlog.pack_tile(tile.hashes)
                if tile.level == 0:
                    known[tlog.entries_path(tile.index)] = tlog.pack_bundle(rest)
                    rest = []
        if checkpoint and state.size == checkpoint.size:
            if state.root() != checkpoint.root:
                raise _altered(f"the {state.size} entries have another root than the checkpoint", "root")
            published = {**known, **dict(partial_files(state, rest))}
    return Recovered(state, rest, content, checkpoint, known, [], 0), published


def partial_files(state: tlog.TreeState, rest: Sequence[bytes]) -> Iterator[tuple[str, bytes]]:
    """Yield name and bytes of every partial tile of *state* and of the bundle of *rest*, its newest entries."""
    for level, index, width in tlog.partial_tiles(state.size):
        yield tlog.tile_path(level, index, width), tlog.pack_tile(state.levels[level])
        if level == 0:
            yield tlog.entries_path(index, width), tlog.pack_bundle(rest)


def _lost(files: LogFiles, name: str, expected: bytes) -> bool:
    """Return whether a power cut took *name*; refuse it when it says something else."""
    try:
        found = files.read(name)
    except (FileNotFoundError, NotADirectoryError):
        return True
    if found == expected:
        return False
    padded = found.ljust(len(expected), b"\0")
    if len(padded) > len(expected) or any(ours and ours != true for ours, true in zip(padded, expected, strict=True)):
        raise _altered(f"{name} is not what was written", "tile")
    return True


def _check_older(files: LogFiles, content: tail.TailContent) -> None:
    """Check tiles and bundles that the tail no longer holds."""
    bundles = content.base // tlog.TILE_WIDTH
    for index in range(bundles):
        for name, size in ((tlog.entries_path(index), None), (tlog.tile_path(0, index), tlog.TILE_WIDTH * 32)):
            found = files.size(name)
            if found <= 0 or (size and found != size):
                raise _altered(f"{name} is missing or has the wrong size", "tile-missing")
    for index in range(max(0, bundles - NEWEST_CHECKED), bundles):
        hashes = [tlog.leaf_hash(entry) for entry in tlog.parse_bundle(files.read(tlog.entries_path(index)))]
        if tlog.pack_tile(hashes) != files.read(tlog.tile_path(0, index)):
            raise _altered(f"{tlog.entries_path(index)} does not fit its tile", "entries")
    _check_upper(files, content, bundles)


def _check_upper(files: LogFiles, content: tail.TailContent, bundles: int) -> None:
    """Check that each full tile above level 0 hashes to its place one level up; the top is in the tail's head."""
    below, level = bundles, 1
    while full := below // tlog.TILE_WIDTH:
        for index in range(full):
            name = tlog.tile_path(level, index)
            expected = _hash_above(files, content, level + 1, index)
            try:
                found = tlog.root_of(tlog.parse_tile(files.read(name), tlog.TILE_WIDTH))
            except FileNotFoundError as error:
                raise _altered(f"{name} is missing", "tile-missing") from error
            if found != expected:
                raise _altered(f"{name} does not fit the tile above it", "tile")
        below, level = full, level + 1


def _hash_above(files: LogFiles, content: tail.TailContent, level: int, index: int) -> bytes:
    tile, place = divmod(index, tlog.TILE_WIDTH)
    unfinished = content.levels[level - 1]
    if tile == content.base // tlog.TILE_WIDTH ** (level + 1):
        return unfinished[place]
    return tlog.parse_tile(files.read(tlog.tile_path(level, tile)), tlog.TILE_WIDTH)[place]


def _altered(message: str, check: str) -> UntrustedDataError:
    return UntrustedDataError(message, check=check, hint=ARCHIVE_HINT)
