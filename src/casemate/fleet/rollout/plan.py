"""How far a rollout may go, and when: the decision after every look at the numbers."""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Mapping, Sequence
from typing import Final

from casemate.fleet.rollout.failures import Finding, Hypotheses, Watch, canary
from casemate.fleet.rollout.ranks import Comparison

FIRST: Final = 20
SECOND: Final = 200
SHARES: Final = (0.01, 0.05, 0.20, 1.0)
"""After the canary: cumulative shares of the fleet."""
_EXTENSION: Final = 0.25
_LEAST_EXTENSION: Final = 50
_RANK_BUDGET: Final = 0.002
"""How often all rank tests of a rollout together may stop a good release."""
_CONTROL_SICK: Final = 3
"""The control group fails this many times more often than the good rate: the fleet is ill, not the release."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What was approved. *devices*: who is to get the generation. *soak* and *patience*: seconds.

    *soak*: how long a device must run the new generation before it counts as good. *patience*: how long a device that
    took the offer may be silent beyond its soak before it counts as failed.
    """

    devices: int
    soak: float = 4 * 3600.0
    patience: float = 3600.0
    test: Hypotheses = dataclasses.field(default_factory=Hypotheses)
    first: int = FIRST
    second: int = SECOND
    shares: tuple[float, ...] = SHARES

    def batches(self) -> tuple[int, ...]:
        """Return the cumulative sizes, each larger than the one before; the last is the whole fleet."""
        sizes = [self.first, self.first + self.second, *(math.ceil(share * self.devices) for share in self.shares)]
        out: list[int] = []
        for size in sizes:
            capped = min(size, self.devices)
            if capped > (out[-1] if out else 0):
                out.append(capped)
        return tuple(out)

    @property
    def canary_end(self) -> int:
        """Up to this many devices the sequential test decides; beyond, its acceptance is needed."""
        return min(self.first + self.second, self.devices)


@dataclasses.dataclass(frozen=True)
class Tally:
    """What is known of the devices that took the offer, and of the control group."""

    offered: int
    good: int
    failed: int
    silent: int = 0
    """Silent past soak and patience; counts as failed."""
    control: int = 0
    control_failed: int = 0

    @property
    def bad(self) -> int:
        """How many count as failed."""
        return self.failed + self.silent

    @property
    def pending(self) -> int:
        """How many soak still."""
        return self.offered - self.good - self.bad


@dataclasses.dataclass(frozen=True)
class Progress:
    """What a rollout remembers between looks. *limit*: how many devices may have taken the offer by now.

    *trusted_at*: the counts (failed, good) when the canary was accepted; None before.
    """

    limit: int = 0
    batch: int = 0
    trusted_at: tuple[int, int] | None = None
    watch: Watch = dataclasses.field(default_factory=Watch)


class Action(enum.StrEnum):
    """What to do now."""

    OFFER = "offer"
    WAIT = "wait"
    STOP = "stop"
    FINISH = "finish"


@dataclasses.dataclass(frozen=True)
class Decision:
    """What to do, what to remember, and why in words for a person."""

    action: Action
    progress: Progress
    why: str


Comparisons = Mapping[str, Comparison | None]
"""Per hardware model and metric ("pi5 first_token_ms"): the treated against the control; None: too few values."""


def decide(plan: Plan, progress: Progress, tally: Tally, comparisons: Comparisons | None = None) -> Decision:
    """Return what to do after a look at the numbers. Never goes on without data."""
    if progress.limit == 0:
        first = plan.batches()[0]
        return Decision(Action.OFFER, dataclasses.replace(progress, limit=first), f"the first {first} devices")
    stopped = _reason_to_stop(plan, progress, tally, comparisons or {})
    if isinstance(stopped, Decision):
        return stopped
    progress = stopped
    wanted = min(progress.limit, plan.devices)  # devices leave, or do not come
    if tally.offered < wanted:
        return Decision(
            Action.WAIT, progress, f"{wanted - tally.offered} more devices of this batch have yet to answer"
        )
    if tally.pending:
        return Decision(Action.WAIT, progress, f"{tally.pending} devices are still soaking")
    if progress.limit >= plan.devices:
        return Decision(Action.FINISH, progress, f"all {plan.devices} devices have it, {tally.bad} failed")
    return _next(plan, progress, tally)


def _reason_to_stop(plan: Plan, progress: Progress, tally: Tally, comparisons: Comparisons) -> Decision | Progress:
    """Return the stop, or what to remember when there is none."""
    test = plan.test
    sick = tally.control and tally.control_failed > _CONTROL_SICK * test.good * tally.control + _CONTROL_SICK
    if progress.trusted_at is None:
        finding = canary(test, failed=tally.bad, good=tally.good, pending=tally.pending)
    else:
        failed, good = progress.trusted_at
        watch, finding = progress.watch.look(
            test, failed=tally.bad - failed, good=tally.good - good, pending=tally.pending
        )
        progress = dataclasses.replace(progress, watch=watch)
    if finding is Finding.BAD:
        rate = f"{tally.bad} of {tally.offered} devices failed, {tally.silent} of them silently"
        blame = "; the control group fails as well: look at the fleet first" if sick else ""
        return Decision(Action.STOP, progress, f"{rate}; {test.good:.1%} is normal here{blame}")
    if sick:
        return Decision(
            Action.STOP,
            progress,
            f"{tally.control_failed} of {tally.control} devices without the release fail: nothing can be concluded",
        )
    worse = _worse(plan, comparisons)
    if worse:
        return Decision(Action.STOP, progress, worse)
    return progress


def _worse(plan: Plan, comparisons: Comparisons) -> str:
    """Say which metric is worse, if one is (Bonferroni over what is compared and how often)."""
    measured = {name: found for name, found in comparisons.items() if found is not None}
    if not measured:
        return ""
    alpha = rank_alpha(plan, len(measured))
    for name, found in sorted(measured.items()):
        if found.worse(alpha):
            return f"{name} is {found.ratio:.2f} times that of the control group (p = {found.p:.1e})"
    return ""


def rank_alpha(plan: Plan, comparisons: int) -> float:
    """Return how unlikely ranks must be by chance before one of so many comparisons stops a rollout."""
    return _RANK_BUDGET / (max(1, comparisons) * (len(plan.batches()) + 2))


def _next(plan: Plan, progress: Progress, tally: Tally) -> Decision:
    """Return the next offer: the next batch, or a few devices more while the canary cannot say yes yet."""
    batches = plan.batches()
    if progress.trusted_at is None:
        finding = canary(plan.test, failed=tally.bad, good=tally.good, pending=0)
        if finding is Finding.GOOD:
            progress = dataclasses.replace(progress, trusted_at=(tally.bad, tally.good))
        elif progress.limit >= plan.canary_end or not _calm(plan.test, tally):
            more = max(_LEAST_EXTENSION, math.ceil(_EXTENSION * progress.limit))
            limit = min(progress.limit + more, plan.devices)
            why = f"{tally.bad} of {tally.offered} failed, too few to say: {limit - progress.limit} devices more"
            return Decision(Action.OFFER, dataclasses.replace(progress, limit=limit), why)
    limit = next(size for size in batches if size > progress.limit)
    found = dataclasses.replace(progress, limit=limit, batch=progress.batch + 1)
    return Decision(Action.OFFER, found, f"{tally.bad} of {tally.offered} failed: on to {limit} devices")


def _calm(test: Hypotheses, tally: Tally) -> bool:
    """Say whether the first batch may be followed by the second, of which it is too small to say anything."""
    return test.ratio(tally.bad, tally.good) <= test.failure


def sizes_in_words(batches: Sequence[int]) -> str:
    """Return the batches for a person: "20, 220, 10000 and 1000000"."""
    texts = [str(size) for size in batches]
    return " and ".join([", ".join(texts[:-1]), texts[-1]] if len(texts) > 1 else texts)
