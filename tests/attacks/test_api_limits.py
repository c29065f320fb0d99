"""Too much of everything: bytes, messages, depth, time, requests, slots. Each has its answer; others are served."""

from __future__ import annotations

import json
import socket
import threading
import time
from pathlib import Path

import httpx
import pytest

from casemate.device.gateway import listener
from support.gateway import FakeEngine, once, running_gateway, saying, weakened

MB = 1024 * 1024
QUICK = (
    "import casemate.device.gateway.listener as l",
    "l.HEAD_SECONDS = l.MESSAGE_SECONDS = 0.7",
    "import casemate.device.gateway.exchange as e",
    "e.BODY_IDLE_SECONDS = 0.5",
)
PATIENT = (
    "import casemate.device.gateway.listener as l",
    "l.HEAD_SECONDS = l.MESSAGE_SECONDS = 1e6",
    "import casemate.device.gateway.exchange as e",
    "e.BODY_IDLE_SECONDS = e.BODY_SECONDS = 1e6",
)
UNBOUNDED = (
    "import casemate.device.gateway.exchange as e",
    "e.MAX_BODY = 10**9",
    "e.BodyBudget.take = lambda self, count: True",
)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    with running_gateway(tmp_path_factory.mktemp("limits"), apps={"default": "requests_per_minute = 0"}) as running:
        yield running


def code(answer):
    return answer.status_code, answer.json()["error"]["code"]


def post_raw(gateway, content, **headers):
    headers = {"authorization": f"Bearer {gateway.key}", **headers}
    return httpx.post(
        f"{gateway.url}/v1/chat/completions", content=content, headers=headers, timeout=60, trust_env=False
    )


def peak_memory(gateway):
    rows = Path(f"/proc/{gateway.process.pid}/status").read_text().splitlines()
    return next(int(row.split()[1]) for row in rows if row.startswith("VmHWM")) * 1024


# --- size


def test_a_10_mb_prompt_is_413_and_does_not_fill_the_memory(gateway):
    gateway.chat()
    before = peak_memory(gateway)
    for size in (10 * 1000 * 1000, 10 * MB, 40 * MB):
        assert code(gateway.chat("x" * size)) == (413, "request_too_large")
    assert peak_memory(gateway) - before < 40 * MB
    assert gateway.chat().status_code == 200


def test_a_body_without_end_is_cut_off(gateway):
    def endless():
        yield b'{"model": "test", "messages": [{"role": "user", "content": "'
        for _ in range(64):
            yield b"x" * MB

    assert code(post_raw(gateway, endless())) == (413, "request_too_large")


def test_a_million_messages_are_400(gateway):
    message = b'{"role":"user","content":"x"},'
    body = b'{"model":"test","messages":[' + message * 1_000_000 + message[:-1] + b"]}"
    assert code(post_raw(gateway, body)) == (400, "invalid_request")
    assert gateway.chat().status_code == 200


def test_deep_json_is_400(gateway):
    for body in (
        b"[" * MB,
        b'{"messages":' * 100_000,
        b'{"model":"test","messages":' + b"[" * 5000 + b"]" * 5000 + b"}",
    ):
        assert code(post_raw(gateway, body)) == (400, "invalid_request")


def test_a_schema_that_would_explode_is_refused_before_the_engine(gateway):
    before = len(gateway.engine.requests)
    deep: dict = {"type": "string"}
    for _ in range(40):
        deep = {"type": "object", "properties": {"a": deep}}
    wide = {"type": "object", "properties": {f"k{number}": {"type": "string"} for number in range(2000)}}
    for schema in (deep, wide):
        wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        assert gateway.chat(response_format=wanted).status_code in {400, 413}
    assert len(gateway.engine.requests) == before


def test_positive_control_without_the_limit_a_large_body_is_read_whole(tmp_path):
    policy = {"default": "max_input_tokens = 1000000"}
    with running_gateway(tmp_path, apps=policy, argv=weakened(*UNBOUNDED)) as gateway:
        assert code(gateway.chat("x" * 10 * MB)) == (400, "context_length_exceeded")


def test_headers_without_end_are_cut_off(gateway):
    with socket.create_connection(("127.0.0.1", gateway.port)) as sock:
        sock.sendall(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n")
        with pytest.raises((BrokenPipeError, ConnectionResetError)):  # noqa: PT012 - which write fails is the kernel's choice
            for number in range(64):
                sock.sendall(b"x-%d: %s\r\n" % (number, b"y" * 16_384))
                time.sleep(0.005)
    assert gateway.chat().status_code == 200


# --- time


HALF_HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n"


def closed_after(port, *parts, pause=0.2, most=8.0):
    """Dribble *parts*, then a byte per pause; return the seconds until the server hangs up, or None."""
    started = time.monotonic()
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.settimeout(pause)
        for part in parts:
            sock.sendall(part)
        while time.monotonic() - started < most:
            try:
                if not sock.recv(4096):
                    return time.monotonic() - started
                sock.sendall(b" ")
            except TimeoutError:
                try:
                    sock.sendall(b"x")
                except OSError:
                    return time.monotonic() - started
            except OSError:
                return time.monotonic() - started
    return None


def slow_bodies(key):
    head = b"content-length: 1000\r\nauthorization: Bearer %b\r\n\r\n" % key.encode()
    return HALF_HEAD + head, HALF_HEAD + b"content-length: 1000\r\n\r\n"


def test_slow_heads_and_bodies_are_hung_up_on_while_others_are_served(tmp_path):
    with running_gateway(tmp_path, argv=weakened(*QUICK)) as gateway:
        results: list[float | None] = []
        starts = [b"", HALF_HEAD, *slow_bodies(gateway.key)] * 5
        threads = [
            threading.Thread(target=lambda start=start: results.append(closed_after(gateway.port, start)))
            for start in starts
        ]
        for thread in threads:
            thread.start()
        assert gateway.chat().status_code == 200
        for thread in threads:
            thread.join()
        assert None not in results


def test_positive_control_without_deadlines_a_slow_client_stays_for_ever(tmp_path):
    with running_gateway(tmp_path, argv=weakened(*PATIENT)) as gateway:
        assert closed_after(gateway.port, HALF_HEAD, most=1.8) is None


def test_a_body_that_stops_is_408(tmp_path):
    with (
        running_gateway(tmp_path, argv=weakened(*QUICK)) as gateway,
        socket.create_connection(("127.0.0.1", gateway.port)) as sock,
    ):
        sock.sendall(slow_bodies(gateway.key)[0] + b'{"model"')
        sock.settimeout(10)
        assert b" 408 " in sock.recv(4096)


def alive(sock):
    """Whether the other side has not hung up."""
    try:
        return bool(sock.recv(1))
    except TimeoutError:
        return True
    except OSError:
        return False


def test_one_address_cannot_hold_every_connection(tmp_path):
    few = weakened("import casemate.device.gateway.listener as l", "l.MAX_PER_ADDRESS = 8")
    with running_gateway(tmp_path, argv=few) as gateway:
        held = [socket.create_connection(("127.0.0.1", gateway.port)) for _ in range(16)]
        for sock in held:
            sock.settimeout(0.02)
        gateway.wait_for(lambda: sum(map(alive, held)) <= 8, within=listener.HEAD_SECONDS / 2)  # not for their silence
        for sock in held:
            sock.close()
        gateway.wait_for(lambda: gateway.chat().status_code == 200)


AHEAD = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 100


def send_ahead(gateway, rounds: int = 500) -> tuple[bool, int]:
    """Send up to 50,000 requests without reading: (whether all were taken, memory that the gateway grew)."""
    before = peak_memory(gateway)
    taken = True
    with socket.create_connection(("127.0.0.1", gateway.port)) as sock:
        sock.settimeout(3)
        try:
            for _ in range(rounds):
                sock.sendall(AHEAD)
            for _ in range(30):  # what was sent may still lie in the kernel's buffers, unread by anybody
                time.sleep(0.1)
                sock.sendall(b"G")
        except OSError:
            taken = False
        time.sleep(0.5)
        return taken, peak_memory(gateway) - before


def test_requests_sent_ahead_without_reading_are_cut_off_and_do_not_fill_the_memory(tmp_path):
    with running_gateway(tmp_path) as gateway:
        taken, grown = send_ahead(gateway)
        assert not taken
        assert grown < 16 * MB
        assert gateway.chat().status_code == 200


def test_positive_control_without_a_limit_requests_ahead_fill_the_memory(tmp_path):
    endless = weakened("import casemate.device.gateway.listener as l", "l.MAX_PIPELINED = 10**9")
    with running_gateway(tmp_path, argv=endless) as gateway:
        assert send_ahead(gateway)[1] > 32 * MB


def test_a_few_requests_ahead_are_answered_in_order(gateway):
    with socket.create_connection(("127.0.0.1", gateway.port)) as sock:
        sock.settimeout(10)
        sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 4)
        answers = b""
        while answers.count(b"HTTP/1.1 200") < 4 and (more := sock.recv(65536)):
            answers += more
    assert answers.count(b"HTTP/1.1 ") == answers.count(b"HTTP/1.1 200") == 4


@pytest.mark.long
def test_a_client_that_does_not_read_its_answer_is_hung_up_on(tmp_path):
    def flood(job):  # as much as an engine may say; one that says more is a liar and ended as one
        for _ in range(300):
            job.say("word " * 2000)
        while job.say(""):
            time.sleep(0.05)
        job.done()

    short = weakened("import casemate.device.gateway.listener as l", "l.STALL_SECONDS = 0.5")
    with running_gateway(tmp_path, argv=short, engines=[FakeEngine(script=flood)]) as gateway:
        body = json.dumps({"model": "test", "stream": True, "messages": [{"role": "user", "content": "hi"}]}).encode()
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.connect(("127.0.0.1", gateway.port))
            head = HALF_HEAD + b"content-length: %d\r\nauthorization: Bearer %b\r\n\r\n"
            sock.sendall(head % (len(body), gateway.key.encode()) + body)
            gateway.wait_for(lambda: gateway.engine.cancels, within=75)  # three megabytes pass the guard first


# --- the guard's time


SLOW_GUARD = (
    "import time",
    "from casemate.device.gateway.shield import GuardShield",
    "from casemate.guard import Action, Judged, Redaction, Verdict",
    "def slow(self, text, channel, conversation, over_budget):",
    "    end = time.monotonic() + 3",
    "    while time.monotonic() < end:",
    "        time.sleep(0.01)",
    "        if over_budget(): return Judged(Verdict(Action.BLOCK, 1.0, ('over-budget',)), Redaction(''))",
    "    return Judged(Verdict(Action.ALLOW), Redaction(text))",
    "GuardShield.check = slow",
    "import casemate.device.gateway.screening as s",
)


def test_text_that_keeps_the_guard_busy_is_refused_and_holds_up_nobody(tmp_path):
    with running_gateway(
        tmp_path, argv=weakened(*SLOW_GUARD, "s.Screening.__init__.__kwdefaults__['budget'] = 1.5")
    ) as gateway:
        answers = []
        asking = threading.Thread(target=lambda: answers.append(gateway.chat("x" * 10_000)))
        asking.start()
        meanwhile = 0
        while asking.is_alive():
            meanwhile += httpx.get(f"{gateway.url}/healthz", trust_env=False).status_code == 200
        assert code(answers[0]) == (400, "content_filter")
        assert "over-budget" in answers[0].text
        assert meanwhile >= 5  # a gateway that waits for its guard answers one before and one after
        assert gateway.engine.requests == []


def test_positive_control_without_a_budget_the_text_goes_through(tmp_path):
    unbounded = weakened(*SLOW_GUARD, "s.Screening.__init__.__kwdefaults__['budget'] = 60.0")
    with running_gateway(tmp_path, argv=unbounded) as gateway:
        assert gateway.chat("x" * 10_000).status_code == 200


# --- requests and slots


def test_limits_hold_for_parallel_requests_and_for_every_way_to_name_the_app(tmp_path):
    apps = {"default": "requests_per_minute = 5"}
    with running_gateway(tmp_path, apps=apps, engines=[FakeEngine(slots=8)], settings={"queue": 64}) as gateway:
        statuses: list[int] = []

        def ask(number):
            spelling = ("Bearer", "bearer", "BEARER")[number % 3]
            headers = {
                "authorization": f"{spelling} {gateway.key}",
                "x-forwarded-for": f"10.1.1.{number}",
                "user-agent": f"client-{number}",
            }
            body = {"model": "test", "user": f"u{number}", "messages": [{"role": "user", "content": "hi"}]}
            url = f"{gateway.url}/v1/chat/completions?attempt={number}"
            statuses.append(httpx.post(url, json=body, headers=headers, trust_env=False).status_code)

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(24)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert statuses.count(200) <= 6  # five, and one that a slow machine may have refilled
        assert set(statuses) == {200, 429}
        assert json.dumps(gateway.journal.events).count("requests_per_minute") >= 1


def test_positive_control_without_a_limit_all_are_served(gateway):
    assert {gateway.chat().status_code for _ in range(24)} == {200}


def test_one_app_cannot_take_every_slot_when_its_policy_says_so(tmp_path):
    apps = {"greedy": "concurrent_requests = 2", "other": None}
    released = threading.Event()
    engine = FakeEngine(slots=3, script=once(released, "slow", only=2))
    with running_gateway(tmp_path, apps=apps, engines=[engine], settings={"queue": 0}) as gateway:
        answers: list[int] = []
        threads = [threading.Thread(target=lambda: answers.append(gateway.chat().status_code)) for _ in range(6)]
        for thread in threads:
            thread.start()
        gateway.wait_for(lambda: answers.count(429) == 4)
        body = {"model": "test", "messages": [{"role": "user", "content": "hi"}]}
        assert gateway.post("/v1/chat/completions", body, key=gateway.keys["other"]).status_code == 200
        released.set()
        for thread in threads:
            thread.join()
        assert answers.count(200) == 2


def test_streams_that_are_opened_and_dropped_leave_no_slot_taken(tmp_path):
    def endless(job):
        while not job.cancelled.is_set():
            job.say("word ", pause=0.02)
        job.done()

    with running_gateway(tmp_path, engines=[FakeEngine(slots=2, script=endless)]) as gateway:
        for _ in range(8):
            with httpx.Client(trust_env=False) as client:
                body = {"model": "test", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
                headers = {"authorization": f"Bearer {gateway.key}"}
                url = f"{gateway.url}/v1/chat/completions"
                with client.stream("POST", url, json=body, headers=headers) as stream:
                    assert stream.status_code == 200
        gateway.wait_for(lambda: len(gateway.engine.cancels) == 8)
        gateway.engine.script = saying("free")
        gateway.wait_for(lambda: gateway.chat().status_code == 200)
