"""Bytes of a request -> typed, bounded structs. The only fields an engine ever sees come from here.

A field that OpenAI's API has and this device does not serve is accepted when its value asks for nothing (`n: 1`,
`logprobs: false`, `tools: []`), so ordinary clients work; otherwise it is refused by name, or dropped when the app's
policy says `extra_fields = "drop"`. Everything else unknown is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec
from msgspec import Meta

from casemate.device.gateway.refusals import ApiError, bad_request, too_large, unsupported
from casemate.formats.decoding import MALFORMED
from casemate.formats.policy import AppPolicy
from casemate.guard.conformity import Form

MAX_MESSAGES: Final = 1000
MAX_DOCUMENTS: Final = 64
MAX_INPUTS: Final = 256
MAX_SCHEMA_BYTES: Final = 16 * 1024
MAX_SCHEMA_DEPTH: Final = 16
_SEED_LIMIT: Final = 2**53
_ENGINE_SEEDS: Final = 2**32 - 1

Short = Annotated[str, Meta(max_length=256)]
StopText = Annotated[str, Meta(min_length=1, max_length=128)]
Stops = StopText | Annotated[list[StopText], Meta(max_length=4)]
Unit = Annotated[float, Meta(ge=0, le=1)]
Heat = Annotated[float, Meta(ge=0, le=2)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Positive = Annotated[int, Meta(ge=1, le=1_000_000)]
Seed = Annotated[int, Meta(ge=-_SEED_LIMIT, le=_SEED_LIMIT)]


class TextPart(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="text"):
    """One piece of a message's content."""

    text: str


Content = str | Annotated[list[TextPart], Meta(max_length=256)]


class Message(msgspec.Struct, forbid_unknown_fields=True):
    """One turn. The optional fields are those an OpenAI answer carries when it is sent back as history."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content | None = None
    name: Annotated[str, Meta(pattern=r"\A[A-Za-z0-9_-]{1,64}\Z")] | None = None
    refusal: Short | None = None
    annotations: Annotated[list[Any], Meta(max_length=0)] | None = None
    tool_calls: Annotated[list[Any], Meta(max_length=0)] | None = None
    audio: None = None
    function_call: None = None
    reasoning_content: None = None

    @property
    def text(self) -> str:
        """Return the content as one text."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content or ())


class Document(msgspec.Struct, forbid_unknown_fields=True):
    """A retrieved text: data, never instructions."""

    text: str
    title: Short | None = None


class JsonSchema(msgspec.Struct, forbid_unknown_fields=True):
    """The `json_schema` of a response format."""

    schema: dict[str, Any]
    name: Short = ""
    description: Short | None = None
    strict: bool | None = None


class PlainFormat(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="text"):
    """Answer in text."""


class ObjectFormat(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="json_object"):
    """Answer with any JSON object."""


class SchemaFormat(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="json_schema"):
    """Answer with JSON of this schema."""

    json_schema: JsonSchema


ResponseFormat = PlainFormat | ObjectFormat | SchemaFormat


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    """What a stream carries beside the text."""

    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class _Sampling(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What chat and completions share. The last block is accepted only where it asks for nothing."""

    model: Annotated[str, Meta(min_length=1, max_length=256)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Positive | None = None
    temperature: Heat | None = None
    top_p: Unit | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    seed: Seed | None = None
    stop: Stops | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    user: Short | None = None

    logprobs: Any = None
    logit_bias: Any = None
    metadata: Any = None
    store: Any = None

    def sampling(self) -> dict[str, Any]:
        """Return the engine's parameters that the client set."""
        names = ("temperature", "top_p", "presence_penalty", "frequency_penalty")
        params = {name: value for name in names if (value := getattr(self, name)) is not None}
        if self.stop:
            params["stop"] = [self.stop] if isinstance(self.stop, str) else self.stop
        if self.seed is not None:
            params["seed"] = self.seed & _ENGINE_SEEDS
        return params

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with a usage chunk."""
        return bool(self.stream_options and self.stream_options.include_usage)


class ChatRequest(_Sampling, kw_only=True):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Meta(min_length=1, max_length=MAX_MESSAGES)]
    documents: Annotated[list[Document], Meta(max_length=MAX_DOCUMENTS)] | None = None
    max_completion_tokens: Positive | None = None
    response_format: ResponseFormat | None = None

    tools: Any = None
    tool_choice: Any = None
    parallel_tool_calls: Any = None
    functions: Any = None
    function_call: Any = None
    top_logprobs: Any = None
    modalities: Any = None
    service_tier: Any = None

    @property
    def output_limit(self) -> int | None:
        """Return the most tokens the client wants."""
        return self.max_completion_tokens or self.max_tokens


class CompletionRequest(_Sampling, kw_only=True):
    """POST /v1/completions."""

    prompt: str | Annotated[list[str], Meta(min_length=1, max_length=MAX_INPUTS)]

    suffix: Any = None
    echo: Any = None
    best_of: Any = None

    @property
    def output_limit(self) -> int | None:
        """Return the most tokens the client wants."""
        return self.max_tokens

    @property
    def prompts(self) -> Sequence[str]:
        """Return the prompts as a list."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt


class EmbeddingRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """POST /v1/embeddings."""

    model: Annotated[str, Meta(min_length=1, max_length=256)]
    input: str | Annotated[list[str], Meta(min_length=1, max_length=MAX_INPUTS)]
    encoding_format: Literal["float", "base64"] | None = None
    user: Short | None = None

    dimensions: Any = None

    @property
    def inputs(self) -> Sequence[str]:
        """Return the inputs as a list."""
        return [self.input] if isinstance(self.input, str) else self.input


_ASKS_NOTHING: Final[dict[str, tuple[Any, ...]]] = {
    "logprobs": (None, False, 0),
    "logit_bias": (None, {}),
    "metadata": (None, {}),
    "store": (None, False),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "parallel_tool_calls": (None, True, False),
    "functions": (None, []),
    "function_call": (None, "none"),
    "top_logprobs": (None, 0),
    "modalities": (None, ["text"]),
    "service_tier": (None, "auto", "default"),
    "suffix": (None, ""),
    "echo": (None, False),
    "best_of": (None, 1),
    "dimensions": (None,),
}

Request = TypeVar("Request", ChatRequest, CompletionRequest, EmbeddingRequest)


class _LooseChat(ChatRequest, forbid_unknown_fields=False):
    pass


class _LooseCompletion(CompletionRequest, forbid_unknown_fields=False):
    pass


class _LooseEmbedding(EmbeddingRequest, forbid_unknown_fields=False):
    pass


_STRICT: Final[dict[type, msgspec.json.Decoder[Any]]] = {
    kind: msgspec.json.Decoder(kind) for kind in (ChatRequest, CompletionRequest, EmbeddingRequest)
}
_LOOSE: Final[dict[type, msgspec.json.Decoder[Any]]] = {
    ChatRequest: msgspec.json.Decoder(_LooseChat),
    CompletionRequest: msgspec.json.Decoder(_LooseCompletion),
    EmbeddingRequest: msgspec.json.Decoder(_LooseEmbedding),
}
_WHERE = re.compile(r" - at `\$\.?(?P<path>[^`]*)`\Z")
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<name>[^`]*)`")
_MISSING = re.compile(r"Object missing required field `(?P<name>[^`]*)`")


def parse(data: bytes, kind: type[Request], *, drop_extras: bool) -> Request:
    """Decode *data* as a request of *kind*; fields this device does not serve are refused, or dropped.

    Raises:
        ApiError: 400, naming the field.

    """
    try:
        request: Request = (_LOOSE if drop_extras else _STRICT)[kind].decode(data)
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from None
    except MALFORMED:
        raise bad_request("the body is not JSON in UTF-8") from None
    if not drop_extras:
        _refuse_extras(request)
    return request


def _refuse_extras(request: msgspec.Struct) -> None:
    for name, harmless in _ASKS_NOTHING.items():
        value = getattr(request, name, None)
        if value is not None and not any(type(value) is type(item) and value == item for item in harmless):
            raise unsupported(name)


def _invalid(message: str) -> ApiError:
    """Turn msgspec's words into an error that names the field; it never holds more than one short value."""
    where = _WHERE.search(message)
    path = where["path"] if where else ""
    text = message[: where.start()] if where else message
    if found := _UNKNOWN.search(text) or _MISSING.search(text):
        name = ".".join(part for part in (path, found["name"]) if part)[:128]
        if "unknown" in text:
            return unsupported(name, f"unknown field '{name}'")
        return bad_request(f"missing field '{name}'", param=name)
    if path == "messages" and "length" in text:
        return bad_request(f"'messages' must hold 1 to {MAX_MESSAGES} messages", param="messages")
    return bad_request(f"'{path[:128] or 'body'}': {text[:1].lower()}{text[1:200]}", param=path[:128] or None)


def look_for_messages(start: bytes) -> ApiError | None:
    """Say, from the first bytes of a body that is too large, whether it has too many messages."""
    many = start.count(b'"role"') > MAX_MESSAGES
    return bad_request(f"'messages' must hold 1 to {MAX_MESSAGES} messages", param="messages") if many else None


def choices(wanted: int | None, policy: AppPolicy) -> int:
    """Return how many answers to make.

    Raises:
        ApiError: 400 more than the policy allows (a policy that drops extras lowers it instead).

    """
    count = wanted or 1
    if count <= policy.max_choices:
        return count
    if policy.extra_fields == "drop":
        return policy.max_choices
    raise unsupported("n", f"this app may ask for {policy.max_choices} answers in one request, not {count}")


def numbered(params: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """Return *params* for each of *count* choices: with a seed, each choice gets its own."""
    if "seed" not in params:
        return [params] * count
    return [{**params, "seed": (params["seed"] + index) & _ENGINE_SEEDS} for index in range(count)]


def format_name(wanted: ResponseFormat | None) -> str:
    """Return the `type` of a response format."""
    if isinstance(wanted, SchemaFormat):
        return "json_schema"
    return "json_object" if isinstance(wanted, ObjectFormat) else "text"


def engine_format(wanted: ResponseFormat) -> dict[str, Any] | None:
    """Return a response format as the engine takes it; None for plain text."""
    if isinstance(wanted, SchemaFormat):
        return {"type": "json_schema", "json_schema": {"schema": wanted.json_schema.schema}}
    return {"type": "json_object"} if isinstance(wanted, ObjectFormat) else None


def form(wanted: ResponseFormat | None) -> Form | None:
    """Return the form an answer must have; None for plain text."""
    if isinstance(wanted, SchemaFormat):
        return Form(wanted.json_schema.schema)
    return Form() if isinstance(wanted, ObjectFormat) else None


def check_schema(schema: dict[str, Any]) -> None:
    """Bound a client's JSON schema: it becomes a grammar in the engine.

    Raises:
        ApiError: 400 or 413.

    """
    if len(msgspec.json.encode(schema)) > MAX_SCHEMA_BYTES:
        raise too_large(f"the JSON schema is larger than {MAX_SCHEMA_BYTES} bytes", param="response_format")
    if _depth(schema, MAX_SCHEMA_DEPTH) > MAX_SCHEMA_DEPTH:
        raise bad_request(f"the JSON schema is nested deeper than {MAX_SCHEMA_DEPTH}", param="response_format")


def _depth(value: Any, left: int) -> int:
    if left < 0 or not isinstance(value, dict | list):
        return 0 if left >= 0 else 1
    items = value.values() if isinstance(value, dict) else value
    return 1 + max((_depth(item, left - 1) for item in items), default=0)
