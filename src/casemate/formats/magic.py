"""What a file looks like, from its first bytes: only to name it in a refusal, never to decide to open it."""

from __future__ import annotations

from typing import Final

_LOOKS: Final = (
    (0, b"\x89CMODEL\n", "a casemate container"),
    (0, b"PK\x03\x04", "a zip archive (as PyTorch checkpoints are)"),
    (0, b"PK\x05\x06", "an empty zip archive"),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (0, b"\x7fELF", "a program"),
    (0, b"\x1f\x8b", "a gzip file"),
    (0, b"\x28\xb5\x2f\xfd", "a zstandard file"),
    (0, b"BZh", "a bzip2 file"),
    (0, b"\xfd7zXZ\0", "an xz file"),
    (257, b"ustar", "a tar archive"),
    (0, b"version https://git-lfs", "a git-lfs pointer (run `git lfs pull` to get the file itself)"),
    (0, b"<!DOCTYPE", "a web page (the download failed)"),
    (0, b"<!doctype", "a web page (the download failed)"),
    (0, b"<html", "a web page (the download failed)"),
    (0, b"age-encryption.org/", "an age-encrypted file"),
    (0, b"lmgg", "an old GGML file"),
    (0, b"fmgg", "an old GGML file"),
    (0, b"tjgg", "an old GGJT file"),
    (0, b"algg", "an old GGLA adapter"),
)
_PICKLE_PROTOCOLS: Final = range(2, 6)
_SAFETENSORS_HEADER_LIMIT: Final = 100_000_000


def name_format(start: bytes, size: int) -> str:
    """Name what a file of *size* bytes that begins with *start* seems to be."""
    if not size:
        return "an empty file"
    for offset, magic, name in _LOOKS:
        if start[offset : offset + len(magic)] == magic:
            return name
    if start[:1] == b"\x80" and len(start) > 1 and start[1] in _PICKLE_PROTOCOLS:
        return "a python pickle, which can run code when it is opened"
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= _SAFETENSORS_HEADER_LIMIT:
        return "a safetensors file (not served yet)"
    return "a file of an unknown format"
