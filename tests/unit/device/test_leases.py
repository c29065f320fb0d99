"""When a gated model may run: asking, renewing, ending; with a fleet and a TPM that say what a test tells them."""

from __future__ import annotations

import asyncio
import dataclasses
import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.device.leases import LONGEST_PAUSE, LeaseOver, Leases, next_question
from casemate.errors import NotFoundError, OperationError, PolicyDeniedError

DENIED, OK = 403, 200
times = st.floats(0, 1e6)
spreads = st.floats(-1, 1)


@dataclasses.dataclass
class Keeper:
    """A fleet and a TPM. *left*: seconds of the lease that the TPM keeps; None: it keeps none."""

    answer: tuple[int, str] = (OK, "")
    lease: float = 100.0
    left: float | None = None
    asked: int = 0
    events: list[Any] = dataclasses.field(default_factory=list)

    async def ask_key(self, model: str) -> tuple[int, str]:
        assert model == "m"
        self.asked += 1
        if self.answer[0] == OK:
            self.left = self.lease
        return self.answer

    async def use_key(self, model: str, into: int) -> float:
        if self.left is None:
            raise NotFoundError(f"no lease on {model}")
        if self.left <= 0:
            raise PolicyDeniedError("over")
        os.write(into, b"key")
        return self.left

    def record(self, *events: Any) -> None:
        self.events += events

    def spawn(self, work: Any) -> Any:
        return asyncio.ensure_future(work)


class Clock:
    at = 1000.0

    def wall(self) -> float:
        return 1.8e9 + self.at

    def monotonic(self) -> float:
        return self.at

    def __call__(self) -> float:
        return self.at


def made(keeper: Keeper) -> tuple[Leases, Clock]:
    clock = Clock()
    return Leases(keeper, clock, clock), clock


@given(times, st.floats(1, 1e6), spreads)
def test_a_running_lease_is_renewed_around_its_half_and_never_after_its_end(since, length, spread):
    delay = next_question(since, since, since + length, 0, spread)
    assert 0.44 * length <= delay <= 0.56 * length


@given(times, st.floats(0.1, 1e6), st.integers(1, 1000), spreads)
def test_after_a_failure_it_is_asked_again_before_the_end(now, left, failures, spread):
    delay = next_question(now, now, now + left, failures, spread)
    assert delay <= max(1.0, left / 3)


@given(times, st.integers(0, 10_000), spreads)
def test_without_a_lease_pauses_grow_to_a_minute(now, failures, spread):
    assert 0 <= next_question(now, 0, 0, failures, spread) <= 1.25 * LONGEST_PAUSE


def test_a_lease_that_the_tpm_kept_is_used_without_asking():
    keeper = Keeper(left=50.0)

    async def scenario() -> None:
        leases, clock = made(keeper)
        await asyncio.wait_for(leases.ready("m"), 5)
        assert keeper.asked == 0
        assert leases.runs("m")
        clock.at += 51
        assert not leases.runs("m")
        await asyncio.wait_for(leases.over("m"), 5)

    asyncio.run(scenario())


def test_a_model_waits_says_why_and_runs_once_the_fleet_grants():
    keeper = Keeper(answer=(DENIED, "the newest attestation is not affirming"))

    async def scenario() -> None:
        leases, _ = made(keeper)
        waiting = asyncio.ensure_future(leases.ready("m"))
        done, _ = await asyncio.wait([waiting], timeout=0.1)
        assert (len(done), keeper.asked) == (0, 1)
        told = leases.told("m")
        assert "not affirming" in told
        assert "fleet model grants" in told
        keeper.answer = (OK, "")
        await leases.obtain("m")
        await asyncio.wait_for(waiting, 5)
        assert leases.status("m")["runs"]
        assert [event["metadata"]["event_code"] for event in keeper.events] == ["key_leased"]
        leases.forget()
        assert not leases.runs("m")

    asyncio.run(scenario())


def test_a_refusal_of_the_tpm_ends_what_we_thought_ran():
    keeper = Keeper()

    async def scenario() -> None:
        leases, _ = made(keeper)
        await leases.obtain("m")
        async with leases.key("m") as reader:
            assert os.read(reader, 10) == b"key"
        keeper.left = 0.0
        with pytest.raises(LeaseOver):
            async with leases.key("m"):
                pass
        assert not leases.runs("m")

    asyncio.run(scenario())


@pytest.mark.parametrize(("answer", "kind"), [((0, "silence"), OperationError), ((DENIED, "no"), PolicyDeniedError)])
def test_who_asks_once_hears_why_not(answer, kind):
    async def scenario() -> None:
        leases, _ = made(Keeper(answer=answer))
        with pytest.raises(kind, match=answer[1]):
            await leases.obtain("m")

    asyncio.run(scenario())


def test_a_lease_that_was_forgotten_is_asked_for_again_long_before_its_half():
    """After a quarantine nobody waits half a day for the question that was planned before it."""
    keeper = Keeper(lease=86_400.0)

    async def scenario() -> None:
        leases, _ = made(keeper)
        await asyncio.wait_for(leases.ready("m"), 5)
        asked, keeper.left, keeper.answer = keeper.asked, None, (0, "this device is quarantined")
        leases.forget()
        async with asyncio.timeout(5):
            while keeper.asked == asked:  # noqa: ASYNC110 - the keeper has no event for it
                await asyncio.sleep(0.01)
        assert keeper.asked == asked + 1
        keeper.answer = (OK, "")
        leases.ask_again()
        await asyncio.wait_for(leases.ready("m"), 5)

    asyncio.run(scenario())
