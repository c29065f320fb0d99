"""Mechanisms of local differential privacy, in integers and with the system's randomness.

Floating-point noise leaks its input through its low bits (Mironov, "On Significance of the Least Significant Bits for
Differential Privacy", 2012), so a throw is an integer below 2^32 against an integer threshold.

    warner    S. L. Warner, "Randomized Response", 1965
    oue       T. Wang et al., "Locally Differentially Private Protocols for Frequency Estimation", 2017 (optimised
              unary encoding)
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence

from casemate.formats.usage import EPSILON, WHOLE, Coin, Question

Below = Callable[[int], int]
"""Returns a uniform integer from 0 to n - 1; `secrets.randbelow` but in tests."""


def answer(question: Question, bucket: int, below: Below = secrets.randbelow) -> int:
    """Return what a device says whose true answer to *question* is the one numbered *bucket*; `EPSILON`-LDP.

    Raises:
        ValueError: there is no such answer.

    """
    if not 0 <= bucket < len(question.answers):
        raise ValueError("there is no such answer")
    if question.yes_or_no:
        return int(warner(bucket == 1, Coin.of(EPSILON), below))
    return oue(bucket, len(question.answers), EPSILON, below)


def warner(bit: bool, coin: Coin, below: Below = secrets.randbelow) -> bool:  # noqa: FBT001 - the value itself
    """Return *bit*, or sometimes the other one; `coin.epsilon`-LDP."""
    return bit if below(WHOLE) < coin.threshold else not bit


def oue(bucket: int, buckets: int, epsilon: float, below: Below = secrets.randbelow) -> int:
    """Report which of *buckets* a value is in, as a bit mask (bit i is bucket i); *epsilon*-LDP.

    The bit of the true bucket is kept with one half, every other is set with 1 / (e^epsilon + 1): two values differ in
    two bits, and the ratio of their probabilities is e^epsilon.

    Raises:
        ValueError: the bucket is not one of them.

    """
    if not 0 <= bucket < buckets:
        raise ValueError("there is no such bucket")
    other = WHOLE - Coin.of(epsilon).threshold  # rounded up: more noise, never less
    mask = 0
    for index in range(buckets):
        chance = WHOLE // 2 if index == bucket else other
        mask |= (below(WHOLE) < chance) << index
    return mask


def bucket_of(value: float, edges: Sequence[float]) -> int:
    """Return which bucket *value* is in: the first whose edge it does not pass; the last has no edge."""
    return next((index for index, edge in enumerate(edges) if value <= edge), len(edges))
