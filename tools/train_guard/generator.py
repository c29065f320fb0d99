"""The training texts: grammars in many languages, document shells, and a harmless twin for every kind of attack.

A grammar file has slots (`name = a | b`), attacks (`+kind: text`) and twins (`-kind: text`); `{slot}` inserts one of a
slot's alternatives, and `kind/4` draws a quarter of the usual number. Everything is drawn from one seeded generator, so
the same version makes the same texts.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
DEPTH = 12
_SLOT = re.compile(r"\{([a-z]+\d?)\}")


@dataclass(frozen=True)
class Row:
    """One labelled text. `payload` is the part that makes an indirect attack one (empty elsewhere)."""

    text: str
    label: int
    kind: str
    lang: str
    channel: str
    source: str


@dataclass(frozen=True)
class Grammar:
    """The slots and templates of one language."""

    lang: str
    slots: dict[str, list[str]]
    templates: list[tuple[int, str, int, str]]  # label, kind, divisor, text

    def expand(self, text: str, draw: random.Random, depth: int = 0) -> str:
        """Fill the slots of *text*; unknown names in braces stay as they are."""
        if depth > DEPTH:
            raise ValueError(f"{self.lang}: slots nest too deep in {text!r}")

        def fill(match: re.Match[str]) -> str:
            options = self.slots.get(match.group(1))
            return match.group() if options is None else self.expand(draw.choice(options), draw, depth + 1)

        return _SLOT.sub(fill, text)


def read_grammar(path: Path) -> Grammar:
    """Read a grammar file."""
    slots: dict[str, list[str]] = {}
    templates: list[tuple[int, str, int, str]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith(("+", "-")):
            kind, _, text = line[1:].partition(":")
            name, _, divisor = kind.strip().partition("/")
            templates.append((int(line[0] == "+"), name, int(divisor or 1), text.strip()))
        elif "=" in line and not line.startswith("#"):
            name, _, options = line.partition("=")
            slots[name.strip()] = [option.strip() for option in re.split(r"(?<!\S)\|(?!\S)", options)]
    return Grammar(path.stem, slots, templates)


def generate(seed: int, per_template: int) -> list[Row]:
    """Return the training rows of all languages: *per_template* texts of each template, without repeats."""
    rows: dict[str, Row] = {}
    for path in sorted((HERE / "grammars").glob("*.txt")):
        grammar = read_grammar(path)
        draw = random.Random(f"{seed}:{grammar.lang}")  # noqa: S311 - reproducible, not secret
        for label, kind, divisor, template in grammar.templates:
            for _ in range(max(1, per_template // divisor)):
                text = vary(tidy(grammar.expand(template, draw)), draw)
                channel = "document" if kind in ("indirect", "document") else "user"
                if channel == "document":
                    text = wrap(text, draw)
                rows.setdefault(text, Row(text, label, kind, grammar.lang, channel, f"gen-{grammar.lang}"))
    return list(rows.values())


def tidy(text: str) -> str:
    """Join what the slots left apart: no double blanks, no blank before a stop, no empty quotes."""
    text = re.sub(r"\s+", " ", text).strip()
    text = re.sub(r"\s+([.,!?;:])", r"\1", text)
    return re.sub(r"([.!?])[.]+", r"\1", text)


def vary(text: str, draw: random.Random) -> str:
    """Change how a text is written: capitals, missing full stop, a first capital, small slips."""
    manners = [str.upper, *[str.lower] * 2, *[_without_stop] * 2, *[_with_capital] * 15]
    return draw.choice(manners)(text)


def _without_stop(text: str) -> str:
    return text.rstrip(".!")


def _with_capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def wrap(text: str, draw: random.Random) -> str:
    """Put *text* into a document, or leave it bare."""
    shell = draw.choice(["{}", *draw.sample(shells(), 3)])
    return shell.replace("{}", text.replace('"', '\\"') if shell.startswith('{"') else text, 1)


def shells() -> list[str]:
    """Return the document shells."""
    text = (HERE / "shells.txt").read_text(encoding="utf-8")
    return [shell.strip("\n") for shell in text.split("\n%%%\n")]
