"""From an empty directory to the first device, as the console tells a person to: each click and each command."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

from support import device
from support.fleet import running
from support.fleet_site import browser

pytestmark = [
    pytest.mark.browser,
    pytest.mark.timeout(180),
    pytest.mark.skipif(not shutil.which("chromium"), reason="apt install chromium chromium-driver"),
]


def typed(directory: Path, command: str, environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Type *command* into a shell that finds `casemate`."""
    name = directory / "bin" / "casemate"
    name.parent.mkdir(exist_ok=True)
    name.write_text(f'#!/bin/sh\nexec {sys.executable} -m casemate "$@"\n')
    name.chmod(name.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
    path = f"{name.parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-c", command], env={**environ, "PATH": path}, capture_output=True, text=True, timeout=60, check=False
    )


def test_an_empty_fleet_leads_to_its_first_device(tmp_path):
    tmp_path.chmod(0o755)
    environ = device.environment(tmp_path / "home")
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(running(tmp_path / "fleet"))
        page = stack.enter_context(browser())
        wait = WebDriverWait(page, 60, poll_frequency=0.05, ignored_exceptions=[StaleElementReferenceException])

        def step(name):
            wait.until(lambda _: page.find_elements(By.CSS_SELECTOR, f"[data-step={name}]"))

        page.get(server.addresses["admin_link"])
        page.find_element(By.CSS_SELECTOR, "button.primary").click()
        wait.until(lambda _: urlsplit(page.current_url).path == "/welcome")
        page.find_element(By.XPATH, "//button[contains(., 'Show me the command')]").click()
        step("waiting")
        command = page.find_element(By.ID, "command").text
        assert server.addresses["enrol"] in command
        done = typed(tmp_path, command, environ)
        assert done.returncode == 0, done.stdout + done.stderr
        step("enrolled")
        assert typed(tmp_path, command, environ).returncode, "the command works once"
        page.find_element(By.XPATH, "//code[contains(., 'casemate up')]")
        stack.enter_context(device.running(tmp_path / "home", ready=False))
        step("here")
        wait.until(lambda _: page.find_element(By.LINK_TEXT, "device-1").click() or True)  # it may just be redrawn
        wait.until(lambda _: page.find_element(By.TAG_NAME, "h1").text == "device-1")
        assert server.device("device-1")["state"] == "enrolled"
        page.find_element(By.LINK_TEXT, "Overview").click()
        wait.until(lambda _: "Enrol the first one" not in page.find_element(By.TAG_NAME, "body").text)
