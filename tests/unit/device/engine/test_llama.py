"""The contract with the pinned library: its attributes drift from month to month, and a new default may be a hole."""

from __future__ import annotations

import operator

import pytest
import xllamacpp

from casemate.device.engine.llama import MUST_STAY_EMPTY, PARAMETERS, Sizing, _refusal, _Stream, parameters

SIZING = Sizing(context=256, slots=2, batch=64, pooling="mean", lock=False)


@pytest.fixture
def made(tmp_path):
    return parameters("/proc/self/fd/9", str(tmp_path), SIZING, threads=3)


def test_the_library_is_the_pinned_one():
    assert xllamacpp.__version__.startswith("2026.10.11549")


@pytest.mark.parametrize("row", PARAMETERS, ids=lambda row: row.name)
def test_every_row_names_an_attribute_and_takes_effect(row, made):
    assert hasattr(xllamacpp.CommonParams(), row.name)
    assert getattr(made, row.name) == row.value
    assert row.why


@pytest.mark.parametrize("name", MUST_STAY_EMPTY)
def test_nothing_dangerous_is_on(name, made):
    assert not operator.attrgetter(name)(made)


def test_no_attribute_that_looks_dangerous_is_unknown_to_us():
    """A new release with a new door must be looked at before it is pinned."""
    words = ("path", "dir", "file", "url", "token", "tool", "mcp", "server", "host", "proxy", "port", "save", "media")
    looks = {name for name in dir(xllamacpp.CommonParams()) if any(word in name for word in words) and name[0] != "_"}
    known = {row.name for row in PARAMETERS} | set(MUST_STAY_EMPTY)
    harmless = {
        "hostnames",  # ours: the AF_UNIX path
        "port",  # unused with a path
        "reuse_port",
        "server_base",  # of the web page
        "server_tools_runtime",  # of server_tools
        "logits_file",  # of other programs that share the structure
        "logits_output_dir",
        "tts_speaker_file",
        "tokenize_ids",
        "tokenize_no_bos",
        "tokenize_show_count",
        "tokenize_stdin",
        "image_max_tokens",
        "image_min_tokens",
        "mtmd_batch_max_tokens",
        "n_save_freq",
        "save_logits",
        "no_host",
    }
    assert looks - known == harmless


def test_its_listener_is_a_private_socket_file_behind_a_key(made, tmp_path):
    assert list(made.hostnames) == [f"{tmp_path}/listener.sock"]
    assert len(made.api_keys[0]) >= 32


def test_sizes(made):
    assert (made.n_ctx, made.n_parallel, made.n_predict, made.n_batch) == (512, 2, 256, 64)
    assert made.cpuparams.n_threads == made.cpuparams_batch.n_threads == 3
    assert made.load_mode == xllamacpp.llama_load_mode.LLAMA_LOAD_MODE_MMAP


def test_locked_weights_have_their_own_mode(tmp_path):
    locked = parameters("/x", str(tmp_path), Sizing(1, 1, 1, "mean", lock=True), threads=1)
    assert locked.load_mode == xllamacpp.llama_load_mode.LLAMA_LOAD_MODE_MMAP_MLOCK


def collected(chunks):
    texts = []
    stream = _Stream(lambda text: not texts.append(text))
    for chunk in chunks:
        if stream.take(chunk):
            break
    return "".join(texts), stream


def test_chat_and_completion_chunks_become_text():
    usage = {"prompt_tokens": 3, "completion_tokens": 2}
    chat = [
        {"choices": [{"finish_reason": None, "delta": {"role": "assistant", "content": None}}]},
        {"choices": [{"finish_reason": None, "delta": {"content": "a"}}]},
        {"choices": [{"finish_reason": None, "delta": {"reasoning_content": "hidden"}}]},
        {"choices": [{"finish_reason": "length", "delta": {}}]},
        {"choices": [], "usage": usage},
    ]
    text, stream = collected(chat)
    assert text == "a"
    assert (stream.outcome().finish_reason, stream.outcome().completion_tokens) == ("length", 2)
    text, stream = collected([{"choices": [{"text": "b", "finish_reason": "stop"}], "usage": usage}])
    assert (text, stream.outcome().finish_reason) == ("b", "stop")


def test_errors_keep_numbers_and_lose_words():
    secret = "correct horse"
    long = {"type": "exceed_context_size_error", "n_prompt_tokens": 9, "n_ctx": 5, "message": secret}
    assert _refusal(long).code == "too_long"
    assert "9" in _refusal(long).message
    for error in (long, {"type": "invalid_request_error", "message": secret}, {"message": secret}, {}):
        assert secret not in _refusal(error).message
