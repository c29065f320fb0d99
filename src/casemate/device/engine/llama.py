"""llama.cpp behind our own rules: every optional feature off, requests in, text out.

`PARAMETERS` is the whole configuration as data, one row with a reason for each value that differs from the library's
default, plus the rows that must stay empty. The library's API drifts from month to month, so it is pinned and a
contract test walks the table.
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import xllamacpp

from casemate.device.engine.requests import RefusedError, Request
from casemate.device.engine.serving import Outcome
from casemate.errors import UntrustedDataError

_native: Any = xllamacpp  # a compiled module without stubs
_LISTENER: Final = "listener.sock"
_STATUS_TOO_LONG: Final = "exceed_context_size_error"


@dataclasses.dataclass(frozen=True)
class Row:
    """One parameter: attribute path, value, why."""

    name: str
    value: Any
    why: str


PARAMETERS: Final = (
    Row("cache_ram_mib", 0, "would keep up to 8 GiB of old prompts in memory"),
    Row("cache_idle_slots", False, "belongs to that cache"),
    Row("n_ctx_checkpoints", 2, "bounded memory for models with a sliding window"),
    Row("ui", False, "no web page"),
    Row("endpoint_slots", False, "would show other requests' prompts"),
    Row("endpoint_props", False, "could change settings"),
    Row("endpoint_metrics", False, "the gateway counts"),
    Row("cors_origins", "", "no browser talks to the engine"),
    Row("offline", True, "no download"),
    Row("fit_params", False, "settings are ours, not guessed from the machine"),
    Row("warmup", False, "would run a batch before it is ready"),
    Row("n_threads_http", 1, "the listener is never used"),
    Row("timeout_read", 5, "the same"),
    Row("timeout_write", 5, "the same"),
    Row("n_gpu_layers", 0, "a device node would be a hole in the sandbox"),
    Row("verbosity", 0, "prompts do not go to logs"),
    Row("show_timings", False, "nobody reads them"),
    Row("prefill_assistant", False, "a client does not put words in the model's mouth"),
    Row("enable_reasoning", 0, "small models answer better without; hidden text would only cost time"),
    Row("numa", _native.ggml_numa_strategy.GGML_NUMA_STRATEGY_DISABLED, "edge devices have one node"),
)

MUST_STAY_EMPTY: Final = (
    "server_tools",  # runs programs
    "mcp_servers_config",  # starts programs
    "mcp_servers_json",
    "ui_mcp_proxy",  # fetches for the page
    "ui_config_json",
    "video_ffmpeg_bin_dir",  # starts programs
    "slot_save_path",  # writes prompts to files
    "path_prompts_log_dir",
    "path_prompt_cache",
    "models_dir",  # opens other models
    "models_preset",
    "models_preset_hf",
    "media_path",  # reads files named in a request
    "public_path",
    "hf_token",  # downloads
    "model.url",
    "model.hf_repo",
    "model.hf_file",
    "model.docker_repo",
    "mmproj.path",
    "mmproj.url",
    "ssl_file_key",
    "ssl_file_cert",
    "lora_adapters",
    "antiprompt",
    "in_files",
    "context_files",
    "prompt_file",
    "out_file",
    "chat_template",  # the model's own, reviewed when it was added
)


@dataclasses.dataclass(frozen=True)
class Sizing:
    """How large the engine is: tokens per request, parallel requests, prompt tokens per step."""

    context: int
    slots: int
    batch: int
    pooling: str
    lock: bool


def parameters(path: str, directory: str, sizing: Sizing, threads: int) -> Any:
    """Return the library's parameters for the weights at *path*; its listener hides in *directory*."""
    params = _native.CommonParams()
    for row in PARAMETERS:
        setattr(params, row.name, row.value)
    params.model.path = path
    listener = Path(directory, _LISTENER)
    listener.unlink(missing_ok=True)
    params.hostnames = [str(listener)]  # a path makes it AF_UNIX: the only socket the load filter lets it have
    params.api_keys = [secrets.token_urlsafe(32)]  # and nobody knows the key
    modes = _native.llama_load_mode
    params.load_mode = modes.LLAMA_LOAD_MODE_MMAP_MLOCK if sizing.lock else modes.LLAMA_LOAD_MODE_MMAP
    params.n_ctx = sizing.context * sizing.slots
    params.n_parallel = sizing.slots
    params.n_predict = sizing.context
    params.n_batch = params.n_ubatch = sizing.batch
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.embedding = True
    params.pooling_type = _POOLING[sizing.pooling]
    return params


_POOLING: Final[Mapping[str, Any]] = {
    "model": _native.llama_pooling_type.LLAMA_POOLING_TYPE_UNSPECIFIED,
    "mean": _native.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN,
    "cls": _native.llama_pooling_type.LLAMA_POOLING_TYPE_CLS,
    "last": _native.llama_pooling_type.LLAMA_POOLING_TYPE_LAST,
}


class Llama:
    """A loaded model."""

    def __init__(self, path: str, directory: str, sizing: Sizing, *, threads: int) -> None:
        """Load the weights at *path*.

        Raises:
            UntrustedDataError: llama.cpp would not take them. Its threads may live on: the caller exits.

        """
        try:
            self._server = _native.Server(parameters(path, directory, sizing, threads))
        except Exception as error:
            raise UntrustedDataError(
                "llama.cpp refused the model", check="engine-load", hint="add the model again from a file that loads"
            ) from error

    def run(self, request: Request, slot: int, *, reuse: bool, emit: Callable[[str], bool]) -> Outcome:
        """Run *request* in *slot*; *emit* gets each piece of text and says whether to go on.

        *reuse* lets the slot keep what it has already read of the same prompt.

        Raises:
            RefusedError: llama.cpp would not run it.

        """
        if request.kind == "embedding":
            return self._embed(request)
        handle = self._server.handle_chat_completions if request.kind == "chat" else self._server.handle_completions
        stream = _Stream(emit)
        try:
            handle({**request.body, "id_slot": slot, "cache_prompt": reuse}, stream.take)
        except ValueError:  # its words may quote the request
            raise RefusedError("bad_request", "the engine does not accept this request") from None
        except Exception:  # noqa: BLE001 - any C++ exception
            raise RefusedError("internal", "the engine failed on this request") from None
        return stream.outcome()

    def _embed(self, request: Request) -> Outcome:
        try:
            answer = self._server.handle_embeddings(request.body)
        except Exception:  # noqa: BLE001 - any C++ exception
            raise RefusedError("internal", "the engine failed on this request") from None
        if "error" in answer:
            raise _refusal(answer["error"])
        rows = sorted(answer["data"], key=lambda row: row["index"])
        return Outcome("stop", int(answer["usage"]["prompt_tokens"]), 0, [row["embedding"] for row in rows])


class _Stream:
    """Turns llama.cpp's chunks (chat and completion shapes) into text, and remembers how it ended."""

    def __init__(self, emit: Callable[[str], bool]) -> None:
        self._emit = emit
        self._finish = ""
        self._usage: dict[str, int] = {}
        self._error: dict[str, Any] | None = None
        self._fault: BaseException | None = None
        self._pieces = 0

    def take(self, chunk: Any) -> bool:
        """Return True to stop."""
        try:
            return self._take(chunk)
        except Exception as error:  # noqa: BLE001 - it may not pass through C++ frames; `outcome` raises it
            self._fault = error
            return True

    def _take(self, chunk: Any) -> bool:
        if "error" in chunk:
            self._error = chunk["error"]
            return True
        self._usage = chunk.get("usage") or self._usage
        text = ""
        for choice in chunk.get("choices") or ():
            self._finish = choice.get("finish_reason") or self._finish
            text += choice.get("text") or (choice.get("delta") or {}).get("content") or ""
        self._pieces += bool(text)
        return not self._emit(text)

    def outcome(self) -> Outcome:
        if self._fault is not None:
            raise self._fault
        if self._error is not None:
            raise _refusal(self._error)
        return Outcome(
            self._finish or "cancelled",
            int(self._usage.get("prompt_tokens", 0)),
            int(self._usage.get("completion_tokens", self._pieces)),
        )


def _refusal(error: Mapping[str, Any]) -> RefusedError:
    """Translate llama.cpp's error object; only numbers of it are repeated."""
    if error.get("type") == _STATUS_TOO_LONG:
        return RefusedError(
            "too_long", f"the prompt has {int(error['n_prompt_tokens'])} tokens, the model takes {int(error['n_ctx'])}"
        )
    if "too large to process" in str(error.get("message")):
        return RefusedError("too_long", "an input is longer than the engine takes in one step")
    if error.get("type") == "invalid_request_error":
        return RefusedError("bad_request", "the engine does not accept this request")
    return RefusedError("internal", "the engine failed on this request")
