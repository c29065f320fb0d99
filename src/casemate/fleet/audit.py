"""The fleet's own log: every act is an entry of a transparency log, written in the transaction of the act itself.

So nothing happens without its entry, and no entry without what it says. Each append signs a new checkpoint; whoever
keeps an old one can prove that the log was cut or rewritten. Entries name people, devices and assets, and never hold a
token, a key or what a model was asked.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Final

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from casemate.crypto.signing import SigningKey
from casemate.errors import UntrustedDataError
from casemate.fleet.store import tables
from casemate.formats import tlog

_PAGE: Final = 4096


@dataclasses.dataclass(frozen=True, slots=True)
class Act:
    """Who did what to which device, and what else a reader must know."""

    actor: str
    action: str
    device: str | None = None
    asset: str | None = None
    detail: dict[str, Any] = dataclasses.field(default_factory=dict)


class AuditLog:
    """Appends in the caller's transaction. Any process of the fleet may: the tree's row is the lock."""

    def __init__(self, fleet: str, key: SigningKey) -> None:
        """Sign checkpoints of the log of *fleet* with *key*."""
        self.origin = f"casemate.fleet/{fleet}/audit"
        self.verifier = tlog.VerifierKey(self.origin, key.public)
        self._key = key

    async def append(self, connection: AsyncConnection, act: Act, now: float) -> int:
        """Write *act* and return its number in the log."""
        row = (await connection.execute(sa.select(tables.audit_tree).with_for_update())).one_or_none()
        tree = _thaw(row.size, row.levels) if row else tlog.TreeState()
        seq = tree.size
        entry = msgspec.json.encode(
            {
                "seq": seq,
                "time": round(now, 3),
                "actor": act.actor,
                "action": act.action,
                "device": act.device,
                "asset": act.asset,
                "detail": act.detail,
            }
        )
        for _ in tree.add(tlog.leaf_hash(entry)):
            pass  # tiles are made from the entries when somebody asks
        note = tlog.Checkpoint(self.origin, tree.size, tree.root()).sign(self._key)
        state = {"size": tree.size, "levels": msgspec.json.encode(tree.levels), "checkpoint": note}
        change = (
            sa.update(tables.audit_tree).values(state) if row else sa.insert(tables.audit_tree).values(id=1, **state)
        )
        await connection.execute(change)
        values = {"actor": act.actor, "action": act.action, "device_id": act.device, "asset": act.asset}
        await connection.execute(sa.insert(tables.audit_event).values(seq=seq, created=now, entry=entry, **values))
        return seq

    async def newest(self, connection: AsyncConnection, limit: int) -> list[dict[str, Any]]:
        """Return the newest *limit* entries, oldest first."""
        event = tables.audit_event.c
        rows = (await connection.execute(sa.select(event.entry).order_by(event.seq.desc()).limit(limit))).all()
        return [msgspec.json.decode(row.entry) for row in reversed(rows)]

    async def checkpoint(self, connection: AsyncConnection) -> bytes:
        """Return the newest signed checkpoint; an empty log has one too."""
        row = (await connection.execute(sa.select(tables.audit_tree.c.checkpoint))).one_or_none()
        return row.checkpoint if row else tlog.Checkpoint(self.origin, 0, tlog.EMPTY_ROOT).sign(self._key)

    async def verify(self, connection: AsyncConnection, against: bytes | None = None) -> tlog.Checkpoint:
        """Recompute the whole tree and compare it with the newest checkpoint, and with an older one kept elsewhere.

        Raises:
            UntrustedDataError: `audit-entry`, `audit-root` or `audit-history`.

        """
        newest = tlog.open_checkpoint(await self.checkpoint(connection), [self.verifier])
        older = tlog.open_checkpoint(against, [self.verifier]) if against else None
        tree, older_root = tlog.TreeState(), tlog.EMPTY_ROOT
        while rows := (await connection.execute(_page(tree.size))).all():
            for seq, entry in rows:
                if seq != tree.size:
                    raise UntrustedDataError(f"entry {tree.size} of the audit log is missing", check="audit-entry")
                for _ in tree.add(tlog.leaf_hash(bytes(entry))):
                    pass
                if older and tree.size == older.size:
                    older_root = tree.root()
        if (tree.size, tree.root()) != (newest.size, newest.root):
            raise UntrustedDataError("the audit log does not fit its checkpoint", check="audit-root")
        if older and (older.size > tree.size or older_root != older.root):
            raise UntrustedDataError("the audit log was cut or rewritten since that checkpoint", check="audit-history")
        return newest


def _page(start: int) -> sa.Select[Any]:
    event = tables.audit_event.c
    return sa.select(event.seq, event.entry).where(event.seq >= start).order_by(event.seq).limit(_PAGE)


def _thaw(size: int, levels: bytes) -> tlog.TreeState:
    return tlog.TreeState(size, msgspec.json.decode(levels, type=list[list[bytes]]))
