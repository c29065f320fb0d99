"""GGUF files of our own making: a valid tiny one, valid ones of any size, one malformed file per rule to break.

Written from the format's description, sharing no code with the reader under test.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from pathlib import Path

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
_PACK = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "B", U64: "Q", I64: "q", F64: "d"}
TEMPLATE = "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}{% endfor %}"
F32_TENSOR, Q8_0 = 0, 8


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def value(kind: int, content: object) -> bytes:
    if kind == STRING:
        return text(content)  # type: ignore[arg-type]
    if kind == ARRAY:
        element, items = content  # type: ignore[misc]
        return struct.pack("<IQ", element, len(items)) + b"".join(value(element, item) for item in items)
    return struct.pack("<" + _PACK[kind], content)


def pair(key: str | bytes, kind: int, content: object) -> bytes:
    return text(key) + struct.pack("<I", kind) + value(kind, content)


def tensor(name: str | bytes, shape: Sequence[int], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


KEYS = (
    pair("general.architecture", STRING, "llama"),
    pair("general.name", STRING, "tiny"),
    pair("general.license", STRING, "Apache-2.0"),
    pair("general.file_type", U32, 7),
    pair("llama.context_length", U32, 512),
    pair("llama.embedding_length", U32, 64),
    pair("llama.block_count", U32, 2),
    pair("llama.attention.head_count", U32, 4),
    pair("llama.attention.head_count_kv", U32, 2),
    pair("tokenizer.ggml.model", STRING, "gpt2"),
    pair("tokenizer.ggml.tokens", ARRAY, (STRING, ["a", "b", "<|end|>", "\u2581x"])),
    pair("tokenizer.ggml.scores", ARRAY, (F32, [0.0, 1.0, 2.0, 3.0])),
    pair("tokenizer.chat_template", STRING, TEMPLATE),
)
TENSORS = (
    tensor("token_embd.weight", (64, 4), Q8_0, 0),  # 256 weights in 8 blocks of 34 bytes: 272, padded to 288
    tensor("output_norm.weight", (64,), 0, 288),
)
DATA = 288 + 256


def assemble(
    keys: Sequence[bytes] = KEYS,
    tensors: Sequence[bytes] = TENSORS,
    data: bytes | int = DATA,
    *,
    version: int = 3,
    tensor_count: int | None = None,
    key_count: int | None = None,
    alignment: int = 32,
) -> bytes:
    head = b"GGUF" + struct.pack(
        "<IQQ",
        version,
        len(tensors) if tensor_count is None else tensor_count,
        len(keys) if key_count is None else key_count,
    )
    body = head + b"".join(keys) + b"".join(tensors)
    padding = -len(body) % alignment
    weights = bytes((index * 31 + 7) % 251 for index in range(data)) if isinstance(data, int) else data
    return body + bytes(padding) + weights


def tiny() -> bytes:
    """Return a valid model header with 544 bytes of weights."""
    return assemble()


def write_sized(path: Path, size: int, *, canary: bytes = b"") -> int:
    """Write a valid file with about *size* bytes of unpredictable weights (and *canary* in them); returns its size."""
    columns = 1 << 20
    rows = -(-size // (columns // 32 * 34))
    tensors = [tensor(f"blk.{n}.w", (columns,), Q8_0, n * (columns // 32 * 34)) for n in range(rows)]
    with path.open("wb") as file:
        file.write(assemble(KEYS, tensors, b""))
        for n in range(rows):
            block = os.urandom(columns // 32 * 34)
            file.write(canary + block[len(canary) :] if n == rows // 2 else block)
        return file.tell()


HUGE = 2**63
_NESTED = text("general.x") + struct.pack("<IIQ", ARRAY, ARRAY, 2**60)
_DEEP = text("general.x") + struct.pack("<IIQ", ARRAY, ARRAY, 1) + struct.pack("<IQ", ARRAY, 1) * 200


def with_keys(*more: bytes) -> bytes:
    return assemble((*KEYS, *more))


def with_template(template: str) -> bytes:
    return assemble((*KEYS[:-1], pair("tokenizer.chat_template", STRING, template)))


def without(key: str) -> bytes:
    return assemble([row for row in KEYS if not row.startswith(text(key))])


# fault -> (file, the check that must refuse it)
MALFORMED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "format"),
    "one byte": (b"G", "format"),
    "magic only": (b"GGUF", "gguf-truncated"),
    "43 bytes": (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a") + struct.pack("<IIQ", ARRAY, U8, HUGE)[:10],
                 "gguf-truncated"),
    "version 1": (assemble(version=1), "gguf-version"),
    "version 99": (assemble(version=99), "gguf-version"),
    "big-endian": (assemble(version=3 << 24), "gguf-version"),
    "2^63 keys": (assemble(key_count=HUGE), "gguf-count"),
    "2^63 tensors": (assemble(tensor_count=HUGE), "gguf-count"),
    "a key too many claimed": (assemble(key_count=4000), "gguf-string"),
    "a string of 2^63 bytes": (with_keys(text("general.x") + struct.pack("<IQ", STRING, HUGE)), "gguf-string"),
    "a key of 2^63 bytes": (with_keys(struct.pack("<Q", HUGE)), "gguf-string"),
    "an array of 2^63 bytes": (with_keys(text("general.x") + struct.pack("<IIQ", ARRAY, U8, HUGE)), "gguf-array"),
    "an array of 2^63 strings": (with_keys(text("general.x") + struct.pack("<IIQ", ARRAY, STRING, HUGE)), "gguf-array"),
    "a token of 2^63 bytes": (
        with_keys(text("general.x") + struct.pack("<IIQQ", ARRAY, STRING, 1, HUGE)), "gguf-string"),
    "an array longer than the file": (
        assemble((*KEYS, text("general.x") + struct.pack("<IIQ", ARRAY, U64, 1 << 20)), ()), "gguf-truncated"),
    "a nested array": (with_keys(_NESTED), "gguf-nested-array"),
    "arrays nested 200 deep": (with_keys(_DEEP), "gguf-nested-array"),
    "an unknown value type": (with_keys(text("general.x") + struct.pack("<I", 77)), "gguf-type"),
    "an unknown element type": (with_keys(text("general.x") + struct.pack("<IIQ", ARRAY, 77, 1)), "gguf-type"),
    "a boolean of 2": (with_keys(text("general.x") + struct.pack("<IB", BOOL, 2)), "gguf-bool"),
    "a key twice": (with_keys(KEYS[0]), "gguf-duplicate-key"),
    "a key of bad bytes": (with_keys(pair(b"general.\xff", U32, 1)), "gguf-key"),
    "an empty key": (with_keys(pair("", U32, 1)), "gguf-key"),
    "bad UTF-8": (with_keys(pair("general.x", STRING, b"\xff\xfe")), "gguf-utf8"),
    "no architecture": (without("general.architecture"), "gguf-architecture"),
    "an architecture of bad bytes": (
        assemble((pair("general.architecture", STRING, "../x"), *KEYS[1:])), "gguf-architecture"),
    "alignment 0": (with_keys(pair("general.alignment", U32, 0)), "gguf-alignment"),
    "alignment 3": (with_keys(pair("general.alignment", U32, 3)), "gguf-alignment"),
    "alignment 2^31": (with_keys(pair("general.alignment", U32, 1 << 31)), "gguf-alignment"),
    "alignment in words": (with_keys(pair("general.alignment", STRING, "32")), "gguf-alignment"),
    "context of 2^62": (
        assemble([*(k for k in KEYS if b"context_length" not in k), pair("llama.context_length", U64, 1 << 62)]),
        "gguf-hparam"),
    "a negative layer count": (
        assemble([*(k for k in KEYS if b"block_count" not in k), pair("llama.block_count", I32, -1)]), "gguf-hparam"),
    "2^30 layers": (
        assemble([*(k for k in KEYS if b"block_count" not in k), pair("llama.block_count", U32, 1 << 30)]),
        "gguf-hparam"),
    "no tensors": (assemble(tensors=(), data=0), "gguf-kind"),
    "an adapter": (with_keys(pair("general.type", STRING, "adapter")), "gguf-kind"),
    "part of a split": (with_keys(pair("split.count", U16, 4)), "gguf-split"),
    "overlapping tensors": (assemble(tensors=(TENSORS[0], tensor("b", (64,), 0, 0))), "gguf-layout"),
    "a gap between tensors": (assemble(tensors=(TENSORS[0], tensor("b", (64,), 0, 320)), data=1024), "gguf-layout"),
    "an unaligned tensor": (assemble(tensors=(TENSORS[0], tensor("b", (64,), 0, 272))), "gguf-layout"),
    "an offset of 2^63": (assemble(tensors=(tensor("a", (64,), 0, HUGE),)), "gguf-layout"),
    "a tensor outside the file": (assemble(tensors=(tensor("a", (1 << 20,), 0, 0),)), "gguf-truncated"),
    "dimensions whose product wraps": (assemble(tensors=(tensor("a", (1 << 32, 1 << 32), 0, 0),)), "gguf-shape"),
    "a dimension of 0": (assemble(tensors=(tensor("a", (0,), 0, 0),)), "gguf-shape"),
    "a row that is not whole blocks": (assemble(tensors=(tensor("a", (33,), Q8_0, 0),)), "gguf-shape"),
    "no dimensions": (assemble(tensors=(tensor("a", (), 0, 0),)), "gguf-shape"),
    "five dimensions": (assemble(tensors=(tensor("a", (1, 1, 1, 1, 1), 0, 0),)), "gguf-shape"),
    "2^32-1 dimensions": (
        assemble(tensors=(text("a") + struct.pack("<I", 2**32 - 1),)), "gguf-shape"),
    "an unknown tensor type": (assemble(tensors=(tensor("a", (64,), 999, 0),)), "gguf-tensor-type"),
    "a tensor name of 64 bytes": (assemble(tensors=(tensor("n" * 64, (64,), 0, 0),)), "gguf-string"),
    "a tensor twice": (assemble(tensors=(TENSORS[0], tensor("token_embd.weight", (64,), 0, 288))), "gguf-tensor-name"),
    "a nameless tensor": (assemble(tensors=(tensor("", (64,), 0, 0),)), "gguf-tensor-name"),
    "bytes after the last tensor": (tiny() + bytes(64), "gguf-trailing-data"),
    "a zip archive behind a model": (tiny() + b"PK\x05\x06" + bytes(60), "gguf-trailing-data"),
    "weights cut off": (tiny()[:-1], "gguf-truncated"),
    "a hostile template": (with_template("{{ ''.__class__.__mro__[1].__subclasses__() }}"), "chat-template"),
    "templates as a list": (with_keys(pair("tokenizer.chat_templates", ARRAY, (STRING, ["{{ x }}"]))), "chat-template"),
    "a second, hostile template": (
        with_keys(pair("tokenizer.chat_template.tool_use", STRING, "{% include '/etc/passwd' %}")), "chat-template"),
}  # fmt: skip

# what it seems to be -> file: never opened as what it is, always named in the refusal
OTHER_FORMATS: dict[str, bytes] = {
    "pickle": b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x94\x8c\x02id\x85\x52." + bytes(40),
    "zip archive": b"PK\x03\x04" + bytes(60),
    "safetensors": struct.pack("<Q", 40) + b'{"__metadata__":{}}' + bytes(60),
    "program": b"\x7fELF\x02\x01\x01" + bytes(60),
    "gzip": b"\x1f\x8b\x08" + bytes(60),
    "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(60),
    "old GGML": b"lmgg" + bytes(60),
    "git-lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "web page": b"<!DOCTYPE html><html>" + bytes(60),
    "tar archive": bytes(257) + b"ustar" + bytes(260),
    "unknown": b"hello, this is a model, trust me" * 2,
}  # fmt: skip
