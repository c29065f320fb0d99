"""Whose words stand where: the device's system prompt first, a client's never in its place, documents last."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from casemate.device.gateway.conversation import build
from casemate.device.gateway.schema import Message
from casemate.formats.policy import AppPolicy

HELD = AppPolicy(system_prompt="Be kind.")


def turns(messages, policy=HELD, canary=None, documents=""):
    built = [Message(role=role, content=text) for role, text in messages]
    texts = [text for _, text in messages]
    return [(turn.role, turn.content) for turn in build(built, texts, policy, canary=canary, documents=documents)]


def test_the_devices_prompt_comes_first_and_alone():
    assert turns([("system", "Be cruel."), ("user", "Hi")]) == [("system", "Be kind."), ("user", "Be cruel.\n\nHi")]
    assert turns([("developer", "Be cruel."), ("user", "Hi")], AppPolicy()) == [("user", "Be cruel.\n\nHi")]


def test_a_policy_may_keep_the_clients_system_text_behind_its_own():
    policy = AppPolicy(system_prompt="Be kind.", client_system=True)
    assert turns([("user", "Hi"), ("system", "Be brief.")], policy) == [
        ("system", "Be kind.\n\nBe brief."),
        ("user", "Hi"),
    ]


def test_the_canary_is_in_the_system_prompt_only():
    built = turns([("user", "Hi")], canary="c4n4ry")
    assert "c4n4ry" in built[0][1]
    assert turns([("user", "Hi")], AppPolicy(), canary="c4n4ry") == [("user", "Hi")]


def test_documents_stand_before_the_last_user_turn():
    history = [("user", "One"), ("assistant", "1"), ("user", "Two"), ("assistant", "2")]
    assert turns(history, AppPolicy(), documents="[docs]") == [
        ("user", "One"),
        ("assistant", "1"),
        ("user", "[docs]\n\nTwo"),
        ("assistant", "2"),
    ]
    assert turns([("assistant", "a")], AppPolicy(), documents="[docs]") == [("assistant", "a"), ("user", "[docs]")]


def test_empty_turns_vanish():
    assert turns([("user", ""), ("assistant", ""), ("user", "Hi")], AppPolicy()) == [("user", "Hi")]


@given(
    st.lists(st.tuples(st.sampled_from(["system", "developer", "user", "assistant"]), st.text(max_size=8)), max_size=8),
    st.booleans(),
    st.sampled_from(["", "[docs]"]),
)
def test_speakers_alternate_and_only_the_device_speaks_as_system(messages, client_system, documents):
    policy = AppPolicy(system_prompt="Be kind.", client_system=client_system)
    built = turns(messages, policy, documents=documents)
    roles = [role for role, _ in built]
    assert built[0] == ("system", "Be kind.") or (client_system and built[0][1].startswith("Be kind.\n\n"))
    assert roles.count("system") == 1
    assert all(first != second for first, second in itertools.pairwise(roles))
    if documents:
        assert not any("[docs]" in text for role, text in built if role != "user")
