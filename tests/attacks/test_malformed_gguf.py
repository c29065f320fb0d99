"""A model file that attacks its reader: absurd counts, nested arrays, overlapping tensors, code instead of weights.

Each is refused by the header check before anything else reads the file. The controls show that the files bite: a
reader that believes them tries to allocate what they claim, unpickles into a command, or renders into Python's objects.
"""

from __future__ import annotations

import os
import pickle
import struct
import subprocess
import sys
import textwrap

import pytest

from casemate.device import inspector, models
from casemate.errors import UntrustedDataError
from casemate.formats.gguf import check_header
from support import gguf_files, homes


def refused(data: bytes) -> str:
    with pytest.raises(UntrustedDataError) as error:
        check_header(lambda offset, length: data[offset : offset + length], len(data))
    return error.value.check


BELIEVING = """
    import resource, struct, sys
    resource.setrlimit(resource.RLIMIT_AS, (512 << 20, 512 << 20))
    data = sys.stdin.buffer.read()
    at = data.index(b"general.x") + 9
    kind, element, count = struct.unpack_from("<IIQ", data, at)
    values = bytearray(count)  # what a reader that trusts a count does
"""


def test_control_a_reader_that_believes_a_count_dies():
    data, _ = gguf_files.MALFORMED["an array of 2^63 bytes"]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(BELIEVING)], input=data, capture_output=True, check=False
    )
    assert b"MemoryError" in done.stderr or b"OverflowError" in done.stderr
    assert refused(data) == "gguf-array"


def test_control_a_pickle_runs_code_and_is_refused_unopened(tmp_path):
    class Payload:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'pwned'}",)

    data = pickle.dumps(Payload()).ljust(64, b".")
    assert refused(data) == "format"
    assert not (tmp_path / "pwned").exists()
    pickle.loads(data)
    assert (tmp_path / "pwned").exists()


def test_control_a_template_reaches_python_through_a_naive_renderer():
    """The classic escape, by hand, as a renderer without a sandbox would follow it; and the review refuses it."""
    reached = "".__class__.__mro__[1].__subclasses__()
    assert any(kind.__name__ == "Popen" for kind in reached)
    data = gguf_files.with_template("{{ ''.__class__.__mro__[1].__subclasses__() }}")
    assert refused(data) == "chat-template"


def test_control_overlapping_tensors_share_bytes():
    """Both tensors of the file claim the bytes from 0: to a reader that believes it, writing one changes the other."""
    data, rule = gguf_files.MALFORMED["overlapping tensors"]
    claims = [gguf_files.TENSORS[0], gguf_files.tensor("b", (64,), gguf_files.F32_TENSOR, 0)]
    assert all(claim in data for claim in claims)
    assert [struct.unpack("<Q", claim[-8:])[0] for claim in claims] == [0, 0]
    assert refused(data) == rule


@pytest.mark.parametrize("fault", gguf_files.MALFORMED)
def test_a_malformed_file_never_enters_the_store(fault, tmp_path, monkeypatch):
    monkeypatch.setattr(models, "inspect_file", homes.inspect_here)
    bench = homes.make(tmp_path, monkeypatch)
    data, rule = gguf_files.MALFORMED[fault]
    with pytest.raises(UntrustedDataError) as error:
        bench.add(data)
    assert error.value.check == rule
    assert list(bench.home.models.iterdir()) == []
    assert bench.said() == ["model_refused"]


@pytest.mark.parametrize("kind", gguf_files.OTHER_FORMATS)
def test_another_format_never_enters_the_store(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(models, "inspect_file", homes.inspect_here)
    bench = homes.make(tmp_path, monkeypatch)
    with pytest.raises(UntrustedDataError, match=kind):
        bench.add(gguf_files.OTHER_FORMATS[kind])
    assert list(bench.home.models.iterdir()) == []


def test_the_real_child_refuses_and_stays_small(tmp_path):
    """The whole way, with its limits in force: a bomb ends as a named refusal."""
    bombs = ["2^63 keys", "an array of 2^63 strings", "arrays nested 200 deep"]
    for bomb in bombs:
        data, rule = gguf_files.MALFORMED[bomb]
        fd = os.memfd_create("bomb")
        os.write(fd, data)
        with pytest.raises(UntrustedDataError) as error:
            inspector.inspect_file(fd, len(data))
        os.close(fd)
        assert error.value.check == rule


@pytest.mark.parametrize("fault", gguf_files.MALFORMED)
def test_a_refusal_shows_no_hostile_characters(fault):
    data, _ = gguf_files.MALFORMED[fault]
    with pytest.raises(UntrustedDataError) as error:
        check_header(lambda offset, length: data[offset : offset + length], len(data))
    assert error.value.message.isprintable()
    assert len(error.value.message) < 300
