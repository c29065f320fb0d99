from __future__ import annotations

import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casemate.formats import delta as codec
from casemate.release import delta as planner
from casemate.release.delta import Source
from support import weights

RNG = np.random.default_rng(4)
TENSORS = [weights.blocks(RNG, 3000).tobytes() for _ in range(12)]
OLD = weights.model(TENSORS)


def source(data: bytes, path: str = "model.gguf") -> Source:
    return planner.describe(path, lambda offset, length: data[offset : offset + length], len(data))


def both_ways(old: bytes, new: bytes) -> float:
    """Make the delta, apply it, return its size as a share of the new file."""
    raw = b"".join(planner.make_delta(source(old), source(new), level=3))
    made = codec.apply([raw], lambda at, size: old[at : at + size], base=source(old).identity, new=source(new).identity)
    assert b"".join(made) == new
    return len(raw) / len(new)


def test_inserted_metadata_costs_what_was_inserted():
    assert both_ways(OLD, weights.model(TENSORS, more=b"n" * 2000)) < 0.002


def test_one_changed_tensor_costs_its_difference():
    changed = [*TENSORS[:5], weights.noisy(TENSORS[5], RNG, 0.05), *TENSORS[6:]]
    share = both_ways(OLD, weights.model(changed, more=b"notes"))
    assert share < 0.006  # a twentieth of one twelfth


def test_small_changes_everywhere_are_small():
    changed = [weights.noisy(data, RNG, 0.05) for data in TENSORS]
    share = both_ways(OLD, weights.model(changed))
    assert share < 0.06


def test_a_changed_model_is_never_more_than_itself():
    fresh = [weights.blocks(RNG, 3000).tobytes() for _ in TENSORS]
    assert both_ways(OLD, weights.model(fresh)) < 1.001


def test_a_grown_tensor_keeps_its_start():
    grown = [TENSORS[0] + weights.blocks(RNG, 10).tobytes(), *TENSORS[1:]]
    assert both_ways(OLD, weights.model(grown)) < 0.005


def test_moved_new_and_lost_tensors_are_found_by_name():
    names = [f"t{index}" for index in range(12)]
    old = weights.model(TENSORS, names=names)
    order = [7, 3, 0, 11, 5]
    new = weights.model(
        [*(TENSORS[index] for index in order), weights.blocks(RNG, 10).tobytes()],
        names=[*(names[index] for index in order), "new"],
    )
    assert both_ways(old, new) < 0.01


def safetensors(tensors: dict[str, bytes], **metadata: str) -> bytes:
    header, at = {"__metadata__": metadata}, 0
    for name, data in tensors.items():
        header[name] = {"dtype": "F16", "shape": [len(data) // 2], "data_offsets": [at, at + len(data)]}
        at += len(data)
    raw = json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + b"".join(tensors.values())


def test_safetensors_are_paired_too():
    tensors = {f"layer.{index}": RNG.standard_normal(5000).astype(np.float16).tobytes() for index in range(10)}
    changed = {**tensors, "layer.3": (np.frombuffer(tensors["layer.3"], np.uint16) ^ np.uint16(1)).tobytes()}
    assert len(planner.tensors(source(safetensors(tensors)))) == 10
    assert both_ways(safetensors(tensors), safetensors(changed, note="x" * 300)) < 0.01


@given(st.binary(max_size=300), st.binary(max_size=80))
def test_no_bytes_upset_the_search_for_tensors(data, header):
    for raw in (data, len(header).to_bytes(8, "little") + header + data, b"GGUF" + data):
        assert planner.tensors(source(raw)) == [] or raw


@settings(max_examples=60)
@given(st.lists(st.binary(max_size=300), max_size=8), st.data())
def test_any_two_files_have_a_delta(parts, data):
    order = data.draw(st.lists(st.sampled_from([*parts, b"new"]), max_size=8))
    both_ways(b"".join(parts), b"".join(order) or b"x")


def test_a_file_longer_than_a_window_is_patched_in_windows(monkeypatch):
    monkeypatch.setattr(planner, "RANGE_LIMIT", 40_000)
    monkeypatch.setattr(planner, "PIECE_LIMIT", 8_000)
    old = RNG.bytes(300_000)
    assert both_ways(old, old[:100_000] + b"inserted" * 100 + old[100_000:]) < 0.03


def step(new: bytes, old: bytes | None) -> tuple[str, int]:
    made, content = planner.best_step(source(new), source(old) if old is not None else None, io.BytesIO)
    assert made.bytes == (len(content.read()) if content else 0)
    return made.codec, made.bytes


@pytest.mark.parametrize(
    ("new", "old", "codec_name"),
    [
        (OLD, OLD, "same"),
        (OLD, None, "raw"),
        (weights.model(TENSORS, more=b"x"), OLD, "delta"),
        (b"text " * 5000, None, "zstd"),
        (b"text " * 5000, OLD, "zstd"),
        (RNG.bytes(3000), RNG.bytes(3000), "raw"),
        (b"", None, "raw"),
        (b"", OLD, "raw"),
    ],
)
def test_the_smallest_wins(new, old, codec_name):
    assert step(new, old)[0] == codec_name


def test_bases_are_found_by_content_then_path_then_name():
    old = [source(b"same", "v1/moved"), source(b"a1", "lib/a"), source(b"b1", "app-1.0/b")]
    old += [source(b"p1", "lib/libpng16-2a828d05.so.16.44"), source(b"", "empty")]
    new = [
        source(b"p2", "lib/libpng16-55aa0e1f.so.16.45"),
        source(b"e", "empty"),
        source(b"same", "v2/here"),
        source(b"a2", "lib/a"),
        source(b"b2", "app-1.1/b"),
        source(b"c", "c"),
    ]
    found = planner.pair(new, old)
    assert {path: base.path for path, base in found.items()} == {
        "v2/here": "v1/moved", "lib/a": "lib/a", "app-1.1/b": "app-1.0/b",
        "lib/libpng16-55aa0e1f.so.16.45": "lib/libpng16-2a828d05.so.16.44",
    }  # fmt: skip
