#!/usr/bin/env python3
"""Take the pictures of docs/console.md: every page of a seeded fleet, on a laptop and a phone, light and dark.

    python tools/take_console_pictures.py [--out docs/images/console] [--png] [PAGE ...]

Needs Chromium and its driver (apt install chromium chromium-driver). Not part of `make check`: pixels differ by font.
"""

from __future__ import annotations

import argparse
import base64
import sys
import tempfile
from pathlib import Path

import msgspec
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.support.wait import WebDriverWait

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from casemate.fleet.context import Served  # noqa: E402 - only after the path
from support import console_fleet  # noqa: E402 - only after the path
from support.fleet_site import SETTLED, browser, running  # noqa: E402

SCREENS = {"laptop": (1280, 800, 1), "phone": (390, 844, 1)}
THEMES = ("light", "dark")
DOORS = {"sign-in": "/sign-in"}


def main() -> None:
    """Take them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("pages", nargs="*", metavar="PAGE", help="all, when none is named")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/images/console")
    parser.add_argument("--png", action="store_true", help="PNG instead of WebP")
    parser.add_argument("--whole", action="store_true", help="the whole length of a page")
    args = parser.parse_args()
    wanted = args.pages or [*console_fleet.PAGES, *DOORS]
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch, running(Path(scratch)) as site, browser() as driver:
        driver.get(site.invite())
        driver.find_element(By.CSS_SELECTOR, "button.primary").click()
        WebDriverWait(driver, 20).until(lambda _: "/join/" not in driver.current_url)
        seeded = console_fleet.seed(site, devices=180)
        site.fleet.settings = msgspec.structs.replace(site.fleet.settings, names=("fleet.example.org",))
        site.fleet.served = Served("https://localhost:8443", "https://0.0.0.0:8444", "https://0.0.0.0:8445")
        for name in [page for page in console_fleet.PAGES if page in wanted]:
            _take(driver, site.origin + console_fleet.PAGES[name].format(**vars(seeded)), name, args)
        driver.delete_all_cookies()
        for name in [page for page in DOORS if page in wanted]:
            _take(driver, site.origin + DOORS[name], name, args)


def _take(driver: WebDriver, address: str, name: str, args: argparse.Namespace) -> None:
    for screen, (width, height, scale) in SCREENS.items():
        size = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": screen == "phone"}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        for theme in THEMES:
            media = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
            driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
            driver.get(address)
            driver.execute_async_script(SETTLED)
            shown = {"format": "png"} if args.png else {"format": "webp", "quality": 55}
            taken = driver.execute_cdp_cmd("Page.captureScreenshot", {**shown, "captureBeyondViewport": args.whole})
            path = args.out / f"{name}-{screen}-{theme}.{shown['format']}"
            path.write_bytes(base64.b64decode(taken["data"]))
            sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main()
