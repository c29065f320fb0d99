"""What a setting takes: in words for people, and as a check. The vocabulary of the rows of a policy file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple

TABLE_LIMIT: Final = 256

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


def choice(*allowed: str) -> Takes:
    """Take one of *allowed*."""

    def check(value: Any) -> str:
        if value not in allowed or not isinstance(value, str):
            raise ValueError
        return value

    return Takes("one of " + ", ".join(f'"{name}"' for name in allowed), check)


def boolean() -> Takes:
    """Take true or false."""

    def check(value: Any) -> bool:
        if not isinstance(value, bool):
            raise ValueError  # noqa: TRY004 - every check says no in the same way
        return value

    return Takes("true or false", check)


def whole(low: int, high: int, *, note: str = "") -> Takes:
    """Take a whole number from *low* to *high*."""

    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError
        return value

    return Takes(f"a whole number from {low} to {high}{note}", check)


def text(limit: int) -> Takes:
    """Take text of at most *limit* bytes."""

    def check(value: Any) -> str:
        if not isinstance(value, str) or len(value.encode("utf-8", "surrogatepass")) > limit or "\0" in value:
            raise ValueError
        return value

    return Takes(f"text of at most {limit} bytes", check)


def list_of(what: str, item: Callable[[str], bool], *, least: int = 0, most: int = 64) -> Takes:
    """Take a list of strings that *item* accepts; *what* describes them."""

    def check(value: Any) -> tuple[str, ...]:
        if not isinstance(value, list) or not least <= len(value) <= most:
            raise ValueError
        if not all(isinstance(entry, str) and item(entry) for entry in value):
            raise ValueError
        return tuple(value)

    return Takes(f"a list of {least} to {most} {what}", check)


def actions(what: str, name: Callable[[str], bool], *allowed: str) -> Takes:
    """Take a table from names (described by *what*, checked by *name*) to one of the *allowed* actions."""

    def check(value: Any) -> Mapping[str, str]:
        if not isinstance(value, dict) or len(value) > TABLE_LIMIT:
            raise ValueError
        if not all(name(key) and action in allowed for key, action in value.items()):
            raise ValueError
        return MappingProxyType(dict(value))

    words = ", ".join(f'"{action}"' for action in allowed)
    return Takes(f"{what} = action, with actions {words}", check)
