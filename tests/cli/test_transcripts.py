"""The command line as a person sees it: each transcript in this folder is run, line by line, on an empty home.

$ casemate model list             a command, run by sh in a scratch directory
NAME  ...                         what it prints on stdout and stderr together; `...` stands for any text
[exit 5]                          the exit code, when it is not 0
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from support.device import environment

HERE = Path(__file__).parent
SAFFRON = HERE.parents[1] / "src/casemate/data/saffron/saffron-q8_0.gguf"


def parse(text: str) -> list[tuple[str, str]]:
    """Return (command, expected output) pairs."""
    steps: list[tuple[str, list[str]]] = []
    for line in text.splitlines():
        if line.startswith("$ "):
            steps.append((line[2:], []))
        elif line.startswith("#") and not steps:
            continue
        elif steps:
            steps[-1][1].append(line)
    return [(command, "\n".join(lines).strip()) for command, lines in steps]


def matches(expected: str, actual: str) -> bool:
    pattern = ".*".join(re.escape(part) for part in expected.split("..."))
    return re.fullmatch(pattern, actual.strip(), flags=re.DOTALL) is not None


@pytest.mark.parametrize("path", sorted(HERE.glob("*.txt")), ids=lambda path: path.stem)
def test_transcript(path, tmp_path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    (scratch / "saffron.gguf").symlink_to(SAFFRON)
    environ = environment(tmp_path / "home")
    environ["PATH"] = f"{Path(sys.executable).parent}:{environ['PATH']}"
    steps = parse(path.read_text(encoding="utf-8"))
    assert steps
    for command, expected in steps:
        done = subprocess.run(
            ["sh", "-c", command],
            env=environ,
            cwd=scratch,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
        )
        shown = done.stdout.strip() + (f"\n[exit {done.returncode}]" if done.returncode else "")
        assert matches(expected, shown), f"$ {command}\n--- expected\n{expected}\n--- got\n{shown}"


def test_the_matcher_can_fail():
    assert matches("a ... c", "a b c")
    assert not matches("a ... c", "a b d")
    assert not matches("exact", "exact and more")
