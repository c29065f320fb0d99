"""A usage report: what is asked, in what words it is answered, and with which chances the answer is true.

The device that answers and the server that counts read the same tables, so that a server is never wrong about the noise
it takes out. A device answers one question in a period, drawn by lot; its answer is epsilon-locally differentially
private for that period: whatever it did, no answer is more than e^epsilon times as likely as it would have been had it
done anything else. Nothing here throws a coin: that is `device.usage.randomize`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, Final, Literal

import msgspec

from casemate.errors import UntrustedDataError
from casemate.formats import fleet_api

DAY: Final = 86400
PERIOD: Final = 30 * DAY
"""Seconds; periods are counted from the epoch, alike everywhere."""
EPSILON: Final = 1.0
"""What an answer costs its device, once in a period."""
EARLY: Final = DAY
"""A device's clock may be so far ahead when its period ends."""
VERSION: Final = 1
"""Of the questions. A question that changes its words or its chances is another version of all of them."""
_BITS: Final = 32
WHOLE: Final = 1 << _BITS
_MOST_EPSILON: Final = 16


@dataclasses.dataclass(frozen=True)
class Coin:
    """A biased coin: *threshold* of 2^32 chances to say the truth."""

    threshold: int

    @classmethod
    def of(cls, epsilon: float) -> Coin:
        """Return the coin whose answers are *epsilon*-differentially private: rounded towards more privacy.

        Raises:
            ValueError: *epsilon* is not above 0 and at most 16.

        """
        if not 0 < epsilon <= _MOST_EPSILON:  # beyond it the coin has two faces in 2^32 throws
            raise ValueError("epsilon must be above 0 and at most 16")
        return cls(math.floor(WHOLE / (1 + math.exp(-epsilon))))

    @property
    def truth(self) -> float:
        """The probability of the truth."""
        return self.threshold / WHOLE

    @property
    def epsilon(self) -> float:
        """What it really costs, which is never more than what was asked for."""
        return math.log(self.truth / (1 - self.truth))


@dataclasses.dataclass(frozen=True)
class Question:
    """One question; *answers* are its possible answers in words, in order."""

    name: str
    asks: str
    answers: tuple[str, ...]
    edges: tuple[int, ...] = ()
    """A number above the edge before and not above this one is this answer; the last answer has no edge."""

    @property
    def yes_or_no(self) -> bool:
        """Whether the report is one bit (randomised response); else it has a bit for each answer (OUE)."""
        return len(self.answers) == 2  # noqa: PLR2004 - yes and no

    @property
    def reports(self) -> int:
        """How many different reports there are: 0 to one less."""
        return 2 if self.yes_or_no else 1 << len(self.answers)

    @property
    def chances(self) -> tuple[float, float]:
        """The probability that an answer's bit is set when it is the true answer, and when it is not."""
        coin = Coin.of(EPSILON)
        return (coin.truth, 1 - coin.truth) if self.yes_or_no else (0.5, 1 - coin.truth)


SHARE_OF: Final = 10_000
"""`refused` is asked in shares of so many requests."""
LATENCY: Final = (1, 3, 10, 30)
"""Seconds a whole request takes: the edges a gateway counts by."""
QUESTIONS: Final[Mapping[str, Question]] = {
    row.name: row
    for row in (
        Question("in_use", "did it answer any request?", ("no", "yes"), (0,)),
        Question("requests", "how many requests?", ("none", "1-10", "11-100", "101-1000", "more"), (0, 10, 100, 1000)),
        Question(
            "tokens",
            "how many tokens, in and out?",
            ("none", "up to 1 k", "up to 10 k", "up to 100 k", "up to 1 M", "more"),
            (0, 1_000, 10_000, 100_000, 1_000_000),
        ),
        Question(
            "latency",
            "how long did half of the answers take at most?",
            ("no answers", "1 s", "3 s", "10 s", "30 s", "longer"),
            (0, 1, 2, 3, 4),
        ),
        Question(
            "refused",
            "what share of requests did the guard refuse or cut?",
            ("no requests", "none", "up to 1 %", "up to 5 %", "up to 20 %", "more"),
            (-1, 0, 100, 500, 2000),
        ),
    )
}


class Report(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything a device says; who it is and when it came are known from its connection."""

    version: Literal[1]
    period: Annotated[int, msgspec.Meta(ge=0, le=1 << 20)]
    question: Annotated[str, msgspec.Meta(max_length=32)]
    answer: Annotated[int, msgspec.Meta(ge=0, le=1 << 16)]


@dataclasses.dataclass(frozen=True)
class VerifiedReport:
    """A report about a period that may be reported now, whose answer is one that its question has."""

    period: int
    question: Question
    answer: int

    @property
    def bits(self) -> tuple[int, ...]:
        """Return 1 or 0 for each answer of the question; of a yes or no both follow from the one bit."""
        if self.question.yes_or_no:
            return 1 - self.answer, self.answer
        return tuple(self.answer >> index & 1 for index in range(len(self.question.answers)))


def period_of(now: float) -> int:
    """Return the period that *now* (Unix seconds) is in."""
    return int(now // PERIOD)


def ends(period: int) -> int:
    """Return when *period* is over, in Unix seconds."""
    return (period + 1) * PERIOD


def may_be_reported(period: int, now: float) -> bool:
    """Whether *now* is in the period after *period*, or `EARLY` before it."""
    return ends(period) - EARLY <= now < ends(period + 1)


def parse(body: bytes) -> Report:
    """Read a report.

    Raises:
        UntrustedDataError: `body-size` or `body-format`.

    """
    return fleet_api.parse(body, Report)


def verify_report(report: Report, now: float) -> VerifiedReport:
    """Return *report* as one that counts.

    Raises:
        UntrustedDataError: `usage-question`, `usage-domain` or `usage-period`.

    """
    question = QUESTIONS.get(report.question)
    if question is None:
        raise UntrustedDataError("no such question", check="usage-question")
    if not 0 <= report.answer < question.reports:
        raise UntrustedDataError(f"not an answer to {question.name!r}", check="usage-domain")
    if not may_be_reported(report.period, now):
        raise UntrustedDataError("this period cannot be reported now", check="usage-period")
    return VerifiedReport(report.period, question, report.answer)
