"""Whether floors are the newest that a TPM's counter has seen; the counter itself is in the attack tests."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.device.update.counted import MOST_AHEAD, require_held
from casemate.device.update.floors import Floors, raised
from casemate.errors import UntrustedDataError

numbers = st.integers(0, 1 << 40)


@given(st.none() | numbers, numbers, st.none() | numbers)
def test_only_floors_that_the_counter_has_not_passed_are_held(base, commits, shown):
    floors = Floors(commits=commits, base=base)
    wanted = None if base is None else base + commits
    if wanted is None and shown is None:
        assert require_held(floors, shown) == 0
    elif wanted is not None and shown is not None and 0 <= wanted - shown <= MOST_AHEAD:
        assert shown + require_held(floors, shown) == wanted
    else:
        with pytest.raises(UntrustedDataError) as caught:
            require_held(floors, shown)
        assert caught.value.check == "floors-old"


@given(st.dictionaries(st.sampled_from(["model/a", "app/b"]), st.integers(0, 9)), numbers, numbers)
def test_a_commit_is_counted_when_a_security_version_rises_and_never_else(wanted, base, commits):
    old = Floors(security={"model/a": 5}, base=base, commits=commits)
    new = raised(old, Floors(security=wanted, clock=7, versions={"timestamp": 3}))
    rose = any(version > old.security.get(name, -1) for name, version in wanted.items())
    assert (new.commits, new.base) == (commits + rose, base)
