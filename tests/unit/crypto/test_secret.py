"""A Secret does not show itself, does not travel, and is gone after wipe."""

from __future__ import annotations

import copy
import pickle

import pytest

from casemate.crypto.secret import Secret


def test_it_never_shows_its_bytes():
    secret = Secret(b"hunter2hunter2")
    assert repr(secret) == str(secret) == f"{secret}" == "***"
    with pytest.raises(TypeError):
        pickle.dumps(secret)
    with pytest.raises(TypeError):
        copy.deepcopy(secret)


def test_wipe_zeroes_the_live_view_and_ends_access():
    secret = Secret(b"abcd")
    view = secret.view()
    assert bytes(view) == b"abcd"
    secret.wipe()
    assert bytes(view) == bytes(4)
    with pytest.raises(ValueError, match="wiped"):
        secret.reveal()
    secret.wipe()


def test_context_and_comparison():
    with Secret(b"k" * 32) as one, Secret(b"k" * 32) as same, Secret.random(32) as other:
        assert len(one) == 32
        assert one.matches(same)
        assert not one.matches(other)
    with pytest.raises(ValueError, match="wiped"):
        one.view()


def test_an_empty_secret_is_refused():
    with pytest.raises(ValueError, match="empty"):
        Secret(b"")
