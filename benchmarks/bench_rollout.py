"""How many devices meet a bad release, and how often a good one is stopped, beside the two common rules.

The peers decide about the same random devices: a fixed threshold per group (more than 5 % of a group failed, as
hawkBit's error threshold, with its groups as our batches) and a z-test at 5 % that is looked at every 50 devices.
"""

from __future__ import annotations

import math
import random
import statistics

from report import Row, options, publish

from casemate.fleet.rollout.plan import Plan
from casemate.fleet.rollout.simulate import World, simulate
from casemate.fleet.rollout.states import State

FLEET = 1_000_000
GOOD = 0.005


def fixed_threshold(rate: float, seed: int) -> int:
    """Return how many devices meet the release before a group of the plan has more than 5 % failures."""
    draw = random.Random(seed)
    done = 0
    for size in Plan(FLEET).batches():
        group = size - done
        failed = (
            draw.binomialvariate(group, rate)
            if hasattr(draw, "binomialvariate")
            else round(draw.gauss(group * rate, math.sqrt(group * rate * (1 - rate))))
        )
        done = size
        if failed > 0.05 * group:
            return done
    return done


def z_test(rate: float, devices: int, seed: int) -> bool:
    """Say whether a test at 5 %, repeated every 50 devices, stops the release."""
    draw = random.Random(seed)
    failed = 0
    for count in range(1, devices + 1):
        failed += draw.random() < rate
        if count % 50 == 0 and failed - count * GOOD > 1.645 * math.sqrt(count * GOOD * (1 - GOOD)):
            return True
    return False


def main() -> None:
    args = options(__doc__ or "")
    bad_runs, good_runs = (60, 100) if args.quick else (300, 400)
    rows = []
    for rate in (0.02, 0.05):
        met = statistics.mean(simulate(Plan(FLEET), World(rate), seed).exposed for seed in range(bad_runs))
        peer = statistics.mean(fixed_threshold(rate, seed) for seed in range(bad_runs))
        goal = ("<= 1000", met <= 1000) if rate == 0.02 else ("", None)
        rows.append(
            Row(
                f"devices of a million that meet a release breaking {rate:.0%}, mean",
                met,
                "",
                "fixed 5 % of a group",
                peer,
                *goal,
            )
        )
    brick = max(simulate(Plan(FLEET), World(1.0, silent=1.0), seed).exposed for seed in range(20))
    rows.append(Row("... that meet a brick, most", brick, "", "", None, "first batch: 20", brick == 20))
    stopped = [simulate(Plan(10_000), World(GOOD), seed).state is State.PAUSED for seed in range(good_runs)]
    peer = statistics.mean(z_test(GOOD, 10_000, seed) for seed in range(good_runs))
    wrong = statistics.mean(stopped)
    rows.append(
        Row(
            "good releases paused, fleets of 10,000",
            100 * wrong,
            "%",
            "z-test every 50",
            100 * peer,
            "<= 1 %",
            wrong <= 0.01,
        )
    )
    publish("rollout", rows, args)


if __name__ == "__main__":
    main()
