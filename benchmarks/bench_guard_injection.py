"""What judging costs: CPU time per KiB of the injection decision and of everything a request's text goes through.

Ordinary prompts, documents, technical text and attacks are cut into 1 KiB pieces. The peer is the usual n-gram
classifier's first step (scikit-learn's HashingVectorizer over characters, when it is installed) on the same pieces in
the same run: it has not judged anything yet when ours is done.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from report import Row, options, publish

from casemate.guard import Channel, Guard, GuardPolicy
from casemate.guard.bundle import shipped_bundle
from casemate.guard.disguises import DISGUISES
from casemate.guard.normalize import normalize

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "tools/train_guard/data"
PIECE = 1024
POLICY = GuardPolicy()


def pieces(name: str, *, most: int, **wanted: object) -> list[str]:
    """Return up to *most* pieces of 1 KiB from the texts of a file that have the *wanted* fields."""
    rows = [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").rstrip("\n").split("\n")]
    text = "\n\n".join(row["text"] for row in rows if all(row[key] == value for key, value in wanted.items()))
    return [text[at : at + PIECE] for at in range(0, len(text) - PIECE, PIECE)][:most]


def cost(work: Callable[[str], object], texts: list[str]) -> tuple[float, float]:
    """Return the median and the 99th percentile of CPU microseconds per piece, warm."""
    for text in texts:
        work(text)
    spent = []
    for text in texts:
        began = time.thread_time_ns()
        work(text)
        spent.append((time.thread_time_ns() - began) / 1000)
    spent.sort()
    return spent[len(spent) // 2], spent[int(len(spent) * 0.99)]


def peer_features() -> Callable[[str], object] | None:
    """Return what a hashed n-gram classifier does before it judges; None where scikit-learn is not installed."""
    try:
        from sklearn.feature_extraction.text import HashingVectorizer  # noqa: PLC0415 - of the bench group only
    except ImportError:
        return None
    vectorizer = HashingVectorizer(analyzer="char_wb", ngram_range=(2, 5), n_features=2**18)
    return lambda text: vectorizer.transform([text])


def disguised(texts: list[str]) -> list[str]:
    """Return every text in every disguise, cut to one piece: what costs the decoders most."""
    return [hide(text[: PIECE // 4])[:PIECE] for hide in DISGUISES.values() for text in texts]


def judge(guard: Guard, text: str, channel: Channel) -> object:
    """Decide about injection only, without the entities that `check` adds."""
    return guard._find(normalize(text), channel, lambda: False)  # noqa: SLF001 - no caller needs this part alone


def start_up() -> tuple[float, float]:
    """Return the CPU seconds and the MiB of memory that a fresh guard adds to a Python process."""
    probe = (
        "import time; rss = lambda: int(open('/proc/self/statm').read().split()[1]) / 256;"
        "b, m = time.process_time(), rss();"
        "from casemate.guard import Guard; Guard.default();"
        "print(time.process_time() - b, rss() - m)"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    seconds, grown = done.stdout.split()
    return float(seconds), float(grown)


def main() -> None:
    args = options(__doc__.splitlines()[0])
    most = 40 if args.quick else 400
    guard = Guard.default()
    texts = {
        "ordinary prompts": (pieces("development.jsonl", most=most, source="s2"), Channel.USER),
        "documents": (pieces("development.jsonl", most=most, source="s3", label=0), Channel.DOCUMENT),
        "technical text": (pieces("background.jsonl", most=most), Channel.DOCUMENT),
        "jailbreaks": (pieces("development.jsonl", most=most, kind="jailbreak"), Channel.USER),
    }
    texts["attacks in 36 disguises"] = (disguised(texts["jailbreaks"][0][: 1 if args.quick else 6]), Channel.USER)
    peer = peer_features()
    rows = []
    for name, (found, channel) in texts.items():
        p50, p99 = cost(lambda text, channel=channel: judge(guard, text, channel), found)
        theirs = cost(peer, found) if peer else (None, None)
        label = "char n-gram hashing" if peer else ""
        rows.append(Row(f"injection, {name}, p50, thread CPU", p50, "us/KiB", label, theirs[0], "<= 400", p50 <= 400))
        rows.append(Row(f"injection, {name}, p99, thread CPU", p99, "us/KiB", label, theirs[1], "<= 2000", p99 <= 2000))
    ordinary = texts["ordinary prompts"][0]
    p50, p99 = cost(lambda text: guard.check(text, Channel.USER, POLICY), ordinary)
    rows.append(
        Row("injection and entities, ordinary prompts, p50, thread CPU", p50, "us/KiB", goal="<= 400", met=p50 <= 400)
    )
    rows.append(
        Row("injection and entities, ordinary prompts, p99, thread CPU", p99, "us/KiB", goal="<= 2000", met=p99 <= 2000)
    )
    seconds, grown = start_up()
    rows.append(Row("a fresh guard: import and tables, CPU", seconds, "s", goal="<= 0.3", met=seconds <= 0.3))
    rows.append(Row("a fresh guard: memory", grown, "MiB", goal="<= 40", met=grown <= 40))
    size = len(shipped_bundle()) / 1e6
    rows.append(Row("lexicons and weights", size, "MB", goal="<= 2", met=size <= 2))
    rows.append(Row("memory of this process", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "MiB"))
    publish("guard_injection", rows, args)


if __name__ == "__main__":
    main()
