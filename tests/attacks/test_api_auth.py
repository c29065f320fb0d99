"""Keys: none, wrong, revoked, in the wrong place, guessed by the thousand; and what is left in the journal."""

from __future__ import annotations

import json

import httpx
import pytest

from support.gateway import running_gateway, weakened

OPEN_TO_ALL = weakened(
    "import casemate.device.gateway.auth as a",
    "a.Authenticator.identify = lambda self, exchange: next(iter(self._apps().by_key_id.values()))",
)
UNTHROTTLED = weakened(
    "import casemate.device.gateway.auth as a",
    "a.FREE_FAILURES = 10**9",
    "a.REPORT_EVERY = 0.0",
)
ENDPOINTS = [
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/embeddings"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/test"),
]
CHAT = {"model": "test", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    with running_gateway(tmp_path_factory.mktemp("auth")) as running:
        yield running


def request(gateway, method, path, **headers):
    body = CHAT if method == "POST" else None
    return httpx.request(method, gateway.url + path, json=body, headers=headers, trust_env=False)


@pytest.mark.parametrize(("method", "path"), ENDPOINTS)
def test_no_endpoint_answers_without_a_key(gateway, method, path):
    key = gateway.key
    for headers in (
        {},
        {"authorization": "Bearer " + key[:-1] + "."},
        {"authorization": key},
        {"authorization": f"Basic {key}"},
        {"x-api-key": key},
        {"api-key": key},
        {"cookie": f"key={key}"},
    ):
        answer = request(gateway, method, path, **headers)
        assert answer.status_code in {401, 429}, headers
        assert key not in answer.text
    assert request(gateway, method, f"{path}?api_key={key}&key={key}").status_code in {401, 429}
    assert gateway.engine.requests == []


def test_two_authorization_headers_are_no_key(gateway):
    with httpx.Client(trust_env=False) as client:
        good = ("authorization", f"Bearer {gateway.key}")
        for other in ("Bearer cmk_wrong", f"Bearer {gateway.key}"):
            headers = [good, ("authorization", other)]
            answer = client.post(f"{gateway.url}/v1/chat/completions", json=CHAT, headers=headers)
            assert answer.status_code in {401, 429}


def test_a_missing_a_wrong_and_a_revoked_key_look_the_same(tmp_path):
    with running_gateway(tmp_path, apps={"default": None, "old": None}) as gateway:
        revoked = gateway.keys["old"]
        gateway.store.remove("old")
        gateway.wait_for(lambda: gateway.get("/v1/models", key=revoked).status_code == 401)
        answers = [
            request(gateway, "GET", "/v1/models"),
            request(gateway, "GET", "/v1/models", authorization="Bearer cmk_00000000_" + "x" * 43),
            request(gateway, "GET", "/v1/models", authorization=f"Bearer {revoked}"),
        ]
        assert len({(answer.status_code, answer.text) for answer in answers}) == 1


def test_positive_control_without_the_check_everybody_is_served(tmp_path):
    with running_gateway(tmp_path, argv=OPEN_TO_ALL) as gateway:
        assert request(gateway, "POST", "/v1/chat/completions").status_code == 200


def test_a_thousand_guesses_are_throttled_told_once_and_lock_nobody_out(tmp_path):
    with running_gateway(tmp_path) as gateway, httpx.Client(trust_env=False) as client:
        statuses = []
        for number in range(300):
            headers = {"authorization": f"Bearer cmk_{number:08x}_" + "A" * 43, "x-forwarded-for": f"10.0.0.{number}"}
            statuses.append(client.get(f"{gateway.url}/v1/models", headers=headers).status_code)
        assert statuses[:5] == [401] * 5
        assert set(statuses[5:]) <= {401, 429}
        assert statuses.count(429) > 280
        assert gateway.chat().status_code == 200
        gateway.wait_for(lambda: gateway.journal.of("auth_refused"))
        assert len(gateway.journal.of("auth_refused")) <= 2
        told = json.dumps(gateway.journal.events)
        assert "127.0.0.1" in told
        assert "cmk_" not in told
        assert "10.0.0." not in told


def test_positive_control_without_the_throttle_every_guess_is_answered_and_fills_the_journal(tmp_path):
    with running_gateway(tmp_path, argv=UNTHROTTLED) as gateway, httpx.Client(trust_env=False) as client:
        for number in range(60):
            headers = {"authorization": f"Bearer cmk_{number:08x}_" + "A" * 43}
            assert client.get(f"{gateway.url}/v1/models", headers=headers).status_code == 401
        gateway.wait_for(lambda: len(gateway.journal.of("auth_refused")) == 60)
