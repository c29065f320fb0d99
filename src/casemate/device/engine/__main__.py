"""The engine's steps, in the order that makes them safe.

    1  everything is imported (nothing can be, later)
    2  the agent says go; the vault hands over the weights; they are checked to be sealed
    3  cores are chosen; identity marks, limits, Landlock, the load filter
    4  our own parser checks the header, then llama.cpp parses the model: the first hostile bytes
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
from casemate.device.engine.requests import RefusedError, Request
from casemate.device.sandbox.limits import PRIVATE_DIRECTORY
from casemate.errors import CasemateError, OperationError
from casemate.formats.gguf import GgufFacts

_BASE_MEMORY: Final = 2 << 30  # interpreter, thread stacks, compute buffers
_UNKNOWN_CACHE: Final = 256 << 10  # bytes per token of context when the header does not say
_BASE_TASKS: Final = 24
_ALIGNMENT: Final = 1 << 16  # between header and tensors, at most
_TRIAL_TOKENS: Final = 8
_STEPS: Final = ((512 << 20, 512), (2 << 30, 128))
_LAST_STEP: Final = 64
"""Prompt tokens per step by the model's bytes: a cancel takes effect between steps, so a slow model gets short ones.
A CPU gains nothing from steps longer than that."""


class Settings(loop.ServingSettings, frozen=True, kw_only=True):
    """`Start.settings` of an engine; unknown fields are ignored."""

    threads: int = 0  # 0: find out
    batch: int = 0  # prompt tokens per step; an embedding's input must fit; 0: by the model's size
    pooling: str = "auto"  # of embeddings: mean | cls | last | model (what its header says) | auto
    load_seconds: float = 600.0


def main() -> NoReturn:
    """Run the steps; never returns."""
    child = process.boot("engine")
    try:
        settings = msgspec.convert(child.settings, Settings)
        gateway = loop.gateway_link()
        message, file = weights.receive(int(os.environ[SUPPLY_FD_VARIABLE]), settings.load_seconds)
        usable = threads.bind(sorted(os.sched_getaffinity(0)))
        status = os.open("/proc/self/status", os.O_RDONLY | os.O_CLOEXEC)
        confined = sandbox.enter_load(_first_limits(settings, message.bytes, len(usable)))
        header = weights.read_header(file, message.bytes)
        counts = _thread_counts(settings, len(usable))
        sizing = _sizing(settings, header.facts, message.bytes, lock=weights.may_lock(message.bytes * len(counts)))
        sandbox.lower_memory(_memory(header.facts, sizing, message.bytes))
        model, found = _load(f"/proc/self/fd/{file}", sizing, counts)
        found["weights_locked"] = weights.locked_bytes(status) >= message.bytes - header.bytes_read - _ALIGNMENT
        os.close(file)
        serving = loop.serving(child, gateway, model, settings, context=sizing.context)
        confined.enter_run()
        serving.start()
        serving.start_clock()
    except CasemateError as error:
        child.fatal(error)
    except Exception as error:  # noqa: BLE001 - the agent hears of everything; the text may hold model data
        child.fatal(OperationError(f"the engine could not start: {type(error).__name__}"))
    child.ready(model=message.model, **confined.facts, **found)
    loop.serve(child, gateway, serving, status)


def _first_limits(settings: Settings, size: int, cores: int) -> sandbox.Limits:
    """Return the ceilings for the time until the header is read: no more than the machine has."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return sandbox.Limits(memory=2 * size + max(machine, _BASE_MEMORY), tasks=_BASE_TASKS + settings.slots + 2 * cores)


def _sizing(settings: Settings, facts: GgufFacts, size: int, *, lock: bool) -> Sizing:
    own = facts.context_length or loop.DEFAULT_CONTEXT
    context = min(settings.context or loop.DEFAULT_CONTEXT, own)
    encoder = "bert" in facts.architecture
    pooling = settings.pooling if settings.pooling != "auto" else "model" if encoder else "mean"
    batch = settings.batch or next((tokens for limit, tokens in _STEPS if size <= limit), _LAST_STEP)
    return Sizing(context, settings.slots, batch, pooling, lock)


def _memory(facts: GgufFacts, sizing: Sizing, size: int) -> int:
    """Return the address space this model needs: a copy for a loader that repacks, the cache, the base."""
    cache = (facts.kv_bytes_per_token or _UNKNOWN_CACHE) * sizing.context * sizing.slots
    return 2 * size + 2 * cache + _BASE_MEMORY


def _thread_counts(settings: Settings, usable: int) -> list[int]:
    return [min(settings.threads, usable)] if settings.threads else threads.candidates(usable)


def _load(path: str, sizing: Sizing, counts: list[int]) -> tuple[Llama, dict[str, Any]]:
    """Load the model, with the thread count that is fastest; return it and what was found."""
    began = time.monotonic()

    def load(count: int) -> Llama:
        return Llama(path, PRIVATE_DIRECTORY, sizing, threads=count)

    count, model, measured = threads.calibrate(counts, load, _tokens_per_second)
    return model, {
        "threads": count,
        "threads_measured": {str(tried): round(rate, 1) for tried, rate in measured.items()},
        "context": sizing.context,
        "slots": sizing.slots,
        "batch": sizing.batch,
        "load_seconds": round(time.monotonic() - began, 3),
    }


def _tokens_per_second(model: Llama) -> float:
    request = Request("completion", {"prompt": "The", "max_tokens": _TRIAL_TOKENS, "stream": True}, None)
    stamps: list[float] = []

    def emit(_: str) -> bool:
        stamps.append(time.monotonic())
        return True

    try:
        model.run(request, 0, reuse=False, emit=emit)
    except RefusedError:
        return 0.0  # a model that only embeds
    return (len(stamps) - 1) / (stamps[-1] - stamps[0]) if len(stamps) > 1 else 0.0


if __name__ == "__main__":
    main()
