"""Whether an answer is the JSON that was asked for."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.guard.conformity import Form

PLACE = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 9},
        "seats": {"type": "integer", "minimum": 1, "exclusiveMaximum": 100},
        "kind": {"enum": ["bar", "cafe", None]},
        "tags": {"type": "array", "items": {"$ref": "#/$defs/tag"}, "maxItems": 2},
        "pair": {"prefixItems": [{"type": "string"}], "items": {"type": "number"}},
        "open": {"anyOf": [{"type": "boolean"}, {"const": "late"}]},
    },
    "required": ["name"],
    "additionalProperties": False,
    "$defs": {"tag": {"type": "string", "not": {"const": "x"}}},
}


@pytest.mark.parametrize(
    ("value", "fits"),
    [
        ({"name": "Saffron"}, True),
        ({"name": ""}, False),
        ({"name": "far too long"}, False),
        ({}, False),
        ([], False),
        ({"name": "a", "other": 1}, False),
        ({"name": "a", "seats": 99}, True),
        ({"name": "a", "seats": 100}, False),
        ({"name": "a", "seats": 2.5}, False),
        ({"name": "a", "seats": True}, False),
        ({"name": "a", "kind": None}, True),
        ({"name": "a", "kind": "pub"}, False),
        ({"name": "a", "tags": ["y"]}, True),
        ({"name": "a", "tags": ["x"]}, False),
        ({"name": "a", "tags": ["y", "y", "y"]}, False),
        ({"name": "a", "pair": ["a", 1, 2]}, True),
        ({"name": "a", "pair": ["a", "b"]}, False),
        ({"name": "a", "open": "late"}, True),
        ({"name": "a", "open": "early"}, False),
    ],
)
def test_a_value_fits_or_does_not(value, fits):
    assert Form(PLACE).fits(json.dumps(value)) is fits


@pytest.mark.parametrize("text", ["", "{", "{} {}", "nonsense", '{"name": "a"} trailing', "[" * 5000])
def test_text_that_is_not_one_value_does_not_fit(text):
    assert not Form(PLACE).fits(text)
    assert not Form({}).fits(text)


def test_an_object_was_asked_for():
    assert Form().fits(' {"a": 1}\n')
    assert not Form().fits("[1]")


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"$ref": "#/nowhere"},
        {"$ref": "https://example.org/schema"},
        {"type": "unknown"},
        {"type": 3},
        {"required": 3},
        {"anyOf": 3},
        {"properties": 3, "required": []},
        {"anyOf": [{"$ref": "#"}, {"$ref": "#"}]},
    ],
)
def test_a_schema_that_cannot_be_followed_is_not_met(schema):
    assert not Form(schema).fits('{"a": 1}')


def test_true_is_not_one():
    assert not Form({"enum": [1]}).fits("true")
    assert not Form({"const": 0}).fits("false")
    assert not Form({"oneOf": [{"type": "number"}, {"type": "integer"}]}).fits("1")


LEAVES = st.none() | st.booleans() | st.integers() | st.text(max_size=5)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(VALUES, st.text(max_size=30))
def test_any_schema_gets_an_answer(schema, text):
    root = schema if isinstance(schema, dict) else {"items": schema}
    assert Form(root).fits(text) in {True, False}
    assert Form(root).fits("[1]") in {True, False}
