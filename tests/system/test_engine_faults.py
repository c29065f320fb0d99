"""An engine that is fed poison, crashes, hangs or is killed dies alone, and says so while it can."""

from __future__ import annotations

import os
import signal
import struct
from pathlib import Path

import pytest

from casemate.formats import ipc
from support.engine import WITHIN, Engine, ended, ready, replaying, saffron, spawned


def fatal(engine: Engine) -> ipc.Fatal:
    said = engine.told()
    assert isinstance(said, ipc.Fatal), said
    assert ended(engine.control), "the links close with the process"
    assert engine.process.wait(WITHIN) == said.exit_code
    return said


def lying_count() -> bytes:
    data = bytearray(saffron())
    struct.pack_into("<Q", data, 8, 1 << 63)
    return bytes(data)


def unknown_architecture() -> bytes:
    """A header that our parser takes and llama.cpp does not."""
    return saffron().replace(b"llama", b"zzama")


MALFORMED = {
    "empty": b"",
    "garbage": os.urandom(4096),
    "magic only": b"GGUF",
    "a pickle": b"\x80\x04\x95",
    "counts of 2^63": lying_count(),
    "half a file": saffron()[: 1 << 20],
    "a loader's refusal": unknown_architecture(),
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_model_ends_the_engine_with_a_reason(data):
    with spawned() as engine:
        engine.order(slots=1)
        engine.load(data)
        said = fatal(engine)
    assert said.exit_code == 10
    assert said.check
    assert not said.transient


def test_weights_that_could_change_are_refused():
    with spawned() as engine:
        engine.order()
        engine.load(saffron(), sealed=False)
        said = fatal(engine)
    assert said.check == "engine-seals"


def test_weights_of_another_size_are_refused():
    with spawned() as engine:
        engine.order()
        engine.load(saffron(), size=5)
        assert fatal(engine).check == "engine-size"


def test_a_vault_that_never_sends_is_not_waited_for_for_ever():
    with spawned() as engine:
        engine.order(load_seconds=0.1)
        assert fatal(engine).exit_code == 1


def test_a_vault_that_goes_away_is_noticed():
    with spawned() as engine:
        engine.order()
        engine.supply.close()
        assert fatal(engine).exit_code == 1


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGKILL", "SIGBUS"])
def test_a_crash_closes_every_link(name):
    with ready(slots=1) as engine:
        engine.ask(max_tokens=400)
        engine.heard()
        os.kill(engine.pid_inside(), getattr(signal, name))
        assert ended(engine.gateway)
        assert ended(engine.control)
        assert engine.process.wait(WITHIN) != 0


def test_a_stopped_engine_does_not_answer_and_can_be_killed():
    with ready(slots=1) as engine:
        os.kill(engine.pid_inside(), signal.SIGSTOP)
        engine.control.send(ipc.Ping(1))
        with pytest.raises(TimeoutError):
            engine.control.recv(0.3)
        engine.process.kill()
        assert ended(engine.gateway)
        assert ended(engine.control)


def test_killing_the_wrapper_kills_the_engine():
    with replaying(["a"]) as engine:
        assert engine.pid_inside() != engine.process.pid
        engine.process.kill()
        assert ended(engine.gateway)
        assert ended(engine.control)


def test_a_model_that_stops_calling_back_is_reported_as_worth_a_restart():
    with replaying(["a", "b"], pause=30.0, stall_seconds=0.2) as engine:
        engine.ask()
        said = fatal(engine)
    assert said.transient
    assert "stopped answering" in said.message


def limits_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/limits").read_text("ascii").splitlines()
    return {line[:25].strip(): line[25:].split()[1] for line in lines[1:]}


@pytest.mark.root
def test_its_memory_tasks_and_core_have_ceilings():
    with ready(slots=1) as engine:
        limits = limits_of(engine.pid_inside())
    assert int(limits["Max address space"]) < (3 << 30) + 3 * len(saffron())
    assert int(limits["Max processes"]) < 100
    assert limits["Max core file size"] == "0"
