"""The bytes of an answer, as the real client's own types read them."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from casemate.device.gateway.sse import ChatShape, CompletionShape, Finished, Usage


def shape(kind=ChatShape, nulls=False):
    return kind(request_id="req_1", model="m", created=7, nulls=nulls)


@given(st.text(max_size=30), st.booleans())
def test_every_chat_chunk_is_one_line_the_client_understands(text, nulls):
    made = shape(nulls=nulls)
    lines = [made.first(0), made.delta(0, text), made.last(0, "stop", {"request_id": "req_1"})]
    if nulls:
        lines.append(made.usage(Usage(3, 4)))
    assert all(b"\n" not in line for line in lines)
    chunks = [ChatCompletionChunk.model_validate(json.loads(line)) for line in lines]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[1].choices[0].delta.content == text
    assert chunks[2].choices[0].finish_reason == "stop"
    assert {chunk.id for chunk in chunks} == {"chatcmpl-req_1"}
    if nulls:
        assert chunks[3].choices == []
        assert chunks[3].usage.total_tokens == 7
    assert all(("usage" in json.loads(line)) is nulls for line in lines[:3])


@given(st.text(max_size=30))
def test_text_completions_stream_the_same_object(text):
    made = shape(CompletionShape)
    assert made.first(0) is None
    assert json.loads(made.delta(1, text))["choices"] == [
        {"index": 1, "text": text, "logprobs": None, "finish_reason": None}
    ]
    assert json.loads(made.last(1, "length", None))["choices"][0]["finish_reason"] == "length"


def test_whole_answers():
    chat = ChatCompletion.model_validate_json(shape().whole([Finished("a", "stop")], Usage(1, 2), {"request_id": "r"}))
    assert chat.choices[0].message.content == "a"
    assert chat.usage.total_tokens == 3
    text = Completion.model_validate_json(
        shape(CompletionShape).whole([Finished("a", "stop"), Finished("b", "length")], Usage(1, 2), None)
    )
    assert [(c.index, c.text, c.finish_reason) for c in text.choices] == [(0, "a", "stop"), (1, "b", "length")]
