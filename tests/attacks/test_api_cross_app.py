"""Between apps: no app sees another's models, system prompt or answers, however the requests interleave."""

from __future__ import annotations

import json
import random
import threading

import pytest

from support.gateway import FakeEngine, running_gateway, weakened

FREELY = "requests_per_minute = 0\nconcurrent_requests = 64\n"
APPS = {
    "alice": FREELY + 'system_prompt = "You serve alice, codeword heliotrope."\nmodels = ["first"]',
    "bob": FREELY + 'models = ["first", "second"]',
}
EVERY_MODEL = weakened(
    "from casemate.formats.policy import AppPolicy", "AppPolicy.allows_model = lambda self, name: True"
)


def echo(job):
    """Say who asked and what, in pieces that interleave with everybody else's."""
    words = job.request.params["messages"][-1]["content"]
    for piece in ["for", *words.split(" ")]:
        job.say(piece + " ", pause=random.random() / 200)
    job.done()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    engines = [FakeEngine("first", echo, slots=8), FakeEngine("second", echo, slots=2)]
    directory = tmp_path_factory.mktemp("cross")
    with running_gateway(directory, apps=APPS, engines=engines, settings={"queue": 64}) as running:
        yield running


def chat(gateway, app, text, model="first", **more):
    body = {"model": model, "messages": [{"role": "user", "content": text}], **more}
    return gateway.post("/v1/chat/completions", body, key=gateway.keys[app])


def test_a_model_of_another_app_does_not_exist(gateway):
    other, nowhere = chat(gateway, "alice", "hi", "second"), chat(gateway, "alice", "hi", "third")
    assert other.status_code == nowhere.status_code == 404
    assert other.text.replace("second", "X") == nowhere.text.replace("third", "X")
    assert [model.id for model in gateway.client(gateway.keys["alice"]).models.list()] == ["first"]
    assert gateway.get("/v1/models/second", key=gateway.keys["alice"]).status_code == 404
    assert chat(gateway, "bob", "hi", "second").status_code == 200


def test_positive_control_without_the_policy_the_model_answers(tmp_path):
    engines = [FakeEngine("first", echo), FakeEngine("second", echo)]
    with running_gateway(tmp_path, apps=APPS, engines=engines, argv=EVERY_MODEL) as gateway:
        assert chat(gateway, "alice", "hi", "second").status_code == 200


def test_a_system_prompt_reaches_its_own_apps_requests_only(gateway):
    chat(gateway, "alice", "hi")
    assert "heliotrope" in json.dumps(gateway.engine.requests[-1].params)
    chat(gateway, "bob", "hi")
    assert "heliotrope" not in json.dumps(gateway.engine.requests[-1].params)
    assert gateway.engine.requests[-1].params["tenant"] == "bob"


def test_a_client_cannot_name_another_tenant(gateway):
    assert chat(gateway, "bob", "hi", tenant="alice").status_code == 400


def test_interleaved_answers_go_to_those_who_asked(gateway):
    answers: dict[int, str] = {}

    def ask(number):
        app = ("alice", "bob")[number % 2]
        stream = bool(number % 3)
        answer = chat(gateway, app, f"person {number} likes plate {number}", stream=stream)
        if stream:
            rows = [json.loads(row[6:]) for row in answer.text.split("\n\n") if row.startswith("data: {")]
            deltas = [choice["delta"].get("content") or "" for row in rows for choice in row["choices"]]
            answers[number] = "".join(deltas)
        else:
            answers[number] = answer.json()["choices"][0]["message"]["content"]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {number: text.strip() for number, text in answers.items()} == {
        number: f"for person {number} likes plate {number}" for number in range(32)
    }
