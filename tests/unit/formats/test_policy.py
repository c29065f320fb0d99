"""A policy file is checked whole: every wrong key or value is named, with what would be right."""

from __future__ import annotations

import dataclasses
import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.errors import ConfigError
from casemate.formats import guard_rules, policy
from casemate.formats.guard_rules import ENTITIES, GuardRules
from casemate.formats.policy import ROWS, AppPolicy, parse_policy
from casemate.guard import Action

FULL = """
schema = 1
models = ["saffron", "other-7b"]
system_prompt = "You plan dinners."
client_system = true
canary = false
max_input_tokens = 4096
max_output_tokens = 256
max_choices = 2
concurrent_requests = 3
requests_per_minute = 30
requests_per_day = 1000
tokens_per_minute = 20000
tokens_per_day = 500000
data_class = "sensitive"
response_formats = ["text"]
extra_fields = "drop"
hosts = ["chat.example.org"]

[guard]
mode = "monitor"
injection = "flag"
documents = "allow"
hidden_text = "flag"
secret_requests = "flag"
beside_documents = ["secrets"]
canary_leak = "redact"
system_overlap = "redact"
schema = "block"
abuse = { strong = "block" }
terms = { "project falcon" = "redact" }
allow_values = ["help@example.org", { pattern = "*@example.net", until = 2030-12-31 }]
link_hosts = ["example.org"]
input = { "pii:US_SSN" = "block" }
output = { "pii:*" = "block", "secret:jwt" = "redact" }
"""


def test_a_full_policy_is_taken_whole():
    parsed = parse_policy(FULL.encode(), source="a.toml")
    assert parsed.models == ("saffron", "other-7b")
    assert parsed.client_system
    assert not parsed.canary
    assert parsed.tokens_per_day == 500_000
    assert parsed.guard.mode == "monitor"
    assert parsed.guard.input == {"*": "flag", "secret:*": "redact", "pii:US_SSN": "block"}
    assert parsed.guard.abuse == {"mild": "allow", "strong": "block", "severe": "flag"}
    assert parsed.guard.allow_values[1] == ("*@example.net", True, dt.date(2030, 12, 31))
    assert parsed.guard.output == {"*": "redact", "pii:*": "block", "secret:jwt": "redact"}


def test_an_empty_file_is_the_safe_defaults():
    assert parse_policy(b"", source="a.toml") == AppPolicy()
    assert AppPolicy().guard.output == {"*": "redact"}
    assert AppPolicy().guard.injection == "block"
    assert not AppPolicy().client_system


def test_what_happens_to_values_depends_on_the_data_class():
    def rules(name):
        return parse_policy(f'data_class = "{name}"'.encode(), source="x").guard

    assert rules("public").input == {"*": "redact"}
    assert rules("internal").input == {"*": "flag"}
    assert rules("sensitive").input == {"*": "flag", "secret:*": "redact"}
    assert {*ENTITIES} == {*policy.DATA_CLASSES}


def test_every_field_has_a_row_and_every_row_a_field():
    fields = {field.name for field in dataclasses.fields(AppPolicy)} - {"guard"}
    fields |= {f"guard.{field.name}" for field in dataclasses.fields(GuardRules)}
    assert {row.key for row in ROWS} == fields | {"schema"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("modles = ['x']", ["unknown key `modles`", "did you mean `models`"]),
        ("[guard]\nmod = 'enforce'", ["unknown key `guard.mod`", "guard.mode"]),
        ("[gaurd]\nmode = 'enforce'", ["unknown key `gaurd`", "known keys"]),
        ("guard = 3", ["`guard` must be a table"]),
        ("data_class = 'secret'", ["`data_class`", '"public", "internal", "sensitive"']),
        ("max_output_tokens = 0", ["`max_output_tokens`", "from 1 to"]),
        ("max_output_tokens = true", ["`max_output_tokens`", "whole number"]),
        ("requests_per_minute = -1", ["`requests_per_minute`", "0 means no limit"]),
        ("models = []", ["`models`", "list of 1 to"]),
        ("models = ['../etc']", ["`models`"]),
        ("models = 'saffron'", ["`models`"]),
        ("client_system = 1", ["`client_system`", "true or false"]),
        ("hosts = ['http://x']", ["`hosts`"]),
        ("hosts = ['*']", ["`hosts`"]),
        ("schema = 2", ["`schema`"]),
        ("system_prompt = " + repr("x" * 20_000), ["`system_prompt`", "at most"]),
        ("[guard]\ninput = { 'EMAIL' = 'block' }", ["`guard.input`", "pii:EMAIL_ADDRESS"]),
        ("[guard]\ninput = { '*secret' = 'block' }", ["`guard.input`", "pii:EMAIL_ADDRESS"]),
        ("[guard]\noutput = { '*:*' = 'block' }", ["`guard.output`"]),
        ("[guard]\noutput = { 'pii:*x' = 'block' }", ["`guard.output`"]),
        ("[guard]\noutput = { 'pii:*' = 'delete' }", ["`guard.output`", '"redact"']),
        ("[guard]\noutput = { 'pii:*' = ['x'] }", ["`guard.output`"]),
        ("[guard]\ninjection = 'redact'", ["`guard.injection`", '"allow", "flag", "block"']),
        ("[guard]\nabuse = { rude = 'block' }", ["`guard.abuse`", "mild, strong, severe"]),
        ("[guard]\nterms = { '--' = 'block' }", ["`guard.terms`"]),
        ("[guard]\nbeside_documents = ['keys']", ["`guard.beside_documents`", "system_prompt"]),
        ("[guard]\nallow_values = [{ pattern = '*@x.org' }]", ["`guard.allow_values`", "until"]),
        ("[guard]\nallow_values = [{ pattern = '*', until = 2030-01-01 }]", ["`guard.allow_values`"]),
        ("[guard]\nallow_values = [{ pattern = 'a*b*c*d*e*f', until = 2030-01-01 }]", ["`guard.allow_values`"]),
        ("[guard]\nallow_values = [{ value = 'x', until = 'soon' }]", ["`guard.allow_values`"]),
        ("[guard]\nallow_values = [{ value = 'x', until = 2030-01-01T10:00:00Z }]", ["`guard.allow_values`"]),
        ("[guard]\nallow_values = [3]", ["`guard.allow_values`"]),
        ("a = [", ["not TOML"]),
        ("models = ['a']\nmodels = ['b']", ["not TOML"]),
    ],
)
def test_every_mistake_names_file_key_and_what_is_allowed(text, words):
    with pytest.raises(ConfigError) as caught:
        parse_policy(text.encode(), source="kitchen.toml")
    told = f"{caught.value.message} {caught.value.hint}"
    assert caught.value.message.startswith("kitchen.toml: ")
    assert all(word in told for word in words), told


def test_a_file_that_is_not_text_or_too_large_is_refused():
    for data in (b"\xff\xfe", b"#" * (policy.POLICY_LIMIT + 1), b"a=" + b"[" * 5000):
        with pytest.raises(ConfigError):
            parse_policy(data, source="x.toml")


def test_the_actions_are_those_of_the_guard():
    assert {*guard_rules.ACTIONS} == {action.value for action in Action}
    assert {*guard_rules.DECISIONS} <= {action.value for action in Action}


@given(st.binary(max_size=400))
def test_any_bytes_are_a_policy_or_a_config_error(data):
    try:
        assert isinstance(parse_policy(data, source="x"), AppPolicy)
    except ConfigError as error:
        assert error.message.startswith("x: ")


VALUES = st.recursive(
    st.one_of(
        st.booleans(),
        st.integers(-(2**63), 2**63 - 1),
        st.sampled_from(["enforce", "block", "*", "pii:*", "x", "", "text", "public"]),
    ),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)


def toml(value):
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return repr(value) if isinstance(value, int) else f'"{value}"'


@given(st.sampled_from([row.key for row in ROWS]), VALUES)
def test_any_value_for_any_key_is_taken_or_named(key, value):
    table, _, name = key.rpartition(".")
    text = (f"[{table}]\n" if table else "") + f"{name} = {toml(value)}\n"
    try:
        parse_policy(text.encode(), source="x")
    except ConfigError as error:
        assert f"`{key}`" in error.message
