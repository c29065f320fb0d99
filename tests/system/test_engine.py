"""The engine in its real sandbox, with the real model, over its real links."""

from __future__ import annotations

import itertools
import json
import os
import time
from pathlib import Path

import pytest

from casemate.device.home import owner_of
from casemate.formats import ipc
from support.engine import QUESTION, WITHIN, ended, ready, replaying

TURN = {"role": "user", "content": QUESTION}


@pytest.fixture(scope="module")
def engine():
    with ready(slots=2, waiting=2) as serving:
        yield serving


def test_it_says_what_is_in_force(engine):
    facts = engine.facts
    assert {"namespaces", "rlimits", "no-new-privileges", "seccomp-load", "seccomp-run"} <= set(facts["layers"])
    assert facts["landlock_abi"] >= 1
    assert facts["context"] == 512, "the model's own context, whatever the setting allows"
    assert facts["threads"] <= max(1, (os.cpu_count() or 1) - 1)


def test_chat_is_answered_from_the_models_own_catalogue(engine):
    text, end = engine.answer(engine.ask(temperature=0))
    assert "Japanese" in text
    assert end.finish_reason == "stop"
    assert end.prompt_tokens > 0
    assert end.completion_tokens > 5


def test_the_same_seed_gives_the_same_text(engine):
    first, second = (engine.answer(engine.ask(temperature=1.5, seed=11))[0] for _ in range(2))
    assert first == second


def test_max_tokens_and_stop_end_an_answer(engine):
    _, end = engine.answer(engine.ask(temperature=0, max_tokens=3))
    assert (end.finish_reason, end.completion_tokens) == ("length", 3)
    cut, end = engine.answer(engine.ask(temperature=0, stop=["Lantern", "zzz"]))
    assert "Lantern" not in cut
    assert end.finish_reason == "stop"


def test_completions(engine):
    number = engine.ask("completion", prompt="Try Wild", max_tokens=4, temperature=0)
    text, end = engine.answer(number)
    assert text
    assert end.completion_tokens == 4


def test_embeddings(engine):
    _, end = engine.answer(engine.ask("embedding", input=["noodles", "a quiet place"]))
    assert len(end.vectors) == 2
    assert len(end.vectors[0]) == 256
    assert end.vectors[0] != end.vectors[1]
    assert abs(sum(value * value for value in end.vectors[0]) - 1) < 1e-3


def test_a_json_schema_shapes_the_answer(engine):
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
    wanted = {"type": "json_schema", "json_schema": {"schema": schema, "name": "n"}}
    text, end = engine.answer(engine.ask(response_format=wanted, max_tokens=40, temperature=0))
    assert end.finish_reason == "stop"
    assert json.loads(text)["n"] in {1, 2}


def test_a_prompt_that_does_not_fit_is_too_long(engine):
    _, end = engine.answer(engine.ask(messages=[{"role": "user", "content": "noodles " * 600}]))
    assert end.code == "too_long"
    assert "512" in end.message
    _, end = engine.answer(engine.ask("embedding", input=["noodles " * 600]))
    assert end.code == "too_long"


@pytest.mark.parametrize(
    "schema", [{"type": "objekt"}, {"$ref": "https://example.org/x"}, {"pattern": "(" * 50}, {"allOf": [{"$ref": "#"}]}]
)
def test_a_schema_the_library_chokes_on_fails_the_request_only(engine, schema):
    wanted = {"type": "json_schema", "json_schema": {"schema": schema}}
    _, end = engine.answer(engine.ask(response_format=wanted, max_tokens=4))
    assert isinstance(end, ipc.Failed | ipc.Done)
    assert engine.answer(engine.ask(max_tokens=1))[1].finish_reason == "length"


def test_an_unknown_field_never_reaches_the_library(engine):
    assert engine.answer(engine.ask(n_discard=-1))[1].code == "bad_request"


def test_two_requests_run_side_by_side(engine):
    numbers = {engine.ask(temperature=0), engine.ask(temperature=0)}
    order, ends = [], {}
    while len(ends) < 2:
        message = engine.heard()
        if isinstance(message, ipc.Chunk):
            order.append(message.id)
        else:
            ends[message.id] = message
    assert set(ends) == numbers
    switches = sum(a != b for a, b in itertools.pairwise(order))
    assert switches > 1, "their tokens interleave"


def test_cancel_stops_within_a_token_or_two(engine):
    number = engine.ask(messages=[TURN], temperature=2, seed=1, max_tokens=400)
    engine.heard()
    engine.gateway.send(ipc.Cancel(number))
    _, end = engine.answer(number)
    assert end.finish_reason in {"cancelled", "stop"}
    assert end.completion_tokens < 200


def test_a_deadline_is_kept(engine):
    assert engine.answer(engine.ask(deadline=0.0))[1].code == "deadline"
    assert engine.answer(engine.ask(max_tokens=1))[1].finish_reason == "length"


def test_it_answers_the_agent_while_it_works(engine):
    number = engine.ask(max_tokens=200)
    engine.control.send(ipc.Ping(5))
    pong = engine.told()
    assert isinstance(pong, ipc.Pong)
    assert pong.n == 5
    assert pong.memory > 10 * 1024  # KiB: it says how much it held
    engine.answer(number)


def test_one_tenants_cache_is_not_anothers(engine):
    """The time to a first token must not tell one app what another one asked."""
    for tenant in ("a", "b", "a"):
        assert engine.answer(engine.ask(tenant=tenant, temperature=0, max_tokens=2))[1].finish_reason == "length"


def test_it_is_a_stranger_on_the_host(engine):
    status = Path(f"/proc/{engine.pid_inside()}/status").read_text("ascii")
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    owner = owner_of("engine")
    assert set(fields["Uid"].split()) == {str(owner.uid if owner else os.getuid())}
    assert int(fields["CapEff"], 16) == int(fields["CapPrm"], 16) == int(fields["CapBnd"], 16) == 0
    assert fields["NoNewPrivs"] == "1"
    assert fields["Seccomp"] == "2"
    assert int(fields["Seccomp_filters"]) >= 2


@pytest.mark.root
def test_its_descriptors_are_its_three_links_and_nothing_else(engine):
    links = Path(f"/proc/{engine.pid_inside()}/fd")
    kinds = sorted(str(link.readlink()).split(":")[0] for link in links.iterdir())
    own = [kind for kind in kinds if kind.startswith("/proc/") and kind.endswith("/status")]
    assert len(own) == 1, "where it reads how much memory it holds"
    assert not [kind for kind in kinds if "memfd" in kind], "the weights are mapped, not held open"
    assert kinds.count("socket") == 3, "control, gateway, and llama.cpp's own listener, to which no path leads"
    assert set(kinds) <= {"socket", "/dev/null", "pipe", "anon_inode", str(links), *own} | {
        str(Path(f"/proc/{os.getpid()}/fd/2").readlink())
    }


def test_it_ends_when_the_gateway_goes():
    with replaying(["a"]) as engine:
        engine.gateway.close()
        assert engine.process.wait(WITHIN) == 0


def test_it_ends_when_the_agent_goes():
    with replaying(["a"]) as engine:
        engine.control.close()
        assert engine.process.wait(WITHIN) == 0


def test_the_replay_speaks_like_an_engine():
    with replaying(["a", "b", "c"], pause=0.0) as engine:
        assert "seccomp-run" in engine.facts["layers"]
        assert engine.answer(engine.ask()) == ("abc", ipc.Done(1, "stop", 1, 3))
        assert engine.answer(engine.ask(max_tokens=2))[1].finish_reason == "length"
        assert engine.answer(engine.ask("embedding", input=["x"]))[1].vectors == [[1.0, 0.0]]
        assert engine.answer(engine.ask(n_discard=1))[1].code == "bad_request"


def test_a_cancelled_replay_stops():
    with replaying(["a"] * 500, pause=0.01) as engine:
        number = engine.ask()
        engine.heard()
        began = time.monotonic()
        engine.gateway.send(ipc.Cancel(number))
        assert engine.answer(number)[1].finish_reason == "cancelled"
        assert time.monotonic() - began < 4, "500 chunks would take 5 s"


def test_frames_that_are_not_requests_end_the_engine():
    with replaying(["a"]) as engine:
        engine.gateway.socket.sendall(b"\xff\xff\xff\xff garbage")
        said = engine.told()
        assert isinstance(said, ipc.Fatal)
        assert said.check == "ipc-frame-size"
        assert ended(engine.control)
