"""The health gate's judgement: every reason to say no, and none that a network can cause."""

from __future__ import annotations

import math
import time

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.device.update import gate
from casemate.device.update.gate import Answer, Facts, judge
from casemate.formats.manifest import Bounds, Smoke
from support import generations

PASTA = "Where can we eat pasta?"
UP = dict.fromkeys(gate.PROCESSES, True)
GOOD = Facts(processes=UP, answers=(Answer(PASTA, "At the trattoria, pasta!", 80.0),), guard=True, memory_mib=400.0)

BOUNDS = Bounds(first_token_ms=100, memory_mib=500)


def candidate(*smoke: Smoke, bounds: Bounds = BOUNDS):
    record, _ = generations.generation(1, 1)
    items = tuple(
        msgspec.structs.replace(item, smoke=smoke or item.smoke, bounds=bounds) if item.container else item
        for item in record.items
    )
    return msgspec.structs.replace(record, items=items)


def change(**fields):
    return msgspec.structs.replace(GOOD, **fields)


def answered(text, milliseconds=80.0, **fields):
    return change(answers=(Answer(PASTA, text, milliseconds, **fields),))


def test_a_device_that_does_what_was_promised_passes():
    verdict = judge(candidate(), GOOD)
    assert verdict.passed
    assert verdict.text == ""


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        (change(processes=UP | {"engine": False}), "the engine is not up"),
        (change(processes={}), "the vault is not up"),
        (change(guard=False, guard_problem="its data does not load"), "the guard failed: its data does not load"),
        (change(answers=()), "was not asked"),
        (answered(None, problem="the engine ended"), "was not answered: the engine ended"),
        (answered("I do not know"), "was not answered as expected"),
        (answered(""), "was not answered as expected"),
        (answered("pasta" * 20_000), "too great a length"),
        (answered("pasta", 101.0), "the first token took 101 ms; the bound is 100 ms"),
        (answered("pasta", None), "the time to the first token was not measured"),
        (answered("pasta", math.nan), "the first token took nan ms"),
        (change(memory_mib=501.0), "memory came to 501 MiB; the bound is 500 MiB"),
        (change(memory_mib=None), "memory was not measured"),
        (change(memory_mib=math.nan), "memory came to nan MiB"),
    ],
)
def test_each_fault_is_a_reason(facts, reason):
    verdict = judge(candidate(), facts)
    assert not verdict.passed
    assert reason in verdict.text


def test_nothing_measured_is_a_no():
    assert not judge(candidate(), Facts()).passed
    assert not judge(candidate(Smoke(PASTA, ""), bounds=Bounds()), Facts()).passed


def test_losing_the_network_cannot_fail_it():
    assert not {name for name in Facts.__struct_fields__ if "net" in name or "server" in name}


def test_what_is_not_bounded_is_not_judged():
    assert judge(candidate(bounds=Bounds()), change(answers=(Answer(PASTA, "pasta"),), memory_mib=None)).passed


def test_one_slow_answer_of_three_is_no_reason():
    smoke = [Smoke(f"{number}?", "yes") for number in range(3)]
    answers = tuple(Answer(f"{number}?", "yes", wait) for number, wait in enumerate((50.0, 60.0, 9000.0)))
    assert judge(candidate(*smoke), change(answers=answers)).passed


def test_every_prompt_counts_even_a_prompt_asked_for_twice_things():
    smoke = (Smoke(PASTA, "pasta"), Smoke(PASTA, "trattoria"), Smoke(PASTA, "risotto"))
    assert judge(candidate(*smoke), GOOD).reasons == (f"smoke prompt {PASTA!r} was not answered as expected",)


def test_a_pattern_that_never_ends_is_a_reason_and_not_a_hang():
    began = time.monotonic()
    verdict = judge(candidate(Smoke(PASTA, "(a|aa)+$")), answered("a" * 60_000 + "!"))
    assert "takes too long" in verdict.text
    assert time.monotonic() - began < 5 * gate.MATCH_SECONDS


@pytest.mark.parametrize("pattern", ["(", "(?P<a", "[", "(?<=a*)b(", "\\"])
def test_a_pattern_that_is_none_is_a_reason(pattern):
    assert "no regular expression" in judge(candidate(Smoke(PASTA, pattern)), GOOD).text


answers = st.builds(
    Answer, st.sampled_from([PASTA, "other"]), st.none() | st.text(max_size=30), st.none() | st.floats(), st.just("")
)


@given(
    st.dictionaries(st.sampled_from(gate.PROCESSES), st.booleans()),
    st.lists(answers, max_size=4),
    st.booleans(),
    st.none() | st.floats(),
)
def test_it_passes_only_what_meets_every_promise(processes, found, guard, memory):
    facts = Facts(processes=processes, answers=tuple(found), guard=guard, memory_mib=memory)
    last = {answer.prompt: answer for answer in found}.get(PASTA)
    meets = (
        processes == UP
        and guard
        and last is not None
        and last.text is not None
        and "pasta" in last.text
        and last.first_token_ms is not None
        and last.first_token_ms <= 100
        and memory is not None
        and memory <= 500
    )
    assert judge(candidate(), facts).passed == meets
