"""The `[guard]` table of an app's policy file: its rows, its defaults, and what each data class adds to them."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from casemate.formats import takes
from casemate.formats.takes import Row, Takes

VALUE_LIMIT: Final = 256
ALLOWED_LIMIT: Final = 64
PATTERN_LEAST: Final = 4
STARS_LIMIT: Final = 4
ACTIONS: Final = ("allow", "flag", "redact", "block")
DECISIONS: Final = ("allow", "flag", "block")
ABUSE: Final = ("mild", "strong", "severe")
BESIDE: Final = ("system_prompt", "secrets")

_ENTITY = re.compile(r"(?:\*|(?:pii|secret|link):(?:\*|[A-Za-z0-9][A-Za-z0-9_.-]{0,62}))\Z")
_HOST = re.compile(r"(?=.{1,253}\Z)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*\Z")

Actions = Mapping[str, str]


class Allowed(NamedTuple):
    """What is never a finding: an exact text, or a pattern in which `*` is any text. *until* is its last day."""

    text: str
    is_pattern: bool = False
    until: dt.date | None = None


def _table(**actions: str) -> Actions:
    return MappingProxyType(actions)


ENTITIES: Final[Mapping[str, tuple[Actions, Actions]]] = MappingProxyType(
    {
        "public": (_table(**{"*": "redact"}), _table(**{"*": "redact"})),
        "internal": (_table(**{"*": "flag"}), _table(**{"*": "redact"})),
        "sensitive": (_table(**{"*": "flag", "secret:*": "redact"}), _table(**{"*": "redact"})),
    }
)
"""What happens to values coming in and going out, by data class, where the file does not say otherwise."""

ABUSE_DEFAULT: Final = _table(mild="allow", strong="flag", severe="flag")


@dataclass(frozen=True, slots=True)
class GuardRules:
    """What the guard does for this app, in plain words (the gateway builds its `GuardPolicy`)."""

    mode: str = "enforce"
    injection: str = "block"
    documents: str = "block"
    hidden_text: str = "block"
    secret_requests: str = "block"  # noqa: S105 - an action, not a secret
    beside_documents: tuple[str, ...] = ()
    canary_leak: str = "block"
    system_overlap: str = "block"
    schema: str = "flag"
    input: Actions = field(default_factory=lambda: ENTITIES["internal"][0])
    output: Actions = field(default_factory=lambda: ENTITIES["internal"][1])
    abuse: Actions = field(default_factory=lambda: ABUSE_DEFAULT)
    terms: Actions = field(default_factory=_table)
    allow_values: tuple[Allowed, ...] = ()
    link_hosts: tuple[str, ...] = ()


def make_rules(values: Mapping[str, Any], data_class: str) -> GuardRules:
    """Return the rules of a file's checked *values* over the defaults of *data_class*."""
    incoming, outgoing = ENTITIES[data_class]
    return GuardRules(
        **{
            **values,
            "input": MappingProxyType({**incoming, **values.get("input", {})}),
            "output": MappingProxyType({**outgoing, **values.get("output", {})}),
            "abuse": MappingProxyType({**ABUSE_DEFAULT, **values.get("abuse", {})}),
        }
    )


def is_host(name: str) -> bool:
    """Return whether *name* is a host name in lower case."""
    return bool(_HOST.match(name))


def _allowed() -> Takes:
    def check(value: Any) -> tuple[Allowed, ...]:
        if not isinstance(value, list) or len(value) > ALLOWED_LIMIT:
            raise ValueError
        return tuple(map(_allowed_entry, value))

    return Takes(
        f'a list of 0 to {ALLOWED_LIMIT} of "text", {{ value = "text", until = 2030-12-31 }} or '
        '{ pattern = "*@example.org", until = 2030-12-31 }',
        check,
    )


def _allowed_entry(entry: Any) -> Allowed:
    """Check one entry. A pattern must expire: it forgives what nobody has seen yet."""
    if isinstance(entry, str):
        entry = {"value": entry}
    if not isinstance(entry, dict) or not set(entry) <= {"value", "pattern", "until"}:
        raise ValueError
    until = entry.get("until")
    if until is not None and type(until) is not dt.date:
        raise ValueError
    if "pattern" in entry:
        pattern = entry["pattern"]
        good = isinstance(pattern, str) and "value" not in entry and until is not None and _is_pattern(pattern)
        if not good:
            raise ValueError
        return Allowed(pattern, is_pattern=True, until=until)
    value = entry.get("value")
    if not isinstance(value, str) or not 0 < len(value) <= VALUE_LIMIT:
        raise ValueError
    return Allowed(value, until=until)


def _is_pattern(pattern: str) -> bool:
    bare = pattern.replace("*", "")
    return len(bare) >= PATTERN_LEAST and len(pattern) <= VALUE_LIMIT and 0 < pattern.count("*") <= STARS_LIMIT


def _is_term(text: str) -> bool:
    return len(text) <= VALUE_LIMIT and any(character.isalnum() for character in text)


_ENTITIES_WORDS: Final = 'entity, like "pii:EMAIL_ADDRESS", "secret:*", "link:*" or "*",'

GUARD_ROWS: Final = (
    Row("guard.mode", takes.choice("enforce", "monitor"), "monitor: judge, journal and report, but let pass"),
    Row("guard.injection", takes.choice(*DECISIONS), "a prompt injection in the client's text"),
    Row("guard.documents", takes.choice(*DECISIONS), "a prompt injection inside a document"),
    Row("guard.hidden_text", takes.choice(*DECISIONS), "characters that carry text a person cannot see"),
    Row(
        "guard.secret_requests",
        takes.choice(*DECISIONS),
        "a request that seems to ask for secrets or the system prompt, when the app has a system prompt",
    ),
    Row(
        "guard.beside_documents",
        takes.list_of("of " + ", ".join(BESIDE), lambda name: name in BESIDE),
        "what may stand in one context with documents: without `system_prompt` a request with documents is refused "
        "where there is one; without `secrets` every secret is replaced before the model sees it",
    ),
    Row("guard.canary_leak", takes.choice(*ACTIONS), "an answer that shows the system prompt's random mark"),
    Row("guard.system_overlap", takes.choice(*ACTIONS), "an answer that repeats the system prompt"),
    Row(
        "guard.schema",
        takes.choice(*DECISIONS),
        "an answer that is not the JSON that was asked for; `block` holds answers back until they are whole",
    ),
    Row(
        "guard.input",
        takes.actions(_ENTITIES_WORDS, lambda name: bool(_ENTITY.match(name)), *ACTIONS),
        "what to do with personal data and secrets coming in",
    ),
    Row(
        "guard.output",
        takes.actions(_ENTITIES_WORDS, lambda name: bool(_ENTITY.match(name)), *ACTIONS),
        "what to do with personal data, secrets and links going out",
    ),
    Row(
        "guard.abuse",
        takes.actions("of mild, strong, severe", lambda name: name in ABUSE, *ACTIONS),
        "swearing (mild), insults (strong), threats and calls to self-harm (severe) in an answer",
    ),
    Row(
        "guard.terms",
        takes.actions("words", _is_term, *ACTIONS),
        "words and phrases of your own to look for in answers, in any case and spacing",
    ),
    Row("guard.allow_values", _allowed(), "what is never a finding; a pattern must have a last day"),
    Row(
        "guard.link_hosts",
        takes.list_of("host names", is_host),
        "hosts that may stand in links and images of an answer",
    ),
)
