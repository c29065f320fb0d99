"""How soon a page of the console shows something, and how much it loads: every page, a seeded fleet, Chromium.

    python benchmarks/bench_console.py [--rounds 5]

Loopback, TLS, an empty cache for each page (everything is fetched), the server in the same process. The first
contentful paint is the browser's own number; the middle of the rounds counts.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path

from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from support import console_fleet
from support.fleet_site import browser, running

GOALS = {"paint": 300.0, "weight": 250_000}
PAINT = "return performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
WEIGHT = "return performance.getEntries().reduce((sum, one) => sum + (one.encodedBodySize || 0), 0)"
ANSWER = "const [one] = performance.getEntriesByType('navigation'); return one.responseEnd - one.requestStart"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--devices", type=int, default=120)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, running(Path(scratch)) as site, browser() as driver:
        driver.get(site.invite())
        driver.find_element(By.CSS_SELECTOR, "button.primary").click()
        WebDriverWait(driver, 20).until(lambda _: "/join/" not in driver.current_url)
        seeded = console_fleet.seed(site, devices=args.devices)
        rows = [(name, *measure(driver, site.origin + path.format(**vars(seeded)), args.rounds))
                for name, path in console_fleet.PAGES.items()]  # fmt: skip
    print(f"{args.devices} devices, {args.rounds} rounds, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print(f"| {'page':16} | first paint, ms | of it the server, ms | weight, KB |")
    print(f"| {'-' * 16} | --- | --- | --- |")
    for name, paint, answer, weight in rows:
        print(f"| {name:16} | {paint:.0f} | {answer:.0f} | {weight / 1000:.0f} |")
    worst, heaviest = max(row[1] for row in rows), max(row[3] for row in rows)
    print(f"slowest {worst:.0f} ms (goal {GOALS['paint']:.0f}), heaviest {heaviest / 1000:.0f} KB (goal 250)")
    return int(worst > GOALS["paint"] or heaviest > GOALS["weight"])


def measure(driver, address, rounds):
    """Return the middle paint and answer time in milliseconds, and the bytes loaded."""
    paints, answers, weight = [], [], 0
    for _ in range(rounds):
        driver.execute_cdp_cmd("Network.clearBrowserCache", {})
        driver.get(address)
        paint = WebDriverWait(driver, 10).until(lambda _: driver.execute_script(PAINT))
        paints.append(paint)
        answers.append(driver.execute_script(ANSWER))
        weight = max(weight, driver.execute_script(WEIGHT))
    return statistics.median(paints), statistics.median(answers), weight


if __name__ == "__main__":
    sys.exit(main())
