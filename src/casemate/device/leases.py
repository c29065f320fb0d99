"""Leases on the keys of gated models: when to ask the fleet, when a model may run, and when it must stop.

    start    a lease kept by the TPM still runs -> used; else the fleet is asked until it grants one
    renew    from half of the lease on, with jitter; nobody answers or no: again, oftener towards the end
    end      the engine is ended, its weights leave memory; the model starts again by itself once a grant comes

Every load takes its key anew from the attester, and the TPM refuses one whose lease is over; what runs is ended here,
by a clock that also counts sleep. Nothing here sees a key: it goes down a pipe that is only made here.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime as dt
import os
import random
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Final, Protocol

from casemate.clock import Clock
from casemate.device.children import ChildDied
from casemate.errors import CasemateError, NotFoundError, OperationError, PolicyDeniedError
from casemate.formats import event

FIRST_PAUSE: Final = 2.0
LONGEST_PAUSE: Final = 60.0
LONGEST_RETRY: Final = 300.0
_LOOK: Final = 5.0
"""Seconds between two looks at the clock: a timer sleeps when the machine does, a lease does not."""
_FIX: Final = "`casemate device status` here and `casemate fleet model grants` there say why"
_OK: Final = 200
REFUSED: Final = 403
"""A status: asking would change nothing."""


class Keeper(Protocol):
    """Who speaks to the fleet and to the TPM (`device.duty.Duty`)."""

    async def ask_key(self, model: str) -> tuple[int, str]:
        """Ask the fleet; returns its status (0: nobody answered; `REFUSED`, also where nobody was asked) and why."""
        ...

    async def use_key(self, model: str, into: int) -> float:
        """Have the key written into the descriptor *into*; returns the seconds its lease still has."""
        ...

    def record(self, *events: dict[str, Any]) -> None:
        """Journal *events*."""
        ...

    def spawn(self, work: Any) -> Any:
        """Run *work* for as long as the device runs."""
        ...


class LeaseOver(ChildDied):
    """A model's lease is over: nothing is wrong with its engine, and nothing to be restarted until a grant comes."""


@dataclasses.dataclass
class Lease:
    """One model's. Moments are of a clock that counts sleep (*since*, *until*), or of the wall, to be shown."""

    since: float = 0.0
    until: float = 0.0
    ends: float = 0.0
    """When it ends or ended; 0: there was none since the device started."""
    affirmed: float = 0.0
    """When the fleet last granted it, since the device started."""
    answer: str = ""
    """Why the last question brought none."""
    failures: int = 0
    changed: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)
    turn: asyncio.Lock = dataclasses.field(default_factory=asyncio.Lock)
    """One question at a time: an attester's newer nonce voids the older."""
    wanted: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)
    """Ask now: what the next question was planned by does not hold any more."""


def next_question(now: float, since: float, until: float, failures: int, spread: float) -> float:
    """Return in how many seconds to ask for a key; *spread* (-1 to 1) keeps a fleet's devices apart.

    A lease that runs (*since* to *until*) is renewed at its half; after a failure in a quarter of what is left, within
    five minutes. Without one: after a pause that doubles, to a minute.
    """
    left = until - now
    if left <= 0:
        pause = min(FIRST_PAUSE * 2 ** min(failures - 1, 16), LONGEST_PAUSE) if failures else 0.0
        return pause * (1 + 0.25 * spread)
    if failures:
        return max(1.0, min(left / 4, LONGEST_RETRY) * (1 + 0.25 * spread))
    return max(0.0, (until - since) * (0.5 + 0.05 * spread) - (now - since))


def boottime() -> float:
    """Return seconds since the machine started, asleep or not."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Leases:
    """The leases of one device, by the name that its fleet has for the model."""

    def __init__(self, keeper: Keeper, clock: Clock, now: Callable[[], float] = boottime) -> None:
        """Ask through *keeper*; *now* counts sleep, *clock* is for what is shown."""
        self._keeper = keeper
        self._clock = clock
        self._now = now
        self._held: dict[str, Lease] = {}
        self._minded: set[str] = set()

    # -- what engines ask

    def runs(self, model: str) -> bool:
        """Whether a lease on *model*'s key runs."""
        return self._of(model).until > self._now()

    async def ready(self, model: str) -> None:
        """Return when a lease runs; it is renewed from then on."""
        if model not in self._minded:
            self._minded.add(model)
            self._keeper.spawn(self._mind(model))
        held = self._of(model)
        while not self.runs(model):
            held.changed.clear()
            await held.changed.wait()

    async def over(self, model: str) -> None:
        """Return when the lease on *model*'s key is over."""
        held = self._of(model)
        while (left := held.until - self._now()) > 0:  # noqa: ASYNC110 - the clock is what is waited for
            await asyncio.sleep(min(left, _LOOK))

    @contextlib.asynccontextmanager
    async def key(self, model: str) -> AsyncIterator[int]:
        """Yield a descriptor that *model*'s key comes out of, once.

        Raises:
            LeaseOver: there is no lease, or it is over: the TPM says so, or cannot be asked now.

        """
        reader, writer = os.pipe2(os.O_CLOEXEC)
        try:
            try:
                self._took(model, await self._keeper.use_key(model, writer))
            except (PolicyDeniedError, NotFoundError) as error:
                self._end(self._of(model))
                raise LeaseOver(error.message) from error
            except CasemateError as error:
                raise LeaseOver(f"no key of {model}: {error.message}") from error
            finally:
                os.close(writer)
            yield reader
        finally:
            os.close(reader)

    async def obtain(self, model: str, *, anew: bool = False) -> None:
        """Have a lease on *model*'s key now: ask the fleet unless one runs, or in any case (*anew*).

        Raises:
            PolicyDeniedError: the fleet says no, or this device cannot prove itself to one.
            OperationError: it was not reached, or the TPM failed.

        """
        if not anew and not self.runs(model):
            with contextlib.suppress(ChildDied):
                async with self.key(model):
                    pass  # one that the TPM kept from before
        if not anew and self.runs(model):
            return
        status, why = await self._ask(model)
        if status <= 0:
            raise OperationError(
                f"no key of {model!r}: {why}", hint="is the fleet's server up, and this device online?"
            )
        if status != _OK:
            raise PolicyDeniedError(f"the fleet gives no key of {model!r}: {why}", hint=_FIX)

    @contextlib.asynccontextmanager
    async def obtained(self, model: str, *, anew: bool = False) -> AsyncIterator[int]:
        """Yield what `key` does, after `obtain`.

        Raises:
            CasemateError: as `obtain`.
            LeaseOver: the TPM does not give it.

        """
        await self.obtain(model, anew=anew)
        async with self.key(model) as key:
            yield key

    def forget(self) -> None:
        """Take every lease for over: the fleet said so."""
        for held in self._held.values():
            self._end(held)

    def ask_again(self) -> None:
        """Ask at once for what is missing: the fleet lets this device serve again."""
        for held in self._held.values():
            held.failures = 0
            held.wanted.set()

    def _end(self, held: Lease) -> None:
        held.until = 0.0
        held.wanted.set()

    # -- what is shown

    def told(self, model: str) -> str:
        """Say where a model without a lease stands, and what to do."""
        held = self._of(model)
        ended = f"its lease ended at {_moment(held.ends)}" if held.ends else "it has no lease"
        since = f"the fleet has not affirmed this device since {_moment(held.affirmed)}" if held.affirmed else ""
        answer = held.answer or "the fleet was not asked yet"
        return "; ".join(part for part in (ended, since, answer, _FIX) if part)

    def status(self, model: str) -> dict[str, Any]:
        """Return what `casemate status` shows of the lease."""
        held = self._of(model)
        return {
            "runs": self.runs(model),
            "ends": int(held.ends),
            "affirmed": int(held.affirmed),
            "answer": held.answer,
        }

    # -- asking

    def _of(self, model: str) -> Lease:
        return self._held.setdefault(model, Lease())

    async def _mind(self, model: str) -> None:
        """Have a lease on *model*'s key for as long as the device runs, if the fleet grants it."""
        held = self._of(model)
        with contextlib.suppress(ChildDied):
            async with self.key(model):
                pass  # one that the TPM kept from before
        while True:
            spread = random.uniform(-1, 1)  # noqa: S311 - jitter, no secret
            pause = next_question(self._now(), held.since, held.until, held.failures, spread)
            with contextlib.suppress(TimeoutError):  # not `wait_for`: in Python 3.11 it can swallow a cancellation
                async with asyncio.timeout(pause):
                    await held.wanted.wait()
            if held.wanted.is_set():
                held.wanted.clear()
                if self.runs(model):
                    continue
            await self._ask(model)

    async def _ask(self, model: str) -> tuple[int, str]:
        held = self._of(model)
        try:
            async with held.turn:
                status, why = await self._keeper.ask_key(model)
                if status == _OK:
                    async with self.key(model):
                        pass  # the TPM says how long
        except (CasemateError, ChildDied) as error:  # of the TPM's side
            status, why = -1, error.message if isinstance(error, CasemateError) else error.reason
        now = self._clock.wall()
        if status != _OK:
            held.failures, held.answer = held.failures + 1, why or f"the fleet answered {status}"
            held.wanted.clear()  # a TPM that refuses what was just granted is not asked in a circle
            return status, held.answer
        held.failures, held.answer, held.affirmed, held.since = 0, "", now, self._now()
        self._keeper.record(event.key_leased(model=model, seconds=held.until - self._now(), now=now))
        return status, ""

    def _took(self, model: str, seconds: float) -> None:
        held, now = self._of(model), self._now()
        if held.until <= now:
            held.since = now
        held.until, held.ends = now + seconds, self._clock.wall() + seconds
        held.changed.set()


def _moment(wall: float) -> str:
    return dt.datetime.fromtimestamp(wall, dt.UTC).strftime("%Y-%m-%d %H:%M:%SZ")
