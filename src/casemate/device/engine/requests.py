"""What the engine accepts from the gateway: an allow-list of typed, bounded fields; pure.

The gateway has checked all this against the app's policy. The engine checks again, because llama.cpp's own handler
takes far more than it should from a request (CVE-2026-21869: a negative `n_discard` in the body overflowed the heap):
only fields named here reach it, each within the range given here.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from casemate.formats import ipc

MAX_MESSAGES: Final = 4096
MAX_STOPS: Final = 16
MAX_INPUTS: Final = 256
MAX_BYTES_PER_TOKEN: Final = 64
"""No real text has so few tokens: a prompt with more bytes than this per token of context is refused unread."""
_MAX_SCHEMA_DEPTH: Final = 16
_MAX_SCHEMA_NODES: Final = 2000
_MAX_SCHEMA_REPEAT: Final = 1024
_MAX_PATTERN: Final = 128
_REPEATS: Final = frozenset({"minItems", "maxItems", "minLength", "maxLength"})

_Share = Annotated[float, Meta(ge=0, le=1)]
_Penalty = Annotated[float, Meta(ge=-2, le=2)]
_Stop = Annotated[str, Meta(min_length=1, max_length=256)]


class RefusedError(Exception):
    """A request the engine will not run; `code` is one of `ipc.Failed`, the message holds nothing of the request."""

    def __init__(self, code: str, message: str) -> None:
        """Keep the wire *code* beside the *message*."""
        super().__init__(message)
        self.code = code
        self.message = message


class ChatMessage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One turn."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str


class SchemaFormat(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of a json_schema response format."""

    schema: dict[str, Any]
    name: Annotated[str, Meta(max_length=64)] = "answer"
    strict: bool = True


class ResponseFormat(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What the answer must look like."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: SchemaFormat | None = None


class _Params(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    tenant: Annotated[str, Meta(max_length=128)] | None = None
    """Whose request it is: a slot's prompt cache is reused only for the same tenant."""


class _Sampling(_Params, frozen=True, forbid_unknown_fields=True):
    temperature: Annotated[float, Meta(ge=0, le=5)] | None = None
    top_p: _Share | None = None
    top_k: Annotated[int, Meta(ge=0, le=1000)] | None = None
    min_p: _Share | None = None
    seed: Annotated[int, Meta(ge=0, le=0xFFFF_FFFF)] | None = None
    max_tokens: Annotated[int, Meta(ge=1, le=1 << 20)] | None = None
    stop: Annotated[list[_Stop], Meta(max_length=MAX_STOPS)] | _Stop | None = None
    presence_penalty: _Penalty | None = None
    frequency_penalty: _Penalty | None = None
    repeat_penalty: Annotated[float, Meta(gt=0, le=2)] | None = None


class ChatParams(_Sampling, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`kind: chat`."""

    messages: Annotated[list[ChatMessage], Meta(min_length=1, max_length=MAX_MESSAGES)]
    response_format: ResponseFormat | None = None


class CompletionParams(_Sampling, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`kind: completion`."""

    prompt: str
    json_schema: dict[str, Any] | None = None


class EmbeddingParams(_Params, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`kind: embedding`."""

    input: Annotated[list[str], Meta(min_length=1, max_length=MAX_INPUTS)]


_KINDS: Final[dict[str, type[_Params]]] = {
    "chat": ChatParams,
    "completion": CompletionParams,
    "embedding": EmbeddingParams,
}


class Request(msgspec.Struct, frozen=True):
    """A checked request: what llama.cpp gets, and whose it is."""

    kind: str
    body: dict[str, Any]
    tenant: str | None


def parse(message: ipc.Generate, *, context: int) -> Request:
    """Check *message* and return the body for the engine; max_tokens is never above *context*.

    Raises:
        RefusedError: an unknown kind or field, a value out of range, a schema or prompt too large.

    """
    shape = _KINDS.get(message.kind)
    if shape is None:
        raise RefusedError("bad_request", "unknown kind of request")
    try:
        params: Any = msgspec.convert(message.params, shape)
    except msgspec.ValidationError as error:
        raise RefusedError("bad_request", _scrub(error)) from None
    _check_schemas(params)
    if _text_size(params) > context * MAX_BYTES_PER_TOKEN:
        raise RefusedError("too_long", f"the prompt is many times longer than the {context} tokens the model takes")
    body: dict[str, Any] = msgspec.to_builtins(params)
    tenant = body.pop("tenant")
    body = {name: value for name, value in body.items() if value is not None}
    if message.kind != "embedding":
        body["max_tokens"] = min(body.get("max_tokens", context), context)
        body |= {"stream": True, "stream_options": {"include_usage": True}, "return_progress": True}
    return Request(message.kind, body, tenant)


def _scrub(error: msgspec.ValidationError) -> str:
    """Return where the fault is, as a path of field names: msgspec's own words may repeat a value."""
    _, found, path = str(error).rpartition(" - at `$.")
    return f"invalid value of {path.rstrip('`')}" if found else "unknown or missing field"


def _text_size(params: Any) -> int:
    """Return the most characters that the model has to read at once."""
    if isinstance(params, ChatParams):
        return sum(len(message.content) for message in params.messages)
    if isinstance(params, CompletionParams):
        return len(params.prompt)
    return max(len(text) for text in params.input)


def _check_schemas(params: Any) -> None:
    if isinstance(params, CompletionParams) and params.json_schema is not None:
        check_schema(params.json_schema)
    if isinstance(params, ChatParams) and params.response_format is not None:
        wanted = params.response_format
        if (wanted.type == "json_schema") != (wanted.json_schema is not None):
            raise RefusedError("bad_request", "response_format needs json_schema exactly when its type says so")
        if wanted.json_schema is not None:
            check_schema(wanted.json_schema.schema)


def check_schema(schema: Any) -> None:
    """Refuse a JSON schema that would blow up when llama.cpp turns it into a grammar.

    Raises:
        RefusedError: too deep, too large, a long pattern, a large repetition.

    """
    nodes = 0
    stack: list[tuple[Any, int]] = [(schema, 1)]
    while stack:
        node, depth = stack.pop()
        nodes += 1
        if nodes > _MAX_SCHEMA_NODES or depth > _MAX_SCHEMA_DEPTH:
            raise RefusedError("bad_request", "the JSON schema is too large or too deep")
        if isinstance(node, dict):
            for key, value in node.items():
                _check_keyword(key, value)
                stack.append((value, depth + 1))
        elif isinstance(node, list):
            stack.extend((value, depth + 1) for value in node)


def _check_keyword(key: Any, value: Any) -> None:
    if key == "pattern" and isinstance(value, str) and len(value) > _MAX_PATTERN:
        raise RefusedError("bad_request", "a pattern in the JSON schema is too long")
    if key in _REPEATS and isinstance(value, int | float) and not 0 <= value <= _MAX_SCHEMA_REPEAT:
        raise RefusedError("bad_request", "a repetition in the JSON schema is too large")
