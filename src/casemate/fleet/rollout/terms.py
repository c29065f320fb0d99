"""What was approved: how a rollout goes, in bounds, as people write it and as the database keeps it."""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec

from casemate.errors import UsageError
from casemate.fleet.rollout.failures import Hypotheses, Watch
from casemate.fleet.rollout.plan import FIRST, SECOND, SHARES, Plan, Progress

_DAY: Final = 86_400.0
_MINUTES: Final = 24 * 60

Share = Annotated[float, msgspec.Meta(gt=0, le=1)]
Size = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
Minute = Annotated[int, msgspec.Meta(ge=0, lt=_MINUTES)]


class Window(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Minutes of the day (UTC) in which devices may change what they run; past midnight when *until* is earlier."""

    start: Minute
    until: Minute

    def open_at(self, moment: float) -> bool:
        """Whether *moment* (seconds since the epoch) is inside."""
        minute = int(moment // 60) % _MINUTES
        if self.start <= self.until:
            return self.start <= minute < self.until
        return minute >= self.start or minute < self.until


class Terms(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One rollout's terms. Times are seconds.

    *soak*: how long a device must run it before it counts as good; *patience*: how much longer it may be silent.
    *install*: how long it may take from the offer to its word that it runs, the time in which the window is shut not
    counted. *come*: how long an offer waits for a device; one that was not heard of for that long is passed over.
    *control*: share of devices held back to compare with. *bandwidth*: bytes per second for all devices of one site
    (a device's group) together, 0: as the devices' owners say.
    """

    soak: Annotated[float, msgspec.Meta(ge=1, le=30 * _DAY)] = 4 * 3600.0
    patience: Annotated[float, msgspec.Meta(ge=1, le=30 * _DAY)] = 3600.0
    install: Annotated[float, msgspec.Meta(ge=1, le=30 * _DAY)] = 6 * 3600.0
    come: Annotated[float, msgspec.Meta(ge=1, le=30 * _DAY)] = _DAY
    baseline: Annotated[float, msgspec.Meta(gt=0, le=0.2)] = 0.005
    first: Size = FIRST
    second: Size = SECOND
    shares: Annotated[tuple[Share, ...], msgspec.Meta(min_length=1, max_length=16)] = SHARES
    control: Annotated[float, msgspec.Meta(ge=0, le=0.5)] = 0.05
    window: Window | None = None
    bandwidth: Annotated[int, msgspec.Meta(ge=0, le=1 << 40)] = 0

    def plan(self, devices: int) -> Plan:
        """Return the plan for so many devices."""
        return Plan(
            devices,
            soak=self.soak,
            patience=self.patience,
            test=Hypotheses.around(self.baseline),
            first=self.first,
            second=self.second,
            shares=self.shares,
        )


def read(given: dict[str, Any]) -> Terms:
    """Check terms that a person wrote; what is left out is the default.

    Raises:
        UsageError: out of bounds, unknown, or shares that do not rise to the whole fleet.

    """
    try:
        terms = msgspec.convert(given, Terms)
    except msgspec.ValidationError as error:
        raise UsageError(f"these terms are not possible: {error}", hint="see docs/rollouts.md") from error
    if list(terms.shares) != sorted(set(terms.shares)) or terms.shares[-1] != 1:
        raise UsageError("the shares must rise, and end at 1: the whole fleet", hint="0.01, 0.05, 0.2, 1")
    return terms


def encode(terms: Terms) -> bytes:
    """Return *terms* for the database."""
    return msgspec.json.encode(terms)


def decode(raw: bytes) -> Terms:
    """Read what `encode` made."""
    return msgspec.json.decode(raw, type=Terms)


def encode_progress(progress: Progress) -> bytes:
    """Return *progress* for the database."""
    return msgspec.json.encode([progress.limit, progress.batch, progress.trusted_at, progress.watch.lowest])


def decode_progress(raw: bytes) -> Progress:
    """Read what `encode_progress` made."""
    found = msgspec.json.decode(raw, type=tuple[int, int, tuple[int, int] | None, float])
    return Progress(found[0], found[1], found[2], Watch(found[3]))
