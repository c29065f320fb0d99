"""A rollout on the server's own code and a database of its own, with devices that are not there.

Where `simulate` asks the decision alone and reaches a million devices, this runs what a server runs: the record's
moves, the steward's looks, picks, words, settling. Only the devices' side of the wire is left out.
"""

from __future__ import annotations

import dataclasses
import hashlib
import heapq
import random
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec
import sqlalchemy as sa

from casemate.fleet import serve
from casemate.fleet.context import Fleet
from casemate.fleet.home import FleetHome
from casemate.fleet.rollout import records, releases, steward, words
from casemate.fleet.rollout.records import Move, Wanted
from casemate.fleet.rollout.simulate import Outcome, World
from casemate.fleet.rollout.states import Event, State
from casemate.fleet.rollout.terms import Terms
from casemate.fleet.store import rollout_tables
from casemate.fleet.store import tables as base
from casemate.formats.channel_set import Member
from casemate.formats.director import VerifiedWord, Word

_ARRIVAL: Final = 1800.0
_EARLY: Final = 600.0
_LOOK: Final = 300.0
_START: Final = 1_800_000_000.0
_one, _rollout = rollout_tables.rollout_device.c, rollout_tables.rollout.c
Watcher = Callable[[float, dict[str, Any]], None]


@dataclasses.dataclass
class _Clock:
    """Stands until it is moved."""

    now: float = _START

    def wall(self) -> float:
        """Return the simulated time."""
        return self.now

    def monotonic(self) -> float:
        """Return the simulated time."""
        return self.now


async def rehearse(
    directory: Path, devices: int, terms: Terms, world: World, *, seed: int, watcher: Watcher
) -> Outcome:
    """Run one rollout in a fleet made in the empty *directory*, to its end or to where a person would be asked."""
    clock = _Clock()
    home = FleetHome(directory)
    await serve.prepare(home, clock, serve.Options())
    fleet = Fleet.open(home, clock)
    try:
        stage = _Stage(fleet, clock, world, terms, random.Random(seed))  # noqa: S311 - a simulation, not a secret
        await stage.furnish(devices)
        return await stage.run(watcher)
    finally:
        await fleet.store.close()


class _Stage:
    """The fleet, and its devices as events in time."""

    def __init__(self, fleet: Fleet, clock: _Clock, world: World, terms: Terms, draw: random.Random) -> None:
        self._fleet, self._clock, self._world, self._terms, self._draw = fleet, clock, world, terms, draw
        self._events: list[tuple[float, int, str, str]] = []
        self._count = 0
        self._told: set[str] = set()
        self._dead: set[str] = set()
        self._name = ""
        self._content = ""
        self._before = hashlib.sha256(b"before").hexdigest()

    async def furnish(self, count: int) -> None:
        """Enrol *count* devices and publish a release to them."""
        now = self._clock.now
        ids = [str(uuid.UUID(int=self._draw.getrandbits(128), version=4)) for _ in range(count)]
        member = Member("model", "simulated", "1.0.0", 1, "0" * 32, "0" * 64)
        self._content = hashlib.sha256(msgspec.json.encode((member,))).hexdigest()
        made = {
            "channel": "stable",
            "content": self._content,
            "generation": 1,
            "members": msgspec.json.encode([member]),
        }
        made |= {"target_sha256": "0" * 64, "target_length": 1, "state": "offered", "expires": now * 2}
        made |= {"created": now, "created_by": "simulation", "changed": now}
        async with self._fleet.store.write() as connection:
            await connection.execute(
                sa.insert(base.device),
                [
                    {"id": each, "asset": each, "state": "enrolled", "enrolled_by": "token", "created": now}
                    | {"changed": now, "key_digest": "0" * 64}
                    for each in ids
                ],
            )
            await connection.execute(
                sa.insert(base.device_seen),
                [
                    {
                        "device_id": each,
                        "last_seen": now,
                        "state": "ok",
                        "generation": self._before,
                        "agent": "simulated",
                    }
                    for each in ids
                ],
            )
            name = releases.identity("stable", self._content)
            await connection.execute(sa.insert(rollout_tables.release).values(id=name, **made))
            self._name = await records.create(connection, self._fleet, Wanted(name, None, self._terms), "author", now)
            for event in (Event.APPROVE, Event.START):
                await records.change(connection, self._fleet, self._name, Move(event, "second", now))

    async def run(self, watcher: Watcher) -> Outcome:
        """Let time pass, from look to look."""
        looks = 0
        while True:
            looks += 1
            row = await self._look()
            watcher((self._clock.now - _START) / 3600, row)
            if row["state"] != State.RUNNING:
                break
            await self._offered()
            await self._until_news()
        hours = (self._clock.now - _START) / 3600
        lost = row["failed"] + row["silent"]
        met = row["offered"] + (row["control"] if row["state"] == State.DONE else 0)  # held back until the end
        return Outcome(met, lost, State(row["state"]), hours, row["batch"] + 1, looks, row["why"])

    async def _look(self) -> dict[str, Any]:
        await self._everybody_calls()
        await steward.look(self._fleet)
        async with self._fleet.store.read() as connection:
            return records.described(await records.find(connection, self._name))

    async def _everybody_calls(self) -> None:
        """Every device that lives has checked in a moment ago."""
        seen = base.device_seen
        async with self._fleet.store.write() as connection:
            await connection.execute(
                sa.update(seen).where(seen.c.device_id.not_in(self._dead)).values(last_seen=self._clock.now)
            )

    async def _offered(self) -> None:
        """Draw when the devices that were offered it since come for it."""
        async with self._fleet.store.read() as connection:
            query = sa.select(_one.device_id).where(_one.rollout_id == self._name, _one.state == "offered")
            found = [row.device_id for row in await connection.execute(query.order_by(_one.device_id))]
        for device in found:
            if device not in self._told:
                self._told.add(device)
                self._push(self._clock.now + self._draw.expovariate(1 / _ARRIVAL), "take", device)

    async def _until_news(self) -> None:
        """Let time pass to the next look."""
        self._clock.now += _LOOK
        if self._events and self._events[0][0] > self._clock.now:
            self._clock.now = self._events[0][0]
        due: list[tuple[float, int, str, str]] = []
        while self._events and self._events[0][0] <= self._clock.now:
            due.append(heapq.heappop(self._events))
        async with self._fleet.store.write() as connection:
            for moment, _, what, device in due:
                await self._happen(connection, moment, what, device)

    async def _happen(self, connection: Any, moment: float, what: str, device: str) -> None:
        if what == "take":
            await words.handed(connection, self._name, device, moment)
            failed = self._draw.random() < self._world.fail_rate
            if failed and self._draw.random() < self._world.silent:
                self._dead.add(device)
                return
            wait = self._draw.expovariate(1 / _EARLY) if failed else 0.0
            self._push(moment + min(wait, self._terms.soak), "failed" if failed else "good", device)
            return
        word = Word(1, self._fleet.settings.fleet, device, self._content, what, int(moment))  # type: ignore[arg-type]
        await words.take(connection, self._fleet.store, VerifiedWord(word), b"", moment)
        if what == "good":
            seen = base.device_seen
            await connection.execute(
                sa.update(seen).where(seen.c.device_id == device).values(generation=self._content, last_seen=moment)
            )

    def _push(self, moment: float, what: str, device: str) -> None:
        self._count += 1
        heapq.heappush(self._events, (moment, self._count, what, device))
