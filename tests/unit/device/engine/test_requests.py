from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.device.engine.requests import (
    MAX_BYTES_PER_TOKEN,
    MAX_INPUTS,
    MAX_STOPS,
    RefusedError,
    Request,
    check_schema,
    parse,
)
from casemate.formats import ipc

MESSAGES = [{"role": "user", "content": "hello"}]
SECRET = "correct-horse-battery-staple"


def chat(context=512, **params):
    return parse(ipc.Generate(1, "chat", {"messages": MESSAGES, **params}, 1.0), context=context)


def refused(kind="chat", **params):
    with pytest.raises(RefusedError) as caught:
        parse(ipc.Generate(1, kind, params, 1.0), context=512)
    return caught.value


def test_only_checked_fields_reach_the_library():
    body = chat(temperature=0.5, stop=["\n"], seed=7, tenant="app").body
    assert body == {
        "messages": MESSAGES,
        "temperature": 0.5,
        "stop": ["\n"],
        "seed": 7,
        "max_tokens": 512,
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_progress": True,
    }


def test_max_tokens_is_never_above_the_context():
    assert chat(max_tokens=100).body["max_tokens"] == 100
    assert chat(max_tokens=1 << 20).body["max_tokens"] == 512


def test_completion_and_embedding_have_their_own_fields():
    completion = parse(ipc.Generate(1, "completion", {"prompt": "a", "json_schema": {}}, 1.0), context=9)
    embedding = parse(ipc.Generate(1, "embedding", {"input": ["a"], "tenant": "x"}, 1.0), context=9)
    assert completion.body["prompt"] == "a"
    assert embedding == Request("embedding", {"input": ["a"]}, "x")


@pytest.mark.parametrize(
    "params",
    [
        {"n_discard": -1},  # CVE-2026-21869
        {"id_slot": 3},
        {"cache_prompt": True},
        {"grammar": "root ::= root"},
        {"logit_bias": {"1": 100}},
        {"lora": []},
        {"n_predict": -1},
        {"chat_template_kwargs": {}},
        {"tools": []},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_p": 1.5},
        {"top_k": -1},
        {"max_tokens": 0},
        {"max_tokens": -1},
        {"seed": 1 << 32},
        {"stop": [""]},
        {"stop": ["x"] * (MAX_STOPS + 1)},
        {"repeat_penalty": 0},
        {"presence_penalty": 3},
        {"messages": []},
        {
            "messages": [
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}
            ]
        },
        {"messages": [{"role": "root", "content": "x"}]},
        {"messages": [{"role": "user", "content": "x", "tool_calls": []}]},
        {"response_format": {"type": "grammar"}},
        {"response_format": {"type": "json_schema"}},
        {"response_format": {"type": "text", "json_schema": {"schema": {}}}},
    ],
)
def test_everything_else_is_refused(params):
    assert refused(**{"messages": MESSAGES, **params}).code == "bad_request"


def test_unknown_kind_and_too_many_inputs():
    assert refused("rerank", query="x").code == "bad_request"
    assert refused("embedding", input=["x"] * (MAX_INPUTS + 1)).code == "bad_request"


def test_a_prompt_no_model_could_take_is_refused_unread():
    text = "x" * (512 * MAX_BYTES_PER_TOKEN + 1)
    assert refused(messages=[{"role": "user", "content": text}]).code == "too_long"
    assert refused("completion", prompt=text).code == "too_long"
    assert refused("embedding", input=["short", text]).code == "too_long"


def test_refusals_do_not_repeat_the_request():
    for params in (
        {"messages": [{"role": SECRET, "content": "x"}]},
        {"messages": MESSAGES, SECRET: 1},
        {"messages": MESSAGES, "response_format": {"type": SECRET}},
        {"messages": MESSAGES, "stop": SECRET * 100},
    ):
        assert SECRET not in refused(**params).message


def nested(depth):
    schema: dict = {}
    for _ in range(depth):
        schema = {"properties": {"a": schema}}
    return schema


@pytest.mark.parametrize(
    "schema",
    [
        nested(20),
        {"enum": list(range(5000))},
        {"pattern": "a" * 500},
        {"maxLength": 1_000_000},
        {"minItems": -1},
        {"items": {"maxItems": 1e9}},
    ],
)
def test_schemas_that_blow_up_a_grammar_are_refused(schema):
    with pytest.raises(RefusedError):
        check_schema(schema)


def test_an_ordinary_schema_passes():
    schema = {"type": "object", "properties": {"place": {"type": "string", "maxLength": 80}}, "required": ["place"]}
    body = chat(response_format={"type": "json_schema", "json_schema": {"schema": schema}}).body
    assert body["response_format"]["json_schema"]["schema"] == schema
    assert "json_schema" not in chat(response_format={"type": "json_object"}).body["response_format"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
FIELDS = st.sampled_from(
    ["messages", "prompt", "input", "stop", "temperature", "response_format", "json_schema", "seed"]
)


@given(kind=st.sampled_from(["chat", "completion", "embedding"]), params=st.dictionaries(FIELDS, JSON, max_size=5))
def test_any_json_is_a_request_or_a_refusal(kind, params):
    try:
        request = parse(ipc.Generate(1, kind, params, 1.0), context=64)
    except RefusedError:
        return
    msgspec.json.encode(request.body)
