"""One tar for devices without a network: the files a web server would serve, under the same paths.

Only what current metadata names goes in (and the grants of those releases), so a yanked release does not travel. The
tar has one spelling: regular files, sorted, no times, no owners. It needs no secrecy and proves nothing by itself.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path

from casemate.durable import sync_directory
from casemate.errors import NotFoundError, OperationError
from casemate.formats import archive
from casemate.release import channels, store
from casemate.release.repository import Repository, hashed_path
from casemate.release.roles import DELEGATED

_BLOCK = 1 << 20


def export(repository: Repository, out: Path, *, channel: str = "", advance: Callable[[int], None]) -> int:
    """Write the repository, or what *channel* offers, to *out*; return its size in bytes.

    Raises:
        NotFoundError: no such channel.
        OperationError: it cannot be written.

    """
    names = sorted(_listed(repository, channel))
    temporary = out.with_name(f".{out.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as target:
            for name in names:
                _add(target.write, repository.public / name, name, advance)
            target.write(archive.END)
            target.flush()
            os.fsync(target.fileno())
        temporary.replace(out)
        sync_directory(out.absolute().parent)
    except OSError as error:
        raise OperationError(f"cannot write {out}: {error.strerror}", hint="free space, then try again") from error
    finally:
        temporary.unlink(missing_ok=True)
    return out.stat().st_size


def total(repository: Repository, channel: str = "") -> int:
    """Return how many bytes of files an export holds."""
    return sum((repository.public / name).stat().st_size for name in _listed(repository, channel))


def _add(write: Callable[[bytes], int], path: Path, name: str, advance: Callable[[int], None]) -> None:
    size = path.stat().st_size
    write(archive.member_block(name, size, 0))
    with path.open("rb") as file:
        while piece := file.read(_BLOCK):
            write(piece)
            advance(len(piece))
    write(bytes(archive.padding(size)))


def _listed(repository: Repository, channel: str) -> set[str]:
    """Return the paths below `public/` that belong to the export."""
    wanted = _releases(repository, channel)
    listed = {"metadata/timestamp.json"} | {
        f"metadata/{path.name}" for path in repository.metadata.glob("*.root.json") if not path.name.startswith(".")
    }
    snapshot = repository.load("snapshot").signed
    listed.add(f"metadata/{snapshot.version}.snapshot.json")
    listed |= {f"metadata/{info.version}.{name}" for name, info in snapshot.meta.items()}
    paths = {record.manifest.target_path for record in wanted}
    for role in ("targets", *(role.name for role in DELEGATED)):
        for path, info in repository.targets(role).items():
            if role in {"targets", "channels"} or path in paths:
                listed.add("targets/" + hashed_path(path, info.hashes["sha256"]))
    for record in wanted:
        listed.add(record.manifest.sealed.path)
        listed |= {chunk.path for item in record.manifest.payloads for chunk in item.chunks}
        folder = repository.public / "grants" / record.id
        listed |= {f"grants/{record.id}/{path.name}" for path in folder.glob("[0-9a-f]*.json")}
    return listed


def _releases(repository: Repository, channel: str) -> list[store.Record]:
    offered = store.published(repository)
    if not channel:
        return offered
    held = channels.current(repository, channel)
    if held is None:
        raise NotFoundError(f"no channel {channel!r}", hint="`casemate release list DIR` names them")
    ids = {member.release for member in held.members}
    return [record for record in offered if record.id in ids]
