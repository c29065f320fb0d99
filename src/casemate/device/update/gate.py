"""The health gate: whether a generation on trial may become the good one. Measured facts in, verdict out; pure.

There is no fact about the network, so losing it fails nobody. What was not measured has failed: a gate that could not
look must not say yes. What a generation has to do (smoke prompts, bounds) stands in its record, signed by its maker.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from typing import Final

import msgspec
import regex

from casemate.device.update.generation import Generation, Item
from casemate.formats.manifest import Smoke

PROCESSES: Final = ("vault", "engine", "gateway", "journal")
"""What must be up."""
ANSWER_LIMIT: Final = 64 * 1024
"""Characters of an answer that a pattern may look at; more is not an answer to a smoke prompt."""
MATCH_SECONDS: Final = 1.0
"""How long one pattern may take: `(a+)+$` in a signed release must not hang the gate."""


class Answer(msgspec.Struct, frozen=True):
    """What came for one smoke prompt. `text` None: refused, cut short or nothing, and `problem` says which.

    `first_token_ms`: from sending the prompt to its first token; None: not measured.
    """

    prompt: str
    text: str | None
    first_token_ms: float | None = None
    problem: str = ""


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured on the running device. Every default means "not measured", which fails.

    `processes`: what answers, by role. `memory_mib`: the engine's peak, with the model. `guard`: whether the guard's
    self-test found what it must; `guard_problem` why not.
    """

    processes: Mapping[str, bool] = {}
    answers: tuple[Answer, ...] = ()
    guard: bool = False
    guard_problem: str = "its self-test did not run"
    memory_mib: float | None = None


class Verdict(msgspec.Struct, frozen=True):
    """What the gate says; `reasons` is empty when it passed."""

    reasons: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether the generation may become the good one."""
        return not self.reasons

    @property
    def text(self) -> str:
        """The reasons in one line, for `last_error`."""
        return "; ".join(self.reasons)


def prompts(generation: Generation) -> tuple[Smoke, ...]:
    """Return what has to be asked, each prompt with what is expected of it."""
    return tuple(smoke for item in generation.items for smoke in item.smoke)


def judge(generation: Generation, facts: Facts) -> Verdict:
    """Hold *facts* against what *generation* promises."""
    return Verdict(tuple(_reasons(generation, facts)))


def _reasons(generation: Generation, facts: Facts) -> Iterator[str]:
    for role in PROCESSES:
        if facts.processes.get(role) is not True:
            yield f"the {role} is not up"
    if facts.guard is not True:
        yield f"the guard failed: {facts.guard_problem}"
    answers = {answer.prompt: answer for answer in facts.answers}
    for smoke in prompts(generation):
        yield from _judge_answer(smoke, answers.get(smoke.prompt))
    for item in generation.items:
        yield from _judge_bounds(item, answers, facts.memory_mib)


def _judge_answer(smoke: Smoke, answer: Answer | None) -> Iterator[str]:
    name = f"smoke prompt {smoke.prompt[:60]!r}"
    if answer is None:
        yield f"{name} was not asked"
    elif answer.text is None:
        yield f"{name} was not answered: {answer.problem or 'no reason given'}"
    elif len(answer.text) > ANSWER_LIMIT:
        yield f"{name} was answered at too great a length"
    else:
        try:
            pattern = regex.compile(smoke.expect)  # type: ignore[no-untyped-call]  # the library has no types
            found = pattern.search(answer.text, timeout=MATCH_SECONDS) is not None
        except TimeoutError:
            yield f"{name}: what is expected takes too long to look for"
        except (regex.error, RecursionError, MemoryError):
            yield f"{name}: what is expected is no regular expression"
        else:
            if not found:
                yield f"{name} was not answered as expected"


def _judge_bounds(item: Item, answers: Mapping[str, Answer], memory_mib: float | None) -> Iterator[str]:
    """Yield what is out of bounds. Of first tokens the median counts: one that waited is no reason to go back."""
    bound = item.bounds.first_token_ms
    times = [answers[smoke.prompt].first_token_ms for smoke in item.smoke if smoke.prompt in answers]
    if bound:
        measured = [time for time in times if time is not None]
        if not measured or len(measured) < len(item.smoke):
            yield "the time to the first token was not measured"
        elif not statistics.median(measured) <= bound:
            yield f"the first token took {statistics.median(measured):.0f} ms; the bound is {bound} ms"
    bound = item.bounds.memory_mib
    if bound and memory_mib is None:
        yield "memory was not measured"
    elif bound and memory_mib is not None and not memory_mib <= bound:
        yield f"memory came to {memory_mib:.0f} MiB; the bound is {bound} MiB"
