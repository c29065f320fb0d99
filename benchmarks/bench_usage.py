"""How exact a fleet's usage numbers are, and what a report costs its device, beside OpenDP's randomised response.

The error is one standard error over many fleets of 10,000 devices that all answer the same question at epsilon 1.
"""

from __future__ import annotations

import collections
import math
import random
import statistics
import time
from collections.abc import Callable

import opendp.prelude as dp
from report import Row, options, publish

from casemate.device.usage import randomize
from casemate.device.usage.ledger import CAP
from casemate.fleet.usage import estimate
from casemate.formats.usage import EPSILON, QUESTIONS, Coin, Question, VerifiedReport

DEVICES = 10_000
THEORY = math.sqrt(math.e) / (math.e - 1)
"""Of the square root of n: the standard deviation of one randomised response at epsilon 1, taken back to a count."""


def fleet(question: Question, truths: list[int], say: Callable[[Question, int], int]) -> list[float]:
    """Return the error of each share when every device reports."""
    sums = [0] * len(question.answers)
    for said, times in collections.Counter(say(question, truth) for truth in truths).items():
        bits = VerifiedReport(0, question, said).bits
        sums = [old + bit * times for old, bit in zip(sums, bits, strict=True)]
    found = estimate.shares(question, len(truths), sums)
    return [share.estimate - truths.count(index) / len(truths) for index, share in enumerate(found)]


def spread(question: Question, fleets: int) -> float:
    """Return the standard error of a share, over *fleets*, in percent of the devices."""
    draw = random.Random(1)
    truths = [draw.randrange(len(question.answers)) for _ in range(DEVICES)]
    errors = [
        error
        for _ in range(fleets)
        for error in fleet(question, truths, lambda row, true: randomize.answer(row, true, draw.randrange))
    ]
    return 100 * math.sqrt(statistics.mean(error * error for error in errors))


def peer_spread(fleets: int) -> float:
    """Return the same for OpenDP's randomised response of a bit, at our coin's probability."""
    coin = Coin.of(EPSILON)
    flip = dp.m.make_randomized_response_bool(prob=coin.truth)
    errors = []
    for _ in range(fleets):
        ones = sum(flip(device % 3 == 0) for device in range(DEVICES))
        truth = sum(device % 3 == 0 for device in range(DEVICES))
        errors.append(((ones - DEVICES * (1 - coin.truth)) / (2 * coin.truth - 1) - truth) / DEVICES)
    return 100 * math.sqrt(statistics.mean(error * error for error in errors))


def microseconds(act: Callable[[], object], times: int) -> float:
    began = time.perf_counter()
    for _ in range(times):
        act()
    return (time.perf_counter() - began) / times * 1e6


def main() -> None:
    args = options(__doc__ or "")
    dp.enable_features("contrib")
    ours, theirs = (60, 4) if args.quick else (2000, 20)
    flip = dp.m.make_randomized_response_bool(prob=Coin.of(EPSILON).truth)
    yes_or_no = spread(QUESTIONS["in_use"], ours)
    rows = [
        Row(
            "count of 10,000 devices, epsilon 1, one standard error, % of n",
            yes_or_no,
            "%",
            "OpenDP, same epsilon",
            peer_spread(theirs),
            "<= 1 %",
            yes_or_no <= 1,
        ),
        Row("... divided by theory (0.96 %)", yes_or_no * math.sqrt(DEVICES) / 100 / THEORY, "", "", None, "", None),
        Row("share of one of six answers, % of n", spread(QUESTIONS["latency"], ours // 20), "%", "", None, "", None),
        Row(
            "one yes or no made on the device",
            microseconds(lambda: randomize.answer(QUESTIONS["in_use"], 1), 20_000),
            "us",
            "OpenDP",
            microseconds(lambda: flip(True), 2_000),
            "",
            None,
        ),
        Row(
            "rho of a report, of the cap for thirty days",
            EPSILON**2 / 2,
            "",
            "cap",
            CAP,
            "<= cap",
            EPSILON**2 / 2 <= CAP,
        ),
    ]
    publish("usage", rows, args)


if __name__ == "__main__":
    main()
