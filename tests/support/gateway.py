"""A real gateway process between a scripted engine and a journal that remembers: no agent, no model, no sandbox."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai

from casemate.device.apps import AppStore
from casemate.device.channel import Channel, ChannelClosed, pair
from casemate.device.home import Home
from casemate.errors import UntrustedDataError
from casemate.formats import event_schema, ipc

Say = Callable[..., None]
Script = Callable[["Job"], None]


@dataclass
class Job:
    """One request as the scripted engine sees it."""

    engine: FakeEngine
    request: ipc.Generate
    cancelled: threading.Event = field(default_factory=threading.Event)

    def say(self, *texts: str, pause: float = 0.0) -> int:
        """Send chunks until cancelled; return how many went out."""
        for index, text in enumerate(texts):
            if (pause and self.cancelled.wait(pause)) or self.cancelled.is_set():
                return index
            self.engine.send(ipc.Chunk(id=self.request.id, text=text))
        return len(texts)

    def done(self, reason: str = "stop", *, prompt: int = 7, completion: int = 3, **more: Any) -> None:
        reason = "cancelled" if self.cancelled.is_set() else reason
        self.engine.send(ipc.Done(self.request.id, reason, prompt_tokens=prompt, completion_tokens=completion, **more))

    def fail(self, code: str) -> None:
        self.engine.send(ipc.Failed(self.request.id, code, "words that must not reach a client"))


def saying(*texts: str, pause: float = 0.0, reason: str = "stop") -> Script:
    """Return a script that answers with *texts*; embeddings get one vector per input."""

    def script(job: Job) -> None:
        if job.request.kind == "embedding":
            job.done(vectors=[[0.5, -1.0, float(index)] for index in range(len(job.request.params["input"]))])
            return
        count = job.say(*texts, pause=pause)
        job.done(reason, completion=count)

    return script


def once(released: threading.Event, *texts: str, only: int = 1 << 30) -> Script:
    """Return a script that answers with *texts* once *released* is set; only the first *only* requests wait."""

    def script(job: Job) -> None:
        if len(job.engine.requests) <= only:
            released.wait(60)
        saying(*texts)(job)

    return script


class FakeEngine:
    """The engine's end of a link: every request runs `script` in a thread of its own."""

    def __init__(self, model: str = "test", script: Script | None = None, *, slots: int = 2) -> None:
        self.model = model
        self.slots = slots
        self.script: Script = script or saying("Hello", " from", " the", " engine", ".")
        self.requests: list[ipc.Generate] = []
        self.cancels: list[int] = []
        self.heeds_cancel = True
        self.gateway_end, self._end = pair()
        self._channel = Channel(self._end, ipc.ToEngine)
        self._lock = threading.Lock()
        self._jobs: dict[int, Job] = {}
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def up(self) -> ipc.EngineUp:
        return ipc.EngineUp(
            model=self.model, digest="sha256:" + "0" * 64, slots=self.slots, context=4096, created=1_700_000_000
        )

    def send(self, message: ipc.Message) -> None:
        with self._lock, contextlib.suppress(ChannelClosed, OSError):
            self._channel.send(message)

    def die(self) -> None:
        """Close the link as a killed process would."""
        with contextlib.suppress(OSError):
            self._end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.die()
        self._reader.join(5)
        self._end.close()
        self.gateway_end.close()

    def _read(self) -> None:
        with contextlib.suppress(ChannelClosed, OSError):
            while True:
                message, _ = self._channel.recv()
                if isinstance(message, ipc.Cancel):
                    self.cancels.append(message.id)
                    if self.heeds_cancel and message.id in self._jobs:
                        self._jobs[message.id].cancelled.set()
                else:
                    self.requests.append(message)
                    job = self._jobs[message.id] = Job(self, message)
                    threading.Thread(target=self.script, args=(job,), daemon=True).start()


class FakeJournal:
    """Acknowledges and remembers every event; one the real journal would refuse is a fault."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.faults: list[str] = []
        self.gateway_end, self._end = pair()
        self._channel = Channel(self._end, ipc.ToJournal)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._end.shutdown(socket.SHUT_RDWR)
        self._reader.join(5)
        self._end.close()
        self.gateway_end.close()

    def _read(self) -> None:
        with contextlib.suppress(ChannelClosed, OSError):
            while True:
                message, _ = self._channel.recv()
                self.events += message.events
                for item in message.events:
                    try:
                        event_schema.check(item, role="gateway")
                    except UntrustedDataError as error:
                        self.faults.append(str(error))
                self._channel.send(ipc.Appended(id=message.id, index=len(self.events)))

    def codes(self) -> list[str]:
        return [item["metadata"]["event_code"] for item in self.events]

    def of(self, code: str) -> list[dict[str, Any]]:
        return [item for item in self.events if item["metadata"]["event_code"] == code]


@dataclass
class RunningGateway:
    """A gateway process and everything around it."""

    process: subprocess.Popen[bytes]
    control: Channel
    home: Home
    store: AppStore
    url: str
    metrics_url: str
    keys: dict[str, str]
    engines: list[FakeEngine]
    journal: FakeJournal
    log: Path
    messages: list[Any] = field(default_factory=list)
    ready: bool = False
    clients: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    @property
    def engine(self) -> FakeEngine:
        return self.engines[0]

    @property
    def key(self) -> str:
        return next(iter(self.keys.values()))

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def client(self, key: str | None = None, **more: Any) -> openai.OpenAI:
        made = openai.OpenAI(base_url=f"{self.url}/v1", api_key=key or self.key, max_retries=0, timeout=30, **more)
        return self.clients.enter_context(made)

    def post(self, path: str, body: Any, *, key: str | None = None, **more: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {key or self.key}", **more.pop("headers", {})}
        return httpx.post(self.url + path, json=body, headers=headers, timeout=30, trust_env=False, **more)

    def get(self, path: str, *, key: str | None = None, **more: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {key or self.key}", **more.pop("headers", {})}
        return httpx.get(self.url + path, headers=headers, timeout=30, trust_env=False, **more)

    def chat(self, text: str = "Hi", **more: Any) -> httpx.Response:
        body = {"model": "test", "messages": [{"role": "user", "content": text}], **more}
        return self.post("/v1/chat/completions", body)

    def add_engine(self, engine: FakeEngine) -> None:
        self.engines.append(engine)
        self.control.send(engine.up(), [engine.gateway_end.fileno()])
        engine.gateway_end.close()

    def wait_for(self, condition: Callable[[], Any], within: float = 15.0) -> Any:
        deadline = time.monotonic() + within
        while time.monotonic() < deadline:
            if value := condition():
                return value
            time.sleep(0.02)
        raise AssertionError(f"it did not happen; journal: {self.journal.codes()}; log: {self.log.read_text()[-2000:]}")


def _listen(address: str = "127.0.0.1") -> socket.socket:
    sock = socket.socket()
    sock.bind((address, 0))
    sock.listen(64)
    return sock


@contextlib.contextmanager
def running_gateway(
    directory: Path,
    *,
    apps: Mapping[str, str | None] | None = None,
    engines: Sequence[FakeEngine] | None = None,
    settings: Mapping[str, Any] | None = None,
    tls: tuple[Path, Path] | None = None,
    address: str = "127.0.0.1",
    argv: Sequence[str] = ("-m", "casemate.device.gateway"),
) -> Iterator[RunningGateway]:
    """Start a gateway with *apps* (name -> policy TOML, None for the defaults) and *engines* that are up."""
    directory.chmod(0o755)  # as root, the gateway's own user must be able to enter
    home = Home(directory / "home").create()
    store = AppStore(home)
    chosen = {"default": None} if apps is None else apps
    keys = {name: store.add(name, policy and (policy.encode(), f"{name}.toml")) for name, policy in chosen.items()}
    log = directory / "gateway.log"
    with contextlib.ExitStack() as stack:
        engines = [FakeEngine()] if engines is None else list(engines)
        journal = stack.enter_context(contextlib.closing(FakeJournal()))
        listen, metrics = stack.enter_context(_listen(address)), stack.enter_context(_listen())
        ours, theirs = pair()
        stack.enter_context(ours)
        fds = {"listen": listen.fileno(), "metrics": metrics.fileno(), "journal": journal.gateway_end.fileno()}
        if tls:
            files = [stack.enter_context(path.open("rb")) for path in tls]
            fds |= {"tls.certificate": files[0].fileno(), "tls.key": files[1].fileno()}
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-P", *argv],
                env={
                    **{name: os.environ[name] for name in ("PATH", "LANG", "PYTHONPATH") if name in os.environ},
                    "PYTHONUNBUFFERED": "1",
                    "CASEMATE_CONTROL_FD": str(theirs.fileno()),
                    "CASEMATE_PARENT": str(os.getpid()),
                },
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                pass_fds=[theirs.fileno()],
                process_group=0,
            )
        theirs.close()
        control = Channel(ours, ipc.ChildToAgent)
        scheme = "https" if tls else "http"
        gateway = RunningGateway(
            process,
            control,
            home,
            store,
            f"{scheme}://127.0.0.1:{listen.getsockname()[1]}",
            f"http://127.0.0.1:{metrics.getsockname()[1]}/metrics",
            keys,
            [],
            journal,
            log,
        )
        stack.callback(lambda: [engine.close() for engine in {*engines, *gateway.engines}])
        stack.enter_context(gateway.clients)
        listener = threading.Thread(target=_listen_to, args=(gateway,), daemon=True)
        try:
            hello, _ = control.recv(60)
            assert isinstance(hello, ipc.Hello)
            wanted = {"models": [engine.model for engine in engines], "deadline": 30, "queue": 2, **(settings or {})}
            control.send(ipc.Start(home=str(home.path), fds=tuple(fds), settings=wanted), list(fds.values()))
            answer, _ = control.recv(60)
            gateway.messages.append(answer)
            gateway.ready = isinstance(answer, ipc.Ready)
            for sock in (listen, metrics, journal.gateway_end):
                sock.close()
            if gateway.ready:
                for engine in engines:
                    gateway.add_engine(engine)
                gateway.wait_for(lambda: not engines or _probe(gateway))
                listener.start()
            yield gateway
        finally:
            with contextlib.suppress(OSError):
                ours.shutdown(socket.SHUT_RDWR)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if listener.is_alive():
                listener.join(5)
        assert not journal.faults, journal.faults


def _probe(gateway: RunningGateway) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"{gateway.url}/readyz", verify=False, trust_env=False).status_code == 200
    return False


def _listen_to(gateway: RunningGateway) -> None:
    with contextlib.suppress(ChannelClosed, OSError, ValueError):
        while True:
            gateway.messages.append(gateway.control.recv()[0])


def weakened(*statements: str) -> tuple[str, ...]:
    """Return the arguments that start a gateway with a defence taken out: the positive control of an attack test."""
    boot = ("from casemate.device.gateway.serve import run", "from casemate.device.process import boot")
    return ("-c", "\n".join((*statements, *boot, "run(boot('gateway'))")))


def temporary_gateway(**options: Any) -> contextlib.AbstractContextManager[RunningGateway]:
    """Start a gateway in a directory of its own: for scripts that are not tests."""

    @contextlib.contextmanager
    def made() -> Iterator[RunningGateway]:
        with tempfile.TemporaryDirectory() as directory, running_gateway(Path(directory), **options) as gateway:
            yield gateway

    return made()
