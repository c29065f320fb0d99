"""What the gateway adds: to the first token, to each token, and to throughput beside llama.cpp's own HTTP server.

Latency is measured against the engine's socket itself: a scripted engine that answers at once, asked directly and
through a real gateway process, in turns, so a busy machine slows both. At such a pace the gateway joins tokens that
wait; what each costs when they come one by one is told as CPU time. Throughput is a real device (`casemate up`,
encrypted, sandboxed, guarded, journaled) against xllamacpp's listener with the same model, settings and client.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import big_model
from report import Row, options, publish

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from casemate.device.channel import Channel, pair
from casemate.formats import ipc
from support.device import running
from support.gateway import FakeEngine, RunningGateway, running_gateway, weakened

WORDS = ("The ", "old ", "bridge ", "is ", "near ", "the ", "market, ", "and ", "its ", "stones ", "are ", "warm. ")
PROMPT = ("We walked along the river and talked about where to eat, what to see and when to go home again. " * 11)[
    :1024
]
ENGINE = f"""
import socket, sys, time
from casemate.device.channel import Channel, ChannelClosed
from casemate.formats import ipc
link = Channel(socket.socket(fileno=int(sys.argv[1])), ipc.ToEngine)
words = {WORDS!r}
try:
    while True:
        message, _ = link.recv()
        if isinstance(message, ipc.Generate):
            count = message.params["max_tokens"]
            for index in range(count):
                link.send(ipc.Chunk(message.id, words[index % len(words)]))
                time.sleep(message.params.get("seed", 0) / 1e6)  # the seed is the pace: microseconds between tokens
            link.send(ipc.Done(message.id, "length", 200, count))
except ChannelClosed:
    pass
"""
PACE = 2000  # microseconds
UNGUARDED = weakened(
    "import casemate.device.gateway.serve as serve",
    "from casemate.guard import Action, Verdict",
    "class Emission:",
    "    spans, stop = (), None",
    "    def __init__(self, text): self.text = text",
    "class Open:",
    "    def feed(self, text): return Emission(text)",
    "    def flush(self): return Emission('')",
    "class NoShield:",
    "    def __init__(self, guard): pass",
    "    def check(self, *rest): return Verdict(Action.ALLOW)",
    "    def open_answer(self, conversation): return Open()",
    "serve.GuardShield = NoShield",
)
LISTENER = """
import os, sys, tempfile
from casemate.device.engine import llama
params = llama.parameters(sys.argv[1], tempfile.mkdtemp(), llama.Sizing(512, 2, 512, "mean", lock=False), 1)
params.hostnames, params.port, params.api_keys = ["127.0.0.1"], 0, ["k"]
params.n_threads_http, params.timeout_read, params.timeout_write = 4, 600, 600
server = llama._native.Server(params)
print(server.listening_address, flush=True)
sys.stdin.readline()
os._exit(0)
"""


# --- latency: a scripted engine, directly and through the gateway


class QuickEngine(FakeEngine):
    """A scripted engine in a process of its own, so that it does not share the client's interpreter."""

    def __init__(self) -> None:
        self.model, self.slots = "test", 1
        self.gateway_end, far = pair()
        self.process = subprocess.Popen([sys.executable, "-c", ENGINE, str(far.fileno())], pass_fds=[far.fileno()])
        far.close()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.gateway_end.close()


@dataclass
class Times:
    """Seconds to the first token and to the end, of many answers."""

    first: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)


def ask_engine(link: Channel, number: int, tokens: int, times: Times) -> None:
    params = {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": tokens, "tenant": "default"}
    began = time.perf_counter()
    link.send(ipc.Generate(id=number, kind="chat", params=params, deadline=30.0))
    first = None
    while isinstance(link.recv()[0], ipc.Chunk):
        first = first or time.perf_counter()
    times.whole.append(time.perf_counter() - began)
    times.first.append((first or 0.0) - began)


class Client:
    """A small HTTP client: its own cost is the same for everybody it asks."""

    def __init__(self, url: str, key: str, *, keep: bool = True) -> None:
        self._keep = keep  # llama.cpp's server hangs up after a stream: throughput is measured without keeping
        host, _, port = url.rpartition("/")[2].partition(":")
        self._connection = http.client.HTTPConnection(host, int(port), timeout=120)
        self.address = f"http://{host}:{port}"
        self._headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}

    def ask(self, model: str, prompt: str, tokens: int, **more: object) -> tuple[float, float, int]:
        """Return seconds to the first text, seconds to the end, and the tokens the server counted."""
        body = {
            "model": model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
            **more,
        }
        began = time.perf_counter()
        self._connection.request("POST", "/v1/chat/completions", json.dumps(body), self._headers)
        answer = self._connection.getresponse()
        if answer.status != 200:
            raise RuntimeError(answer.read())
        first, used = 0.0, 0
        while line := answer.readline():
            if not first and b'"content":"' in line and b'"content":""' not in line:
                first = time.perf_counter() - began
            if b'"usage":{' in line:
                used = json.loads(line[6:])["usage"]["completion_tokens"]
            if line == b"data: [DONE]\n":
                answer.read()
                break
        spent = time.perf_counter() - began
        if not self._keep:
            self._connection.close()
        return first, spent, used


def cpu_of(gateway: RunningGateway) -> float:
    fields = Path(f"/proc/{gateway.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def cpu_per_token(gateway: RunningGateway, client: Client, rounds: int) -> float:
    before = cpu_of(gateway)
    for _ in range(rounds):
        client.ask("test", PROMPT, 256, seed=PACE)
    return (cpu_of(gateway) - before) / (rounds * 256)


@contextlib.contextmanager
def gateways(scratch: Path) -> Iterator[dict[str, RunningGateway]]:
    with contextlib.ExitStack() as stack:
        made = {}
        for name, argv in (("on", ("-m", "casemate.device.gateway")), ("off", UNGUARDED)):
            directory = scratch / name
            directory.mkdir()
            policy = {"default": "requests_per_minute = 0"}
            made[name] = stack.enter_context(
                running_gateway(directory, apps=policy, engines=[QuickEngine()], argv=argv)
            )
        yield made


def latency_rows(scratch: Path, rounds: int, tokens: int) -> list[Row]:
    times = {name: Times() for name in ("direct", "on", "off")}
    direct = QuickEngine()
    with contextlib.closing(direct), gateways(scratch) as made:
        link = Channel(direct.gateway_end, ipc.FromEngine)
        clients = {name: Client(gateway.url, gateway.key) for name, gateway in made.items()}
        for number in range(1, rounds + 1):
            ask_engine(link, number, tokens, times["direct"])
            for name, client in clients.items():
                first, whole, used = client.ask("test", PROMPT, tokens)
                assert used == tokens
                times[name].first.append(first)
                times[name].whole.append(whole)
        spent = {name: cpu_per_token(made[name], clients[name], rounds // 10 + 1) for name in made}
    base = times["direct"]
    rows = []
    for name, label, first_goal, token_goal in (("off", "guard off", 2.0, 0.1), ("on", "guard on", 5.0, 0.2)):
        first = (statistics.median(times[name].first) - statistics.median(base.first)) * 1e3
        joined = (statistics.median(times[name].whole) - statistics.median(base.whole)) / tokens * 1e3
        token = spent[name] * 1e3
        rows += [
            Row(f"added to the first token, {label}, 1 KiB prompt", first, "ms", "engine socket",
                statistics.median(base.first) * 1e3, f"<= {first_goal:g} ms", first <= first_goal),
            Row(f"added to each token that comes by itself (CPU), {label}", token, "ms", goal=f"<= {token_goal:g} ms",
                met=token <= token_goal),
            Row(f"... when tokens come faster than they can be sent (wall), {label}", joined, "ms"),
        ]  # fmt: skip
    return rows


# --- throughput: a whole device against llama.cpp's own listener


@contextlib.contextmanager
def listener(model: Path) -> Iterator[Client]:
    with subprocess.Popen(
        [sys.executable, "-c", LISTENER, str(model)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout
        yield Client(process.stdout.readline().strip(), "k", keep=False)
        process.kill()


def tokens_per_second(clients: list[Client], model: str, tokens: int, seed: int) -> float:
    """Have every client stream one answer at the same time; return all tokens over the time until the last ended."""
    counts: list[int] = []

    def ask(client: Client, number: int) -> None:
        prompt = f"We are {number + 2} people, can you find something Japanese, budget price?"
        counts.append(client.ask(model, prompt, tokens, seed=seed + number, temperature=1.0)[2])

    threads = [threading.Thread(target=ask, args=(client, number)) for number, client in enumerate(clients)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - began)


def throughput_rows(label: str, model: Path, scratch: Path, rounds: int, tokens: int) -> list[Row]:
    settings = {"CASEMATE_ENGINE_SLOTS": "2", "CASEMATE_ENGINE_CONTEXT": "512", "CASEMATE_ENGINE_THREADS": "1"}
    scratch.chmod(0o755)
    with running(scratch / "home", "--model", str(model), environ=settings) as device, listener(model) as plain:
        key = device.json("app", "add", "bench", "--policy", str(_policy(scratch)))["key"]
        name = device.status["models"][0]["name"]
        second = Client(plain.address, "k", keep=False)
        ours = [Client(device.endpoint, key, keep=False) for _ in range(2)]
        time.sleep(1.0)  # the new key is live
        rates: dict[str, list[float]] = {"ours": [], "theirs": []}
        for number in range(rounds + 1):
            for who, clients in (("theirs", [plain, second]), ("ours", ours)):
                rate = tokens_per_second(clients, name, tokens, seed=10 * number)
                if number:  # the first round warms both up
                    rates[who].append(rate)
    ratios = sorted(ours / theirs for ours, theirs in zip(rates["ours"], rates["theirs"], strict=True))
    mine, other = statistics.median(rates["ours"]), statistics.median(rates["theirs"])
    return [
        Row(f"two streams at once, {label}", mine, "tokens/s", "llama.cpp's HTTP server", other, ">= 0.97x",
            mine / other >= 0.97),
        Row(f"... median of {len(ratios)} ratios taken in turns", statistics.median(ratios), "x"),
    ]  # fmt: skip


def _policy(scratch: Path) -> Path:
    path = scratch / "bench.toml"
    path.write_text("requests_per_minute = 0\n")
    return path


def main() -> None:
    args = options(__doc__)
    rounds, tokens = (10, 64) if args.quick else (120, 256)
    with tempfile.TemporaryDirectory() as place:
        scratch = Path(place)
        for name in ("latency", "small", "big"):
            (scratch / name).mkdir()
        scratch.chmod(0o755)
        rows = latency_rows(scratch / "latency", rounds, tokens)
        rows += throughput_rows("2.8 MB demo model", big_model.SAFFRON, scratch / "small", rounds // 10 + 2, 128)
        if not args.quick:
            path = scratch / "big.gguf"
            big_model.write(path)
            rows += throughput_rows("390 MB model", path, scratch / "big", 7, 48)
    publish("gateway", rows, args)


if __name__ == "__main__":
    main()
