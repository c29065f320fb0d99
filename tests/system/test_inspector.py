"""The header check in its real sandboxed child."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest

from casemate.device import inspector
from casemate.errors import UntrustedDataError
from support import gguf_files
from support.device import deepest_child


def inspect(data: bytes) -> inspector.Inspection:
    fd = os.memfd_create("model")
    os.write(fd, data)
    try:
        return inspector.inspect_file(fd, len(data))
    finally:
        os.close(fd)


def test_a_valid_file_gives_facts_and_the_hash_of_what_was_read():
    data = gguf_files.tiny()
    found = inspect(data)
    assert found.facts.architecture == "llama"
    assert 0 < found.checked <= len(data)
    assert found.sha256 == hashlib.sha256(data[: found.checked]).digest()


@pytest.mark.parametrize("fault", ["2^63 keys", "a nested array", "overlapping tensors", "a hostile template"])
def test_a_malformed_file_is_refused_by_name(fault):
    data, rule = gguf_files.MALFORMED[fault]
    with pytest.raises(UntrustedDataError) as refused:
        inspect(data)
    assert refused.value.check == rule


@pytest.mark.parametrize("answer", [b"", b"{}", b"{", b'{"type":"inspection","facts":1}', b"\xff" * 99, b"[" * 70000])
def test_a_child_that_dies_or_babbles_is_a_refusal(answer):
    with pytest.raises(UntrustedDataError) as refused:
        inspector._judge(answer)
    assert refused.value.check == "inspector"


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def test_the_child_has_given_up_every_right_when_it_reads_the_first_byte():
    """The file is a pipe nobody writes to: the child waits in its first read, and can be looked at."""
    file, hold = os.pipe()
    answer, result = os.pipe()
    child = inspector.spawn(inspector.plan(file, result, 1000))
    os.close(result)
    try:
        deadline = time.monotonic() + 30
        pid, seen = child.pid, {}
        while seen.get("Seccomp_filters", "0") < "2" and time.monotonic() < deadline:
            time.sleep(0.02)
            pid = deepest_child(child.pid)
            seen = status_of(pid)
        assert seen["Seccomp"] == "2"
        assert seen["NoNewPrivs"] == "1"
        assert int(seen["CapEff"], 16) == int(seen["CapBnd"], 16) == 0
        assert len(seen["NSpid"].split()) > 1
        assert seen["Uid"].split()[0] != "0"
        if os.geteuid() == 0:
            for kind in ("net", "mnt", "user", "ipc"):
                assert Path(f"/proc/{pid}/ns/{kind}").readlink() != Path(f"/proc/self/ns/{kind}").readlink()
    finally:
        os.close(hold)
        os.close(file)
        child.kill()
        child.wait()
        os.close(answer)
