#!/usr/bin/env python3
# /// script
# requires-python = ">=3.11"
# dependencies = ["openai"]
# ///
"""A group agrees on a place to eat, with a model that runs on this device and nowhere else.

    export OPENAI_BASE_URL=http://127.0.0.1:8080/v1 OPENAI_API_KEY=cmk_...
    python examples/saffron/app.py --people Ana,Ben,Chris

Wishes are typed one after another, stay in memory (or in a file only you can read, with --wishes), and reach the model
merged and without names.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import openai
import wishes as store
from agreement import CUISINES, Place, Plan, Wish, agree, compare, decide, favourites, understand
from helper import Helper

HERE = Path(__file__).parent
DEVICE = "http://127.0.0.1:8080/v1"


class TroubleError(Exception):
    """Something the person can fix: what happened, and how."""

    def __init__(self, what: str, fix: str = "") -> None:
        """Keep both for the last two lines on screen."""
        super().__init__(what)
        self.fix = fix


def say(text: str = "", end: str = "\n") -> None:
    """Write to the person at once: answers stream."""
    sys.stdout.write(text + end)
    sys.stdout.flush()


def ask(prompt: str) -> str:
    """Read one line; on a terminal it is wiped afterwards, so that the next person does not read it."""
    try:
        text = input(prompt).strip()
    except EOFError:
        say()
        return ""
    if sys.stdin.isatty() and sys.stdout.isatty():
        say(f"\x1b[1A\x1b[2K{prompt}noted")
    elif not sys.stdin.isatty():
        say("noted")
    return text


def options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--people", default="Ana,Ben,Chris", help="names, separated by commas")
    parser.add_argument("--wishes", type=Path, help="remember wishes in this file (mode 0600)")
    parser.add_argument("--model", default="saffron", help="a model of the device; any but saffron gets --places")
    parser.add_argument("--places", type=Path, default=HERE / "places.json", help="the group's own list, as JSON")
    return parser.parse_args(argv)


def collect(names: Sequence[str], kept: dict[str, str]) -> dict[str, str]:
    """Ask each person in turn; an empty line keeps what is remembered."""
    say("One after another: cuisine, price, area, needs. For example: Thai or Japanese, cheap, no Mexican")
    width = max(map(len, names))
    words = {}
    for name in names:
        words[name] = ask(f"  {name:<{width}} > ") or kept.get(name, "")
        if unknown := understand(name, words[name]).unknown:
            say(f"  {'':<{width}}   not understood: {', '.join(unknown)}")
    return words


def describe(plan: Plan) -> str:
    """Say what the group asks for."""
    food = "any food" if len(plan.cuisines) == len(CUISINES) else ", then ".join(plan.cuisines[:3])
    return " - ".join(filter(None, (f"{plan.size} people", food, plan.price, plan.area, *plan.needs)))


class Transcript:
    """Shows what the model says as it says it, one dash per answer."""

    def __init__(self) -> None:
        """Begin with no answer open."""
        self._open = False

    def stream(self, text: str) -> None:
        """Show the next piece of the answer."""
        say(text if self._open else f"  - {text}", end="")
        self._open = True

    def close(self, verdict: str) -> None:
        """End the answer and say what became of it."""
        say(f"\n    {verdict}")
        self._open = False


def suggestions(client: openai.OpenAI, model: str, plan: Plan, places: Sequence[Place] | None) -> list[Place]:
    """Show what the model says and what of it holds; return the places that can be voted on."""
    transcript = Transcript()
    good: list[Place] = []
    for suggestion in Helper(client, model, transcript.stream).suggest(plan, places):
        if suggestion.place is None:
            transcript.close(f"dropped: {suggestion.doubt}")
            continue
        good.append(suggestion.place)
        met, missed = compare(suggestion.place, plan)
        verdict = f"[{len(good)}] meets {', '.join(met) or 'nothing'}"
        transcript.close(verdict + (f"; misses {', '.join(missed)}" if missed else ""))
    return good


def vote(group: Sequence[Wish], places: Sequence[Place]) -> dict[str, list[int]]:
    """Ask each person which places they would go to; Enter takes those that meet most of their own wishes."""
    say("\nWhich would you go to? Numbers, or Enter for those that suit you best.")
    width = max(len(wish.person) for wish in group)
    votes = {}
    for wish in group:
        typed = ask(f"  {wish.person:<{width}} > ").replace(",", " ").split()
        chosen = [int(word) - 1 for word in typed if word.isdecimal()]
        votes[wish.person] = chosen or favourites(wish, places)
    return votes


def read_places(path: Path) -> list[Place]:
    """Read the group's own list."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        return [Place(**{**row, "has": tuple(row.get("has", ()))}) for row in rows]
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise TroubleError(f"cannot read {path}: {error}", f"it should look like {HERE / 'places.json'}") from error


def connect() -> openai.OpenAI:
    """Return a client of the device; address and key come from the environment."""
    if not os.environ.get("OPENAI_API_KEY"):
        raise TroubleError("no app key", "export OPENAI_API_KEY=...; `casemate app add dinner` prints a new one")
    return openai.OpenAI(base_url=os.environ.get("OPENAI_BASE_URL", DEVICE), timeout=120)


def evening(args: argparse.Namespace) -> int:
    """Run one evening: wishes, plan, suggestions, vote."""
    names = [name.strip() for name in args.people.split(",") if name.strip()]
    if not names:
        raise TroubleError("nobody to ask", "name the group: --people Ana,Ben,Chris")
    client = connect()
    host = client.base_url.host
    where = "stay on this device" if host in {"127.0.0.1", "localhost", "::1"} else f"go to {host}"
    say(f"Where shall we eat? Wishes {where}; the model hears them merged, without names.\n")
    words = collect(names, store.load(args.wishes) if args.wishes else {})
    if args.wishes:
        store.save(args.wishes, words)
    group = [understand(name, text) for name, text in words.items()]
    plan = agree(group)
    if not plan.cuisines:
        raise TroubleError("between you, every cuisine is ruled out", "somebody has to give way")
    say(f"\nTogether: {describe(plan)}\nAsking {args.model}:\n")
    own_list = None if args.model.startswith("saffron") else read_places(args.places)
    places = suggestions(client, args.model, plan, own_list)
    if not places:
        say("Nothing that holds up. Relax a wish and ask again.")
        return 3
    votes = vote(group, places)
    place, count = decide(places, votes)
    say(f"\n{count} of {len(group)} say yes: {place.line()}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the app; every expected failure ends as two plain lines."""
    try:
        return evening(options(argv))
    except KeyboardInterrupt:
        return 130
    except (TroubleError, store.WishesError) as error:
        what, fix = str(error), getattr(error, "fix", "")
    except openai.APIConnectionError:
        what, fix = "no device answers", "start one with `casemate up`, or set OPENAI_BASE_URL"
    except openai.AuthenticationError:
        what, fix = "the device does not know this key", "`casemate app add dinner` prints a new one"
    except openai.APIError as error:
        what, fix = f"the device refused: {error.message}", "`casemate journal show` says more"
    sys.stderr.write(f"\nerror: {what}\n" + (f"hint: {fix}\n" if fix else ""))
    return 1


if __name__ == "__main__":
    sys.exit(main())
