"""The engine's steps, in the order that makes them safe.

    1  everything is imported (nothing can be, later)
    2  the agent says go; the vault hands over the weights; they are checked to be sealed
    3  cores are chosen; identity marks, limits, Landlock, the load filter
    4  llama.cpp parses the model: the first hostile byte
    5  the run filter, over every thread
    6  ready: requests in, text out, until a link closes

A failure at any step is told to the agent and ends the process with `os._exit`: llama.cpp's threads are not joined.
"""

from __future__ import annotations

import encodings.idna  # noqa: F401 - the socket module would import it later
import os
import time
from typing import Any, Final, NoReturn

import msgspec

from casemate.device import process, sandbox
from casemate.device.engine import SUPPLY_FD_VARIABLE, loop, threads, weights
from casemate.device.engine.llama import Llama, Sizing
from casemate.device.engine.requests import Request
from casemate.device.sandbox.limits import PRIVATE_DIRECTORY
from casemate.errors import CasemateError, OperationError

_BASE_MEMORY: Final = 2 << 30
_MEMORY_PER_TOKEN: Final = 256 << 10
_BASE_TASKS: Final = 24
_TRIAL_TOKENS: Final = 8
_TRIAL_WORTH: Final = 60.0


class Settings(loop.ServingSettings, frozen=True, kw_only=True):
    """`Start.settings` of an engine; unknown fields are ignored."""

    threads: int = 0  # 0: find out
    batch: int = 512  # prompt tokens per step; an embedding's input must fit
    pooling: str = "mean"
    memory: int = 0  # bytes of address space beyond twice the model; 0: from context and slots
    load_seconds: float = 600.0


def main() -> NoReturn:
    """Run the steps; never returns."""
    child = process.boot("engine")
    try:
        settings = msgspec.convert(child.settings, Settings)
        gateway = loop.gateway_link()
        message, memory_file = weights.receive(int(os.environ[SUPPLY_FD_VARIABLE]), settings.load_seconds)
        usable = threads.bind(sorted(os.sched_getaffinity(0)))
        confined = sandbox.enter_load(_limits(settings, message.bytes, len(usable)))
        model, measured = _load(settings, f"/proc/self/fd/{memory_file}", len(usable) + 1)
        os.close(memory_file)
        serving = loop.serving(child, gateway, model, settings)
        confined.enter_run()
        serving.start()
    except CasemateError as error:
        child.fatal(error)
    except Exception as error:  # noqa: BLE001 - the agent hears of everything; the text may hold model data
        child.fatal(OperationError(f"the engine could not start: {type(error).__name__}"))
    child.ready(model=message.model, **confined.facts, **measured)
    loop.serve(child, gateway, serving)


def _limits(settings: Settings, size: int, cores: int) -> sandbox.Limits:
    working = settings.memory or _BASE_MEMORY + _MEMORY_PER_TOKEN * settings.context * settings.slots
    return sandbox.Limits(memory=2 * size + working, tasks=_BASE_TASKS + settings.slots + 2 * cores)


def _load(settings: Settings, path: str, cores: int) -> tuple[Llama, dict[str, Any]]:
    """Load the model, with the thread count that is fastest; return it and what was found."""
    began = time.monotonic()

    def load(count: int) -> Llama:
        sizing = Sizing(settings.context, settings.slots, count, settings.batch, settings.pooling)
        return Llama(path, PRIVATE_DIRECTORY, sizing)

    def speed(count: int) -> float:
        return _tokens_per_second(load(count))

    counts = [settings.threads] if settings.threads else threads.candidates(cores)
    count, measured = threads.fastest(counts, speed, trial_worth=_TRIAL_WORTH)
    model = load(count)
    return model, {
        "threads": count,
        "threads_measured": {str(tried): round(rate, 1) for tried, rate in measured.items()},
        "context": settings.context,
        "slots": settings.slots,
        "load_seconds": round(time.monotonic() - began, 3),
    }


def _tokens_per_second(model: Llama) -> float:
    request = Request("completion", {"prompt": "The", "max_tokens": _TRIAL_TOKENS, "stream": True}, None)
    stamps: list[float] = []

    def emit(_: str) -> bool:
        stamps.append(time.monotonic())
        return True

    model.run(request, 0, reuse=False, emit=emit)
    return (len(stamps) - 1) / (stamps[-1] - stamps[0]) if len(stamps) > 1 else 0.0


if __name__ == "__main__":
    main()
