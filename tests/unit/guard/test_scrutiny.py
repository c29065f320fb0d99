"""The second look: abuse, an operator's own words, and leaks a policy wants replaced or noted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.guard import Action, Guard, GuardPolicy
from casemate.guard.placeholders import Placeholders

GUARD = Guard.default()
NAMES = Placeholders(bytes(32))
CANARY = "3f9a1c7e5b2d8460"
PROMPT = (
    "You are the assistant of the restaurant Saffron. Never tell anyone the supplier of the truffles, which is the "
    "small farm of Bellomonte near the lake, and never offer more than twelve percent discount to groups of eight."
)
HARSH = {"mild": Action.ALLOW, "strong": Action.FLAG, "severe": Action.BLOCK}


def run(text, size=5, **policy):
    """Return (what came out, kinds of findings, why it stopped)."""
    answer = GUARD.answer(GuardPolicy(**policy), NAMES, (CANARY,), PROMPT)
    out, kinds = "", []
    for at in [*range(0, len(text), size), None]:
        emission = answer.flush() if at is None else answer.feed(text[at : at + size])
        out += emission.text
        kinds += [span.type for span in emission.spans]
        if emission.stop:
            return out, kinds, emission.stop
    return out, kinds, None


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Honestly, you are such a pathetic idiot.", "abuse:strong"),
        ("You\u2019re a waste of space, honestly.", "abuse:strong"),
        ("You\u2019re a loser, honestly.", "abuse:strong"),
        ("Just go away and kill yourself.", "abuse:severe"),
        ("I will find and kill you tonight.", "abuse:severe"),
        ("He shouted that his boss was an idiot.", None),
        ("The villain will kill the king in act two.", None),
        ("If you kill the process, the log stays.", None),
        ("What a damn good soup.", None),
    ],
)
def test_abuse_is_graded_and_needs_a_direction(text, kind):
    actions = {"mild": Action.ALLOW, "strong": Action.FLAG, "severe": Action.FLAG}
    out, kinds, stop = run(text, abuse=actions)
    assert (out, stop) == (text, None)
    assert kinds == ([kind] if kind else [])


def test_each_severity_has_its_own_action():
    assert run("You are an idiot. Anyway, kill yourself now.", abuse=HARSH) == (
        "You are an idiot. Anyway, ",
        ["abuse:strong"],
        "block:abuse:severe",
    )
    assert run("You are an idiot, Sir.", abuse={"strong": Action.REDACT})[0] == "[ABUSE], Sir."


@pytest.mark.parametrize(
    ("action", "out", "kinds", "stop"),
    [
        (Action.REDACT, "About [TERM], soon.", ["term:listed"], None),
        (Action.FLAG, "About Project  Falcon, soon.", ["term:noted"], None),
        (Action.BLOCK, "About ", [], "block:term:listed"),
        (Action.ALLOW, "About Project  Falcon, soon.", [], None),
    ],
)
def test_an_operators_words(action, out, kinds, stop):
    assert run("About Project  Falcon, soon.", terms={"project falcon": action}) == (out, kinds, stop)


@pytest.mark.parametrize("action", [Action.BLOCK, Action.REDACT, Action.FLAG, Action.ALLOW])
@pytest.mark.parametrize("leak", [CANARY, PROMPT], ids=["canary", "prompt"])
def test_a_leak_is_stopped_replaced_noted_or_let_pass(leak, action):
    name = "canary" if leak is CANARY else "system-overlap"
    out, kinds, stop = run(f"Here: {leak} and so on.", canary_leak=action, system_overlap=action)
    assert stop == (name if action is Action.BLOCK else None)
    assert kinds.count(name) == (action in {Action.REDACT, Action.FLAG})
    assert (leak in out) == (action in {Action.FLAG, Action.ALLOW})
    if action is Action.REDACT:
        assert ("[MARK]" if leak is CANARY else "[SYSTEM_PROMPT]") in out
        assert "groups of eight" not in out


def test_values_are_still_taken_out_first():
    out, kinds, _ = run("Ask jane@example.org about falcon.", terms={"falcon": Action.REDACT})
    assert "jane" not in out
    assert out.endswith("[TERM].")
    assert kinds == ["pii:EMAIL_ADDRESS", "term:listed"]


PARTS = st.sampled_from(
    ["project ", "falcon ", "you are ", "an idiot", ". ", "hello ", "kill ", "yourself ", "a", "\n"]
)


@given(st.lists(PARTS, max_size=14), st.integers(1, 9))
def test_a_stream_becomes_what_the_whole_text_becomes(parts, size):
    policy = {"terms": {"project falcon": Action.REDACT}, "abuse": {"strong": Action.REDACT, "severe": Action.REDACT}}
    text = "".join(parts)
    assert run(text, size, **policy) == run(text, len(text) + 1, **policy)


def test_after_a_stop_nothing_comes():
    answer = GUARD.answer(GuardPolicy(terms={"falcon": Action.BLOCK}), NAMES)
    assert answer.feed("a falcon flies ").stop == "block:term:listed"
    assert (answer.feed("more"), answer.flush()) == (answer.flush(), answer.flush())
    assert answer.flush().text == ""
