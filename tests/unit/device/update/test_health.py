"""What is measured for the health gate, on a device that answers, is busy, is broken, or has gone."""

from __future__ import annotations

from typing import Any

import pytest

from casemate.device.update import gate, health
from casemate.errors import OperationError
from support.generations import generation

GENERATION, _ = generation(2, 1)


class Port:
    """A device at the other end of the link."""

    def __init__(self, *answers: str, refuses: bool = True, engine: str = "ready", other: str = "ready") -> None:
        self.answers = list(answers)
        self.refuses = refuses
        self.rows = [
            {"name": "saffron", "state": engine, "memory_mib": 42.0},
            {"name": "by-hand", "state": other, "memory_mib": 0},
        ]
        self.asked: list[str] = []

    def status(self) -> dict[str, Any]:
        core = [{"role": role, "state": "running"} for role in ("vault", "gateway", "journal")]
        return {"ready": True, "models": self.rows, "processes": core}

    def rehearse(self, model: str, prompt: str, **_: Any) -> dict[str, Any]:
        self.asked.append(f"{model}: {prompt}")
        if prompt == health.ATTACK:
            return {"text": "", "error": "content_filter" if self.refuses else "", "first_token": 0.0}
        said = self.answers.pop(0)
        bad = said.startswith("!")
        return {"text": "" if bad else said, "error": said[1:] if bad else "", "first_token": 0.02}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "_PAUSE", 0.0)
    monkeypatch.setattr(health, "_POLL", 0.0)


def verdict(port: Any) -> gate.Verdict:
    return gate.judge(GENERATION, health.measure(port, GENERATION, seconds=0.05, deadline=1.0))


def test_a_device_that_answers_passes() -> None:
    port = Port("eat pasta there")
    assert verdict(port).reasons == ()
    assert port.asked == ["saffron: Where can we eat pasta?", f"saffron: {health.ATTACK}"]


def test_a_busy_device_is_asked_again_but_not_for_ever() -> None:
    assert verdict(Port("!engine_busy", "!content_filter", "pasta")).passed
    assert "not answered" in verdict(Port("!content_filter", "!content_filter", "!content_filter", "pasta")).text
    with pytest.raises(OperationError, match="too busy"):  # which says nothing of the generation
        verdict(Port("!engine_busy", "!engine_busy", "!engine_busy", "pasta"))


def test_a_wrong_answer_is_not_asked_for_again() -> None:
    port = Port("soup", "pasta")
    assert "not answered as expected" in verdict(port).text
    assert port.answers == ["pasta"]


def test_a_guard_that_lets_an_attack_pass_fails() -> None:
    assert "let a plain attack pass" in verdict(Port("pasta", refuses=False)).text


def test_the_generations_own_engine_must_be_up_and_no_other() -> None:
    assert "the engine is not up" in verdict(Port("pasta", engine="needs triage")).text
    assert verdict(Port("pasta", other="needs triage")).passed


def test_a_device_that_went_away_is_no_verdict() -> None:
    class Gone(Port):
        def status(self) -> dict[str, Any]:
            raise OperationError("the device went away")

    with pytest.raises(OperationError):
        verdict(Gone())
