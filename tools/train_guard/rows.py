"""The rows that training sees: own generated texts, the development split, and harmless technical background."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from tools.train_guard.generator import HERE, generate

DATA = HERE / "data"


@dataclass(frozen=True)
class Row:
    """One labelled text of one source."""

    text: str
    label: int
    kind: str
    channel: str
    source: str
    lang: str = "en"

    @property
    def english(self) -> bool:
        """Return whether the text is English."""
        return self.lang == "en"

    @property
    def untrusted(self) -> bool:
        """Return whether the text stands where nobody has orders to give."""
        return self.channel in {"document", "tool"}


def read_rows(path: Path) -> list[Row]:
    """Read a JSON-lines file of labelled texts."""
    lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    return [Row(**{name: row[name] for name in Row.__dataclass_fields__}) for row in map(json.loads, lines)]


def training_rows(seed: int, per_template: int) -> list[Row]:
    """Return everything to train on, in a fixed order."""
    made = [Row(r.text, r.label, r.kind, r.channel, r.source, r.lang) for r in generate(seed, per_template)]
    return made + read_rows(DATA / "development.jsonl") + read_rows(DATA / "background.jsonl")
