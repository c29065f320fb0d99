"""Who is calling: the bearer key of an app, looked up in constant time. Wrong keys are throttled by address.

A valid key is always served: throttling by address must not let one broken client (or an attacker on the same machine)
lock out the others. What it bounds is noise: answers, log lines and journal events about wrong keys. Guessing is not
the threat, keys hold 256 random bits.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable
from typing import Final

from casemate.device.apps import App, AppSet
from casemate.device.gateway import refusals
from casemate.device.gateway.exchange import Exchange

FREE_FAILURES: Final = 5
LONGEST_BLOCK: Final = 300.0
FORGET_AFTER: Final = 900.0
REPORT_EVERY: Final = 60.0
MAX_ADDRESSES: Final = 1024
_MAX_KEY: Final = 256


@dataclasses.dataclass
class _Record:
    failures: int = 0
    last: float = 0.0
    blocked_until: float = 0.0
    unreported: int = 0
    reported: float = -REPORT_EVERY


class FailureThrottle:
    """Counts wrong keys per address; after `FREE_FAILURES` each doubles the wait. Pure; times are monotonic seconds."""

    def __init__(self) -> None:
        """Start with a clean slate."""
        self._records: collections.OrderedDict[str, _Record] = collections.OrderedDict()

    def failed(self, address: str, now: float) -> float:
        """Count a failure and return how many seconds the address is blocked for (0: not yet)."""
        record = self._records.get(address)
        if record is None or now - record.last > FORGET_AFTER:
            record = self._records[address] = _Record(unreported=record.unreported if record else 0)
        self._records.move_to_end(address)
        while len(self._records) > MAX_ADDRESSES:
            self._records.popitem(last=False)
        record.last = now
        record.unreported += 1
        if now >= record.blocked_until:
            record.failures += 1
            over = record.failures - FREE_FAILURES
            if over > 0:
                record.blocked_until = now + min(2.0 ** min(over, 16), LONGEST_BLOCK)
        return max(0.0, record.blocked_until - now)

    def report(self, address: str, now: float) -> int:
        """Return how many failures of *address* to report now (0: its last report is less than a minute old)."""
        record = self._records.get(address)
        if record is None or not record.unreported or now - record.reported < REPORT_EVERY:
            return 0
        count, record.unreported, record.reported = record.unreported, 0, now
        return count

    def reports(self, now: float) -> list[tuple[str, int]]:
        """Return (address, failures) for every address whose report is due."""
        return [(address, count) for address in self._records if (count := self.report(address, now))]


class Authenticator:
    """Turns a request's `Authorization` header into an app."""

    def __init__(self, apps: Callable[[], AppSet], monotonic: Callable[[], float]) -> None:
        """Look keys up in what *apps* returns at that moment."""
        self._apps = apps
        self._monotonic = monotonic
        self.throttle = FailureThrottle()

    def identify(self, exchange: Exchange) -> App:
        """Return the app that sent this request.

        Raises:
            ApiError: 401 no valid key; 429 too many wrong ones from this address.

        """
        key = _bearer(exchange.headers.getlist("authorization"))
        app = self._apps().find(key) if key else None
        if app:
            return app
        blocked = self.throttle.failed(exchange.client, self._monotonic())
        if blocked:
            raise refusals.too_many_failures(blocked)
        raise refusals.unauthorised()


def _bearer(values: list[str]) -> str | None:
    """Return the key of the one `Authorization: Bearer` header; none when there are several."""
    if len(values) != 1:
        return None
    scheme, _, key = values[0].partition(" ")
    key = key.strip()
    return key if scheme.lower() == "bearer" and 0 < len(key) <= _MAX_KEY else None
