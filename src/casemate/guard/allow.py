"""What an operator has said is never a finding: exact values, and patterns in which `*` is any text.

Patterns are matched by looking for their parts one after the other: time grows with the value's length, whatever the
pattern. Expiry is not decided here: the caller leaves out what has run out.
"""

from __future__ import annotations

from dataclasses import dataclass

from casemate.guard.fold import fold


@dataclass(frozen=True, slots=True)
class AllowList:
    """A set of values: `value in allowed`. Case and spelling are those detection reads."""

    exact: frozenset[str] = frozenset()
    patterns: tuple[tuple[str, ...], ...] = ()

    @classmethod
    def of(cls, exact: tuple[str, ...], patterns: tuple[str, ...]) -> AllowList:
        """Return the list of *exact* values and *patterns*."""
        split = tuple(tuple(_plain(part) for part in pattern.split("*")) for pattern in patterns)
        return cls(frozenset(map(_plain, exact)), split)

    def __contains__(self, value: object) -> bool:
        if not isinstance(value, str):
            return False
        plain = _plain(value)
        return plain in self.exact or any(_matches(plain, parts) for parts in self.patterns)


def _plain(text: str) -> str:
    return fold(text).text.casefold()


def _matches(value: str, parts: tuple[str, ...]) -> bool:
    """Return whether *value* is the *parts* in order with anything between them."""
    first, last = parts[0], parts[-1]
    if not value.startswith(first) or not value.endswith(last) or len(value) < len(first) + len(last):
        return False
    at, end = len(first), len(value) - len(last)
    for part in parts[1:-1]:
        found = value.find(part, at, end)
        if found < 0:
            return False
        at = found + len(part)
    return True
