"""The guard on the way in: bounded, and closed whatever happens to it."""

from __future__ import annotations

import asyncio
import datetime as dt
import threading
import time

import pytest

from casemate.device.gateway import screening as module
from casemate.device.gateway.refusals import ApiError
from casemate.device.gateway.screening import INLINE_CHARS, Piece, Screening
from casemate.device.gateway.shield import Conversation, guard_policy
from casemate.formats.policy import AppPolicy, parse_policy
from casemate.guard import Action, Channel, Judged, Redaction, Verdict

TODAY = dt.date(2026, 5, 1)


class FakeShield:
    def __init__(self, answer=None):
        self.answer = answer or (lambda text, channel: Verdict(Action.ALLOW))
        self.threads = set()
        self.seen = []
        self.refused = ""

    def check(self, text, channel, conversation, over_budget):
        self.threads.add(threading.current_thread().name)
        self.seen.append((text, channel))
        shown = "" if self.refused else text.replace("secret", "[X]")
        return Judged(self.answer(text, channel), Redaction(shown, refused=self.refused))


def block(*reasons):
    return lambda text, channel: Verdict(Action.BLOCK, 1.0, reasons) if "bad" in text else Verdict(Action.ALLOW)


def screen(shield, *texts, policy=None, budget=2.0):
    async def main():
        screening = Screening(shield, time.monotonic, budget=budget)
        pieces = [Piece(text, Channel.USER, f"messages[{index}]") for index, text in enumerate(texts)]
        try:
            return await screening.screen(pieces, Conversation(guard_policy(policy or AppPolicy(), TODAY), b"k" * 32))
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
            await screening.screen(pieces, Conversation(guard_policy(AppPolicy(), TODAY), b"k" * 32))
        release.set()
        screening.close()
        return caught.value

    assert asyncio.run(main()).status == 503


def test_the_first_request_waits_for_the_tables_and_is_not_charged_for_them():
    built = threading.Event()

    class Slow(FakeShield):
        def open_answer(self, conversation):
            built.wait(10)
            return self

        def feed(self, text):
            return None

        def flush(self):
            return None

    async def main():
        screening = Screening(Slow(), time.monotonic)
        screening.warm_up()
        judging = asyncio.ensure_future(
            screening.screen(
                [Piece("hi", Channel.USER, "m")], Conversation(guard_policy(AppPolicy(), TODAY), b"k" * 32)
            )
        )
        await asyncio.sleep(0.05)
        assert not judging.done()
        built.set()
        screened = await judging
        screening.close()
        return screened

    assert asyncio.run(main()).texts == ("hi",)


def test_a_policy_may_have_values_replaced_before_the_model_sees_them():
    policy = parse_policy(b"[guard]\ninput = { 'secret:*' = 'redact' }", source="x")
    shield = FakeShield(lambda text, channel: Verdict(Action.FLAG, 0.0, ("secret:password",)))
    assert screen(shield, "my secret", policy=policy).texts == ("my [X]",)
    assert screen(shield, "my secret").texts == ("my secret",)


@pytest.mark.parametrize("refused", ["over-budget", "guard-error"])
@pytest.mark.parametrize("mode", ["enforce", "monitor"])
def test_a_redaction_that_fails_or_takes_too_long_is_a_refusal(refused, mode):
    policy = parse_policy(f"[guard]\nmode = '{mode}'\ninput = {{ 'secret:*' = 'redact' }}".encode(), source="x")
    shield = FakeShield(lambda text, channel: Verdict(Action.FLAG, 0.0, ("secret:password",)))
    shield.refused = refused
    screened = screen(shield, "my secret", policy=policy)
    if mode == "monitor":  # it replaces nothing, so it does not ask
        assert screened.texts == ("my secret",)
    else:
        assert screened.texts == ()
        assert screened.refusal(enforce=True).code in {"content_filter", "guard_unavailable"}


def test_a_guard_that_raises_is_a_guard_that_is_down():
    policy = parse_policy(b"[guard]\ninput = { 'secret:*' = 'redact' }", source="x")
    shield = FakeShield()
    shield.check = None
    assert screen(shield, "my secret", policy=policy).refusal(enforce=True).status == 503


def test_beside_documents_secrets_are_replaced_unless_the_policy_lets_them_stand():
    rules = b"[guard]\ninput = { 'secret:jwt' = 'flag', 'secret:password' = 'block', 'pii:*' = 'allow' }"
    policy = parse_policy(rules, source="x")
    beside = guard_policy(policy, TODAY, documents=True)
    assert beside.entity_action(Channel.USER, "secret:jwt") is Action.REDACT
    assert beside.entity_action(Channel.USER, "secret:other") is Action.REDACT
    assert beside.entity_action(Channel.USER, "secret:password") is Action.BLOCK
    assert beside.entity_action(Channel.USER, "pii:X") is Action.ALLOW
    assert guard_policy(policy, TODAY).entity_action(Channel.USER, "secret:jwt") is Action.FLAG
    allowed = parse_policy(rules + b"\nbeside_documents = ['secrets']", source="x")
    assert guard_policy(allowed, TODAY, documents=True).entity_action(Channel.USER, "secret:jwt") is Action.FLAG


def test_an_allowed_value_lasts_until_its_last_day():
    entries = "'a@x.org', {value = 'b@x.org', until = 2026-05-01}, {pattern = '*@y.org', until = 2026-04-30}"
    policy = parse_policy(f"[guard]\nallow_values = [{entries}]".encode(), source="x")
    today, later = (guard_policy(policy, day).allow_values for day in (TODAY, TODAY + dt.timedelta(1)))
    assert [value in today for value in ("a@x.org", "B@x.org", "c@y.org")] == [True, True, False]
    assert [value in later for value in ("a@x.org", "b@x.org", "c@y.org")] == [True, False, False]
    assert "c@y.org" in guard_policy(policy, TODAY - dt.timedelta(1)).allow_values


def test_a_monitor_changes_no_answer():
    policy = guard_policy(monitor(), TODAY)
    assert policy.entity_action(Channel.OUTPUT, "pii:EMAIL_ADDRESS") is Action.FLAG
    assert policy.system_overlap is Action.FLAG
    assert policy.canary_leak is Action.FLAG
    assert Action.BLOCK not in {*policy.abuse.values(), *policy.terms.values(), *policy.input_entities.values()}
    assert guard_policy(AppPolicy(), TODAY).entity_action(Channel.OUTPUT, "secret:jwt") is Action.REDACT
