"""What every part of a running server shares, made once and handed down; nothing of it is global."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import TYPE_CHECKING, Final

from casemate.clock import Clock
from casemate.fleet import pki
from casemate.fleet.admission import Addresses, Load
from casemate.fleet.audit import AuditLog
from casemate.fleet.home import FleetHome, Settings
from casemate.fleet.identity import Directory
from casemate.fleet.ingest import DatabaseSink
from casemate.fleet.leader import Leader
from casemate.fleet.metrics import Metrics
from casemate.fleet.pki import Authority
from casemate.fleet.seen import WriteBehind
from casemate.fleet.shared_clock import FleetClock
from casemate.fleet.store import Store
from casemate.fleet.wake import Hub

if TYPE_CHECKING:
    from casemate.fleet.bus import Bus

GUESSES: Final = 20.0
"""Wrong tokens an address may send at once: many devices can stand behind one."""
GUESSES_PER_SECOND: Final = 0.2


@dataclasses.dataclass(frozen=True, slots=True)
class Served:
    """Where this process listens (https://host:port or unix:PATH); "": another one does."""

    people: str = ""
    devices: str = ""
    enrol: str = ""
    people_chain: Path | None = None
    """People's own certificate chain (PEM); None: one of this fleet's authority."""


@dataclasses.dataclass(slots=True)
class Fleet:
    """The services. `authority` is replaced when an intermediate is rotated, everything else stays."""

    home: FleetHome
    settings: Settings
    store: Store
    clock: FleetClock
    authority: Authority
    audit: AuditLog
    directory: Directory
    seen: WriteBehind
    hub: Hub
    metrics: Metrics
    leader: Leader
    load: Load
    guesses: Addresses
    """Wrong tokens by address."""
    devices_url: str = ""
    """Where devices connect; known when the listeners are bound."""
    served: Served = Served()
    bus: Bus | None = None
    leaving: bool = False
    """This server is about to stop: a load balancer should ask another."""
    directs: bool = False
    """It knows a release repository: devices take what rollouts give them, for good."""
    directs_asked: float = 0.0
    """When that was last looked up, by the monotonic clock."""
    device_count: int = 0
    """How many devices there are, as of the last sweep: it sets how often they call."""

    @classmethod
    def open(cls, home: FleetHome, clock: Clock, *, database: str | None = None) -> Fleet:
        """Wire the services of the fleet in *home*; nothing connects yet.

        Raises:
            NotFoundError: no fleet there, or a part of it is missing.

        """
        settings = home.settings()
        store = Store(database or settings.database)
        metrics = Metrics()
        shared = FleetClock(clock, store)
        direct = DatabaseSink(store)
        bus = _bus(home, settings, direct, shared, metrics) if settings.bus else None
        return cls(
            home=home,
            settings=settings,
            store=store,
            clock=shared,
            authority=pki.load(home, shared),
            audit=AuditLog(settings.fleet, home.signing_key("audit")),
            directory=Directory(store, shared),
            seen=WriteBehind(bus or direct, metrics),
            hub=Hub(),
            metrics=metrics,
            bus=bus,
            leader=Leader(store),
            load=Load(random.random),
            guesses=Addresses(rate=GUESSES_PER_SECOND, burst=GUESSES),
        )


def _bus(home: FleetHome, settings: Settings, sink: DatabaseSink, clock: FleetClock, metrics: Metrics) -> Bus:
    from casemate.fleet.bus import Bus  # noqa: PLC0415 - NATS's client, which most fleets never need

    key = home.signing_key("audit").derive("casemate fleet bus 1").reveal()
    return Bus(settings.bus, fleet=settings.fleet, key=key, sink=sink, clock=clock, metrics=metrics)
