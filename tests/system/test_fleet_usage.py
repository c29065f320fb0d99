"""Usage reports from end to end: a device whose owner says yes, a real fleet, and devices that say what they like."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from casemate.device import admin
from casemate.device.home import Home
from casemate.device.usage import diary
from casemate.device.usage.counts import Counts
from casemate.device.usage.diary import Closed, Diary
from casemate.formats import usage
from support import device
from support.fleet import Device, running, until

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    directory = tmp_path_factory.mktemp("usage")
    directory.chmod(0o755)
    with running(directory / "fleet") as started:
        yield started


def last_period() -> int:
    return usage.period_of(time.time()) - 1


def shown(server, *options):
    return server.cli("usage", *options)["usage"]


def show(environ):
    return json.loads(device.cli(environ, "usage", "show", "--json").stdout)["usage"]


def test_an_owner_says_yes_and_the_fleet_gets_one_answer_with_noise(server, tmp_path):
    tmp_path.chmod(0o755)
    home, environ = tmp_path / "home", device.environment(tmp_path / "home")
    (tmp_path / "token").write_text(server.token("kiosk-1", "--group", "kiosks"))
    device.cli(environ, "device", "enrol", server.addresses["enrol"], "--token-file", str(tmp_path / "token"))
    assert (show(environ)["on"], show(environ)["by"]) == (False, "default")
    device.cli(environ, "usage", "on")

    def read():
        return diary.read(Home(home))

    # what a device has whose last period is over, and whose moment has come
    counts = Counts(requests=40, refused=1, tokens=9000, latency=(30, 9, 0, 0, 0))
    diary.write(Home(home), Diary(1, last_period() + 1, closed=Closed(last_period(), counts, 0)))
    with device.running(home) as up:
        client = openai.OpenAI(base_url=f"{up.endpoint}/v1", api_key=up.key, max_retries=0)
        client.chat.completions.create(
            model="saffron", messages=[{"role": "user", "content": "Where shall we eat?"}], max_tokens=4
        )
        until(lambda: read().last)
        until(lambda: admin.ask(home / "run", "usage") or read().counts.requests)
        told = show(environ)
        assert told["counts"]["requests"] == sum(told["counts"]["latency"]) == 1
        assert told["counts"]["tokens"] > 0
        device.cli(environ, "usage", "off")
        assert read().counts == Counts()
        assert up.events("usage_reported")
    assert told["last"]["outcome"] == "taken"
    report = json.loads(told["last"]["report"])
    assert set(report) == {"version", "period", "question", "answer"}
    assert report["period"] == last_period()
    assert (told["pending"], told["budget"]["left"]) == (None, 0.1)
    found = shown(server, "--group", "kiosks")
    assert (found["period"], found["devices"]) == (last_period(), 1)
    assert not any(each["shown"] for each in found["questions"]), "one device is nobody's business"


def test_the_fleet_takes_one_report_of_a_device_and_none_that_lies_about_its_form(server, tmp_path):
    joined = [Device(server, tmp_path, f"pos-{number}").enrol(None, "--group", "tills") for number in range(12)]

    def tell(each, **changes):
        good = {"version": 1, "period": last_period(), "question": "in_use", "answer": 1}
        return each.ask("POST", "/device/v1/usage", {**good, **changes})

    for changes, check in (
        ({"question": "name"}, "usage-question"),
        ({"answer": 2}, "usage-domain"),
        ({"question": "latency", "answer": 64}, "usage-domain"),
        ({"period": last_period() - 1}, "usage-period"),
        ({"answer": 1.5}, "body-format"),
        ({"who": "me"}, "body-format"),
    ):
        refused = tell(joined[0], **changes)
        assert (refused.status, refused.json()["check"]) == (400, check)
    with ThreadPoolExecutor(8) as pool:  # every device twice, at once
        answers = list(pool.map(lambda each: tell(each).status, joined * 2))
    assert sorted(answers) == [204] * 12 + [409] * 12
    assert not shown(server, "--group", "tills")["questions"][0]["shown"]
    with contextlib.closing(sqlite3.connect(server.directory / "fleet.db")) as database, database:
        database.execute(
            "UPDATE usage_sum SET reports = reports + 48, ones = ones + 48 * answer WHERE group_name = 'tills'"
        )
    token = server.cli("api-token", "create", "reader", "--role", "viewer")["token"]
    answer = server.get("people", "/api/v1/usage?group=tills", {"Authorization": f"Bearer {token}"})
    in_use = answer.json()["questions"][0]
    assert (in_use["reports"], answer.json()["devices"]) == (60, 60)
    p, q = usage.QUESTIONS["in_use"].chances
    assert in_use["answers"][1]["share"] == pytest.approx((1 - q) / (p - q), abs=1e-5), "unbiased, so beyond 1"
    assert in_use["answers"][1]["high"] == 1.0
    assert in_use["one_device_moves"] == pytest.approx(1 / (60 * (p - q)), abs=1e-5)
    assert answer.json() == shown(server, "--group", "tills")
    server.cli("device", "quarantine", "pos-0")
    assert tell(joined[0]).status == 409, "a device in quarantine may report; it has"
    assert server.get("people", "/api/v1/usage").status == 401
