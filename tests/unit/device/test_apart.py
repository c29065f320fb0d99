"""Work apart: its result, its descriptors and its errors come back, what it knew does not."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

from casemate.device import apart
from casemate.errors import OperationError, UntrustedDataError
from support.device import holds


def test_result_and_descriptors_come_back():
    def work():
        reading, writing = os.pipe()
        os.write(writing, b"here")
        return {"pid": os.getpid()}, {"pipe": reading}

    result, fds = apart.run(work, dict)
    assert result["pid"] != os.getpid()
    assert os.read(fds["pipe"], 9) == b"here"
    os.close(fds["pipe"])


def test_an_error_is_raised_as_it_was():
    def work():
        raise UntrustedDataError("it lies", check="some-check", hint="look")

    with pytest.raises(UntrustedDataError, match="it lies") as told:
        apart.run(work, int)
    assert (told.value.check, told.value.hint) == ("some-check", "look")


@pytest.mark.parametrize("work", [lambda: os._exit(0), lambda: 1 / 0, sys.exit])
def test_an_end_without_a_word_is_an_error_and_leaves_no_process(work):
    with pytest.raises(OperationError, match="ended"):
        apart.run(work, int)
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


CARELESS = """
import os, sys
from pathlib import Path
from casemate.device import apart
kept = []
def careless():
    kept.append(Path(sys.argv[1]).read_bytes())  # never wiped
    return len(kept[0]), {}
print(apart.run(careless, int)[0] if sys.argv[2] == "apart" else careless()[0], flush=True)
sys.stdin.read()
"""


@pytest.mark.root
@pytest.mark.parametrize(("way", "found"), [("apart", False), ("control: here", True)])
def test_what_careless_work_leaves_in_memory_is_gone_with_its_process(tmp_path, way, found):
    (tmp_path / "secret").write_bytes(b"seven sad seals")
    command = [sys.executable, "-c", textwrap.dedent(CARELESS), str(tmp_path / "secret"), way]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"15\n"
        assert holds(process.pid, b"seven sad seals") is found
        process.stdin.close()
