"""A client that streams all the time, and remembers every answer and every silence."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass
class Streamer:
    """Asks one question after the other over HTTP; `gaps` are the longest silences within answers, in seconds."""

    endpoint: str
    key: str
    model: str = "saffron"
    question: str = "We are four people, can you find something Japanese, budget price?"
    answers: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    longest: float = 0.0
    _stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        last = time.monotonic()
        while not self._stop.is_set():
            try:
                text = ""
                for piece in self._stream():
                    now = time.monotonic()
                    self.longest, last = max(self.longest, now - last), now
                    text += piece
                self.answers.append(text)
            except (OSError, http.client.HTTPException, ValueError, AssertionError) as error:
                self.failures.append(f"{type(error).__name__}: {error}"[:200])

    def _stream(self) -> Iterator[str]:
        connection = http.client.HTTPConnection(self.endpoint.removeprefix("http://"), timeout=60)
        with contextlib.closing(connection):
            body = {
                "model": self.model,
                "messages": [{"role": "user", "content": self.question}],
                "stream": True,
                "max_tokens": 64,
                "temperature": 0,
            }
            headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
            connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
            response = connection.getresponse()
            assert response.status == 200, f"{response.status} {response.read(300)!r}"
            ended = False
            for line in response:
                if line.strip() == b"data: [DONE]":
                    ended = True
                elif line.startswith(b"data: "):
                    event = json.loads(line[6:])
                    assert "error" not in event, event
                    for choice in event["choices"]:
                        yield choice["delta"].get("content") or ""
            assert ended, "the stream broke off"


@contextlib.contextmanager
def streaming(*clients: Streamer) -> Iterator[None]:
    """Run *clients* while the block runs; each ends its last answer."""
    threads = [threading.Thread(target=client.run, daemon=True) for client in clients]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for client in clients:
            client._stop.set()
        for thread in threads:
            thread.join(60)
