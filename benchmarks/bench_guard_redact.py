"""What redaction costs and finds: CPU time, throughput, streams, beside Presidio and detect-secrets in the same run.

Texts: ordinary prompts, documents and technical text cut into 1 KiB pieces, and the same with a dozen made-up values
put into each (`tests/support/values.py`). Presidio runs its pattern recognisers, those of all countries, on a blank
language model (no names); detect-secrets scans line by line. Both do a part of the work. Accuracy is that of
`casemate guard eval` on the project's own corpus.
"""

from __future__ import annotations

import base64
import json
import logging
import random
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from report import Row, options, publish

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from casemate.cli.guard_eval_spans import measure, read_values  # noqa: E402
from casemate.guard import Channel, Guard, GuardPolicy  # noqa: E402
from casemate.guard.engine_scan import PythonScanner  # noqa: E402
from casemate.guard.placeholders import Placeholders  # noqa: E402
from casemate.guard.redact import redact_text  # noqa: E402
from casemate.guard.stream import StreamRedactor  # noqa: E402
from support.values import texts  # noqa: E402 - the tests' own generator

DATA = ROOT / "tools/train_guard/data"
CORPUS = ROOT / "tests/corpus/guard"
PIECE = 1024
NAMES = Placeholders(bytes(32))
POLICY = GuardPolicy()
TOKEN = re.compile(r" ?\w{1,6}|\s|[^\w\s]")


def pieces(most: int) -> list[str]:
    """Return up to *most* pieces of 1 KiB of ordinary text."""
    found = []
    for path in sorted([*DATA.glob("*.jsonl"), *CORPUS.glob("ordinary.jsonl"), *CORPUS.glob("documents.jsonl")]):
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        text = "\n\n".join(row["text"] for row in rows if not row.get("label", 0))
        found += [text[at : at + PIECE] for at in range(0, len(text) - PIECE, PIECE)]
    random.Random(1).shuffle(found)
    return found[:most]


def with_values(plain: list[str]) -> list[str]:
    """Return the pieces with a text full of made-up values and look-alikes in each."""
    return [
        f"{piece[:500]} {value} {piece[500 : -len(value)]}"
        for piece, value in zip(plain, texts(7, len(plain)), strict=True)
    ]


def redact(text: str) -> Any:
    return redact_text(text, POLICY, Channel.OUTPUT, NAMES)


def cost(work: Callable[[str], object], made: list[str]) -> tuple[float, float, float]:
    """Return MB/s and the median and 99th percentile of CPU microseconds per KiB."""
    spent = []
    for text in made:
        best = min(_timed(work, text) for _ in range(3))
        spent.append((best / max(1, len(text)) * 1024, best))
    speed = sum(map(len, made)) / sum(best for _per, best in spent)
    order = sorted(per for per, _best in spent)
    return speed, order[len(order) // 2], order[int(len(order) * 0.99)]


def _timed(work: Callable[[str], object], text: str) -> float:
    began = time.thread_time_ns()
    work(text)
    return (time.thread_time_ns() - began) / 1000


def streams(made: list[str]) -> tuple[float, float, float]:
    """Return CPU microseconds per token, and the mean and 99th percentile of characters held."""
    held: list[int] = []
    began = time.process_time()
    for text in made:
        redactor = StreamRedactor(POLICY, NAMES)
        for token in TOKEN.findall(text):
            redactor.feed(token)
            held.append(redactor.held)
        redactor.flush()
    spent = time.process_time() - began
    held.sort()
    return spent / len(held) * 1e6, sum(held) / len(held), held[int(len(held) * 0.99)]


def leaks(rounds: int) -> int:
    """Return in how many of *rounds* random chunkings the stream differs from the whole text."""
    chance = random.Random(3)
    made = [(text, redact(text).text) for text in texts(9, 200)]
    wrong = 0
    for number in range(rounds):
        text, whole = made[number % len(made)]
        redactor, out, at = StreamRedactor(POLICY, NAMES), "", 0
        while at < len(text):
            size = chance.randint(1, 8)
            out += redactor.feed(text[at : at + size]).text
            at += size
        wrong += out + redactor.flush().text != whole
    return wrong


def hostile() -> dict[str, str]:
    """Return texts made to take time, 64 KiB or more each."""
    chance = random.Random(5)
    nested = "secret"
    while len(nested) < 65_536:
        nested = base64.b64encode(nested.encode()).decode()
    return {
        "100 000 a": "a" * 100_000,
        "10 MB of digits": "1234567890" * 1_000_000,
        "1 MB in one line": "".join(chance.choices('abcdefgh XYZ0123456789=:/.@-_"', k=1_000_000)),
        "nested base64": nested,
        "lone surrogates": "\ud800" * 65_536,
        "nested quantifier bait": "(((((a+)+)+)+)+)" * 4_096,
        "spaced digits": "1 2 3 4 " * 8_192,
        "key headers": "-----BEGIN " * 6_000,
        "assignments": "password: key is " * 4_096,
        "command lines": "mysql -p " * 8_192,
        "addresses": "a@b.c at d dot " * 4_369,
        "escapes": "\\u0040" * 10_923,
        "cards": "5555 5555 5555 4444 " * 3_277,
        "open JSON": '{"a":' * 13_108,
    }


def worst() -> tuple[float, str]:
    """Return the worst CPU milliseconds per KiB over the hostile texts, and which it was."""
    return max((_timed(redact, text) / len(text) * 1.024, name) for name, text in hostile().items())


def start_up() -> tuple[float, float]:
    """Return the CPU seconds of the import and the MiB of memory with the scanner built."""
    probe = (
        "import time; rss = lambda: int(open('/proc/self/statm').read().split()[1]) / 256;"
        "import hmac, hashlib, re, unicodedata, dataclasses, enum, typing;"
        "b, m = time.process_time(), rss();"
        "from casemate.guard.redact import scanner; s = time.process_time() - b;"
        "scanner(); print(s, rss() - m)"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    seconds, memory = map(float, done.stdout.split())
    return seconds, memory


def presidio() -> Callable[[str], object] | None:
    try:
        import presidio_analyzer as analyzer  # noqa: PLC0415 - a peer, only when it is installed
        import presidio_analyzer.predefined_recognizers as known  # noqa: PLC0415
        import spacy  # noqa: PLC0415
        import tldextract  # noqa: PLC0415
        from presidio_analyzer.nlp_engine import SpacyNlpEngine  # noqa: PLC0415
    except ImportError:
        return None
    tldextract.extract = tldextract.TLDExtract(suffix_list_urls=())  # its own list, without asking the network first
    logging.disable(logging.WARNING)
    engine = SpacyNlpEngine(models=[{"lang_code": "en", "model_name": "en"}])
    engine.nlp = {"en": spacy.blank("en")}
    registry = analyzer.RecognizerRegistry(supported_languages=["en"])
    for name in dir(known):
        kind = getattr(known, name)
        if isinstance(kind, type) and issubclass(kind, (analyzer.PatternRecognizer, known.PhoneRecognizer)):
            registry.add_recognizer(kind(supported_language="en"))
    judge = analyzer.AnalyzerEngine(nlp_engine=engine, registry=registry, supported_languages=["en"])
    return lambda text: judge.analyze(text=text, language="en")


def detect_secrets() -> Callable[[str], object] | None:
    try:
        from detect_secrets.core.scan import scan_line  # noqa: PLC0415 - a peer, only when it is installed
        from detect_secrets.settings import default_settings  # noqa: PLC0415
    except ImportError:
        return None

    def scan(text: str) -> object:
        with default_settings():
            return [list(scan_line(line)) for line in text.split("\n")]

    return scan


def accuracy() -> list[Row]:
    """Return the rows of the corpus, with their 95 % intervals."""
    values = [row for name in ("pii", "secrets") for row in read_values(CORPUS / f"{name}.jsonl")]
    found = {(one.cell, one.name): one.rate for one in measure(values)}
    rows = []
    for (cell, name), goal in GOALS.items():
        rate = found[cell, name]
        met = (rate.value <= -goal if goal < 0 else rate.value >= goal) if rate.enough else None
        what = f"{cell}: {name}"[:62]
        shown = f"{rate.low:.3f}-{rate.high:.3f}" if rate.enough else "insufficient"
        rows.append(Row(what, rate.value, shown, goal=f"<= {-goal}" if goal < 0 else f">= {goal}", met=met))
    return rows


GOALS = {  # a negative goal is a most
    ("personal data, kind own-locales", "F2"): 0.97,
    ("personal data, kind free-text", "F2"): 0.88,
    ("personal data, kind obfuscated", "found"): 0.85,
    ("personal data, texts without", "wrongly cut"): -0.04,
    ("secrets", "found"): 0.92,
    ("secrets, kinds without their own form", "found"): 0.85,
    ("secrets, texts without", "wrongly cut"): -0.06,
}


def both(made: list[str]) -> list[Row]:
    """Return what redaction and the injection decision cost together on *made*."""
    guard = Guard.default()

    def judge(text: str) -> None:
        guard.redact(text, Channel.USER, POLICY, NAMES)
        guard.injection(text, Channel.USER, POLICY)

    _speed, median, late = cost(judge, made)
    return [
        Row("redaction + injection: median, thread CPU", median / 1000, "ms/KiB", goal="<= 0.4", met=median <= 400),
        Row("redaction + injection: 99th percentile, thread CPU", late / 1000, "ms/KiB", goal="<= 2", met=late <= 2000),
    ]


def against_peers(ordinary: list[str], filled: list[str]) -> list[Row]:
    """Return our throughput beside each peer's on the same texts, in turn."""
    rows = []
    for peer_name, peer in (("Presidio, patterns only", presidio()), ("detect-secrets", detect_secrets())):
        if peer is None:
            print(f"{peer_name} is not installed: make bench-guard installs it", file=sys.stderr)
            continue
        peer(ordinary[0])
        for name, made in (("ordinary text", ordinary), ("text with values", filled)):
            ours, _median, _late = cost(redact, made)
            theirs, _median, _late = cost(peer, made)
            goal = ">= 300x" if peer_name.startswith("Presidio") and made is ordinary else ""
            met = ours >= 300 * theirs if goal else None
            rows.append(Row(f"redact {name}", ours, "MB/s", peer_name, theirs, goal, met))
    return rows


def size() -> float:
    """Return the MB of all files of the guard: code, tables, weights."""
    files = (ROOT / "src/casemate/guard").rglob("*")
    return sum(path.stat().st_size for path in files if path.is_file() and path.suffix != ".pyc") / 1e6


def main() -> None:
    args = options(__doc__ or "")
    plain = pieces(100 if args.quick else 600)
    filled = with_values(plain)
    redact("x" * 100)
    rows = accuracy()
    speed, median, late = cost(redact, plain)
    rows.append(Row("redact ordinary text: throughput", speed, "MB/s", goal=">= 5", met=speed >= 5))
    rows.append(Row("redact ordinary text: median", median / 1000, "ms/KiB"))
    rows.append(Row("redact ordinary text: 99th percentile", late / 1000, "ms/KiB"))
    speed, median, late = cost(redact, filled)
    rows.append(Row("redact a dozen values per KiB: throughput", speed, "MB/s"))
    rows.append(Row("redact a dozen values per KiB: median", median / 1000, "ms/KiB"))
    rows += both(plain)
    fallback = PythonScanner()
    slow, _median, _late = cost(lambda text: redact_text(text, POLICY, Channel.OUTPUT, NAMES, fallback), plain[:100])
    rows.append(Row("redact ordinary text without Hyperscan", slow, "MB/s"))
    few = 8 if args.quick else 40
    rows += against_peers(plain[:few], filled[:few])
    each, held, most = streams(plain[:200])
    rows.append(Row("stream: cost per token", each, "us", goal="<= 60", met=each <= 60))
    rows.append(Row("stream: characters held, mean", held, "chars", goal="<= 8", met=held <= 8))
    rows.append(Row("stream: characters held, 99th percentile", most, "chars", goal="<= 80", met=most <= 80))
    rounds = 1000 if args.quick else 20_000
    wrong = leaks(rounds)
    rows.append(Row(f"stream: leaks in {rounds} random chunkings", wrong, "", goal="0", met=wrong == 0))
    bound, name = worst()
    rows.append(Row(f"hostile texts: worst ({name})", bound, "ms/KiB", goal="<= 5", met=bound <= 5))
    seconds, memory = start_up()
    rows.append(Row("files", size(), "MB", goal="<= 5", met=size() <= 5))
    rows.append(Row("import", seconds, "s", goal="<= 0.3", met=seconds <= 0.3))
    rows.append(Row("memory added", memory, "MiB", goal="<= 40", met=memory <= 40))
    rows.append(Row("memory of this whole run", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "MiB"))
    publish("guard_redact", rows, args)


if __name__ == "__main__":
    main()
