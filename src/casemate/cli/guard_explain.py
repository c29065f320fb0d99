"""What `casemate guard explain` shows: the verdict, the deciding sentences, what counted, the disguises undone."""

from __future__ import annotations

from typing import Any, Final

from casemate.guard import Channel, Guard, GuardPolicy
from casemate.guard.explain import Explanation, explain
from casemate.guard.normalize import normalize
from casemate.guard.views import Unmasking

WORDS: Final = 400


def explain_text(text: str, channel: str, policy: GuardPolicy) -> dict[str, Any]:
    """Return the verdict on *text* under *policy* with its reasons laid open."""
    guard = Guard.default()
    where = Channel(channel)
    verdict = guard.check(text, where, policy)
    normal = normalize(text[: policy.max_chars])
    reading = guard.judge.read(normal.text)
    views = Unmasking(guard.judge.lexicon, guard.judge.ordinary).views(reading, normal.original)
    readings = [
        explain(guard.judge, reading, where, ()),
        *(explain(guard.judge, v.reading, where, v.names) for v in views),
    ]
    return {
        "verdict": str(verdict.action),
        "score": verdict.score,
        "reasons": list(verdict.reasons),
        "spans": [{"start": span.start, "end": span.end, "type": span.type} for span in verdict.spans],
        "readings": [_described(found) for found in readings],
    }


def render(explained: dict[str, Any]) -> str:
    """Return the explanation for a person."""
    lines = [f"{explained['verdict']}  score {explained['score']:.2f}", *(f"  {r}" for r in explained["reasons"])]
    for reading in explained["readings"]:
        title = " then ".join(reading["disguise"]) or "as it stands"
        lines.append(f"\n{title}: {reading['value']:+.2f} (flag {reading['flag']:+.2f}, block {reading['block']:+.2f})")
        if reading["words"]:
            lines.append(f'  "{reading["words"]}"')
        lines += [f"  {weight['weight']:+.2f}  {weight['feature']}" for weight in reading["weights"]]
    lines.append("\nA~B: close together, A+B: in the same sentences. docs/guard.md explains the names.")
    return "\n".join(lines)


def _described(found: Explanation) -> dict[str, Any]:
    return {
        "disguise": list(found.names),
        "value": round(found.value, 3),
        "flag": found.flag,
        "block": found.block,
        "words": found.words[:WORDS],
        "weights": [{"feature": name, "weight": round(weight, 3)} for name, weight in found.weights],
    }
