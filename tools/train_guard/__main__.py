"""`python -m tools.train_guard`: makes the texts, fits both models, sets the thresholds, writes the model file.

Deterministic: the same tree and the same library versions write the same bytes. Thresholds come from scores that every
harmless text of the development data gets from a model that never saw its source (leave one source out).
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy
from tools.train_guard.fit import Fitter, make_bag
from tools.train_guard.report import left_out
from tools.train_guard.rows import DATA, HERE, Row, training_rows

from casemate.guard.classes import CLASSES
from casemate.guard.grammar import Lexicon
from casemate.guard.normalize import normalize
from casemate.guard.sentences import read_text
from casemate.guard.spelling import Spelling
from casemate.guard.words import fold, split_words

GUARD_DATA = HERE.parents[1] / "src/casemate/guard/data"
SEED = 20240601
PER_TEMPLATE = 30
STRENGTH = {"user": 0.1, "document": 0.1}
FALSE_ALARMS = {"user": 0.006, "document": 0.007}
THIN = {"user": 0.4, "document": 0.15}
# Prompts that play with telling words are rarer in the development data than in life.
MARGIN = {"user": 0.05, "document": 0.05}
FLAGGED = {"user": 0.02, "document": 0.04}
BACKGROUND = {"user": 0.3, "document": 1.0}
STEPS = 127
FREQUENT = 2


@dataclass(frozen=True)
class Job:
    """One model to train: which rows it sees and how much each counts."""

    name: str
    seen: np.ndarray
    importance: np.ndarray


def main() -> None:
    """Train and write."""
    options = argparse.ArgumentParser(prog="python -m tools.train_guard", description=__doc__.splitlines()[0])
    options.add_argument("--out", type=Path, default=GUARD_DATA / "injection.json", help="where the model goes")
    options.add_argument("--per-template", type=int, default=PER_TEMPLATE, help="texts drawn from each template")
    options.add_argument(
        "--left-out", action="store_true", help="report each source judged by models that never saw it"
    )
    arguments = options.parse_args()
    lexicons = {path.stem: path.read_text(encoding="utf-8") for path in sorted((GUARD_DATA / "lexicon").glob("*.txt"))}
    rows = training_rows(SEED, arguments.per_template)
    english = english_words(rows, lexicons)
    lexicon = Lexicon(lexicons, CLASSES, english)
    labels = np.array([row.label for row in rows])
    bag = make_bag([row.text for row in rows], lexicon)
    say(f"{len(rows)} texts, {bag.windows.shape[0]} windows, {len(lexicons)} lexicons")
    sets = {}
    for job in jobs(rows):
        fitter = Fitter(bag, labels, job.importance, STRENGTH[job.name], THIN[job.name])
        sets[job.name] = trained = train(job, fitter, rows)
        if arguments.left_out:
            mine = np.array([row.untrusted == (job.name == "document") for row in rows])
            say("\n".join(left_out(fitter, rows, job.seen, mine, float(trained["block"]))))
    ordinary = " ".join(ordinary_words(rows, lexicon))
    words = {"ordinary": ordinary, "english": " ".join(english)}
    stored = {
        "schema": 1,
        "classes": CLASSES,
        "sets": sets,
        **words,
        "provenance": provenance(rows, arguments.per_template),
    }
    arguments.out.write_text(json.dumps(stored, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def jobs(rows: list[Row]) -> list[Job]:
    """Return both jobs: an attack is an attack in a document too, but a document's harmless text is its own kind."""
    untrusted = np.array([row.untrusted for row in rows])
    attack = np.array([row.label == 1 for row in rows])
    background = np.array([row.source.startswith(("python-", "go-")) for row in rows])
    seen = {"user": ~untrusted | background, "document": untrusted | attack}
    return [Job(name, np.flatnonzero(mask), np.where(background, BACKGROUND[name], 1.0)) for name, mask in seen.items()]


def train(job: Job, fitter: Fitter, rows: list[Row]) -> dict[str, Any]:
    """Fit one model, set its thresholds, and round its weights to signed bytes."""
    weights, bias = fitter.fit(job.seen)
    scale = float(np.abs(weights).max() / STEPS)
    steps = np.rint(weights / scale).astype(np.int8)
    block, flag = thresholds(job, fitter, rows)
    say(f"{job.name}: {int((steps != 0).sum())} weights, bias {bias:.2f}, block at {block:.2f}, flag at {flag:.2f}")
    return {
        "weights": base64.b64encode(steps.tobytes()).decode(),
        "scale": round(scale, 9),
        "bias": round(bias, 6),
        "block": round(block, 4),
        "flag": round(flag, 4),
    }


def thresholds(job: Job, fitter: Fitter, rows: list[Row]) -> tuple[float, float]:
    """Return (block, flag): what few enough harmless development texts exceed when their source was left out."""
    labels = fitter.labels
    sources = np.array([row.source for row in rows])
    real = ~np.char.startswith(sources, "gen-")
    untrusted = np.array([row.untrusted for row in rows])
    mine = untrusted if job.name == "document" else ~untrusted
    scores: list[np.ndarray] = []
    for source in sorted(set(sources[real & mine & (labels == 0)])):
        others = job.seen[sources[job.seen] != source]
        left_out = fitter.bag.best(*fitter.fit(others))
        held = left_out[(sources == source) & mine & (labels == 0)]
        scores.append(held)
        say(f"  without {source}: {len(held)} harmless, 99 % below {np.quantile(held, 0.99):.2f}")
    pool = np.sort(np.concatenate(scores))
    block, flag = (
        float(pool[min(len(pool) - 1, int(np.ceil(len(pool) * (1 - rate))) - 1)]) + 0.01
        for rate in (FALSE_ALARMS[job.name], FLAGGED[job.name])
    )
    return block + MARGIN[job.name], flag


def english_words(rows: list[Row], lexicons: dict[str, str]) -> list[str]:
    """Return the words of English texts that another language's entries would give a meaning they do not have."""
    every, own = Lexicon(lexicons, CLASSES), Lexicon({"en": lexicons["en"]}, CLASSES)
    counts = Counter(word for row in rows if row.english for word in set(split_words(fold(normalize(row.text).text))))
    return sorted(
        word
        for word, count in counts.items()
        if count >= FREQUENT and word.isascii() and _classes(every, word) != _classes(own, word)
    )


def _classes(lexicon: Lexicon, word: str) -> set[int]:
    entry = lexicon.look_up(word)
    return set(entry.classes) if entry else set()


def ordinary_words(rows: list[Row], lexicon: Lexicon) -> list[str]:
    """Return the words of harmless texts that would be taken for misspelt telling words."""
    spelling = Spelling(lexicon, frozenset())
    found: set[str] = set()
    for row in rows:
        if not row.label:
            reading = read_text(normalize(row.text).text, lexicon)
            unknown = {token for token, entry in zip(reading.tokens, reading.entries, strict=True) if entry is None}
            found.update(spelling.corrections(unknown))
    return sorted(found)


def provenance(rows: list[Row], per_template: int) -> dict[str, object]:
    """Return what made the weights: command, seed, versions, and a digest of every input."""
    inputs = [*sorted(DATA.glob("*.jsonl")), *sorted((HERE / "grammars").glob("*.txt")), HERE / "shells.txt"]
    inputs += sorted((GUARD_DATA / "lexicon").glob("*.txt"))
    root = HERE.parents[1]
    counts: dict[str, int] = {}
    for row in rows:
        counts[row.source] = counts.get(row.source, 0) + 1
    return {
        "command": "python -m tools.train_guard",
        "seed": SEED,
        "per_template": per_template,
        "strength": STRENGTH,
        "thin": THIN,
        "margin": MARGIN,
        "false_alarms": FALSE_ALARMS,
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "rows": counts,
        "inputs": {str(path.relative_to(root)): digest(path) for path in inputs},
    }


def digest(path: Path) -> str:
    """Return the first 16 hexadecimal digits of a file's SHA-256."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def say(text: str) -> None:
    """Report progress on stderr."""
    sys.stderr.write(text + "\n")


if __name__ == "__main__":
    main()
