"""Where the tensors of a safetensors file lie: its JSON header, read with limits.

The format: 8 bytes of length (little-endian), a JSON object {name: {dtype, shape, data_offsets}}, then the data.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, NoReturn

import msgspec

from casemate.errors import UntrustedDataError
from casemate.formats.gguf import Read

HEADER_LIMIT: Final = 32 << 20
TENSOR_LIMIT: Final = 65536
_DTYPE_BYTES: Final = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip
Offset = Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]


class Tensor(msgspec.Struct, frozen=True):
    """A tensor's bytes in a file, and how many bytes belong together in it."""

    name: str
    offset: int
    size: int
    row_bytes: int


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    dtype: str
    shape: tuple[Offset, ...]
    data_offsets: tuple[Offset, Offset]


def safetensors_extents(read: Read, size: int) -> list[Tensor]:
    """Return the tensors of the file in its order.

    Raises:
        UntrustedDataError: `safetensors`: it is not such a file, or breaks a rule of the format.

    """
    length = int.from_bytes(read(0, 8), "little") if size > 8 else 0  # noqa: PLR2004 - the length's own bytes
    if not 2 <= length <= min(HEADER_LIMIT, size - 8):  # noqa: PLR2004 - an empty object
        _refuse("its header's length is out of bounds")
    try:
        rows: dict[str, Any] = msgspec.json.decode(read(8, length), type=dict[str, Any])
        rows.pop("__metadata__", None)
        entries = msgspec.convert(rows, dict[str, _Entry])
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, RecursionError):
        _refuse("its header is not well-formed")
    if len(entries) > TENSOR_LIMIT or any(entry.dtype not in _DTYPE_BYTES for entry in entries.values()):
        _refuse("it has too many tensors, or one of an unknown type")
    return _placed(entries, 8 + length, size)


def _placed(entries: dict[str, _Entry], start: int, size: int) -> list[Tensor]:
    out: list[Tensor] = []
    end = 0
    for name, entry in sorted(entries.items(), key=lambda row: row[1].data_offsets):
        begin, stop = entry.data_offsets
        if begin != end or stop < begin:
            _refuse("its tensors overlap or leave gaps")
        end = stop
        if stop > begin:
            out.append(Tensor(name, start + begin, stop - begin, _DTYPE_BYTES[entry.dtype]))
    if start + end != size:
        _refuse("its tensors are not as long as the file")
    return out


def _refuse(what: str) -> NoReturn:
    raise UntrustedDataError(f"the safetensors file was refused: {what}", check="safetensors")
