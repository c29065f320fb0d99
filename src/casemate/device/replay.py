"""An engine without a model: it answers every request with a recorded list of chunks.

It speaks the engine's protocol over the same links, inside the same namespaces and filters, so that tests and the demo
can send any token stream through the gateway's real output path. It never answers for a real model: the agent starts
it only when told to by name.
"""

from __future__ import annotations

import encodings.idna  # noqa: F401 - the socket module would import it later
import time
from collections.abc import Callable
from typing import Final, NoReturn

import msgspec

from casemate.device import process, sandbox
from casemate.device.engine import loop
from casemate.device.engine.requests import Request
from casemate.device.engine.serving import Outcome
from casemate.errors import CasemateError, OperationError

_MEMORY: Final = 4 << 30
_TASKS: Final = 64


class Settings(loop.ServingSettings, frozen=True, kw_only=True):
    """`Start.settings` of a replay."""

    chunks: list[str]
    pause: float = 0.0  # seconds between chunks


class Recording:
    """Says the same thing every time."""

    def __init__(self, chunks: list[str], pause: float = 0.0) -> None:
        """Answer with *chunks*, *pause* seconds apart."""
        self._chunks = chunks
        self._pause = pause

    def run(self, request: Request, slot: int, *, reuse: bool, emit: Callable[[str], bool]) -> Outcome:
        """Emit the chunks, at most max_tokens of them; an embedding is a unit vector."""
        del slot, reuse
        if request.kind == "embedding":
            return Outcome("stop", len(request.body["input"]), 0, [[1.0, 0.0] for _ in request.body["input"]])
        limit = request.body["max_tokens"]
        for index, text in enumerate(self._chunks[:limit]):
            if self._pause and index:
                time.sleep(self._pause)
            if not emit(text):
                return Outcome("cancelled", 1, index + 1)
        return Outcome("length" if len(self._chunks) > limit else "stop", 1, min(limit, len(self._chunks)))


def main() -> NoReturn:
    """Serve the recording; never returns."""
    child = process.boot("engine")
    try:
        settings = msgspec.convert(child.settings, Settings)
        gateway = loop.gateway_link()
        confined = sandbox.enter_load(sandbox.Limits(memory=_MEMORY, tasks=_TASKS))
        context = settings.context or loop.DEFAULT_CONTEXT
        jobs = loop.serving(child, gateway, Recording(settings.chunks, settings.pause), settings, context=context)
        confined.enter_run()
        jobs.start()
        jobs.start_clock()
    except CasemateError as error:
        child.fatal(error)
    except Exception as error:  # noqa: BLE001 - the agent hears of everything
        child.fatal(OperationError(f"the replay could not start: {type(error).__name__}"))
    child.ready(model="replay", **confined.facts, context=context, slots=settings.slots)
    loop.serve(child, gateway, jobs)


if __name__ == "__main__":
    main()
