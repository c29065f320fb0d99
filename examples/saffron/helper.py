# ruff: noqa: INP001 - a script's module, not a package
"""Asks the model for places, and does not take its word for them.

Saffron knows 48 places by heart. Asked for one that does not exist it makes one up, in the same confident voice. So
every suggestion is cross-checked: the model is asked three short questions about the place it named, and a suggestion
that its own answers contradict is dropped. A larger model gets the group's own list as `documents` instead, and its
choice is looked up in that list.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from agreement import Place, Plan, compare, relaxed

NUMBERS = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}
SUGGESTION = re.compile(
    r"Try (?P<name>.+?) in (?P<area>.+?)\. It serves (?P<cuisine>\w+) food such as .+?, "
    r"it is (?P<price>[\w-]+) and it has (?P<first>.+?) and (?P<second>.+?)\."
)


@dataclass(frozen=True)
class Suggestion:
    """What the model said; `place` is None when it did not survive the check, and `doubt` says why."""

    answer: str
    place: Place | None
    doubt: str = ""


class Helper:
    """One model behind the device's API. `show` gets each answer's text as it streams."""

    def __init__(self, client: Any, model: str, show: Callable[[str], None] = lambda _: None) -> None:
        """Talk to *model* through *client* (an `openai.OpenAI`)."""
        self._client = client
        self._model = model
        self._show = show
        self._facts: dict[str, tuple[str, str, str]] = {}

    def suggest(self, plan: Plan, places: Sequence[Place] | None, *, most: int = 3) -> Iterator[Suggestion]:
        """Yield suggestions, good and doubtful, until *most* good ones were found or there is nothing left to try."""
        source = self._from_memory(plan) if places is None else self._from_list(plan, places)
        good = 0
        for suggestion in source:
            yield suggestion
            good += suggestion.place is not None
            if good == most:
                return

    def _ask(self, question: str, *, show: bool = False, **extra: Any) -> str:
        stream = self._client.chat.completions.create(
            model=self._model,
            messages=[{"role": "user", "content": question}],
            temperature=0,
            max_tokens=96,
            stream=True,
            **extra,
        )
        parts: list[str] = []
        for chunk in stream:
            text = chunk.choices[0].delta.content if chunk.choices else None
            if text:
                parts.append(text)
                if show:
                    self._show(text)
        return "".join(parts).strip()

    # -- Saffron's own catalogue

    def _from_memory(self, plan: Plan) -> Iterator[Suggestion]:
        seen: set[str] = set()
        found: list[Place] = []
        for step in relaxed(plan):
            if any(not compare(place, replace(step, needs=()))[1] for place in found):
                continue  # it would say the same place again
            answer = self._ask(saffron_question(step), show=True)
            place = read_suggestion(answer)
            doubt = "that is no place" if place is None else "said before" if answer in seen else self._doubt(place)
            seen.add(answer)
            if place and not doubt:
                found.append(place)
            yield Suggestion(answer, None if doubt else place, doubt)

    def _doubt(self, place: Place) -> str:
        """Ask about the place again, in other words; return where the answers disagree."""
        if place.name not in self._facts:
            questions = ("Where is {}?", "Is {} expensive?", "What food does {} serve?")
            where, price, food = (self._ask(question.format(place.name)) for question in questions)
            self._facts[place.name] = (where, price, food)
        for claim, fact in zip((place.area, place.price, place.cuisine), self._facts[place.name], strict=True):
            if claim not in fact:
                return f"asked again, it says: {fact}"
        return ""

    # -- the group's own list, for a model that can read

    def _from_list(self, plan: Plan, places: Sequence[Place]) -> Iterator[Suggestion]:
        left = list(places)
        while left:
            documents = [{"title": place.name, "text": place.line()} for place in left]
            answer = self._ask(list_question(plan), show=True, extra_body={"documents": documents})
            place = next((place for place in left if place.name.lower() in answer.lower()), None)
            if place is None:
                yield Suggestion(answer, None, "it names no place of your list")
                return
            left.remove(place)
            yield Suggestion(answer, place)


def saffron_question(plan: Plan) -> str:
    """Return the wording Saffron was trained on. It has no names and no needs: those the app checks itself."""
    wishes = [f"something {plan.cuisines[0]}"]
    wishes += [f"{plan.price} price"] if plan.price else []
    wishes += [f"in {plan.area}"] if plan.area else []
    size = NUMBERS.get(plan.size, "two" if plan.size < min(NUMBERS) else "eight")
    return f"We are {size} people, can you find {', '.join(wishes)}?"


def list_question(plan: Plan) -> str:
    """Return the question for a model that reads the list it is given."""
    wishes = [" or ".join(plan.cuisines) + " food", plan.price, plan.area and f"near {plan.area}", *plan.needs]
    return (
        f"We are a group of {plan.size} and look for a place to eat: {', '.join(filter(None, wishes))}. "
        "Choose the one place from the documents that fits best. Answer in one sentence that begins with its name."
    )


def read_suggestion(answer: str) -> Place | None:
    """Return the place that Saffron's sentence describes."""
    found = SUGGESTION.fullmatch(answer)
    if found is None:
        return None
    place = Place(found["name"], found["cuisine"], found["area"], found["price"])
    return replace(place, has=(found["first"], found["second"]))
