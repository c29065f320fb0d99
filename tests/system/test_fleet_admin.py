"""The way in for the first owner, and the way back for one without a passkey, with the real server."""

from __future__ import annotations

import base64
import json
import shutil
import ssl
import subprocess
import sys
from urllib.parse import urlsplit

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

from casemate.cli.main import run
from casemate.errors import ConfigError
from casemate.fleet import listeners
from support.fleet import running
from support.fleet_server import Authority
from support.fleet_site import browser


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    directory = tmp_path_factory.mktemp("admin") / "fleet"
    command = [sys.executable, "-m", "casemate", "fleet", "serve", "--dir", str(directory), "--json"]
    for name in ("people", "devices", "enrol"):
        command += [f"--listen-{name}", "127.0.0.1:0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield directory, json.loads(process.stdout.readline())
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()


def admin(directory, *arguments):
    done = subprocess.run(
        [sys.executable, "-m", "casemate", "fleet", "admin", *arguments, "--dir", str(directory), "--json"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, json.loads(done.stdout)


def join(driver, link):
    driver.get(link)
    driver.find_element(By.CSS_SELECTOR, "button.primary").click()
    WebDriverWait(driver, 20, poll_frequency=0.05).until(lambda _: urlsplit(driver.current_url).path == "/welcome")


@pytest.mark.browser
@pytest.mark.skipif(not shutil.which("chromium"), reason="apt install chromium chromium-driver")
def test_the_first_start_lets_the_first_owner_in_and_the_console_brings_them_back(server):
    directory, ready = server
    assert ready["admin_link"].startswith("https://localhost:")
    with browser() as driver:
        join(driver, ready["admin_link"])
        driver.get(ready["admin_link"].partition("/join/")[0])
        assert "No device yet" in driver.find_element(By.TAG_NAME, "body").text
        driver.get(ready["admin_link"])
        assert "this invitation was used" in driver.page_source.lower()
    origin = ready["admin_link"].partition("/join/")[0]
    with browser() as driver:  # the passkey is gone with its browser
        code, told = admin(directory, "invite", "admin", "--url", origin)
        assert code == 0
        join(driver, told["link"])
    assert admin(directory, "list")[1]["people"] == [
        {"name": "admin", "role": "owner", "state": "active", "email": None}
    ]


def test_the_last_owner_stays_and_wrong_names_are_told(server):
    directory, _ = server
    code, told = admin(directory, "disable", "nobody")
    assert (code, told["error"]["code"]) == (5, "not_found")
    code, told = admin(directory, "invite", "Eve", "--role", "king")
    assert code == 2
    assert "roles:" in told["error"]["hint"]
    code, told = admin(directory, "invite", "Eve", "--url", "https://192.0.2.1")
    assert code == 2
    assert "passkeys" in told["error"]["message"]


def test_people_get_the_certificate_they_brought_and_devices_the_fleets_own(tmp_path):
    chain, key = Authority("company").server(tmp_path, hosts=("127.0.0.1",))
    leaf = chain.read_text().partition("-----END CERTIFICATE-----")[0]
    with running(tmp_path / "fleet", "--tls-cert", str(chain), "--tls-key", str(key)) as server:
        shown = {name: ssl.get_server_certificate(server.address(name)) for name in ("people", "enrol")}
    assert ssl.PEM_cert_to_DER_cert(shown["people"]) == base64.b64decode(leaf.partition("CERTIFICATE-----")[2])
    assert shown["enrol"] != shown["people"]


def test_a_certificate_without_its_key_is_refused_before_anything_is_served(tmp_path):
    chain, key = Authority("company").server(tmp_path, hosts=("127.0.0.1",))
    assert run(["fleet", "serve", "--dir", str(tmp_path / "fleet"), "--tls-cert", str(chain)]) == 2
    assert not (tmp_path / "fleet").exists()
    with pytest.raises(ConfigError, match="do not work"):
        listeners.server_context(key, chain)
