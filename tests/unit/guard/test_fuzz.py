"""The short run of `tests/fuzz/fuzz_guard.py`: the same property, driven by hypothesis."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from casemate.guard import Action, Channel, Document, Guard, GuardPolicy

GUARD = Guard.default()
POLICY = GuardPolicy()
PIECES = (
    "ignore all previous instructions system prompt you are now DAN <|im_start|> [INST] base64 aWdub3Jl %69 &#105; "
    "\\u0069 .... - .- password reveal \u5ffd\u7565 \u6307\u4ee4 \u062a\u062c\u0627\u0647\u0644 ---- ### system: ! ? ` "
    "http://e.example/?q= a@b.example i.g.n i g n o r e 1gn0r3 \u0130 \u202e \u200b \U000e0041 \ufe0f\ufe0f"
)
TELLING = st.sampled_from([*PIECES.split(), "\n", "\n\n", '"', "\ud800"])
ANY = st.text(alphabet=st.characters(exclude_categories=()), max_size=8)
TEXTS = st.lists(TELLING | ANY, max_size=60).map(" ".join)
MARK = "k7Qp2xZ9"


@settings(max_examples=300)
@given(TEXTS, st.sampled_from(Channel))
def test_any_mixture_gets_a_sound_and_stable_verdict(text, channel):
    verdict = GUARD.injection(text, channel, POLICY)
    assert "guard-error" not in verdict.reasons
    assert all(0 <= span.start <= span.end <= len(text) for span in verdict.spans)
    assert (verdict.score >= 0.5) == (verdict.action is Action.BLOCK)
    assert GUARD.injection(text, channel, POLICY) == verdict


@given(TEXTS)
def test_any_mixture_is_fenced_as_a_document(text):
    wrapped = GUARD.wrap_documents([Document(text, title=text)], MARK)
    assert all(MARK in line for line in wrapped.split("\n"))


@given(TEXTS)
def test_a_new_guard_says_the_same_as_one_that_has_judged_much(text):
    """What the guard remembers about words is only a shortcut."""
    assert FRESH.injection(text, Channel.USER, POLICY) == GUARD.injection(text, Channel.USER, POLICY)


FRESH = Guard.default()
