"""Rate limits of apps: pure counters over a monotonic clock given by the caller. Kept in memory: a restart forgets.

Per minute: a token bucket (bursts up to the limit, refilled evenly). Per day: a sliding window of 24 parts, so no
24 hours hold more than the limit. Tokens are reserved before a request runs (estimated input + the most it may
write) and settled with what it really used, so parallel requests cannot overshoot together.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable
from typing import Final, Protocol

from casemate.formats.policy import AppPolicy

MINUTE: Final = 60.0
DAY: Final = 86_400.0
_PARTS: Final = 24


class Meter(Protocol):
    """One limit: how long until *amount* fits, take it, give some back. Times are monotonic seconds."""

    limit: int

    def wait(self, amount: int, now: float) -> float:
        """Return 0 when *amount* fits now, else seconds until it may."""
        ...

    def take(self, amount: int, now: float) -> None:
        """Count *amount*; the caller asked `wait` first, or must charge it anyway."""
        ...

    def give_back(self, amount: int, now: float) -> None:
        """Return *amount* that was taken and not used."""
        ...


class TokenBucket:
    """Holds up to *limit*, refilled evenly over *seconds*. May go below zero when charged after the fact."""

    def __init__(self, limit: int, seconds: float, now: float) -> None:
        """Start full."""
        self.limit = limit
        self._rate = limit / seconds
        self._level = float(limit)
        self._then = now

    def _refill(self, now: float) -> None:
        self._level = min(self.limit, self._level + max(0.0, now - self._then) * self._rate)
        self._then = max(now, self._then)

    def wait(self, amount: int, now: float) -> float:
        """See `Meter.wait`; more than the whole bucket waits for a full one."""
        self._refill(now)
        lacking = min(amount, self.limit) - self._level
        return max(0.0, lacking / self._rate) if lacking > 1e-9 else 0.0  # noqa: PLR2004 - rounding of the refill

    def take(self, amount: int, now: float) -> None:
        """See `Meter.take`."""
        self._refill(now)
        self._level -= amount

    def give_back(self, amount: int, now: float) -> None:
        """See `Meter.give_back`; never above full."""
        self._refill(now)
        self._level = min(self.limit, self._level + amount)


class SlidingWindow:
    """At most *limit* in any *seconds*, counted in parts; a part leaves when it is wholly older than the window."""

    def __init__(self, limit: int, seconds: float) -> None:
        """Start empty."""
        self.limit = limit
        self._seconds = seconds
        self._width = seconds / _PARTS
        self._counts: collections.deque[tuple[int, int]] = collections.deque()
        self._total = 0

    def _expire(self, now: float) -> None:
        while self._counts and (self._counts[0][0] + 1) * self._width <= now - self._seconds:
            self._total -= self._counts.popleft()[1]

    def wait(self, amount: int, now: float) -> float:
        """See `Meter.wait`; more than the whole limit waits for an empty window."""
        self._expire(now)
        excess = self._total + min(amount, self.limit) - self.limit
        for part, count in self._counts:
            if excess <= 0:
                break
            excess -= count
            if excess <= 0:
                return max((part + 1) * self._width + self._seconds - now, 0.001)
        return 0.0

    def take(self, amount: int, now: float) -> None:
        """See `Meter.take`."""
        self._expire(now)
        part = int(now // self._width)
        if self._counts and self._counts[-1][0] >= part:
            last, count = self._counts.pop()
            self._counts.append((last, count + amount))
        else:
            self._counts.append((part, amount))
        self._total += amount

    def give_back(self, amount: int, now: float) -> None:
        """See `Meter.give_back`; taken from the newest parts first."""
        self._expire(now)
        while amount > 0 and self._counts:
            part, count = self._counts.pop()
            used = min(amount, count)
            amount -= used
            self._total -= used
            if count > used:
                self._counts.append((part, count - used))


@dataclasses.dataclass(frozen=True)
class Over:
    """Which limit has no room, and for how many seconds."""

    limit: str
    retry_after: float


@dataclasses.dataclass
class Reservation:
    """What one admitted request holds."""

    limits: AppLimits
    tokens: int
    _open: bool = True

    def settle(self, used: int, now: float) -> None:
        """Replace the reserved tokens by those really *used*, and free the place. Safe to call twice."""
        if self._open:
            self._open = False
            self.limits.settle(self.tokens, used, now)


class AppLimits:
    """The meters of one app."""

    def __init__(self, policy: AppPolicy, now: float) -> None:
        """Build the meters *policy* asks for; a limit of 0 has none."""
        self.concurrent = 0
        self._build(policy, now)

    def _build(self, policy: AppPolicy, now: float) -> None:
        self.policy = policy
        self._requests = _meters("requests", policy.requests_per_minute, policy.requests_per_day, now)
        self._tokens = _meters("tokens", policy.tokens_per_minute, policy.tokens_per_day, now)

    def adopt(self, policy: AppPolicy, now: float) -> None:
        """Follow an edited policy: its meters start afresh when a number changed; requests in work stay counted."""
        if _numbers(policy) != _numbers(self.policy):
            self._build(policy, now)

    def admit(self, tokens: int, now: float) -> Reservation | Over:
        """Count one request that may use up to *tokens*, or say which limit is in the way. Refusals cost nothing."""
        if self.concurrent >= self.policy.concurrent_requests:
            return Over("concurrent_requests", 1.0)
        waits = [(meter.wait(1, now), name) for name, meter in self._requests]
        waits += [(meter.wait(tokens, now), name) for name, meter in self._tokens]
        longest, name = max(waits, default=(0.0, ""))
        if longest > 0:
            return Over(name, longest)
        for _, meter in self._requests:
            meter.take(1, now)
        for _, meter in self._tokens:
            meter.take(min(tokens, meter.limit), now)
        self.concurrent += 1
        return Reservation(self, tokens)

    def settle(self, reserved: int, used: int, now: float) -> None:
        """Give back or charge the difference between *reserved* and *used*."""
        self.concurrent -= 1
        for _, meter in self._tokens:
            difference = min(reserved, meter.limit) - used
            if difference >= 0:
                meter.give_back(difference, now)
            else:
                meter.take(-difference, now)


def _meters(what: str, per_minute: int, per_day: int, now: float) -> list[tuple[str, Meter]]:
    meters: list[tuple[str, Meter]] = []
    if per_minute:
        meters.append((f"{what}_per_minute", TokenBucket(per_minute, MINUTE, now)))
    if per_day:
        meters.append((f"{what}_per_day", SlidingWindow(per_day, DAY)))
    return meters


class Limits:
    """The limits of every app, kept across reloads of its policy while the numbers stay the same."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        """Measure with *monotonic*."""
        self._monotonic = monotonic
        self._apps: dict[str, AppLimits] = {}

    def admit(self, app: str, policy: AppPolicy, tokens: int) -> Reservation | Over:
        """Admit one request of *app*; see `AppLimits.admit`."""
        return self._of(app, policy).admit(tokens, self._monotonic())

    def settle(self, reservation: Reservation, used: int) -> None:
        """End a request that used *used* tokens."""
        reservation.settle(used, self._monotonic())

    def _of(self, app: str, policy: AppPolicy) -> AppLimits:
        limits = self._apps.get(app)
        if limits is None:
            limits = self._apps[app] = AppLimits(policy, self._monotonic())
        elif limits.policy is not policy:
            limits.adopt(policy, self._monotonic())
        return limits

    def keep(self, apps: set[str]) -> None:
        """Forget apps that are gone."""
        for name in self._apps.keys() - apps:
            del self._apps[name]


def _numbers(policy: AppPolicy) -> tuple[int, ...]:
    return (
        policy.requests_per_minute,
        policy.requests_per_day,
        policy.tokens_per_minute,
        policy.tokens_per_day,
        policy.concurrent_requests,
    )
