"""A trial from arming to good, or back: what is decided is durable first, and what served before serves again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from casemate.device.admin import NoAnswerError
from casemate.device.update import desk as desks
from casemate.device.update import health, run, trial
from casemate.device.update.floors import FileFloorStore, Floors
from casemate.errors import BusyError, CasemateError, OperationError, PolicyDeniedError, UntrustedDataError
from support.generations import Hand, generation

SETTINGS = {"update.soak": 1000, "engine.load_deadline": 0.01, "engine.deadline": 1}


class Device:
    """The other end of the link: which container serves, what was said and recorded."""

    def __init__(self, *containers: str) -> None:
        self.running = True
        self.there = list(containers)
        self.serving = containers[0] if containers else ""
        self.answer = "eat pasta there"
        self.refuses: UntrustedDataError | None = None
        self.events: list[str] = []
        self.at_switch: list[tuple[str, Any]] = []
        self.measured: list[tuple[str, str]] = []
        self.asked: list[str] = []
        self.no_lease: CasemateError | None = None
        self.state: Any = None

    def containers(self) -> tuple[str, ...]:
        return tuple(self.there)

    def remove_container(self, name: str) -> None:
        self.there.remove(name)

    def record(self, *events: dict[str, Any]) -> None:
        self.events += [event["metadata"]["event_code"] for event in events]

    def serve(self, name: str, container: str, gate: str = "", *, waits: bool = False) -> dict[str, Any]:
        self.at_switch.append((container, self.state()))
        if self.refuses and container.endswith(".g1"):
            raise self.refuses
        self.serving = container
        return {"way": "beside", "seconds": 0.1}

    def lease(self, gate: str) -> None:
        self.asked.append(gate)
        if self.no_lease:
            raise self.no_lease

    def measure_generation(self, content: str) -> None:
        self.measured.append((content, self.serving))

    def drop(self, name: str) -> None:
        self.serving = ""

    def take_policy(self, apps: Any, guard: bytes) -> None:
        pass

    def count_commit(self, number: int) -> None:
        pass

    def status(self) -> dict[str, Any]:
        core = [{"role": role, "state": "running"} for role in ("vault", "gateway", "journal")]
        return {"processes": core, "models": [{"name": "saffron", "state": "ready", "memory_mib": 1.0}]}

    def rehearse(self, model: str, prompt: str, **_: Any) -> dict[str, Any]:
        attack = prompt == health.ATTACK
        return {"text": self.answer, "error": "content_filter" if attack else "", "first_token": 0.01}


def staged(root: Path, device: Device, gate: str = "") -> desks.Desk:
    """Return the desk of *device* with a first generation staged."""
    FileFloorStore(root).begin(Floors())
    settings: Any = SETTINGS
    desk = desks.Desk(root, settings, device, recipient="", clock=Hand())  # type: ignore[arg-type]
    record, files = generation(1, 1)
    items = tuple(msgspec.structs.replace(item, gate=gate if item.container else "") for item in record.items)
    record = msgspec.structs.replace(record, items=items)
    desk.store.checked(record.content_digest, ["saffron"])
    device.there.append("saffron.g1")
    desk.store.fetching()
    desk.store.stage(record, files)
    device.state = lambda: str(desk.store.state().phase)
    return desk


def test_a_dry_run_is_one_at_a_time_too(tmp_path: Path) -> None:
    """It reads the repository, and one process at a time may raise floors and replace the cache."""
    settings: Any = SETTINGS
    desk = desks.Desk(tmp_path, settings, Device(), recipient="")  # type: ignore[arg-type]
    with desk.alone(), pytest.raises(BusyError):
        run.plan(desk)


def test_a_good_generation_is_kept_and_recorded(tmp_path: Path) -> None:
    device = Device("saffron")
    desk = staged(tmp_path, device)
    assert trial.arm(desk) == 1
    done = trial.try_out(desk)
    assert (done.state, done.way, device.serving) == ("GOOD", "beside", "saffron.g1")
    assert device.events == ["update_trial", "update_good"]
    assert device.at_switch == [("saffron.g1", "TRIAL")], "the try was not durable before the switch"
    good = desk.good()
    assert good
    assert device.measured == [(good.content_digest, "saffron")], "it served before it was measured"


@pytest.mark.parametrize(
    ("error", "said"),
    [(PolicyDeniedError("the fleet gives no key"), True), (OperationError("the fleet was not reached"), False)],
)
def test_a_gated_trial_without_a_lease_is_not_judged_and_costs_nothing(tmp_path: Path, error: Any, said: bool) -> None:
    """A network that is away fails nobody; a fleet that says no hears why nothing came of it."""
    device = Device("saffron")
    desk = staged(tmp_path, device, gate="saffron-gated")
    trial.arm(desk)
    device.no_lease = error
    with pytest.raises(type(error)):
        trial.try_out(desk)
    state = desk.store.state()
    assert (str(state.phase), state.tries, state.denied) == ("ARMED", 3, ())
    assert state.last_error == error.message
    assert device.measured == device.at_switch == []
    assert list(desk.unproven.values()) == ([error.message] if said else [])
    desk.store.boot()  # the device starts again, and still has none
    with pytest.raises(type(error)):
        trial.settle(desk)
    assert (str(desk.store.state().phase), desk.store.state().tries) == ("TRIAL", 2)
    device.no_lease = None
    trial.settle(desk)
    assert (str(desk.store.state().phase), device.serving) == ("GOOD", "saffron.g1")
    assert device.asked == ["saffron-gated"] * 3


def test_a_wrong_answer_goes_back_to_what_was_there_by_hand(tmp_path: Path) -> None:
    device = Device("saffron")
    device.answer = "soup"
    desk = staged(tmp_path, device)
    trial.arm(desk)
    with pytest.raises(OperationError, match="health gate"):
        trial.try_out(desk)
    assert device.serving == "saffron"
    assert device.at_switch[-1] == ("saffron", "ROLLED_BACK"), "it was told before it was decided"
    assert device.events == ["update_trial", "update_rolled_back"]
    assert device.there == ["saffron"], "the container of a denied generation stays"


def test_with_nothing_before_it_nothing_serves(tmp_path: Path) -> None:
    device = Device()
    device.answer = "soup"
    desk = staged(tmp_path, device)
    trial.arm(desk)
    with pytest.raises(OperationError):
        trial.try_out(desk)
    assert device.serving == ""


def test_a_model_that_is_refused_is_denied_and_keeps_its_check(tmp_path: Path) -> None:
    device = Device("saffron")
    device.refuses = UntrustedDataError("changed", check="container-chunk")
    desk = staged(tmp_path, device)
    trial.arm(desk)
    with pytest.raises(UntrustedDataError) as caught:
        trial.try_out(desk)
    assert caught.value.check == "container-chunk"
    assert (str(desk.store.state().phase), device.serving) == ("ROLLED_BACK", "saffron")


def test_a_start_judges_the_trial_that_it_is(tmp_path: Path) -> None:
    device = Device("saffron")
    desk = staged(tmp_path, device)
    trial.arm(desk)
    desk.store.boot()
    trial.settle(desk)
    assert str(desk.store.state().phase) == "GOOD"
    assert device.serving == "saffron.g1", "a trial was judged that did not serve"


def test_the_soak_ends_by_time_or_by_a_person(tmp_path: Path) -> None:
    device = Device("saffron")
    desk = staged(tmp_path, device)
    trial.arm(desk)
    trial.try_out(desk)
    assert not trial.end_soak(desk)
    clock: Any = desk.clock
    clock.now += SETTINGS["update.soak"] + 1
    assert trial.end_soak(desk)
    assert desk.floors.read().security == {"app/saffron": 1, "model/saffron": 1}
    assert device.events[-1] == "update_floor_raised"
    assert trial.confirm(desk).generation == 1


class Flaky(Device):
    """A device of which some questions fail before it answers."""

    def __init__(self, *faults: Exception) -> None:
        super().__init__("saffron")
        self.faults = list(faults)
        self.deaf = False

    def rehearse(self, model: str, prompt: str, **kwargs: Any) -> dict[str, Any]:
        if self.faults:
            raise self.faults.pop(0)
        return super().rehearse(model, prompt, **kwargs)

    def record(self, *events: dict[str, Any]) -> None:
        if self.deaf and events[0]["metadata"]["event_code"] == "update_rolled_back":
            raise OperationError("the journal is gone")
        super().record(*events)


def armed(root: Path, device: Device, monkeypatch: pytest.MonkeyPatch) -> desks.Desk:
    monkeypatch.setattr(trial, "_PAUSE", 0.0)
    desk = staged(root, device)
    trial.arm(desk)
    return desk


def test_a_passing_fault_costs_a_try_and_not_the_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Flaky(OperationError("the gateway did not answer"), OperationError("the gateway did not answer"))
    desk = armed(tmp_path, device, monkeypatch)
    assert trial.try_out(desk).state == "GOOD"
    assert device.events == ["update_trial"] * 3 + ["update_good"]
    assert desk.store.state().denied == ()


def test_control_a_fault_that_does_not_pass_uses_up_the_tries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Flaky(*[OperationError("the gateway did not answer")] * 3)
    desk = armed(tmp_path, device, monkeypatch)
    with pytest.raises(OperationError, match="did not answer"):
        trial.try_out(desk)
    assert (device.serving, len(desk.store.state().denied)) == ("saffron", 1)


def test_a_device_that_went_away_judges_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Flaky(NoAnswerError("the agent did not answer"))
    desk = armed(tmp_path, device, monkeypatch)
    with pytest.raises(NoAnswerError):
        trial.try_out(desk)
    assert (str(desk.store.state().phase), desk.store.state().denied) == ("TRIAL", ())
    assert trial.try_out(desk).state == "GOOD"


@pytest.mark.parametrize("error", ["guard_unavailable", "engine_busy"])
def test_a_guard_that_was_not_heard_has_not_let_an_attack_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: str
) -> None:
    class Slow(Device):
        heard = 0

        def rehearse(self, model: str, prompt: str, **kwargs: Any) -> dict[str, Any]:
            self.heard += prompt == health.ATTACK
            answer = super().rehearse(model, prompt, **kwargs)
            return {**answer, "error": error} if prompt == health.ATTACK and self.heard == 1 else answer

    desk = armed(tmp_path, Slow("saffron"), monkeypatch)
    assert trial.try_out(desk).state == "GOOD"


def test_when_tries_were_used_up_by_cuts_the_one_before_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device("saffron")
    desk = armed(tmp_path, device, monkeypatch)
    for _ in range(3):
        desk.store.boot()
    device.serving = "saffron.g1"  # each try got as far as its switch
    with pytest.raises(OperationError, match="tries are used up"):
        trial.try_out(desk)
    assert (device.serving, device.events) == ("saffron", ["update_rolled_back"])


def test_a_journal_that_fails_keeps_no_bad_generation_serving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Flaky()
    device.answer, device.deaf = "soup", True
    desk = armed(tmp_path, device, monkeypatch)
    with pytest.raises(OperationError, match="journal"):
        trial.try_out(desk)
    assert device.serving == "saffron"


def test_whoever_was_cut_off_between_going_back_and_serving_is_made_up_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Device("saffron")
    desk = armed(tmp_path, device, monkeypatch)
    trial.try_out(desk)
    record, files = generation(2, 2)
    desk.store.checked(record.content_digest, ["saffron"])
    device.there.append("saffron.g2")
    desk.store.fetching()
    desk.store.stage(record, files)
    trial.arm(desk)
    desk.store.boot()
    device.serving = "saffron.g2"
    desk.store.fail("decided, then killed")
    trial.settle(desk)
    assert device.serving == "saffron.g1"
