"""The shapes of an answer: chat and text completions, whole and streamed, byte for byte as OpenAI clients read them.

A stream of one answer is: the role (chat only), text deltas, a chunk with the finish reason, a chunk with `usage` and
no choices when asked for, and `[DONE]`. What Casemate adds is one object, `casemate`, in the last chunk.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Final

import msgspec

DONE: Final = b"[DONE]"
_encode = msgspec.json.Encoder().encode


@dataclasses.dataclass
class Usage:
    """Tokens of a request."""

    prompt: int = 0
    completion: int = 0

    def as_dict(self) -> dict[str, int]:
        """Return OpenAI's object."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
        }


@dataclasses.dataclass(frozen=True)
class Finished:
    """One whole choice."""

    text: str
    reason: str


class Shape:
    """What chat and text completions have in common: the envelope."""

    object: str
    chunk_object: str
    id_prefix: str

    def __init__(self, *, request_id: str, model: str, created: int, nulls: bool) -> None:
        """Fix the envelope of one request. *nulls*: chunks carry `"usage":null`, as with `include_usage`."""
        self._base = {"id": self.id_prefix + request_id, "created": created, "model": model}
        head = _encode({"id": self._base["id"], "object": self.chunk_object, "created": created, "model": model})
        self._head = head[:-1] + b',"system_fingerprint":"casemate"'
        self._tail = b',"usage":null}' if nulls else b"}"

    def first(self, index: int) -> bytes | None:
        """Return the chunk that opens choice *index*."""
        raise NotImplementedError

    def delta(self, index: int, text: str) -> bytes:
        """Return a chunk with more *text* of choice *index*."""
        raise NotImplementedError

    def last(self, index: int, reason: str, extra: Mapping[str, Any] | None) -> bytes:
        """Return the chunk that ends choice *index*; *extra* is the `casemate` object."""
        raise NotImplementedError

    def _choice(self, index: int, finished: Finished) -> dict[str, Any]:
        raise NotImplementedError

    def _chunk(self, choice: bytes, extra: Mapping[str, Any] | None = None) -> bytes:
        more = b',"casemate":' + _encode(extra) if extra else b""
        return self._head + b',"choices":[' + choice + b"]" + more + self._tail

    def usage(self, usage: Usage) -> bytes:
        """Return the chunk with no choices that carries *usage*."""
        return self._head + b',"choices":[],"usage":' + _encode(usage.as_dict()) + b"}"

    def whole(self, choices: list[Finished], usage: Usage, extra: Mapping[str, Any] | None) -> bytes:
        """Return the answer of a request that does not stream."""
        body: dict[str, Any] = {
            **self._base,
            "object": self.object,
            "system_fingerprint": "casemate",
            "choices": [self._choice(index, finished) for index, finished in enumerate(choices)],
            "usage": usage.as_dict(),
        }
        if extra:
            body["casemate"] = extra
        return _encode(body)


class ChatShape(Shape):
    """`chat.completion` and `chat.completion.chunk`."""

    object = "chat.completion"
    chunk_object = "chat.completion.chunk"
    id_prefix = "chatcmpl-"

    def first(self, index: int) -> bytes | None:
        """Return the role chunk."""
        return self._chunk(
            b'{"index":%d,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}' % index
        )

    def delta(self, index: int, text: str) -> bytes:
        """Return a content chunk."""
        return self._chunk(
            b'{"index":%d,"delta":{"content":%b},"logprobs":null,"finish_reason":null}' % (index, _encode(text))
        )

    def last(self, index: int, reason: str, extra: Mapping[str, Any] | None) -> bytes:
        """Return the finish chunk."""
        return self._chunk(
            b'{"index":%d,"delta":{},"logprobs":null,"finish_reason":%b}' % (index, _encode(reason)), extra
        )

    def _choice(self, index: int, finished: Finished) -> dict[str, Any]:
        message = {"role": "assistant", "content": finished.text, "refusal": None}
        return {"index": index, "message": message, "logprobs": None, "finish_reason": finished.reason}


class CompletionShape(Shape):
    """`text_completion`, whole and streamed."""

    object = "text_completion"
    chunk_object = "text_completion"
    id_prefix = "cmpl-"

    def first(self, index: int) -> bytes | None:
        """Return nothing: text completions have no role."""
        del index
        return None

    def delta(self, index: int, text: str) -> bytes:
        """Return a text chunk."""
        return self._chunk(b'{"index":%d,"text":%b,"logprobs":null,"finish_reason":null}' % (index, _encode(text)))

    def last(self, index: int, reason: str, extra: Mapping[str, Any] | None) -> bytes:
        """Return the finish chunk."""
        return self._chunk(
            b'{"index":%d,"text":"","logprobs":null,"finish_reason":%b}' % (index, _encode(reason)), extra
        )

    def _choice(self, index: int, finished: Finished) -> dict[str, Any]:
        return {"index": index, "text": finished.text, "logprobs": None, "finish_reason": finished.reason}
