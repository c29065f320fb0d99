"""The GGUF header check: what it accepts, what each rule refuses, and that hostile bytes cost little."""

from __future__ import annotations

import resource
import struct
import time
import tracemalloc

import pytest
from gguf.constants import GGML_QUANT_SIZES, LlamaFileType
from hypothesis import given
from hypothesis import strategies as st

from casemate.errors import UntrustedDataError
from casemate.formats import gguf
from support import gguf_files as files


def check(data: bytes, size: int | None = None) -> gguf.CheckedHeader:
    return gguf.check_header(lambda offset, length: data[offset : offset + length], len(data) if size is None else size)


def test_a_valid_header_gives_its_facts():
    facts = check(files.tiny()).facts
    assert facts == gguf.GgufFacts(
        version=3,
        architecture="llama",
        name="tiny",
        licence="Apache-2.0",
        parameters=64 * 4 + 64,
        tensors=2,
        context_length=512,
        quantisation="Q8_0",
        tokenizer="gpt2",
        vocabulary=4,
        chat_template=True,
        kv_bytes_per_token=2 * 2 * (16 + 16) * 2,  # layers * kv heads * (key + value width) * two bytes
    )


def test_version_2_and_a_wider_alignment_are_accepted():
    keys = (*files.KEYS, files.pair("general.alignment", files.U32, 64))
    tensors = (files.TENSORS[0], files.tensor("b", (64,), 0, 320))
    assert check(files.assemble(keys, tensors, 320 + 256, version=2, alignment=64)).facts.version == 2


def test_padding_after_the_last_tensor_is_accepted():
    one = (files.tensor("a", (32,), files.Q8_0, 0),)
    assert check(files.assemble(tensors=one, data=34)).facts.tensors == 1
    assert check(files.assemble(tensors=one, data=64)).facts.tensors == 1


@pytest.mark.parametrize("fault", files.MALFORMED)
def test_a_malformed_file_is_refused_by_the_rule_it_breaks(fault):
    data, rule = files.MALFORMED[fault]
    with pytest.raises(UntrustedDataError) as refused:
        check(data)
    assert refused.value.check == rule


@pytest.mark.parametrize("kind", files.OTHER_FORMATS)
def test_another_format_is_named_in_the_refusal(kind):
    with pytest.raises(UntrustedDataError, match=kind) as refused:
        check(files.OTHER_FORMATS[kind])
    assert refused.value.check == "format"


def test_every_cut_of_a_valid_file_is_refused():
    whole = files.tiny()
    for length in range(len(whole)):
        with pytest.raises(UntrustedDataError):
            check(whole[:length])


@given(st.binary(max_size=512))
def test_random_bytes_never_break_the_reader(data):
    with pytest.raises(UntrustedDataError):
        check(b"GGUF\3\0\0\0" + data)


@given(st.data())
def test_a_changed_byte_gives_facts_or_a_refusal_and_nothing_else(data):
    changed = bytearray(files.tiny())
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    try:
        facts = check(bytes(changed)).facts
    except UntrustedDataError:
        return
    assert facts.name.isprintable()
    assert facts.parameters >= 1


@given(st.lists(st.binary(max_size=40), max_size=50), st.integers(1, 64))
def test_tokens_are_walked_whatever_they_are_and_however_the_file_is_read(tokens, window):
    keys = [*(row for row in files.KEYS if b"ggml.tokens" not in row)]
    data = files.assemble([*keys, files.pair("tokenizer.ggml.tokens", files.ARRAY, (files.STRING, tokens))])
    reads: list[int] = []

    def read(offset: int, length: int) -> bytes:
        reads.append(offset)
        return data[offset : offset + max(length, window)][:length]

    assert gguf.check_header(read, len(data)).facts.vocabulary == len(tokens)
    assert reads == sorted(set(reads))  # strictly forwards: what was hashed on the way is what was checked


def test_a_vocabulary_larger_than_the_window_is_walked():
    tokens = [f"token number {n} with some length to it" for n in range(30_000)]
    keys = [row for row in files.KEYS if b"ggml.tokens" not in row]
    data = files.assemble([*keys, files.pair("tokenizer.ggml.tokens", files.ARRAY, (files.STRING, tokens))])
    assert len(data) > 1 << 20
    checked = check(data)
    assert checked.facts.vocabulary == 30_000
    assert checked.bytes_read <= len(data)


def test_a_header_over_the_limit_is_refused_without_being_read():
    blob = files.text("general.x") + struct.pack("<IIQ", files.ARRAY, files.U64, 1 << 20)
    data = files.assemble((*files.KEYS, *(blob.replace(b"general.x", b"general.%d" % n) for n in range(4))), ())
    read = 0

    def endless(offset: int, length: int) -> bytes:
        nonlocal read
        read += length
        return data[offset : offset + length].ljust(length, b"\0")

    with pytest.raises(UntrustedDataError):
        gguf.check_header(endless, 1 << 40)
    assert read <= gguf.HEADER_LIMIT


@pytest.mark.parametrize("fault", files.MALFORMED)
def test_a_malformed_file_costs_little_memory_and_time(fault):
    """Deadlines here are five times the contract's 50 ms; the benchmark measures the real figure."""
    data, _ = files.MALFORMED[fault]
    tracemalloc.start()
    began = time.process_time()
    with pytest.raises(UntrustedDataError):
        check(data)
    spent = time.process_time() - began
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert spent < 0.25
    assert peak < 32 << 20


def test_the_dearest_accepted_header_stays_within_the_limits():
    """The most strings that the limits allow, each empty: the worst a file can make the hot loop do."""
    length = gguf.ARRAY_LIMIT
    blob = files.text("general.x") + struct.pack("<IIQ", files.ARRAY, files.STRING, length) + bytes(8 * length)
    data = files.assemble((*files.KEYS, blob))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert check(data).facts.architecture == "llama"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 << 10  # KiB


def test_a_name_with_control_characters_is_shown_without_them():
    keys = [row for row in files.KEYS if b"general.name" not in row]
    data = files.assemble([*keys, files.pair("general.name", files.STRING, "evil\x1b[2J\nname\u202e" + "x" * 500)])
    name = check(data).facts.name
    assert name.startswith("evil[2Jname")
    assert len(name) <= 128


def test_kv_heads_may_be_given_per_layer():
    keys = [row for row in files.KEYS if b"head_count_kv" not in row]
    data = files.assemble([*keys, files.pair("llama.attention.head_count_kv", files.ARRAY, (files.U32, [1, 3]))])
    assert check(data).facts.kv_bytes_per_token == (1 + 3) * 32 * 2


def test_the_tables_agree_with_the_reference_package():
    theirs = {kind.value: (kind.name, *sizes) for kind, sizes in GGML_QUANT_SIZES.items()}
    ours = dict(gguf.TENSOR_TYPES)
    theirs.pop(9)  # Q8_1 exists only during computation; the package counts two floats where ggml stores two halves
    ours.pop(9)
    assert ours == theirs
    names = {kind.value: kind.name.removeprefix("MOSTLY_").removeprefix("ALL_") for kind in LlamaFileType}
    assert {value: name for value, name in names.items() if value < 1024} == gguf.FILE_TYPES
