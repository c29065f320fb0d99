"""Coverage-guided fuzzing of redaction with atheris: `python tests/fuzz/fuzz_redaction.py [libFuzzer options]`.

Any bytes become a text (lone surrogates included) and a way to cut it. What must hold is in `support/redaction.py`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))

with atheris.instrument_imports(include=["casemate.guard"]):
    from support.redaction import assert_sound


def judge(data: bytes) -> None:
    """Redact one text in every way there is."""
    provider = atheris.FuzzedDataProvider(data)
    sizes = [provider.ConsumeIntInRange(1, 12) for _ in range(provider.ConsumeIntInRange(1, 4))]
    assert_sound(provider.ConsumeUnicode(4096), sizes)


def main() -> None:
    """Run libFuzzer over `judge`. What it finds worth keeping goes to a directory that is given, or is dropped."""
    atheris.Setup(sys.argv, judge)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
