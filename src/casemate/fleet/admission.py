"""Whom a busy server lets wait: decisions over counts and moments, no I/O and no clock of its own.

After an outage every device comes back at once. What cannot be served now is told when to come again, and spread over
as long as serving all of them takes: a number that everybody got would only move the crowd.
"""

from __future__ import annotations

import collections
import dataclasses
import ipaddress
from collections.abc import Callable
from typing import Final

from casemate.errors import BusyError

IN_FLIGHT: Final = 512
"""Requests of devices that are answered at once; a database that is away must not fill the memory with more."""
SHORTEST_WAIT: Final = 2.0
LONGEST_WAIT: Final = 300.0
WINDOW: Final = 10.0
"""Seconds over which the crowd and the speed of serving it are counted."""
_ADDRESSES: Final = 20_000
_V6_PREFIX: Final = 64


class LaterError(BusyError):
    """Not now; `seconds` is drawn for this caller alone."""

    def __init__(self, message: str, seconds: float) -> None:
        """Say when."""
        super().__init__(message)
        self.seconds = seconds


class TooManyError(LaterError):
    """Raised for a caller that asks too often: it is not the server that is busy."""


class Load:
    """How much a server has to do at once. *draw* returns a number in [0, 1)."""

    def __init__(self, draw: Callable[[], float], *, limit: int = IN_FLIGHT) -> None:
        """Let in *limit* at once."""
        self._draw = draw
        self._limit = limit
        self.inside = 0
        self._since = 0.0
        self._served = 0
        self._refused = 0
        self._speed = 0.0
        self._crowd = 0.0

    def enter(self, now: float) -> None:
        """Take one in (`leave` follows); *now* is monotonic.

        Raises:
            LaterError: there are enough.

        """
        if now - self._since >= WINDOW:
            self._turn(now)
        if self.inside >= self._limit:
            self._refused += 1
            raise LaterError("the server is busy", self.wait())
        self.inside += 1

    def leave(self) -> None:
        """Let one out, served."""
        self.inside -= 1
        self._served += 1

    def wait(self) -> float:
        """Return when one that is refused now should come again: full jitter over what serving the crowd takes."""
        crowd = max(self._crowd, float(self._refused))
        speed = max(self._speed, self._served / WINDOW, 1.0)
        ceiling = min(max(2 * crowd / speed, 4 * SHORTEST_WAIT), LONGEST_WAIT)
        return SHORTEST_WAIT + self._draw() * (ceiling - SHORTEST_WAIT)

    def _turn(self, now: float) -> None:
        spent = now - self._since
        self._speed = self._served / spent
        self._crowd = float(self._refused) if spent < 2 * WINDOW else 0.0
        self._since, self._served, self._refused = now, 0, 0


@dataclasses.dataclass(slots=True)
class _Tokens:
    left: float
    at: float


class Addresses:
    """A token bucket for each address (IPv6: each /64); the ones that were quiet longest are forgotten."""

    def __init__(self, *, rate: float, burst: float) -> None:
        """Give *rate* a second, *burst* at once."""
        self._rate = rate
        self._burst = burst
        self._held: collections.OrderedDict[str, _Tokens] = collections.OrderedDict()

    def take(self, address: str, now: float) -> bool:
        """Take one for *address*; False: it has none left."""
        return self._take(network_of(address), now, 1.0)

    def has(self, address: str, now: float) -> bool:
        """Return whether *address* has one left, and leave it there."""
        return self._take(network_of(address), now, 0.0)

    def seconds(self, address: str, now: float) -> float:
        """Return when *address* has one again."""
        tokens = self._held.get(network_of(address))
        if tokens is None:
            return 0.0
        left = min(self._burst, tokens.left + (now - tokens.at) * self._rate)
        return max(0.0, (1.0 - left) / self._rate)

    def _take(self, network: str, now: float, count: float) -> bool:
        tokens = self._held.get(network)
        if tokens is None:
            if not count:
                return True
            tokens = self._held[network] = _Tokens(self._burst, now)
            if len(self._held) > _ADDRESSES:
                self._held.popitem(last=False)
        self._held.move_to_end(network)
        tokens.left = min(self._burst, tokens.left + max(0.0, now - tokens.at) * self._rate)
        tokens.at = now
        if tokens.left < 1.0:
            return False
        tokens.left -= count
        return True


def network_of(address: str) -> str:
    """Return what is counted as one caller: an IPv4 address, or the /64 of an IPv6 one."""
    try:
        known = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(known, ipaddress.IPv4Address):
        return str(known)
    if known.ipv4_mapped:
        return str(known.ipv4_mapped)
    return str(ipaddress.ip_network((known, _V6_PREFIX), strict=False))
