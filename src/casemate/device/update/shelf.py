"""The generations that lie in `gen/`: listed, read, proven, put there and removed."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from pathlib import Path

import msgspec

from casemate.device.update import generation as records
from casemate.device.update import sealed_file, staging
from casemate.device.update.floors import Floors
from casemate.device.update.generation import Generation
from casemate.device.update.state_file import StateFile
from casemate.durable import sync_directory
from casemate.errors import NotFoundError, OperationError, PolicyDeniedError, UntrustedDataError

_NUMBER = re.compile(r"[1-9][0-9]{0,15}\Z")


class Facts(msgspec.Struct, frozen=True):
    """What every generation is held against: the floors, and the model containers that are there."""

    floors: Floors
    containers: frozenset[str]


class Shelf:
    """The directory `gen/` beside the state *file*."""

    def __init__(self, path: Path, file: StateFile) -> None:
        self.path = path
        self._file = file

    def begin(self) -> None:
        """Make the directory.

        Raises:
            OperationError: it cannot be made.

        """
        if self.path.is_dir():
            return
        try:
            self.path.mkdir(mode=0o755)
            if owner := self._file.owner():
                os.chown(self.path, owner.uid, owner.gid)
            sync_directory(self.path.parent)
        except OSError as error:
            raise OperationError(f"cannot make {self.path}: {error.strerror}", hint="check its owner") from error

    def directory(self, number: int) -> Path:
        """Return where generation *number* lies."""
        return self.path / str(number)

    def numbers(self) -> list[int]:
        """Return the numbers of the generations that have their name."""
        return sorted(int(name) for name in self._names() if _NUMBER.match(name))

    def highest(self) -> int:
        """Return the highest number that left a trace, dot names too; 0 when none did."""
        return max(
            (int(stem) for name in self._names() if _NUMBER.match(stem := name.split(".")[name[0] == "."])), default=0
        )

    def read(self, number: int) -> Generation:
        """Return the record of generation *number*, its seal verified.

        Raises:
            NotFoundError: there is none.
            UntrustedDataError: `update-file-...` or `generation-form`: it was changed, or is another one's.

        """
        try:
            raw = staging.read_bounded(self.directory(number) / records.RECORD, staging.RECORD_LIMIT)
        except FileNotFoundError:
            raise NotFoundError(f"there is no generation {number}", hint="the update's status lists them") from None
        with self._file.key() as key:
            generation = records.parse(sealed_file.unseal(key, _label(number), raw))
        if generation.number != number:
            raise UntrustedDataError("the record is another generation's", check="generation-form")
        return generation

    def prove(self, number: int, facts: Facts) -> Generation:
        """Prove generation *number*: record, floors, every file, containers.

        Raises:
            NotFoundError: there is none, or a container of it is gone.
            UntrustedDataError: it was changed.
            PolicyDeniedError: it is below a floor.

        """
        generation = self.read(number)
        require_above_floors(generation, facts.floors)
        staging.verify(self.directory(number), generation)
        if missing := set(generation.containers) - facts.containers:
            raise NotFoundError(f"the model container {min(missing)!r} is gone", hint="apply the update again")
        return generation

    def problem(self, number: int, facts: Facts) -> str:
        """Say why generation *number* cannot run; empty when it can."""
        try:
            self.prove(number, facts)
        except (UntrustedDataError, NotFoundError, PolicyDeniedError) as error:
            return f"generation {number}: {error.message}"
        return ""

    def put(self, generation: Generation, files: staging.Files) -> None:
        """Write *generation*, durably; a directory of that number that was never committed goes.

        Raises:
            UntrustedDataError, OperationError: as `staging.write`.

        """
        body = records.encode(generation)
        with self._file.key() as key:
            record = sealed_file.seal(key, _label(generation.number), body)
        staging.write(self.directory(generation.number), generation, files, record, self._file.owner())

    def sweep(self, kept: Collection[int]) -> tuple[int, ...]:
        """Remove every generation but the *kept* ones, and all dot names; returns what went.

        Raises:
            OperationError: something cannot be removed; it stays whole or has its dot name.

        """
        gone = tuple(number for number in self.numbers() if number not in kept)
        try:
            for number in gone:
                staging.remove(self.directory(number))
            for name in self._names():
                if name.startswith("."):
                    staging.remove(self.path / name)
        except OSError as error:
            raise OperationError(f"cannot remove an old generation: {error.strerror}", hint="try again") from error
        return gone

    def _names(self) -> list[str]:
        try:
            return [path.name for path in self.path.iterdir()]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise OperationError(f"cannot read {self.path}: {error.strerror}", hint="check its owner") from error


def require_above_floors(generation: Generation, floors: Floors) -> None:
    """Refuse a generation of which anything is below its floor.

    Raises:
        PolicyDeniedError: it is.

    """
    for artefact, version in generation.versions.items():
        if version < floors.security.get(artefact, 0):
            raise PolicyDeniedError(
                f"{artefact} has security version {version}; this device runs {floors.security[artefact]} or higher",
                hint="older versions stay out: publish a newer one",
            )


def _label(number: int) -> str:
    return f"generation {number}"
