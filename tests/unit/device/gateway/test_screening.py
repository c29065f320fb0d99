"""The guard on the way in: bounded, and closed whatever happens to it."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from casemate.device.gateway import screening as module
from casemate.device.gateway.refusals import ApiError
from casemate.device.gateway.screening import INLINE_CHARS, Piece, Screening
from casemate.device.gateway.shield import Conversation, guard_policy
from casemate.formats.policy import AppPolicy, parse_policy
from casemate.guard import Action, Channel, Verdict


class FakeShield:
    def __init__(self, answer=None):
        self.answer = answer or (lambda text, channel: Verdict(Action.ALLOW))
        self.threads = set()
        self.seen = []

    def check(self, text, channel, policy, over_budget):
        self.threads.add(threading.current_thread().name)
        self.seen.append((text, channel))
        return self.answer(text, channel)

    def redact(self, text, channel, conversation, over_budget):
        return text.replace("secret", "[X]")


def block(*reasons):
    return lambda text, channel: Verdict(Action.BLOCK, 1.0, reasons) if "bad" in text else Verdict(Action.ALLOW)


def screen(shield, *texts, policy=None, budget=2.0):
    async def main():
        screening = Screening(shield, time.monotonic, budget=budget)
        pieces = [Piece(text, Channel.USER, f"messages[{index}]") for index, text in enumerate(texts)]
        try:
            return await screening.screen(pieces, Conversation(guard_policy(policy or AppPolicy()), b"k" * 32))
        finally:
            screening.close()

    return asyncio.run(main())


def monitor():
    return parse_policy(b"[guard]\nmode = 'monitor'", source="x")


def test_small_requests_are_judged_at_once_and_large_ones_in_a_worker():
    small, large = FakeShield(), FakeShield()
    screen(small, "hi")
    screen(large, "x" * (INLINE_CHARS + 1))
    assert small.threads == {threading.main_thread().name}
    assert all(name.startswith("guard") for name in large.threads)


def test_what_is_blocked_is_named_by_field_and_reason_and_the_rest_is_not_judged():
    shield = FakeShield(block("injection:override"))
    error = screen(shield, "fine", "bad", "never seen").refusal(enforce=True)
    assert (error.status, error.code, error.param) == (400, "content_filter", "messages[1]")
    assert error.reasons == ("injection:override",)
    assert [text for text, _ in shield.seen] == ["fine", "bad"]


def test_a_monitor_lets_pass_and_reports():
    screened = screen(FakeShield(block("injection:override")), "bad", "good", policy=monitor())
    assert screened.refusal(enforce=False) is None
    assert screened.texts == ("bad", "good")
    assert screened.flagged == {"messages[0]": ["injection:override"]}


@pytest.mark.parametrize("enforce", [True, False])
def test_a_guard_that_fails_refuses_in_every_mode(enforce):
    def explode(text, channel):
        raise RuntimeError(text)

    policy = AppPolicy() if enforce else monitor()
    for shield in (FakeShield(explode), FakeShield(block("guard-error"))):
        error = screen(shield, "bad", policy=policy).refusal(enforce=enforce)
        assert (error.status, error.code) == (503, "guard_unavailable")


@pytest.mark.parametrize("enforce", [True, False])
def test_a_spent_budget_refuses_in_every_mode(enforce):
    error = screen(FakeShield(), "a", "b", policy=AppPolicy() if enforce else monitor(), budget=-1.0).refusal(
        enforce=enforce
    )
    assert (error.status, error.reasons) == (400, ("over-budget",))


def test_a_guard_that_hangs_is_a_guard_that_is_down(monkeypatch):
    monkeypatch.setattr(module, "HANG_SECONDS", 0.05)
    release = threading.Event()

    def hang(text, channel):
        release.wait(5)
        return Verdict(Action.ALLOW)

    async def main():
        screening = Screening(FakeShield(hang), time.monotonic, budget=0.05)
        pieces = [Piece("x" * 5000, Channel.USER, "m")]
        with pytest.raises(ApiError) as caught:
            await screening.screen(pieces, Conversation(guard_policy(AppPolicy()), b"k" * 32))
        release.set()
        screening.close()
        return caught.value

    assert asyncio.run(main()).status == 503


def test_a_policy_may_have_values_replaced_before_the_model_sees_them():
    policy = parse_policy(b"[guard]\ninput = { 'secret:*' = 'redact' }", source="x")
    shield = FakeShield(lambda text, channel: Verdict(Action.FLAG, 0.0, ("secret:password",)))
    assert screen(shield, "my secret", policy=policy).texts == ("my [X]",)
    assert screen(shield, "my secret").texts == ("my secret",)


def test_a_monitor_changes_no_answer():
    policy = guard_policy(monitor())
    assert policy.entity_action(Channel.OUTPUT, "pii:EMAIL_ADDRESS") is Action.FLAG
    assert policy.system_overlap is Action.FLAG
    assert guard_policy(AppPolicy()).entity_action(Channel.OUTPUT, "secret:jwt") is Action.REDACT
