"""Is the failure rate bad? Wald's sequential probability ratio test, and Page's CUSUM once a release is trusted.

Both compare two hypotheses, *good* (the rate that is normal here) and *bad* (a rate nobody wants to ship), and may look
after every device without inflating their error rates, which repeated significance tests do (a naive z-test looked at
every 50 devices stops 22 % of the good releases at a nominal 5 %).

    A. Wald, "Sequential Tests of Statistical Hypotheses", 1945; E. S. Page, "Continuous Inspection Schemes", 1954
"""

from __future__ import annotations

import dataclasses
import enum
import math


class Finding(enum.StrEnum):
    """What the numbers allow to say."""

    BAD = "bad"
    GOOD = "good"
    UNDECIDED = "undecided"


@dataclasses.dataclass(frozen=True)
class Hypotheses:
    """Two failure rates and how often each wrong answer may be given.

    *false_alarm*: a good release called bad by `canary`. *miss*: a bad one called good. *watch_threshold*: how far the
    CUSUM of a trusted release may climb; the mean number of devices between false alarms is above exp(threshold).
    """

    good: float = 0.005
    bad: float = 0.02
    false_alarm: float = 0.002
    miss: float = 0.01
    watch_threshold: float = 16.0

    def __post_init__(self) -> None:
        """Refuse rates that cannot be told apart.

        Raises:
            ValueError: they are not 0 < good < bad < 1, or an error rate is not below one half.

        """
        if not 0 < self.good < self.bad < 1:
            raise ValueError("the good rate must be above 0 and below the bad one")
        if not (0 < self.false_alarm < 0.5 and 0 < self.miss < 0.5):  # noqa: PLR2004 - one half
            raise ValueError("an error rate must be above 0 and below one half")

    @classmethod
    def around(cls, baseline: float) -> Hypotheses:
        """Return the hypotheses for a fleet in which the share *baseline* of devices fails anyway."""
        good = min(max(baseline, 0.0005), 0.2)
        return cls(good=good, bad=min(4 * good, good + 0.3))

    @property
    def failure(self) -> float:
        """What one failed device adds to the log-likelihood ratio."""
        return math.log(self.bad / self.good)

    @property
    def success(self) -> float:
        """What one good device adds: less than nothing."""
        return math.log((1 - self.bad) / (1 - self.good))

    @property
    def upper(self) -> float:
        """At or above this ratio a release is bad."""
        return math.log((1 - self.miss) / self.false_alarm)

    @property
    def lower(self) -> float:
        """At or below this ratio a release is good."""
        return math.log(self.miss / (1 - self.false_alarm))

    def ratio(self, failed: int, good: int) -> float:
        """Return the log-likelihood ratio of bad against good after so many devices."""
        return failed * self.failure + good * self.success


def canary(test: Hypotheses, *, failed: int, good: int, pending: int) -> Finding:
    """Judge the first batches.

    Devices whose soak has not ended are *pending*. A failure shows early and a success only at the end, so counting
    both as they come would call every large batch bad in its first hour: a release is bad only if it would be with all
    pending devices good, and good only on what has ended.
    """
    if test.ratio(failed, good + pending) >= test.upper:
        return Finding.BAD
    if test.ratio(failed, good) <= test.lower:
        return Finding.GOOD
    return Finding.UNDECIDED


@dataclasses.dataclass(frozen=True)
class Watch:
    """A CUSUM after the canary: the lowest ratio at the end of a batch, from which a climb is measured.

    Within a batch the order of news says nothing: silent failures are counted last, all together.
    """

    lowest: float = 0.0

    def look(self, test: Hypotheses, *, failed: int, good: int, pending: int) -> tuple[Watch, Finding]:
        """Take the counts since the canary; returns what to remember and what they say."""
        climb = test.ratio(failed, good + pending) - self.lowest
        lowest = self.lowest if pending else min(self.lowest, test.ratio(failed, good))
        finding = Finding.BAD if climb >= test.watch_threshold else Finding.GOOD
        return Watch(lowest), finding
