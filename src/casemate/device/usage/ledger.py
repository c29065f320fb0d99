"""What a device's reports have cost its owner: zero-concentrated privacy, summed over thirty days, and a cap.

An epsilon-LDP report is (epsilon^2 / 2)-zCDP, and zCDP adds up (M. Bun, T. Steinke, "Concentrated Differential
Privacy", 2016). The spend is durable with the report it paid for, before that is sent (`diary`). A ledger that cannot
be read has spent everything.
"""

from __future__ import annotations

import math
from typing import Final

import msgspec

from casemate.errors import PolicyDeniedError

WINDOW: Final = 30 * 86400
CAP: Final = 0.6
"""Rho in any thirty days: for everything together about (6.4, 1e-6)-DP; see `epsilon_of`."""


class Spend(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """One report: when (seconds since the epoch), what for, and its rho."""

    time: int
    metric: str
    rho: float


class Ledger(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The spends of the last thirty days.

    *latest* is the newest time it was used at: a clock that goes back finds the window where it was.
    """

    schema: int = 1
    latest: int = 0
    spends: tuple[Spend, ...] = ()

    def spent(self, now: int) -> float:
        """Return the rho of the thirty days before *now*; a spend from the future counts too."""
        return math.fsum(one.rho for one in self.within(now))

    def within(self, now: int) -> tuple[Spend, ...]:
        """Return the spends that count at *now*."""
        return tuple(one for one in self.spends if one.time > max(now, self.latest) - WINDOW)

    def left(self, now: int) -> float:
        """Return how much may still be spent."""
        return max(0.0, CAP - self.spent(now))

    def spend(self, metric: str, epsilon: float, now: int) -> Ledger:
        """Return the ledger after a report of *metric*; it must be durable before the report is made.

        Raises:
            PolicyDeniedError: the budget does not allow it.

        """
        rho = rho_of(epsilon)
        if rho > self.left(now):
            raise PolicyDeniedError(
                f"the privacy budget does not allow another report of {metric}",
                hint=f"{self.left(now):.3f} of {CAP:.3f} is left; it grows again as days pass",
            )
        moment = max(now, self.latest)
        kept = self.within(now)
        return msgspec.structs.replace(self, latest=moment, spends=(*kept, Spend(moment, metric, rho)))


def rho_of(epsilon: float) -> float:
    """Return the zCDP cost of an *epsilon*-DP report."""
    return epsilon * epsilon / 2


def epsilon_of(rho: float, delta: float = 1e-6) -> float:
    """Return epsilon such that *rho*-zCDP is (epsilon, *delta*)-DP, for people."""
    return rho + 2 * math.sqrt(rho * math.log(1 / delta))


def check(ledger: Ledger) -> None:
    """Refuse numbers that no ledger can have.

    Raises:
        ValueError: one of them.

    """
    if not all(0 < one.rho <= CAP for one in ledger.spends):  # a NaN is neither
        raise ValueError("a number in it is impossible")
