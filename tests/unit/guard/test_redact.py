from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.guard.allow import AllowList
from casemate.guard.placeholders import Placeholders
from casemate.guard.redact import redact_text
from casemate.guard.verdict import Action, Channel, GuardPolicy

NAMES = Placeholders(bytes(32))
REDACT = GuardPolicy(output_entities={"*": Action.REDACT})
PEM = "-----BEGIN RSA PRIVATE KEY-----\n" + "MIIEow8A/b+c" * 20 + "\n-----END RSA PRIVATE KEY-----"


def redact(text, policy=REDACT):
    return redact_text(text, policy, Channel.OUTPUT, NAMES)


def kinds(text):
    return {text[span.start : span.end]: span.type for span in redact(text).spans}


@pytest.mark.parametrize(
    ("text", "value", "kind"),
    [
        ("write to bob.lee+x@mail.example.co.uk today", "bob.lee+x@mail.example.co.uk", "pii:EMAIL_ADDRESS"),
        ("my card 4111 1111 1111 1111 please", "4111 1111 1111 1111", "pii:CREDIT_CARD"),
        ("IBAN GB29 NWBK 6016 1331 9268 19.", "GB29 NWBK 6016 1331 9268 19", "pii:IBAN_CODE"),
        ("call +49 (0)30 1234567 now", "+49 (0)30 1234567", "pii:PHONE_NUMBER"),
        ("host 192.0.2.17 is down", "192.0.2.17", "pii:IP_ADDRESS"),
        ("host 2001:db8::8a2e:370:7334 is down", "2001:db8::8a2e:370:7334", "pii:IP_ADDRESS"),
        ("postgres://app:s3cr3t@db:5432/x", "s3cr3t", "secret:url-credentials"),
        ("token ghp_" + "a1B2" * 9, "ghp_" + "a1B2" * 9, "secret:github-pat"),
        ("key:\n" + PEM + "\nthanks", PEM, "secret:private-key"),
    ],
)
def test_a_value_is_found_and_only_it(text, value, kind):
    assert kinds(text) == {value: kind}
    assert value not in redact(text).text


@pytest.mark.parametrize(
    "text",
    [
        "Order 4111111111111112 was split",
        "The file starts with -----BEGIN PRIVATE KEY----- and ends with -----END PRIVATE KEY-----.",
        "-----BEGIN PUBLIC KEY-----\n" + "MIIEow8A" * 20 + "\n-----END PUBLIC KEY-----",
        "IBAN GB29 NWBK 6016 1331 9268 18 is mistyped",
    ],
)
def test_what_is_no_value_stays(text):
    assert redact(text).text == text


def test_spans_are_offsets_of_the_original():
    text = "a\u200b b\u200bo\u200bb@x\uff0eorg \u00e9"
    [span] = redact(text).spans
    assert text[span.start : span.end] == "b\u200bo\u200bb@x\uff0eorg"


@pytest.mark.parametrize("action", [Action.FLAG, Action.ALLOW])
def test_what_the_policy_lets_pass_passes(action):
    policy = GuardPolicy(output_entities={"*": Action.REDACT, "pii:EMAIL_ADDRESS": action})
    done = redact("bob@x.org and 192.0.2.17", policy)
    assert done.text.startswith("bob@x.org and [IP_ADDRESS_")
    assert len(done.spans) == (2 if action is Action.FLAG else 1)


def test_an_allowed_value_is_no_finding():
    policy = GuardPolicy(output_entities={"*": Action.REDACT}, allow_values=AllowList.of(("help@x.org",), ()))
    assert redact("help@x.org, bob@x.org", policy).text.startswith("help@x.org, [EMAIL_ADDRESS_")


def test_json_stays_json():
    value = {"mail": "bob@x.org", "note": "line\nbob@x.org \u00e9", "list": ["4111111111111111", PEM]}
    for ascii_only in (True, False):
        done = redact(json.dumps(value, ensure_ascii=ascii_only))
        read = json.loads(done.text)
        assert read["mail"].startswith("[EMAIL_ADDRESS_")
        assert read["note"].startswith("line\n[EMAIL_ADDRESS_")
        assert [item.rpartition("_")[0] for item in read["list"]] == ["[CREDIT_CARD", "[PRIVATE_KEY"]


@given(st.text(max_size=300))
def test_no_text_breaks_it_and_a_second_pass_finds_nothing(text):
    once = redact(text).text
    assert redact(once).text == once


def test_a_key_block_without_end_lets_nothing_after_it_out():
    text = "see -----BEGIN RSA PRIVATE KEY-----\n" + "MIIEow8A/b+c\n" * 3000 + "tail"
    done = redact(text)
    assert done.text.startswith("see [PRIVATE_KEY_")
    assert done.text.endswith("]")
    assert done.spans[-1].end == len(text)
