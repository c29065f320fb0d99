"""What an operator allows: exactly that, in any of its spellings, in time that grows with the value."""

from __future__ import annotations

import fnmatch

from hypothesis import given
from hypothesis import strategies as st

from casemate.guard.allow import AllowList

LETTERS = st.text("ab.", max_size=12)


def test_a_value_is_allowed_in_the_spellings_detection_reads():
    allowed = AllowList.of(("help@example.org",), ())
    assert "Help@Example.org" in allowed
    assert "help\uff20example.org" in allowed
    assert "xhelp@example.org" not in allowed
    assert 3 not in allowed


def test_a_pattern_is_anchored_at_both_ends():
    allowed = AllowList.of((), ("*@example.org", "INV-*-2026"))
    assert "a.b@example.org" in allowed
    assert "a@example.org.evil.net" not in allowed
    assert "inv-77-2026" in allowed
    assert "INV-2026" not in allowed


@given(LETTERS, st.lists(LETTERS, min_size=2, max_size=4))
def test_patterns_mean_what_a_shell_means_by_a_star(value, parts):
    pattern = "*".join(parts)
    assert (value in AllowList.of((), (pattern,))) == fnmatch.fnmatchcase(value, pattern)


def test_a_hostile_value_costs_little():
    allowed = AllowList.of((), ("*a*a*a*b",))
    assert "a" * 200_000 not in allowed
