"""Mechanisms of local differential privacy, in integers and with the system's randomness.

Floating-point noise leaks its input through its low bits (Mironov, "On Significance of the Least Significant Bits for
Differential Privacy", 2012), so nothing here is a float but the number that is reported about the mechanism.

    warner    S. L. Warner, "Randomized Response", 1965
    oue       T. Wang et al., "Locally Differentially Private Protocols for Frequency Estimation", 2017 (optimised
              unary encoding)
    geometric C. Canonne, G. Kamath, T. Steinke, "The Discrete Gaussian for Differential Privacy", 2020, algorithm 2
"""

from __future__ import annotations

import dataclasses
import math
import secrets
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Final

_BITS: Final = 32
_WHOLE: Final = 1 << _BITS

Below = Callable[[int], int]
"""Returns a uniform integer from 0 to n - 1; `secrets.randbelow` but in tests."""


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
        if not 0 < epsilon <= 16:  # noqa: PLR2004 - beyond it the coin has two faces in 2^32 throws
            raise ValueError("epsilon must be above 0 and at most 16")
        return cls(math.floor(_WHOLE / (1 + math.exp(-epsilon))))

    @property
    def truth(self) -> float:
        """The probability of the truth."""
        return self.threshold / _WHOLE

    @property
    def epsilon(self) -> float:
        """What it really costs, which is never more than what was asked for."""
        return math.log(self.truth / (1 - self.truth))


def warner(bit: bool, coin: Coin, below: Below = secrets.randbelow) -> bool:  # noqa: FBT001 - the value itself
    """Return *bit*, or sometimes the other one; `coin.epsilon`-LDP."""
    return bit if below(_WHOLE) < coin.threshold else not bit


def oue(bucket: int, buckets: int, epsilon: float, below: Below = secrets.randbelow) -> int:
    """Report which of *buckets* a value is in, as a bit mask (bit i is bucket i); *epsilon*-LDP.

    The bit of the true bucket is kept with one half, every other is set with 1 / (e^epsilon + 1): two values differ in
    two bits, and the ratio of their probabilities is e^epsilon.

    Raises:
        ValueError: the bucket is not one of them.

    """
    if not 0 <= bucket < buckets:
        raise ValueError("there is no such bucket")
    other = _WHOLE - Coin.of(epsilon).threshold  # rounded up: more noise, never less
    mask = 0
    for index in range(buckets):
        chance = _WHOLE // 2 if index == bucket else other
        mask |= (below(_WHOLE) < chance) << index
    return mask


def geometric(value: int, bound: int, epsilon: Fraction, below: Below = secrets.randbelow) -> int:
    """Return *value*, clipped to 0..*bound*, plus discrete Laplace noise of scale bound / epsilon; *epsilon*-LDP.

    Raises:
        ValueError: *bound* is not positive, or *epsilon* is not.

    """
    if bound < 1 or epsilon <= 0:
        raise ValueError("bound and epsilon must be positive")
    clipped = min(max(value, 0), bound)
    return clipped + _discrete_laplace(Fraction(bound) / epsilon, below)


def _discrete_laplace(scale: Fraction, below: Below) -> int:
    """Draw x with probability proportional to exp(-|x| / scale), exactly."""
    t, s = scale.numerator, scale.denominator
    while True:
        u = below(t)
        if not _bernoulli_exp(Fraction(u, t), below):
            continue
        v = 0
        while _bernoulli_exp(Fraction(1), below):
            v += 1
        magnitude = (u + t * v) // s
        negative = below(2) == 1
        if not (negative and magnitude == 0):
            return -magnitude if negative else magnitude


def _bernoulli_exp(gamma: Fraction, below: Below) -> bool:
    """Return true with probability exp(-gamma), for gamma from 0 to 1, exactly."""
    k = 1
    while below(gamma.denominator * k) < gamma.numerator:
        k += 1
    return k % 2 == 1


def bucket_of(value: float, edges: Sequence[float]) -> int:
    """Return which bucket *value* is in: the first whose edge it does not pass; the last has no edge."""
    return next((index for index, edge in enumerate(edges) if value <= edge), len(edges))
