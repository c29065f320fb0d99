"""Fields that reach further than the policy: nothing of a client's JSON is forwarded that was not typed and bounded."""

from __future__ import annotations

import json

import httpx
import pytest

from support.gateway import running_gateway, weakened

# What llama.cpp's own server would take from a request body.
REACHING = {
    "n_discard": -1,
    "n_keep": -1,
    "id_slot": 0,
    "cache_prompt": True,
    "grammar": 'root ::= "x"',
    "json_schema": {},
    "lora": [{"id": 0, "scale": 1}],
    "chat_template_kwargs": {"x": 1},
    "n_probs": 10,
    "ignore_eos": True,
    "n_predict": -1,
    "samplers": ["top_k"],
    "model_path": "/etc/passwd",
    "tools": [{"type": "function", "function": {"name": "sh"}}],
    "logit_bias": {"1": 100},
    "logprobs": True,
    "top_logprobs": 20,
    "return_tokens": True,
    "timings_per_token": True,
    "stream_options": {"include_usage": True, "extra": 1},
}
FORWARDING = weakened(
    "import json, casemate.device.gateway.chat as c",
    "kept = c._prompt",
    "def careless(ticket, request, texts, canary):",
    "    return {**kept(ticket, request, texts, canary), 'n_discard': -1}",
    "c._prompt = careless",
)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    apps = {"default": "requests_per_minute = 0", "loose": 'extra_fields = "drop"\nrequests_per_minute = 0'}
    with running_gateway(tmp_path_factory.mktemp("fields"), apps=apps) as running:
        yield running


@pytest.mark.parametrize("field", REACHING)
def test_a_reaching_field_is_refused_by_name(gateway, field):
    before = len(gateway.engine.requests)
    answer = gateway.chat(**{field: REACHING[field]})
    assert answer.status_code == 400
    assert field in answer.json()["error"]["param"]
    assert len(gateway.engine.requests) == before


def test_where_the_policy_drops_extras_none_of_them_arrives(gateway):
    extras = {name: value for name, value in REACHING.items() if name != "stream_options"}
    body = {"model": "test", "messages": [{"role": "user", "content": "hi"}], **extras}
    answer = gateway.post("/v1/chat/completions", body, key=gateway.keys["loose"])
    assert answer.status_code == 200
    assert set(gateway.engine.requests[-1].params) == {"messages", "max_tokens", "tenant"}


def test_fields_inside_messages_are_refused_too(gateway):
    for extra in ({"tool_calls": [{"id": "1"}]}, {"weight": 1}, {"content": [{"type": "image_url", "image_url": "x"}]}):
        message = {"role": "user", "content": "hi", **extra}
        assert gateway.chat(messages=[message]).status_code == 400
    for role in ("tool", "function", "root"):
        assert gateway.chat(messages=[{"role": role, "content": "hi"}]).status_code == 400


def test_a_key_given_twice_does_not_smuggle_the_first_one_past_the_check(gateway):
    raw = b'{"model":"nope","model":"test","messages":[{"role":"user","content":"hi"}],"max_tokens":7,"max_tokens":9}'
    headers = {"authorization": f"Bearer {gateway.key}", "content-type": "application/json"}
    answer = httpx.post(f"{gateway.url}/v1/chat/completions", content=raw, headers=headers, trust_env=False)
    assert answer.status_code == 200
    assert gateway.engine.requests[-1].params["max_tokens"] == 9


def test_positive_control_a_gateway_that_forwards_would_be_heard(tmp_path):
    with running_gateway(tmp_path, argv=FORWARDING) as gateway:
        gateway.chat()
        assert json.loads(json.dumps(gateway.engine.requests[-1].params))["n_discard"] == -1
