"""Coverage-guided fuzzing of the guard with atheris: `python tests/fuzz/fuzz_guard.py [libFuzzer options]`.

Any bytes become a text (lone surrogates included) on any channel. The guard must answer without an error inside, with
spans inside the text, with a score that agrees with its action, and the same answer again.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["casemate.guard"]):
    from casemate.guard import Action, Channel, Document, Guard, GuardPolicy
    from casemate.guard.placeholders import Placeholders

CHANNELS = tuple(Channel)
GUARD = Guard.default()
POLICY = GuardPolicy()
PLACEHOLDERS = Placeholders(b"fuzzing needs no secret")
MARK = "k7Qp2xZ9"


def judge(data: bytes) -> None:
    """Judge, redact and wrap one text."""
    provider = atheris.FuzzedDataProvider(data)
    channel = CHANNELS[provider.ConsumeIntInRange(0, len(CHANNELS) - 1)]
    text = provider.ConsumeUnicode(4096)
    verdict = GUARD.injection(text, channel, POLICY)
    assert "guard-error" not in verdict.reasons
    assert all(0 <= span.start <= span.end <= len(text) for span in verdict.spans)
    assert (verdict.score >= 0.5) == (verdict.action is Action.BLOCK)
    assert GUARD.injection(text, channel, POLICY) == verdict
    GUARD.redact(text, channel, POLICY, PLACEHOLDERS)
    wrapped = GUARD.wrap_documents([Document(text)], MARK)
    assert all(MARK in line for line in wrapped.split("\n"))


def main() -> None:
    """Run libFuzzer over `judge`."""
    atheris.Setup(sys.argv, judge)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
