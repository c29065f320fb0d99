"""The durable store of generations: which one runs, which is on trial, which may never come back.

    update/gen/N/      immutable: generation.json and the files of everything but models
    update/state       one sealed file, replaced atomically

Every change is one durable write of the state, made before what it allows. A state that fails its check is never taken
for an empty one: the newest generation that proves itself and is not below the floors takes over, on trial when there
is another to go back to; without any, that is an error. Several processes may use one store at a time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Final

import msgspec

from casemate.clock import Clock, SystemClock
from casemate.device.update import staging
from casemate.device.update import state as states
from casemate.device.update.floors import Floors, FloorStore
from casemate.device.update.generation import Generation
from casemate.device.update.shelf import Facts, Shelf, require_above_floors
from casemate.device.update.state import State
from casemate.device.update.state_file import StateFile
from casemate.errors import BusyError, OperationError, UntrustedDataError

SOAK_SECONDS: Final = 24 * 3600
_CONTAINER = re.compile(r".*\.g([1-9][0-9]{0,15})\Z")


class Status(msgspec.Struct, frozen=True):
    """`update status --json`. Numbers are null when there is no such generation; `floor` is by artefact."""

    state: str
    good: int | None
    trial: int | None
    tries: int
    floor: dict[str, int]
    floor_kind: str
    denied: tuple[str, ...]
    last_error: str
    previous: int | None
    pending: int | None
    soak_until: int | None

    def as_json(self) -> dict[str, Any]:
        """Return the fields for `--json`, `schema` first."""
        return {"schema": 1, **msgspec.to_builtins(self), "denied": list(self.denied)}


class Boot(msgspec.Struct, frozen=True):
    """What to run. `generation` None: what the device was given by hand. `note`: what a person should know."""

    generation: Generation | None
    trial: bool = False
    tries: int = 0
    note: str = ""


class Garbage(msgspec.Struct, frozen=True):
    """What `gc` removed, and the containers that the vault may remove; tell `forget` when they are gone."""

    generations: tuple[int, ...]
    containers: tuple[str, ...]


class GenerationStore:
    """The store in one directory."""

    def __init__(
        self,
        path: Path,
        floors: FloorStore,
        containers: Callable[[], Collection[str]],
        *,
        clock: Clock | None = None,
        soak_seconds: int = SOAK_SECONDS,
    ) -> None:
        """Use the directory *path* (`update/` of a home), which must exist.

        *containers* names the model containers that are there; it may raise, and nobody is blamed then.
        """
        self._file = StateFile(path)
        self._shelf = Shelf(path / "gen", self._file)
        self._floors = floors
        self._containers = containers
        self._clock = clock or SystemClock()
        self._soak = soak_seconds

    # --- reading ----------------------------------------------------------------------------------------------------

    def state(self) -> State:
        """Return the state as it is now, recovered in memory when the file is not good.

        Raises:
            UntrustedDataError: `update-state`: it is not good and no generation can take over.

        """
        return self._load()[0]

    def status(self) -> Status:
        """Return what `update status` shows.

        Raises:
            CasemateError: as `state`, or the floors cannot be read.

        """
        state = self.state()
        return Status(
            state=str(state.phase),
            good=state.good or None,
            trial=state.trial or None,
            tries=state.tries,
            floor=self._floors.read().security,
            floor_kind=self._floors.kind,
            denied=state.denied,
            last_error=state.last_error,
            previous=state.previous or None,
            pending=state.pending or None,
            soak_until=state.soak_until or None,
        )

    def read(self, number: int) -> Generation:
        """Return the record of generation *number*, its seal verified.

        Raises:
            NotFoundError: there is none.
            UntrustedDataError: `update-file-...` or `generation-form`: it was changed, or is another one's.

        """
        return self._shelf.read(number)

    def verify(self, number: int) -> Generation:
        """Prove generation *number*: record, floors, every file, containers.

        Raises:
            NotFoundError: there is none, or a container of it is gone.
            UntrustedDataError: it was changed.
            PolicyDeniedError: it is below a floor.

        """
        return self._shelf.prove(number, self._facts())

    def directory(self, number: int) -> Path:
        """Return where generation *number* lies; files of a kind are below `<kind>/`."""
        return self._shelf.directory(number)

    # --- an update on its way ---------------------------------------------------------------------------------------

    def checked(self, content: str, models: Collection[str] = ()) -> State:
        """Note that a newer set with the digest *content* was verified, with models of these names.

        The state's `pending` is its number; its models go to the containers `<name>.g<number>`, which are claimed.
        The same content again changes nothing, so a fetch goes on where it was.

        Raises:
            PolicyDeniedError: it was rolled back on this device before.
            BusyError: a trial is under way.

        """
        taken = [int(found[1]) for name in self._containers() if (found := _CONTAINER.match(name))]
        first = max([*taken, self._shelf.highest()]) + 1
        return self._change(lambda state: states.checked(state, content, tuple(sorted(models)), first))

    def withdrawn(self, reason: str) -> State:
        """Drop the update that is not armed yet: it is not offered any more."""
        return self._change(lambda state: states.withdrawn(state, reason))

    def fetching(self) -> State:
        """Note that its chunks begin to come."""
        return self._change(states.fetching)

    def interrupted(self, reason: str) -> State:
        """Note what held it up: a network or a disk, not its content."""
        return self._change(lambda state: states.interrupted(state, reason))

    def stage(self, generation: Generation, files: staging.Files) -> State:
        """Write the pending generation, prove each file against the record, and make all of it durable.

        Raises:
            UsageError: it is not the one that is pending.
            UntrustedDataError: a file is not what the record says.
            PolicyDeniedError: it is below a floor.
            BusyError: another process stages or collects.
            OperationError: the disk is full: nothing is lost, and the next try works.

        """
        with self._file.staging():
            state = self.state()
            states.staged(state, generation.number)
            _require_content(generation, state)
            require_above_floors(generation, self._floors.read())
            self._shelf.begin()
            self._shelf.put(generation, files)

            def staged(now: State) -> State:
                _require_content(generation, now)
                return states.staged(now, generation.number)

            return self._change(staged)

    def arm(self) -> State:
        """Make the next start the trial of what is staged.

        Raises:
            UsageError: nothing is staged.
            CasemateError: as `verify`: what is staged does not prove itself.

        """

        def armed(state: State) -> State:
            after = states.armed(state)
            _require_content(self.verify(after.trial), state)
            return after

        return self._change(armed)

    # --- starting and judging ---------------------------------------------------------------------------------------

    def boot(self) -> Boot:
        """Say what to run now. For a trial a try is taken away, durably, before this returns it.

        A trial that does not prove itself, or has no tries left, is rolled back. When not even a try can be written
        (a full disk), the good one runs: a trial that nobody counts could crash for ever.

        Raises:
            UntrustedDataError: `update-state`: nothing that proves itself can run. `floors-...`: see `FloorStore`.

        """
        facts = self._facts()
        with self._file.changing():
            state, recovered = self._load()
            if not state.trial:
                notes = (state.last_error, self._unwritten(state)) if recovered else ()
                return self._good(state, facts, *notes)
            problem = "" if state.tries else f"generation {state.trial}: its tries are used up"
            if problem := problem or self._shelf.problem(state.trial, facts):
                state = states.failed(state, problem)
                return self._good(state, facts, state.last_error, self._unwritten(state))
            after = states.started(state)
            if unwritten := self._unwritten(after):
                return self._good(state, facts, f"the trial of generation {state.trial} waits", unwritten)
            return Boot(self.read(state.trial), trial=True, tries=after.tries, note=state.last_error)

    def mark_good(self, number: int) -> State:
        """Make the trial *number* the good one; the one before is kept, and the soak begins.

        Raises:
            UsageError: it is not on trial.

        """
        return self._change(lambda state: states.passed(state, number, self._soak_end()))

    def fail(self, reason: str) -> State:
        """Give up the update under way: its content is bad and stays denied."""
        return self._change(lambda state: states.failed(state, reason))

    def rollback(self, reason: str = "rolled back by a person") -> State:
        """Go back: from a trial to the good one, else from the good one to the one before. The content left is denied.

        Raises:
            NotFoundError: nothing to go back to.
            PolicyDeniedError: what was before is below a floor.

        """

        def back(state: State) -> State:
            if state.trial or not state.previous:
                return states.rolled_back(state, reason, "")
            self.verify(state.previous)
            return states.rolled_back(state, reason, self.read(state.good).content_digest)

        return self._change(back)

    def soaked(self, now: float) -> bool:
        """End the soak when its time is over: floors rise to the good generation. Returns whether they did."""
        rose = False

        def soaked(state: State) -> State:
            nonlocal rose
            rose = 0 < state.soak_until <= now
            return self._raise_floors(state) if rose else state

        self._change(soaked)
        return rose

    def confirm(self) -> State:
        """End the soak now: a person says the good generation is good.

        Raises:
            NotFoundError: no update runs here.

        """
        return self._change(self._raise_floors)

    # --- room -------------------------------------------------------------------------------------------------------

    def gc(self) -> Garbage:
        """Remove what no state needs: never the good one, a trial, what is pending, or the one before until the soak.

        Raises:
            BusyError: another process stages or collects.

        """
        with self._file.staging(), self._file.changing():
            state, _ = self._load()
            return Garbage(self._shelf.sweep(state.kept), self._unneeded(state))

    def forget(self, containers: Collection[str]) -> State:
        """Note that these containers, which `gc` named, are gone.

        Raises:
            BusyError: one of them is needed (again).

        """

        def forgotten(state: State) -> State:
            if not set(containers) <= set(self._unneeded(state)):
                raise BusyError("a container is needed by a generation", hint="collect again")
            return states.forgotten(state, tuple(containers))

        return self._change(forgotten)

    # --- inside -----------------------------------------------------------------------------------------------------

    def _unneeded(self, state: State) -> tuple[str, ...]:
        """Return claimed containers that nothing needs: a model that did not change is shared with older claims.

        Raises:
            UntrustedDataError: a kept generation does not say what it needs: then nothing is known not to be.

        """
        written = state.kept & set(self._shelf.numbers())
        needed = {name for number in written for name in self.read(number).containers}
        return tuple(name for name in state.unneeded if name not in needed)

    def _change(self, event: Callable[[State], State]) -> State:
        """Do one transition: read, decide, write."""
        with self._file.changing():
            state, recovered = self._load()
            after = event(state)
            if after != state or recovered:
                self._file.begin()
                self._file.write(after)
            return after

    def _raise_floors(self, state: State) -> State:
        """Raise the floors before the state says so: a cut in between leaves them higher than it says, never lower."""
        after = states.soaked(state)
        self._floors.raise_to(Floors(security=dict(self.verify(state.good).versions)))
        return after

    def _good(self, state: State, facts: Facts, *notes: str) -> Boot:
        """Return the good generation, or what can stand in for one that does not prove itself.

        Floors rise only to what was good, and something good stays: floors without it mean that somebody took it away,
        and what the device was given by hand is older than they allow.
        """
        if not state.good and facts.floors.security:
            raise UntrustedDataError(
                "this device has run updates, and no generation is left",
                check="update-state",
                hint="apply an update while no device runs here; floors stay",
            )
        if state.good and (problem := self._shelf.problem(state.good, facts)):
            state = self._recovered(state, problem, settled=True)
            notes = (*notes, state.last_error, self._unwritten(state))
        return Boot(self.read(state.good) if state.good else None, note="; ".join(filter(None, notes)))

    def _load(self) -> tuple[State, bool]:
        """Return the state, and whether it had to be recovered."""
        try:
            return self._file.read(), False
        except FileNotFoundError:
            if not self._shelf.numbers():
                return State(), False
            return self._recovered(State(), "the state file was gone"), True
        except UntrustedDataError as error:
            return self._recovered(State(), error.message), True

    def _recovered(self, known: State, reason: str, *, settled: bool = False) -> State:
        """Make a state from the generations that prove themselves; see `state.recovered`.

        Raises:
            UntrustedDataError: `update-state`: none does.

        """
        facts = self._facts()
        proven = [self.read(number) for number in self._shelf.numbers() if not self._shelf.problem(number, facts)]
        return states.recovered(
            known,
            proven,
            reason=reason,
            settled=settled,
            following=self._shelf.highest() + 1,
            soak_until=self._soak_end(),
        )

    def _facts(self) -> Facts:
        """Ask for what generations are held against; what cannot be asked is an error, and no generation's fault."""
        return Facts(self._floors.read(), frozenset(self._containers()))

    def _soak_end(self) -> int:
        return int(self._clock.wall()) + self._soak

    def _unwritten(self, state: State) -> str:
        """Write *state*; say what kept it from the disk, empty when it is there."""
        try:
            self._file.write(state)
        except OperationError as error:
            return error.message
        return ""


def _require_content(generation: Generation, state: State) -> None:
    if generation.content_digest != state.content:
        raise UntrustedDataError("the generation is not the set that was checked", check="generation-content")
