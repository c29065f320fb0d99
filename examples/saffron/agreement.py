# ruff: noqa: INP001 - a script's module, not a package
"""How a group agrees: words to wishes, wishes to one plan, votes to one place. Pure, deterministic, nothing is sent.

understand("Ana", "thai or japanese, cheap, no mexican")  -> Wish
agree([wish, ...])                                        -> Plan      what the model is asked for: no names in it
decide(places, votes)                                     -> Place
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

CUISINES = (
    "American", "Chinese", "Ethiopian", "French", "Greek", "Indian", "Italian", "Japanese", "Korean", "Lebanese",
    "Mexican", "Peruvian", "Spanish", "Thai", "Turkish", "Vietnamese",
)  # fmt: skip
AREAS = (
    "Canal Street", "Harbour", "Hilltop", "Market Square", "Old Town", "Riverside", "Station Quarter", "University",
)  # fmt: skip
PRICES = ("budget", "mid-range", "upscale")
NEEDS = (
    "a kids menu", "a quiet room", "gluten-free dishes", "halal food", "live music", "outdoor seating",
    "step-free access", "vegan options",
)  # fmt: skip
ALSO = {
    "cheap": "budget",
    "affordable": "budget",
    "mid range": "mid-range",
    "fancy": "upscale",
    "expensive": "upscale",
    "harbor": "Harbour",
    "station": "Station Quarter",
    "kids": "a kids menu",
    "children": "a kids menu",
    "quiet": "a quiet room",
    "gluten": "gluten-free dishes",
    "gluten-free": "gluten-free dishes",
    "halal": "halal food",
    "music": "live music",
    "outdoor": "outdoor seating",
    "outside": "outdoor seating",
    "step-free": "step-free access",
    "wheelchair": "step-free access",
    "vegan": "vegan options",
}
_MEANING = {name.lower(): name for name in (*CUISINES, *AREAS, *PRICES, *NEEDS)} | ALSO
_FILLER = frozenset(
    ("a", "an", "and", "any", "anything", "but", "food", "for", "i", "in", "like", "me", "near", "of", "or", "place",
     "please", "some", "something", "the", "to", "want", "with")
)  # fmt: skip
_WORDS = re.compile(
    "|".join(rf"\b{re.escape(word)}(?![\w-])" for word in sorted(_MEANING, key=len, reverse=True)) + r"|[\w-]+|[,;.]",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Wish:
    """What one person wants. `never` are cuisines they do not want; `unknown` are words that meant nothing."""

    person: str
    cuisines: tuple[str, ...] = ()
    never: tuple[str, ...] = ()
    price: str = ""
    areas: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """What the group asks for: cuisines best first, the price everybody can pay, the favourite area, every need."""

    size: int
    cuisines: tuple[str, ...]
    price: str = ""
    area: str = ""
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Place:
    """Somewhere to eat."""

    name: str
    cuisine: str
    area: str
    price: str
    has: tuple[str, ...] = ()

    def line(self) -> str:
        """Return the place as one line of text."""
        return f"{self.name}: {', '.join((self.cuisine, self.area, self.price, *self.has))}"


def understand(person: str, text: str) -> Wish:
    """Read one person's wish in their own words; "no" and "not" turn the cuisine that follows into one to avoid."""
    found: dict[str, list[str]] = {"cuisines": [], "never": [], "price": [], "areas": [], "needs": [], "unknown": []}
    negated = False
    for word in _WORDS.findall(text):
        meaning = _MEANING.get(word.lower())
        if word in ",;.":
            negated = False
        elif meaning:
            found["never" if negated and meaning in CUISINES else _kind(meaning)].append(meaning)
        elif word.lower() in {"no", "not", "never"}:
            negated = True
        elif word.lower() not in _FILLER:
            found["unknown"].append(word)
    unique = {kind: tuple(dict.fromkeys(words)) for kind, words in found.items()}
    price = min(unique.pop("price"), key=PRICES.index, default="")
    return Wish(person, price=price, **unique)


def _kind(meaning: str) -> str:
    if meaning in CUISINES:
        return "cuisines"
    if meaning in AREAS:
        return "areas"
    return "price" if meaning in PRICES else "needs"


def agree(wishes: Sequence[Wish]) -> Plan:
    """Merge wishes into one plan.

    A cuisine that somebody avoids is out; the others rank by how many want them, then by who said it first. The price
    is the lowest anybody named, the area the most named, and every need is kept: a step is a step for everybody.
    """
    avoided = {name for wish in wishes for name in wish.never}
    wanted = [name for name in _ranked(name for wish in wishes for name in wish.cuisines) if name not in avoided]
    return Plan(
        size=len(wishes),
        cuisines=tuple(wanted or (name for name in CUISINES if name not in avoided)),
        price=min((wish.price for wish in wishes if wish.price), key=PRICES.index, default=""),
        area=next(iter(_ranked(name for wish in wishes for name in wish.areas)), ""),
        needs=tuple(dict.fromkeys(need for wish in wishes for need in wish.needs)),
    )


def _ranked(names: Iterable[str]) -> list[str]:
    """Return names by how often they came, first mention first among equals."""
    return [name for name, _ in Counter(names).most_common()]


def relaxed(plan: Plan) -> list[Plan]:
    """Return what to ask for, best first: each of the three favourite cuisines with, then without, price and area."""
    out: list[Plan] = []
    for cuisine in plan.cuisines[:3]:
        for price, area in ((plan.price, plan.area), (plan.price, ""), ("", plan.area), ("", "")):
            out.append(Plan(plan.size, (cuisine,), price, area, plan.needs))
    return list(dict.fromkeys(out))


def compare(place: Place, plan: Plan) -> tuple[list[str], list[str]]:
    """Return which wishes of *plan* the place meets, and which it misses."""
    checks = (
        [(" or ".join(plan.cuisines), place.cuisine in plan.cuisines)] if len(plan.cuisines) < len(CUISINES) else []
    )
    checks += [(plan.price, place.price == plan.price)] if plan.price else []
    checks += [(plan.area, place.area == plan.area)] if plan.area else []
    checks += [(need, need in place.has) for need in plan.needs]
    return [wish for wish, met in checks if met], [wish for wish, met in checks if not met]


def favourites(wish: Wish, places: Sequence[Place]) -> list[int]:
    """Return the indices of the places that meet most of one person's wishes: their vote unless they say otherwise."""
    own = Plan(1, wish.cuisines or CUISINES, wish.price, "", wish.needs)
    scores = [
        -len(places) if place.cuisine in wish.never else len(compare(place, own)[0]) + (place.area in wish.areas)
        for place in places
    ]
    return [index for index, score in enumerate(scores) if score == max(scores) and score >= 0]


def decide(places: Sequence[Place], votes: Mapping[str, Iterable[int]]) -> tuple[Place, int]:
    """Return the place most people would go to, and how many; the earlier suggestion wins a tie."""
    counts = Counter(index for chosen in votes.values() for index in set(chosen) if 0 <= index < len(places))
    best = max(range(len(places)), key=lambda index: (counts[index], -index))
    return places[best], counts[best]
