"""Whether an answer is the JSON that was asked for.

Knows the keywords of JSON Schema 2020-12 that describe values (`type`, `enum`, `const`, `properties`, `required`,
`additionalProperties`, `items`, `prefixItems`, the limits of lengths and numbers, `anyOf`, `oneOf`, `allOf`, `not`, and
`$ref` inside the document). `pattern` and `format` are left to the engine's grammar: a client's regular expression
never runs here. Whatever is too deep, or refers to nothing, does not conform.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

DEPTH: Final = 64
STEPS: Final = 100_000

_TYPES: Final[Mapping[str, Callable[[Any], bool]]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "integer": lambda value: (
        (isinstance(value, int) or (isinstance(value, float) and value.is_integer())) and not isinstance(value, bool)
    ),
}
_BOUNDS: Final[Mapping[str, tuple[str, Callable[[Any, Any], bool]]]] = {
    "minLength": ("string", lambda value, bound: len(value) >= bound),
    "maxLength": ("string", lambda value, bound: len(value) <= bound),
    "minItems": ("array", lambda value, bound: len(value) >= bound),
    "maxItems": ("array", lambda value, bound: len(value) <= bound),
    "minProperties": ("object", lambda value, bound: len(value) >= bound),
    "maxProperties": ("object", lambda value, bound: len(value) <= bound),
    "minimum": ("number", lambda value, bound: value >= bound),
    "maximum": ("number", lambda value, bound: value <= bound),
    "exclusiveMinimum": ("number", lambda value, bound: value > bound),
    "exclusiveMaximum": ("number", lambda value, bound: value < bound),
    "required": ("object", lambda value, names: all(name in value for name in names)),
}


@dataclass(frozen=True, slots=True)
class Form:
    """What an answer was asked to be: a value that *schema* describes, or (None) any JSON object."""

    schema: Mapping[str, Any] | None = None

    def fits(self, text: str) -> bool:
        """Return whether *text* is one JSON value of this form."""
        try:
            value = msgspec.json.decode(text.strip())
            if self.schema is None:
                return isinstance(value, dict)
            return _Checker(self.schema).fits(value, self.schema, DEPTH)
        except (msgspec.DecodeError, ValueError, TypeError, AttributeError, LookupError, RecursionError):
            return False


class _Checker:
    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._left = STEPS

    def fits(self, value: Any, schema: Any, depth: int) -> bool:
        """Return whether *value* is what *schema* describes."""
        self._left -= 1
        if depth <= 0 or self._left <= 0:
            raise ValueError("a schema that leads too far")
        if isinstance(schema, bool):
            return schema
        if "$ref" in schema and not self.fits(value, self._resolve(schema["$ref"]), depth - 1):
            return False
        return _is_plainly(value, schema) and self._combined(value, schema, depth) and self._parts(value, schema, depth)

    def _combined(self, value: Any, schema: Mapping[str, Any], depth: int) -> bool:
        counts = {
            name: sum(self.fits(value, option, depth - 1) for option in schema[name])
            for name in ("anyOf", "oneOf", "allOf")
            if name in schema
        }
        if counts.get("anyOf", 1) < 1 or counts.get("oneOf", 1) != 1:
            return False
        if "allOf" in counts and counts["allOf"] != len(schema["allOf"]):
            return False
        return "not" not in schema or not self.fits(value, schema["not"], depth - 1)

    def _parts(self, value: Any, schema: Mapping[str, Any], depth: int) -> bool:
        if isinstance(value, dict):
            known = schema.get("properties", {})
            other = schema.get("additionalProperties", True)
            return all(self.fits(item, known.get(name, other), depth - 1) for name, item in value.items())
        if isinstance(value, list):
            first = schema.get("prefixItems", [])
            rest = schema.get("items", True)
            return all(
                self.fits(item, first[index] if index < len(first) else rest, depth - 1)
                for index, item in enumerate(value)
            )
        return True

    def _resolve(self, reference: str) -> Any:
        if not reference.startswith("#"):
            raise ValueError("a reference out of the schema")
        found: Any = self._root
        for name in reference[1:].split("/")[1:]:
            found = found[name.replace("~1", "/").replace("~0", "~")]
        return found


def _is_plainly(value: Any, schema: Mapping[str, Any]) -> bool:
    """Return whether *value* itself, without its parts, is what *schema* describes."""
    kinds = schema.get("type")
    if kinds is not None and not any(_TYPES[kind](value) for kind in ([kinds] if isinstance(kinds, str) else kinds)):
        return False
    if "enum" in schema and not any(_same(value, option) for option in schema["enum"]):
        return False
    if "const" in schema and not _same(value, schema["const"]):
        return False
    return all(
        fits(value, schema[name]) for name, (kind, fits) in _BOUNDS.items() if name in schema and _TYPES[kind](value)
    )


def _same(one: Any, other: Any) -> bool:
    """Return whether two JSON values are equal; true is not 1."""
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)
