"""From sums of noisy answers to shares of devices, with the error that the noise and the lot leave. Pure.

The bit of an answer is set with probability p where it is true and q where not (`formats.usage.Question.chances`), so a
share of s ones among n reports estimates (s - q) / (p - q) without bias. s is a mean of n independent bits: its
variance is at most s (1 - s) / n, whatever the devices did, and that covers which devices drew the question as well.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Final

from casemate.formats.usage import Question

CONFIDENCE: Final = 0.95
_Z: Final = 1.959963984540054
"""The two-sided 95 % point of the normal distribution."""
FEWEST: Final = 50
"""Reports below which nothing is shown: it would be the noise's number and not the fleet's."""


@dataclasses.dataclass(frozen=True, slots=True)
class Share:
    """The share of devices whose true answer this is: estimate (unbiased, so it may lie outside 0..1) and interval."""

    answer: str
    estimate: float
    standard_error: float
    low: float
    high: float


def shares(question: Question, reports: int, ones: Sequence[int]) -> tuple[Share, ...]:
    """Return the share of each answer of *question* among *reports*, of which *ones* had its bit set.

    Raises:
        ValueError: no reports, or sums that no reports add up to.

    """
    if reports < 1 or len(ones) != len(question.answers) or not all(0 <= each <= reports for each in ones):
        raise ValueError("these are not sums of reports")
    return tuple(_share(question, name, reports, each) for name, each in zip(question.answers, ones, strict=True))


def sway(question: Question, reports: int) -> float:
    """Return by how much one device can move a share of *question*, whatever it sends: two reports differ by a bit."""
    p, q = question.chances
    return 1 / ((p - q) * max(1, reports))


def _share(question: Question, name: str, reports: int, ones: int) -> Share:
    p, q = question.chances
    seen = ones / reports
    estimate = (seen - q) / (p - q)
    # by add-one smoothing: a bit that was never (or always) set does not make the error zero
    smoothed = (ones + 1) / (reports + 2)
    error = math.sqrt(smoothed * (1 - smoothed) / reports) / (p - q)
    return Share(name, estimate, error, max(0.0, estimate - _Z * error), min(1.0, estimate + _Z * error))
