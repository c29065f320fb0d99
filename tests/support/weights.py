"""Models to make deltas between: Q4_0-like GGUF files of any size, and changed versions of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from support import gguf_files

Q4_0 = 2
ROW = 18


def blocks(rng: np.random.Generator, count: int) -> np.ndarray:
    """Return *count* Q4_0 blocks of gaussian weights, quantised as ggml does: a half-precision scale, 32 nibbles."""
    weights = rng.standard_normal((count, 32), dtype=np.float32) * np.float32(0.02)
    return quantise(weights)


def quantise(weights: np.ndarray) -> np.ndarray:
    peak = np.take_along_axis(weights, np.abs(weights).argmax(axis=1, keepdims=True), axis=1)
    scale = peak / -8
    nibbles = np.clip(weights / np.where(scale == 0, 1, scale) + 8.5, 0, 15).astype(np.uint8)
    out = np.empty((len(weights), ROW), np.uint8)
    out[:, :2] = scale.astype(np.float16).view(np.uint8)
    out[:, 2:] = nibbles[:, :16] | nibbles[:, 16:] << 4
    return out


def model(tensors: Sequence[bytes], *, more: bytes = b"", names: Sequence[str] | None = None) -> bytes:
    """Return a GGUF file with these tensors (whole Q4_0 rows) and, with *more*, another metadata key of that text."""
    rows, at = [], 0
    for index, data in enumerate(tensors):
        name = names[index] if names else f"blk.{index}.weight"
        rows.append(gguf_files.tensor(name, (len(data) // ROW * 32,), Q4_0, at))
        at += -(-len(data) // 32) * 32
    keys = (*gguf_files.KEYS, gguf_files.pair("general.notes", gguf_files.STRING, more)) if more else gguf_files.KEYS
    body = b"".join(data.ljust(-(-len(data) // 32) * 32, b"\0") for data in tensors)
    return gguf_files.assemble(keys, rows, body)


def noisy(data: bytes, rng: np.random.Generator, share: float) -> bytes:
    """Change about *share* of the bytes of a tensor a little: one nibble by one step, the scales as they are."""
    out = np.frombuffer(data, np.uint8).copy()
    at = np.flatnonzero(rng.random(len(out)) < share)
    at = at[at % ROW >= 2]
    out[at] ^= rng.choice(np.array([1, 16], np.uint8), len(at))
    return out.tobytes()
