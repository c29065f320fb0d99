from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.guard.placeholders import PLACEHOLDER, Placeholders, kind_name

KEY = bytes(range(32))


def test_one_value_keeps_one_name():
    names = Placeholders(KEY)
    assert names.for_value("pii:EMAIL_ADDRESS", "bob@x.org") == names.for_value("pii:EMAIL_ADDRESS", "Bob@X.org")
    assert names.for_value("pii:CREDIT_CARD", "4111 1111 1111 1111") == names.for_value(
        "pii:CREDIT_CARD", "4111-1111-1111-1111"
    )


def test_other_values_kinds_and_keys_get_other_names():
    names = Placeholders(KEY)
    seen = {
        names.for_value("pii:EMAIL_ADDRESS", "bob@x.org"),
        names.for_value("pii:EMAIL_ADDRESS", "eve@x.org"),
        names.for_value("secret:jwt", "bob@x.org"),
        Placeholders(bytes(32)).for_value("pii:EMAIL_ADDRESS", "bob@x.org"),
    }
    assert len(seen) == 4


@given(st.text(max_size=20), st.text(max_size=50))
def test_every_placeholder_is_recognised_as_one(kind, value):
    assert PLACEHOLDER.fullmatch(Placeholders(KEY).for_value(kind, value))


def test_the_kind_is_readable():
    assert kind_name("secret:github-pat") == "GITHUB_PAT"
    assert kind_name("secret:1password-secret-key") == "X1PASSWORD_SECRET_KEY"


def test_a_short_key_is_refused():
    with pytest.raises(ValueError, match="at least 16"):
        Placeholders(b"short")


def test_the_key_does_not_show():
    assert "***" in repr(Placeholders(KEY))
