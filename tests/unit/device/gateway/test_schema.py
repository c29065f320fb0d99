"""Requests: what an ordinary client sends is taken; everything else is refused by name, and nothing crashes."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.device.gateway import schema
from casemate.device.gateway.refusals import ApiError
from casemate.device.gateway.schema import ChatRequest, CompletionRequest, EmbeddingRequest, parse
from casemate.formats.policy import AppPolicy

HI = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def chat(drop=False, **more):
    return parse(json.dumps({**HI, **more}).encode(), ChatRequest, drop_extras=drop)


def refused(call, *args, **more):
    with pytest.raises(ApiError) as caught:
        call(*args, **more)
    return caught.value


def test_what_ordinary_clients_send_is_taken():
    request = chat(
        stream=True,
        stream_options={"include_usage": True},
        temperature=1,
        top_p=0.9,
        stop=["a", "b"],
        seed=-1,
        max_completion_tokens=7,
        presence_penalty=-2.0,
        n=1,
        logprobs=False,
        logit_bias={},
        tools=[],
        tool_choice="auto",
        parallel_tool_calls=True,
        user="u",
        store=False,
        metadata=None,
        service_tier="auto",
        response_format={"type": "text"},
    )
    assert request.wants_usage
    assert request.output_limit == 7
    assert request.sampling() == {
        "temperature": 1.0,
        "top_p": 0.9,
        "presence_penalty": -2.0,
        "stop": ["a", "b"],
        "seed": 2**32 - 1,
    }


def test_an_answer_can_be_sent_back_as_history():
    answer = {
        "role": "assistant",
        "content": "yes",
        "refusal": None,
        "annotations": None,
        "audio": None,
        "function_call": None,
        "tool_calls": None,
    }
    request = chat(messages=[HI["messages"][0], answer, {"role": "user", "content": [{"type": "text", "text": "a"}]}])
    assert [message.text for message in request.messages] == ["hi", "yes", "a"]


@pytest.mark.parametrize(
    ("more", "param", "code"),
    [
        ({"what": 1}, "what", "unsupported_parameter"),
        ({"tools": [{"type": "function"}]}, "tools", "unsupported_parameter"),
        ({"logprobs": True}, "logprobs", "unsupported_parameter"),
        ({"top_logprobs": 3}, "top_logprobs", "unsupported_parameter"),
        ({"logit_bias": {"1": 1}}, "logit_bias", "unsupported_parameter"),
        ({"functions": [1]}, "functions", "unsupported_parameter"),
        ({"modalities": ["audio"]}, "modalities", "unsupported_parameter"),
        ({"store": True}, "store", "unsupported_parameter"),
        ({"temperature": 3}, "temperature", "invalid_request"),
        ({"temperature": "hot"}, "temperature", "invalid_request"),
        ({"max_tokens": 0}, "max_tokens", "invalid_request"),
        ({"max_tokens": -1}, "max_tokens", "invalid_request"),
        ({"stop": ["a"] * 5}, "stop", "invalid_request"),
        ({"stop": ""}, "stop", "invalid_request"),
        ({"seed": 2**60}, "seed", "invalid_request"),
        ({"messages": []}, "messages", "invalid_request"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role", "invalid_request"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content", "invalid_request"),
        ({"messages": [{"role": "user", "content": "x", "extra": 1}]}, "messages[0].extra", "unsupported_parameter"),
        ({"messages": [{"role": "user", "content": "x", "name": "a b"}]}, "messages[0].name", "invalid_request"),
        ({"messages": [{"role": "user", "content": "x", "name": "ab\n"}]}, "messages[0].name", "invalid_request"),
        ({"messages": [{"content": "x"}]}, "messages[0].role", "invalid_request"),
        ({"model": ""}, "model", "invalid_request"),
        ({"documents": [{"text": "x", "url": "y"}]}, "documents[0].url", "unsupported_parameter"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_request"),
    ],
)
def test_a_refusal_names_the_field(more, param, code):
    error = refused(chat, **more)
    assert (error.status, error.code, error.param) == (400, code, param)


def test_an_image_part_is_refused():
    part = {"type": "image_url", "image_url": {"url": "https://x"}}
    assert refused(chat, messages=[{"role": "user", "content": [part]}]).status == 400


def test_a_policy_may_drop_what_is_not_supported():
    request = chat(drop=True, what=1, tools=[{"x": 1}], logprobs=True)
    assert request.model == "m"
    assert refused(chat, drop=True, temperature=9).param == "temperature"


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[1", b'"x"', b"null", b"\xff\xfe{}", b"[" * 100_000, b'{"model":' * 50_000, b'{"a":"\xed\xa0\x80"}'],
)
def test_what_is_not_json_is_400(data):
    assert refused(parse, data, ChatRequest, drop_extras=False).status == 400


def test_a_million_messages_are_400():
    body = json.dumps({**HI, "messages": HI["messages"] * (schema.MAX_MESSAGES + 1)}).encode()
    error = refused(parse, body, ChatRequest, drop_extras=False)
    assert (error.status, error.param) == (400, "messages")
    assert str(schema.MAX_MESSAGES) in error.message
    assert schema.look_for_messages(body).status == 400
    assert schema.look_for_messages(b'{"messages":[{"role":"user","content":"' + b"x" * 10_000) is None


def test_the_error_never_quotes_more_than_a_word_of_the_request():
    secret = "very private words " * 30
    error = refused(chat, messages=[{"role": secret, "content": secret}])
    assert len(error.message) < 300


def test_choices_are_capped_or_refused():
    assert schema.choices(None, AppPolicy()) == 1
    assert schema.choices(3, AppPolicy(max_choices=4)) == 3
    assert schema.choices(3, AppPolicy(extra_fields="drop")) == 1
    assert refused(schema.choices, 2, AppPolicy()).param == "n"
    assert [p["seed"] for p in schema.numbered({"seed": 5}, 3)] == [5, 6, 7]


def test_schemas_are_bounded():
    deep: dict = {}
    for _ in range(schema.MAX_SCHEMA_DEPTH + 2):
        deep = {"properties": deep}
    assert refused(schema.check_schema, deep).status == 400
    assert refused(schema.check_schema, {"enum": ["x" * 40_000]}).status == 413
    schema.check_schema({"type": "object", "properties": {"a": {"type": "array", "items": {"type": "number"}}}})


def test_completions_and_embeddings():
    one = parse(b'{"model":"m","prompt":"x"}', CompletionRequest, drop_extras=False)
    many = parse(b'{"model":"m","prompt":["x","y"]}', CompletionRequest, drop_extras=False)
    assert list(one.prompts) == ["x"]
    assert list(many.prompts) == ["x", "y"]
    for bad in (
        b'{"model":"m","prompt":[1,2]}',
        b'{"model":"m","prompt":[]}',
        b'{"model":"m","prompt":"x","echo":true}',
    ):
        assert refused(parse, bad, CompletionRequest, drop_extras=False).status == 400
    vectors = parse(b'{"model":"m","input":"x","encoding_format":"base64"}', EmbeddingRequest, drop_extras=False)
    assert list(vectors.inputs) == ["x"]
    assert refused(parse, b'{"model":"m","input":[[1]]}', EmbeddingRequest, drop_extras=False).status == 400


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from([*ChatRequest.__struct_fields__, "zzz"]), JSON, max_size=6), st.booleans())
def test_any_object_is_a_request_or_an_api_error(body, drop):
    try:
        request = parse(msgspec.json.encode(body), ChatRequest, drop_extras=drop)
    except ApiError as error:
        assert error.status == 400
        json.loads(error.encode("req_x"))
    else:
        request.sampling()


@given(st.binary(max_size=300))
def test_any_bytes_are_a_request_or_an_api_error(data):
    for kind in (ChatRequest, CompletionRequest, EmbeddingRequest):
        try:
            parse(data, kind, drop_extras=False)
        except ApiError as error:
            assert error.status == 400
