"""A value split over the engine's chunks, through the real path: engine link, guard, event stream, HTTP."""

from __future__ import annotations

import json
import random

import pytest

from support.gateway import FakeEngine, running_gateway, weakened

FRAGMENT = 8
VALUES = [
    "jane.roe+lists@mail.example.org",
    "4111 1111 1111 1111",
    "GB29 NWBK 6016 1331 9268 19",
    "ghp_" + "x9Yz" * 9,
    "AKIAQ3EGRZ7TPW5XNV2K",
    "-----BEGIN PRIVATE KEY-----\n" + "MIIEvQIBADANBgkqhkiG9w0B\n" * 9 + "-----END PRIVATE KEY-----",
]
PASSING = weakened(
    "from casemate.device.gateway.shield import GuardShield",
    "class Emission:",
    "    spans, stop = (), None",
    "    def __init__(self, text): self.text = text",
    "class Open:",
    "    def feed(self, text): return Emission(text)",
    "    def flush(self): return Emission('')",
    "GuardShield.open_answer = lambda self, conversation: Open()",
)


def splitting(value, seed):
    """Return a script that says *value* inside a sentence, cut at random into pieces of 1 to 8 characters."""
    chance = random.Random(seed)
    text = f"Sure, here it is: {value} and that is all there is to say."

    def script(job):
        at = 0
        while at < len(text):
            size = chance.randint(1, 8)
            job.say(text[at : at + size], pause=0.0003)
            at += size
        job.done()

    return script


def fragments(value):
    return {value[at : at + FRAGMENT] for at in range(len(value) - FRAGMENT + 1)}


def deltas(answer):
    rows = [json.loads(row[6:]) for row in answer.text.split("\n\n") if row.startswith("data: {")]
    return [choice["delta"].get("content") or "" for row in rows for choice in row["choices"]]


def leaked(gateway, value, seed):
    gateway.engine.script = splitting(value, seed)
    pieces = deltas(gateway.chat(stream=True))
    said = "".join(pieces)
    assert said.startswith("Sure, here it is: ")
    assert len(pieces) > 3
    return [fragment for fragment in fragments(value) if fragment in said]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    apps = {"default": "requests_per_minute = 0"}
    with running_gateway(tmp_path_factory.mktemp("split"), apps=apps, engines=[FakeEngine()]) as running:
        yield running


@pytest.mark.parametrize("value", VALUES, ids=lambda value: value[:12])
def test_no_fragment_reaches_the_client_however_it_is_cut(gateway, value):
    for seed in range(8):
        assert leaked(gateway, value, seed) == []
    gateway.wait_for(lambda: gateway.journal.of("guard_verdict"))


def test_the_journal_names_the_kind_and_not_the_value(gateway):
    gateway.engine.script = splitting(VALUES[0], 99)
    before = len(gateway.journal.of("guard_verdict"))
    gateway.chat(stream=True)
    gateway.wait_for(lambda: len(gateway.journal.of("guard_verdict")) > before)
    told = json.dumps(gateway.journal.of("guard_verdict")[-1])
    assert "pii:EMAIL_ADDRESS" in told
    assert "jane" not in told


def test_positive_control_without_the_guards_stream_it_comes_out(tmp_path):
    with running_gateway(tmp_path, argv=PASSING) as gateway:
        assert leaked(gateway, VALUES[0], 1)
