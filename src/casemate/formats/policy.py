"""An app's policy file: TOML bytes -> a checked `AppPolicy`. One row per setting; unknown keys are errors.

Every row names its key, its default, what it takes in words, and a check. The rows are the whole truth: the parser, the
error messages and `docs/reference/policy.md` come from them. Pure: the caller reads the file and names it for messages.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from casemate.errors import ConfigError

SCHEMA: Final = 1
POLICY_LIMIT: Final = 64 * 1024
SYSTEM_PROMPT_LIMIT: Final = 16 * 1024
ENTITIES_LIMIT: Final = 256
VALUE_LIMIT: Final = 256
DATA_CLASSES: Final = ("public", "internal", "sensitive")
RESPONSE_FORMATS: Final = ("text", "json_object", "json_schema")
ACTIONS: Final = ("allow", "flag", "redact", "block")
DECISIONS: Final = ("allow", "flag", "block")

_ENTITY = re.compile(r"\*|(?:pii|secret):(?:\*|[A-Za-z0-9][A-Za-z0-9_.-]{0,62})\Z")
_HOST = re.compile(r"(?=.{1,253}\Z)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*\Z")
_MODEL = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}\Z")


@dataclass(frozen=True, slots=True)
class GuardRules:
    """The `[guard]` table: what the guard does for this app, in plain words (the gateway builds its `GuardPolicy`)."""

    mode: str = "enforce"
    injection: str = "block"
    documents: str = "block"
    hidden_text: str = "block"
    system_overlap: str = "block"
    input: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({"*": "flag"}))
    output: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({"*": "redact"}))
    allow_values: tuple[str, ...] = ()
    link_hosts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AppPolicy:
    """What one app may do. The defaults are the safe ones; counts of 0 mean no limit."""

    models: tuple[str, ...] = ("*",)
    system_prompt: str = ""
    client_system: bool = False
    canary: bool = True
    max_input_tokens: int = 32_768
    max_output_tokens: int = 1024
    max_choices: int = 1
    concurrent_requests: int = 8
    requests_per_minute: int = 120
    requests_per_day: int = 0
    tokens_per_minute: int = 0
    tokens_per_day: int = 0
    data_class: str = "internal"
    response_formats: tuple[str, ...] = RESPONSE_FORMATS
    extra_fields: str = "refuse"
    hosts: tuple[str, ...] = ()
    guard: GuardRules = field(default_factory=GuardRules)

    def allows_model(self, name: str) -> bool:
        """Whether this app may use the model called *name*."""
        return "*" in self.models or name in self.models


Check = Callable[[Any], Any]


class Takes(NamedTuple):
    """What a setting takes: in words, and as a check that returns the value or raises ValueError."""

    words: str
    check: Check


class Row(NamedTuple):
    """One setting: its dotted key, what it takes, and what it is for."""

    key: str
    takes: Takes
    help: str


def _choice(*allowed: str) -> Takes:
    def check(value: Any) -> str:
        if value not in allowed or not isinstance(value, str):
            raise ValueError
        return value

    return Takes("one of " + ", ".join(f'"{name}"' for name in allowed), check)


def _boolean() -> Takes:
    def check(value: Any) -> bool:
        if not isinstance(value, bool):
            raise ValueError  # noqa: TRY004 - every check says no in the same way
        return value

    return Takes("true or false", check)


def _whole(low: int, high: int, *, note: str = "") -> Takes:
    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError
        return value

    return Takes(f"a whole number from {low} to {high}{note}", check)


def _text(limit: int) -> Takes:
    def check(value: Any) -> str:
        if not isinstance(value, str) or len(value.encode("utf-8", "surrogatepass")) > limit or "\0" in value:
            raise ValueError
        return value

    return Takes(f"text of at most {limit} bytes", check)


def _list(what: str, item: Callable[[str], bool], *, least: int = 0, most: int = 64) -> Takes:
    def check(value: Any) -> tuple[str, ...]:
        if not isinstance(value, list) or not least <= len(value) <= most:
            raise ValueError
        if not all(isinstance(entry, str) and item(entry) for entry in value):
            raise ValueError
        return tuple(value)

    return Takes(f"a list of {least} to {most} {what}", check)


def _entities(default: str, *actions: str) -> Takes:
    def check(value: Any) -> Mapping[str, str]:
        if not isinstance(value, dict) or len(value) > ENTITIES_LIMIT:
            raise ValueError
        if not all(_ENTITY.match(name) and action in actions for name, action in value.items()):
            raise ValueError
        return MappingProxyType({"*": default, **value})

    words = ", ".join(f'"{name}"' for name in actions)
    return Takes(
        f'entity = action, with entities like "pii:EMAIL_ADDRESS", "secret:*" or "*" and actions {words}', check
    )


_COUNT_NOTE: Final = "; 0 means no limit"

ROWS: Final = (
    Row("schema", _whole(1, 1), "version of this file"),
    Row(
        "models",
        _list('model names, or "*"', lambda name: name == "*" or bool(_MODEL.match(name)), least=1),
        "models this app may use; the others do not exist for it",
    ),
    Row(
        "system_prompt",
        _text(SYSTEM_PROMPT_LIMIT),
        "put first in every chat, held on the device, never sent to the app",
    ),
    Row(
        "client_system",
        _boolean(),
        "keep the client's system messages as system text (false: they count as user text)",
    ),
    Row(
        "canary",
        _boolean(),
        "hide a random mark in the system prompt; an answer that shows it is stopped and journaled",
    ),
    Row("max_input_tokens", _whole(1, 1_000_000), "largest input, estimated at 4 bytes a token"),
    Row(
        "max_output_tokens",
        _whole(1, 1_000_000),
        "cap on what one answer may be long; a larger `max_tokens` is lowered to it",
    ),
    Row("max_choices", _whole(1, 8), "most answers one request may ask for (`n`, or prompts in a list)"),
    Row("concurrent_requests", _whole(1, 1024), "requests of this app in work at one time"),
    Row(
        "requests_per_minute",
        _whole(0, 1_000_000, note=_COUNT_NOTE),
        "token bucket: bursts up to this, refilled evenly",
    ),
    Row("requests_per_day", _whole(0, 10**9, note=_COUNT_NOTE), "in any 24 hours since the gateway started"),
    Row(
        "tokens_per_minute",
        _whole(0, 10**9, note=_COUNT_NOTE),
        "input and output tokens, reserved before, settled after",
    ),
    Row("tokens_per_day", _whole(0, 10**12, note=_COUNT_NOTE), "in any 24 hours since the gateway started"),
    Row("data_class", _choice(*DATA_CLASSES), "what this app handles; sensitive never leaves the device"),
    Row(
        "response_formats",
        _list("of " + ", ".join(RESPONSE_FORMATS), lambda name: name in RESPONSE_FORMATS, least=1),
        "allowed `response_format` types; a client's JSON schema becomes a grammar in the engine",
    ),
    Row("extra_fields", _choice("refuse", "drop"), "fields of a request that this device does not support"),
    Row(
        "hosts",
        _list("host names", lambda name: bool(_HOST.match(name))),
        "names beside loopback under which this app may be called",
    ),
    Row("guard.mode", _choice("enforce", "monitor"), "monitor: judge, journal and report, but let pass"),
    Row("guard.injection", _choice(*DECISIONS), "a prompt injection in the client's text"),
    Row("guard.documents", _choice(*DECISIONS), "a prompt injection inside a document"),
    Row("guard.hidden_text", _choice(*DECISIONS), "characters that carry text a person cannot see"),
    Row("guard.system_overlap", _choice(*DECISIONS), "an answer that repeats the system prompt"),
    Row("guard.input", _entities("flag", *ACTIONS), "what to do with personal data and secrets coming in"),
    Row(
        "guard.output",
        _entities("redact", *ACTIONS),
        "what to do with personal data and secrets going out",
    ),
    Row(
        "guard.allow_values",
        _list("texts", lambda text: 0 < len(text) <= VALUE_LIMIT),
        "exact values that are never a finding",
    ),
    Row(
        "guard.link_hosts",
        _list("host names", lambda name: bool(_HOST.match(name))),
        "hosts that may stand in links and images of an answer",
    ),
)
_BY_KEY: Final = {row.key: row for row in ROWS}


def parse_policy(data: bytes, *, source: str) -> AppPolicy:
    """Check the bytes of a policy file; *source* names it in messages.

    Raises:
        ConfigError: not TOML, an unknown key, or a value its row does not take. Names file, key and what is allowed.

    """
    values = {key: _checked(key, value, source) for key, value in _settings(_load(data, source), source).items()}
    values.pop("schema", None)
    guard = {key.partition(".")[2]: value for key, value in values.items() if key.startswith("guard.")}
    plain = {key: value for key, value in values.items() if "." not in key}
    return AppPolicy(**plain, guard=GuardRules(**guard))


def _load(data: bytes, source: str) -> dict[str, Any]:
    if len(data) > POLICY_LIMIT:
        raise ConfigError(f"{source}: larger than {POLICY_LIMIT} bytes", hint="a policy is a page of text")
    try:
        return tomllib.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{source}: not UTF-8 text", hint="save the file as UTF-8") from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        reason = str(error) if isinstance(error, tomllib.TOMLDecodeError) else "nested too deeply"
        raise ConfigError(
            f"{source}: not TOML: {reason}", hint="see docs/reference/policy.md for an example"
        ) from error


def _settings(table: dict[str, Any], source: str) -> dict[str, Any]:
    """Flatten the one table that has keys of its own: `guard`."""
    guard = table.pop("guard", {})
    if not isinstance(guard, dict):
        raise ConfigError(f"{source}: `guard` must be a table", hint="write [guard] on a line of its own")
    return {**table, **{f"guard.{key}": value for key, value in guard.items()}}


def _checked(key: str, value: Any, source: str) -> Any:
    row = _BY_KEY.get(key)
    if row is None:
        near = difflib.get_close_matches(key, _BY_KEY, n=1)
        known = f"did you mean `{near[0]}`?" if near else "known keys: " + ", ".join(_BY_KEY)
        raise ConfigError(f"{source}: unknown key `{key}`", hint=known)
    try:
        return row.takes.check(value)
    except ValueError as error:
        raise ConfigError(f"{source}: `{key}` must be {row.takes.words}", hint=row.help) from error
