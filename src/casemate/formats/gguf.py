"""GGUF headers, read with suspicion: bytes in, facts out, nothing believed before its bound is checked.

Only the header is read (metadata and the list of tensors), strictly forwards through a small window, so a file of any
size costs little memory. Counts and lengths are checked against limits and against the bytes that are left *before*
anything is allocated or looped over. What the loader in the engine would have to guess about is refused: nested
arrays, duplicate keys, gaps or overlaps between tensors, bytes after the last tensor (polyglots).

A header that passes is plausible, not trusted: the engine still parses it only inside its sandbox.
Format: the GGUF specification of the ggml project, versions 2 and 3, little-endian.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable
from typing import Any, Final, NoReturn

import msgspec

from casemate.errors import UntrustedDataError
from casemate.formats.chat_template import review_template
from casemate.formats.magic import name_format

HEADER_LIMIT: Final = 32 << 20
KEY_LIMIT: Final = 4096
TENSOR_LIMIT: Final = 16384
ARRAY_LIMIT: Final = 1 << 20
ELEMENT_LIMIT: Final = 1 << 21  # of all arrays together
TEXT_LIMIT: Final = 1 << 20
TOKEN_LIMIT: Final = 1 << 16
KEY_NAME_LIMIT: Final = 128
TENSOR_NAME_LIMIT: Final = 63  # the engine's array has 64 bytes
DIMENSION_LIMIT: Final = 4
ALIGNMENT_LIMIT: Final = 1 << 16
WEIGHT_LIMIT: Final = 1 << 40  # bytes of one tensor, elements of one tensor
_WINDOW: Final = 1 << 18
_HPARAM_LIMIT: Final = 1 << 31

Read = Callable[[int, int], bytes]  # (offset, length) -> exactly those bytes, fewer only at the end of the file

_UINT8, _INT8, _UINT16, _INT16, _UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY, _UINT64, _INT64, _FLOAT64 = range(13)
_SCALARS: Final = {
    _UINT8: struct.Struct("<B"), _INT8: struct.Struct("<b"), _UINT16: struct.Struct("<H"),
    _INT16: struct.Struct("<h"), _UINT32: struct.Struct("<I"), _INT32: struct.Struct("<i"),
    _FLOAT32: struct.Struct("<f"), _BOOL: struct.Struct("<B"), _UINT64: struct.Struct("<Q"),
    _INT64: struct.Struct("<q"), _FLOAT64: struct.Struct("<d"),
}  # fmt: skip
_INTEGERS: Final = frozenset({_UINT8, _INT8, _UINT16, _INT16, _UINT32, _INT32, _UINT64, _INT64})

# ggml tensor types: number -> (name, elements per block, bytes per block).
TENSOR_TYPES: Final = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 36), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36), 41: ("Q1_0", 128, 18),
}  # fmt: skip

# general.file_type: how the producer names the mixture.
FILE_TYPES: Final = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M",
    13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS",
    21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S",
    29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4_MOE", 39: "NVFP4",
    40: "Q1_0",
}  # fmt: skip

_KEY: Final = re.compile(rb"[A-Za-z0-9_][A-Za-z0-9_./-]*\Z")
_ARCHITECTURE: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}\Z")


class GgufFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a header says about a model, bounded and printable: its author's claims, for display and planning."""

    version: int
    architecture: str
    name: str
    licence: str
    parameters: int
    tensors: int
    context_length: int
    quantisation: str
    tokenizer: str
    vocabulary: int
    chat_template: bool
    kv_bytes_per_token: int


class CheckedHeader(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The result of `check_header`: the facts, and how many leading bytes of the file they rest on."""

    facts: GgufFacts
    bytes_read: int


class Extent(msgspec.Struct, frozen=True):
    """Where a tensor's bytes lie in the file, without padding; `row_bytes` is one block of its type."""

    name: str
    offset: int
    size: int
    row_bytes: int


def check_header(read: Read, size: int) -> CheckedHeader:
    """Read the header of a file of *size* bytes through *read*, strictly forwards, and check all of it.

    Raises:
        UntrustedDataError: not a GGUF file, or one that breaks a rule; `check` names the rule.

    """
    return _check(read, size)[0]


def tensor_extents(read: Read, size: int) -> list[Extent]:
    """Check the header as `check_header` does and return where its tensors lie, in the order of the file.

    Raises:
        UntrustedDataError: as `check_header`.

    """
    return _check(read, size)[1]


def _check(read: Read, size: int) -> tuple[CheckedHeader, list[Extent]]:
    window = _Window(read, size)
    version = _check_magic(window, size)
    tensor_count, key_count = window.u64(), window.u64()
    if tensor_count > TENSOR_LIMIT or key_count > KEY_LIMIT:
        _refuse("gguf-count", f"it claims {tensor_count} tensors and {key_count} keys")
    values = _read_metadata(window, key_count)
    _check_kind(values, tensor_count)
    tensors = _Tensors(_alignment(values))
    for _ in range(tensor_count):
        tensors.add(window)
    start = tensors.check_extent(window.offset, size)
    for key, text in values.items():
        if key.startswith("tokenizer.chat_template") and isinstance(text, str):
            review_template(text)
    extents = [msgspec.structs.replace(extent, offset=start + extent.offset) for extent in tensors.extents]
    return CheckedHeader(_facts(version, values, tensors), window.bytes_read), extents


def _refuse(check: str, what: str) -> NoReturn:
    raise UntrustedDataError(
        f"the gguf header was refused: {what}", check=check, hint="get the file again from a source you trust"
    )


class _Window:
    """The part of the file in hand. Moves forwards only; never larger than one text plus one read."""

    def __init__(self, read: Read, size: int) -> None:
        self._read = read
        self._limit = min(size, HEADER_LIMIT)
        self._size = size
        self._base = 0  # file offset of data[0]
        self.data = b""
        self.at = 0  # position in data

    @property
    def offset(self) -> int:
        """Where in the file the next byte is."""
        return self._base + self.at

    @property
    def bytes_read(self) -> int:
        """How many bytes of the file were looked at, from its start."""
        return self._base + len(self.data)

    def need(self, count: int) -> None:
        """Make sure that *count* bytes stand at `at`; refuse before reading when the file cannot have them."""
        have = len(self.data) - self.at
        if have >= count:
            return
        if self.offset + count > self._limit:
            if self._limit < self._size:
                _refuse("gguf-header-size", f"it is larger than {HEADER_LIMIT >> 20} MiB")
            _refuse("gguf-truncated", "the file ends inside it")
        rest = self.data[self.at :]
        self._base += self.at
        wanted = min(max(count - have, _WINDOW), self._limit - self._base - have)
        more = self._read(self._base + have, wanted)
        if have + len(more) < count:
            _refuse("gguf-truncated", "the file ends inside it")
        self.data, self.at = rest + more, 0

    def take(self, count: int) -> bytes:
        self.need(count)
        self.at += count
        return self.data[self.at - count : self.at]

    def skip(self, count: int) -> None:
        """Pass over *count* bytes without holding them all."""
        while count:
            step = min(count, _WINDOW)
            self.need(step)
            self.at += step
            count -= step

    def u32(self) -> int:
        return int.from_bytes(self.take(4), "little")

    def u64(self) -> int:
        return int.from_bytes(self.take(8), "little")

    def text(self, limit: int, what: str) -> bytes:
        length = self.u64()
        if length > limit:
            _refuse("gguf-string", f"{what} claims {length} bytes")
        return self.take(length)


def _check_magic(window: _Window, size: int) -> int:
    if size < 24:  # noqa: PLR2004 - magic, version and two counts
        start = window.take(min(size, 4))
        if start == b"GGUF":
            _refuse("gguf-truncated", "the file ends inside it")
        raise _not_gguf(start, size)
    window.need(min(size, 512))
    start = window.data[:512]
    if start[:4] != b"GGUF":
        raise _not_gguf(start, size)
    window.skip(4)
    version = window.u32()
    if version not in {2, 3}:
        other = "a big-endian file" if version in {2 << 24, 3 << 24} else f"version {version}"
        _refuse("gguf-version", f"{other}; versions 2 and 3, little-endian, are supported")
    return version


def _not_gguf(start: bytes, size: int) -> UntrustedDataError:
    return UntrustedDataError(
        f"this is {name_format(start, size)}, not a gguf model",
        check="format",
        hint="only GGUF models are served: convert the original with llama.cpp's convert_hf_to_gguf.py",
    )


# --- metadata -----------------------------------------------------------------------------------------------------


def _read_metadata(window: _Window, count: int) -> dict[str, Any]:
    values: dict[str, Any] = {}
    elements = 0
    for _ in range(count):
        raw = window.text(KEY_NAME_LIMIT, "a key")
        if not _KEY.match(raw):
            _refuse("gguf-key", f"a key is not a name: {raw[:40]!r}")
        key = raw.decode("ascii")
        if key in values:
            _refuse("gguf-duplicate-key", f"{key} appears twice")
        kind = window.u32()
        if kind == _ARRAY:
            values[key], length = _read_array(window, key)
            elements += length
            if elements > ELEMENT_LIMIT:
                _refuse("gguf-array", f"its arrays have more than {ELEMENT_LIMIT} elements together")
        else:
            values[key] = _read_value(window, kind, key)
    return values


def _read_value(window: _Window, kind: int, key: str) -> Any:
    if kind == _STRING:
        return _utf8(window.text(TEXT_LIMIT, key), key)
    scalar = _SCALARS.get(kind)
    if scalar is None:
        _refuse("gguf-type", f"{key} has unknown type {kind}")
    (value,) = scalar.unpack(window.take(scalar.size))
    if kind == _BOOL:
        if value > 1:
            _refuse("gguf-bool", f"{key} is neither true nor false")
        return bool(value)
    return value


class _Array(msgspec.Struct, frozen=True):
    """What is kept of an array: its length, and its values when it is a short list of whole numbers."""

    length: int
    integers: tuple[int, ...] = ()


def _read_array(window: _Window, key: str) -> tuple[_Array, int]:
    kind, length = window.u32(), window.u64()
    if kind == _ARRAY:
        _refuse("gguf-nested-array", f"{key} is an array of arrays")
    if length > ARRAY_LIMIT:
        _refuse("gguf-array", f"{key} claims {length} elements")
    if kind == _STRING:
        if key.startswith("tokenizer.chat_template"):
            _refuse("chat-template", f"{key} is a list, and only single templates are reviewed")
        _skip_strings(window, length, key)
        return _Array(length), length
    scalar = _SCALARS.get(kind)
    if scalar is None:
        _refuse("gguf-type", f"{key} is an array of unknown type {kind}")
    if kind in _INTEGERS and length <= KEY_LIMIT:
        raw = window.take(length * scalar.size)
        return _Array(length, tuple(value for (value,) in scalar.iter_unpack(raw))), length
    window.skip(length * scalar.size)
    return _Array(length), length


def _skip_strings(window: _Window, count: int, key: str) -> None:
    """Walk an array of strings. The hot loop of the whole check: a vocabulary has up to half a million entries."""
    unpack = _SCALARS[_UINT64].unpack_from
    while count:
        window.need(8)
        data, at = window.data, window.at
        safe = len(data) - 8
        while count and at <= safe:
            (length,) = unpack(data, at)
            if length > TOKEN_LIMIT:
                _refuse("gguf-string", f"an element of {key} claims {length} bytes")
            if at + 8 + length > len(data):
                break
            at += 8 + length
            count -= 1
        else:
            window.at = at
            continue
        window.at = at
        window.need(8 + length)


def _utf8(raw: bytes, key: str) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        _refuse("gguf-utf8", f"{key} is not UTF-8")


def _check_kind(values: dict[str, Any], tensor_count: int) -> None:
    """Refuse well-formed files that are not one whole model."""
    kind = values.get("general.type", "model")
    if kind != "model":
        _refuse("gguf-kind", f"it holds {_plain(kind, 32) or 'something'!r}, not a model")
    if isinstance(values.get("split.count"), int) and values["split.count"] > 1:
        raise UntrustedDataError(
            "this is one part of a split model", check="gguf-split", hint="join it first: llama-gguf-split --merge"
        )
    if not tensor_count:
        _refuse("gguf-kind", "it has no tensors")
    architecture = values.get("general.architecture")
    if not isinstance(architecture, str) or not _ARCHITECTURE.match(architecture):
        _refuse("gguf-architecture", "general.architecture is missing or is not a name")


def _alignment(values: dict[str, Any]) -> int:
    alignment = values.get("general.alignment", 32)
    if (
        not isinstance(alignment, int)
        or isinstance(alignment, bool)
        or not 8 <= alignment <= ALIGNMENT_LIMIT  # noqa: PLR2004 - the format's own minimum
        or alignment & (alignment - 1)
    ):
        _refuse("gguf-alignment", "general.alignment is not a power of two in bounds")
    return alignment


# --- tensors ------------------------------------------------------------------------------------------------------


class _Tensors:
    """The list of tensors: names unique, shapes sane, data packed in order without gap or overlap."""

    def __init__(self, alignment: int) -> None:
        self._alignment = alignment
        self._names: set[bytes] = set()
        self._end = 0  # of the last tensor, unpadded, from the start of the data
        self._weights: dict[str, int] = {}
        self.parameters = 0
        self.extents: list[Extent] = []  # from the start of the data

    @property
    def count(self) -> int:
        return len(self._names)

    @property
    def main_type(self) -> str:
        """The type that holds most elements."""
        return max(self._weights, key=lambda name: self._weights[name])

    def add(self, window: _Window) -> None:
        name = window.text(TENSOR_NAME_LIMIT, "a tensor's name")
        if not name or name in self._names or not name.isascii() or not name.decode("ascii").isprintable():
            _refuse("gguf-tensor-name", f"a tensor is called {name[:40]!r}, or is there twice")
        self._names.add(name)
        dimensions = window.u32()
        if not 1 <= dimensions <= DIMENSION_LIMIT:
            _refuse("gguf-shape", f"a tensor has {dimensions} dimensions")
        shape = struct.unpack(f"<{dimensions}Q", window.take(8 * dimensions))
        kind, offset = window.u32(), window.u64()
        if kind not in TENSOR_TYPES:
            _refuse("gguf-tensor-type", f"a tensor has unknown type {kind}")
        self._place(name.decode("ascii"), shape, kind, offset)

    def _place(self, called: str, shape: tuple[int, ...], kind: int, offset: int) -> None:
        name, block, block_bytes = TENSOR_TYPES[kind]
        elements = math.prod(shape)
        if not 1 <= elements <= WEIGHT_LIMIT or shape[0] % block:
            _refuse("gguf-shape", f"a tensor of type {name} has shape {'x'.join(map(str, shape))}")
        if offset != _round_up(self._end, self._alignment):
            _refuse("gguf-layout", "tensors overlap, leave gaps or are out of order")
        self._end = offset + elements // block * block_bytes
        if self._end > WEIGHT_LIMIT:
            _refuse("gguf-layout", "the tensors claim more than a terabyte")
        self.extents.append(Extent(called, offset, self._end - offset, block_bytes))
        self._weights[name] = self._weights.get(name, 0) + elements
        self.parameters += elements

    def check_extent(self, header_end: int, size: int) -> int:
        """Check that the file ends where the last tensor does, give or take padding; return where the data begins."""
        start = _round_up(header_end, self._alignment)
        if size < start + self._end:
            _refuse("gguf-truncated", f"the tensors need {start + self._end} bytes and the file has {size}")
        if size > start + _round_up(self._end, self._alignment):
            _refuse("gguf-trailing-data", "the file goes on after the last tensor")
        return start


def _round_up(value: int, step: int) -> int:
    return (value + step - 1) // step * step


# --- facts --------------------------------------------------------------------------------------------------------


def _facts(version: int, values: dict[str, Any], tensors: _Tensors) -> GgufFacts:
    architecture = values["general.architecture"]
    file_type = values.get("general.file_type")
    vocabulary = values.get("tokenizer.ggml.tokens")
    return GgufFacts(
        version=version,
        architecture=architecture,
        name=_plain(values.get("general.name"), 128),
        licence=_plain(values.get("general.license"), 64),
        parameters=tensors.parameters,
        tensors=tensors.count,
        context_length=_hparam(values, f"{architecture}.context_length"),
        quantisation=FILE_TYPES.get(file_type if isinstance(file_type, int) else -1) or tensors.main_type,
        tokenizer=_plain(values.get("tokenizer.ggml.model"), 64),
        vocabulary=vocabulary.length if isinstance(vocabulary, _Array) else 0,
        chat_template="tokenizer.chat_template" in values,
        kv_bytes_per_token=_kv_bytes(values, architecture),
    )


def _plain(value: Any, limit: int) -> str:
    """Return text that is safe on a terminal and in a log: printable, one line, bounded."""
    if not isinstance(value, str):
        return ""
    return "".join(char for char in value[: 4 * limit] if char.isprintable())[:limit].strip()


def _hparam(values: dict[str, Any], key: str, default: int = 0) -> int:
    value = values.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _HPARAM_LIMIT:
        _refuse("gguf-hparam", f"{key} is out of bounds")
    return value


def _kv_bytes(values: dict[str, Any], architecture: str) -> int:
    """Estimate the f16 key and value cache of one token over all layers, in bytes (0 when the header does not say)."""
    layers = _hparam(values, f"{architecture}.block_count")
    heads_key = f"{architecture}.attention.head_count"
    heads = _per_layer(values, heads_key, layers)
    kv_heads = _per_layer(values, f"{heads_key}_kv", layers) if f"{heads_key}_kv" in values else heads
    if not layers or not heads or not max(heads):
        return 0
    width = _hparam(values, f"{architecture}.embedding_length") // max(heads)
    key_width = _hparam(values, f"{architecture}.attention.key_length", width)
    value_width = _hparam(values, f"{architecture}.attention.value_length", width)
    return min(sum(kv_heads) * (key_width + value_width) * 2, WEIGHT_LIMIT)


def _per_layer(values: dict[str, Any], key: str, layers: int) -> tuple[int, ...]:
    """Return one number per layer: some architectures say them all, most say one."""
    if layers > KEY_LIMIT:
        _refuse("gguf-hparam", f"it claims {layers} layers")
    value = values.get(key)
    if isinstance(value, _Array):
        if any(not 0 <= item <= KEY_LIMIT for item in value.integers):
            _refuse("gguf-hparam", f"{key} is out of bounds")
        return value.integers[:layers]
    return (min(_hparam(values, key), KEY_LIMIT),) * layers
