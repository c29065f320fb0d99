"""An app's policy file: TOML bytes -> a checked `AppPolicy`. One row per setting; unknown keys are errors.

Every row names its key, its default, what it takes in words, and a check. The rows are the whole truth: the parser, the
error messages and `docs/reference/policy.md` come from them. Pure: the caller reads the file and names it for messages.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from dataclasses import dataclass, field
from typing import Any, Final

from casemate.errors import ConfigError
from casemate.formats import takes
from casemate.formats.guard_rules import GUARD_ROWS, GuardRules, is_host, make_rules
from casemate.formats.takes import Row

SCHEMA: Final = 1
POLICY_LIMIT: Final = 64 * 1024
SYSTEM_PROMPT_LIMIT: Final = 16 * 1024
DATA_CLASSES: Final = ("public", "internal", "sensitive")
RESPONSE_FORMATS: Final = ("text", "json_object", "json_schema")

_MODEL = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}\Z")


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


_COUNT_NOTE: Final = "; 0 means no limit"

ROWS: Final = (
    Row("schema", takes.whole(1, 1), "version of this file"),
    Row(
        "models",
        takes.list_of('model names, or "*"', lambda name: name == "*" or bool(_MODEL.match(name)), least=1),
        "models this app may use; the others do not exist for it",
    ),
    Row(
        "system_prompt",
        takes.text(SYSTEM_PROMPT_LIMIT),
        "put first in every chat, held on the device, never sent to the app",
    ),
    Row(
        "client_system",
        takes.boolean(),
        "keep the client's system messages as system text (false: they count as user text)",
    ),
    Row(
        "canary",
        takes.boolean(),
        "hide a random mark in the system prompt; an answer that shows it is stopped and journaled",
    ),
    Row("max_input_tokens", takes.whole(1, 1_000_000), "largest input, estimated at 4 bytes a token"),
    Row(
        "max_output_tokens",
        takes.whole(1, 1_000_000),
        "cap on what one answer may be long; a larger `max_tokens` is lowered to it",
    ),
    Row("max_choices", takes.whole(1, 8), "most answers one request may ask for (`n`, or prompts in a list)"),
    Row("concurrent_requests", takes.whole(1, 1024), "requests of this app in work at one time"),
    Row(
        "requests_per_minute",
        takes.whole(0, 1_000_000, note=_COUNT_NOTE),
        "token bucket: bursts up to this, refilled evenly",
    ),
    Row("requests_per_day", takes.whole(0, 10**9, note=_COUNT_NOTE), "in any 24 hours since the gateway started"),
    Row(
        "tokens_per_minute",
        takes.whole(0, 10**9, note=_COUNT_NOTE),
        "input and output tokens, reserved before, settled after",
    ),
    Row("tokens_per_day", takes.whole(0, 10**12, note=_COUNT_NOTE), "in any 24 hours since the gateway started"),
    Row("data_class", takes.choice(*DATA_CLASSES), "what this app handles; sensitive never leaves the device"),
    Row(
        "response_formats",
        takes.list_of("of " + ", ".join(RESPONSE_FORMATS), lambda name: name in RESPONSE_FORMATS, least=1),
        "allowed `response_format` types; a client's JSON schema becomes a grammar in the engine",
    ),
    Row("extra_fields", takes.choice("refuse", "drop"), "fields of a request that this device does not support"),
    Row(
        "hosts",
        takes.list_of("host names", is_host),
        "names beside loopback under which this app may be called",
    ),
    *GUARD_ROWS,
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
    return AppPolicy(**plain, guard=make_rules(guard, plain.get("data_class", AppPolicy().data_class)))


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
