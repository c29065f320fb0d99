"""Everything one run of the update process works with: its directory, its limits, its link to the device, the clock."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from casemate.clock import Clock, SystemClock
from casemate.config import Settings
from casemate.device.fleet.direction import FREE, Direction
from casemate.device.update import traces, trust
from casemate.device.update.client import Client
from casemate.device.update.floors import FileFloorStore, Floors
from casemate.device.update.generation import Generation
from casemate.device.update.generations import GenerationStore
from casemate.device.update.pacer import Pacer, limits_of
from casemate.device.update.port import Port
from casemate.device.update.source import Source
from casemate.device.update.transport import Transport, parse_endpoint
from casemate.errors import BusyError, OperationError

FETCHED: Final = "fetch"


@dataclasses.dataclass(frozen=True)
class Step:
    """How far a download is, in bytes: of *label*, and what the full payload would have cost more."""

    label: str
    done: int
    total: int
    saved: int


def _nobody(_step: Step) -> None:
    """Tell nobody."""


@dataclasses.dataclass(frozen=True)
class Desk:
    """One run. *directory* is the home's `update/`, *recipient* who grants to this device are for."""

    directory: Path
    settings: Settings
    port: Port
    recipient: str
    clock: Clock = dataclasses.field(default_factory=SystemClock)
    tell: Callable[[Step], None] = _nobody
    say: Callable[[str], None] = lambda _text: None
    standing: Direction = FREE
    """What the fleet's director said last, while no device runs that could be asked."""
    noted: dict[str, float | None] = dataclasses.field(default_factory=dict)
    """What the health gate measured in this run, for the word to the fleet."""
    unproven: dict[str, str] = dataclasses.field(default_factory=dict)
    """Content that this device could not prove itself for in this run, and why: for the word to the fleet."""

    @property
    def store(self) -> GenerationStore:
        """Return the store of generations."""
        return store(self.directory, self.settings, self.port.containers, clock=self.clock, rose=self.port.count_commit)

    @property
    def floors(self) -> FileFloorStore:
        """Return the floors; the TPM of a running device counts what raises them."""
        return FileFloorStore(self.directory, rose=self.port.count_commit)

    def client(self, source: Source) -> Client:
        """Return who verifies what *source* gives.

        Raises:
            NotFoundError: this device trusts no repository yet.

        """
        return Client(self.directory, trust.load(self.directory), source, self.floors, self.clock)

    @contextlib.contextmanager
    def server(self) -> Iterator[Source]:
        """Yield the repository that the device trusts, over its network.

        Raises:
            NotFoundError: this device trusts no repository yet.

        """
        trusted = trust.load(self.directory)
        settings = self.settings
        endpoint = parse_endpoint(
            trusted.url,
            pin=trusted.pin,
            proxy=settings["update.proxy"],
            allow_http=settings["update.allow_http"],
        )
        with Transport(endpoint) as source:
            yield source

    def direction(self) -> Direction:
        """Return what the fleet's director says now."""
        return self.port.direction() if self.port.running else self.standing

    @contextlib.contextmanager
    def pacer(self) -> Iterator[Pacer]:
        """Yield what keeps to the owner's limits, and to the fleet's where they are narrower."""
        limits, pick = limits_of(self.settings), self.direction().pick
        if pick and pick.rate and not 0 < limits.rate <= pick.rate:
            limits = dataclasses.replace(limits, rate=pick.rate)
        pacer = Pacer(self.directory / "spent", limits, self.clock)
        try:
            yield pacer
        finally:
            pacer.close()

    def good(self) -> Generation | None:
        """Return the good generation, when there is one."""
        number = self.store.state().good
        return self.store.read(number) if number else None

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Be the only update of this device.

        Raises:
            BusyError: another one is under way.

        """
        path = self.directory / "lock"
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise OperationError(f"cannot open {path}: {error.strerror}", hint="check its owner") from error
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BusyError("an update is under way", hint="see `casemate update status`") from None
            yield
        finally:
            os.close(fd)


class _NoFloors(FileFloorStore):
    """The floors of a device that was never given any trust: none."""

    def read(self) -> Floors:
        """Return that nothing is known."""
        return Floors()


def store(
    directory: Path,
    settings: Settings,
    containers: Callable[[], tuple[str, ...]],
    *,
    clock: Clock | None = None,
    rose: Callable[[int], None] = lambda _count: None,
) -> GenerationStore:
    """Return the store of generations in *directory*; *containers* names the model containers that are there.

    *rose*: see `FileFloorStore`.
    """
    floors = FileFloorStore(directory, rose=rose)
    if not floors.exists and not traces.has_any(directory):
        floors = _NoFloors(directory)
    return GenerationStore(directory, floors, containers, clock=clock, soak_seconds=settings["update.soak"])
