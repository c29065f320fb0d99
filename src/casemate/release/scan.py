"""The gates that look at files: what each is, by its bytes; default is no. A file nobody could judge has failed.

Deciding by extension lets a renamed pickle through, and a scanner that skips what it does not know calls it clean. Here
a kind of release lists the formats it may hold; every file must be recognised as one of them, completely where the
format allows it: text is decoded to its end, a GGUF's header is parsed by our own bounded reader, policies and the
guard's data are parsed. A file is judged by its name in the release, which is how a device finds it.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable
from typing import Final

from casemate.errors import CasemateError, UntrustedDataError
from casemate.formats.gguf import GgufFacts, check_header
from casemate.formats.magic import name_format
from casemate.formats.policy import parse_policy
from casemate.guard import Guard, bundle
from casemate.release.spec import Input

_TEXT_LIMIT: Final = 16 << 20
_IMAGES: Final = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a", b"\0\0\1\0", b"wOF2")
_ALLOWED: Final[dict[str, tuple[str, ...]]] = {
    "model": ("gguf", "text"),
    "policy": ("policy", "guard", "json", "text"),
    "app": ("text", "image"),
    "engine": ("elf", "wheel", "text"),
    "os": ("squashfs", "text"),
}


def scan(kind: str, inputs: list[Input]) -> dict[str, str]:
    """Recognise every file of a release; return name -> format.

    Raises:
        UntrustedDataError: `release-format`: a file is none of the formats that *kind* may hold.

    """
    found: dict[str, str] = {}
    for item in inputs:
        found[item.name] = _recognise(_ALLOWED[kind], item)
    if kind == "model" and "gguf" not in found.values():
        raise UntrustedDataError("the release holds no gguf model", check="release-format")
    return found


def check_model(item: Input) -> GgufFacts:
    """Parse a model's header strictly and return what it says.

    Raises:
        UntrustedDataError: `gguf-*` or `format`; names the rule.

    """
    with item.path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        return check_header(lambda offset, length: os.pread(file.fileno(), length, offset), size).facts


def _recognise(allowed: tuple[str, ...], item: Input) -> str:
    try:
        size = item.path.stat().st_size
        with item.path.open("rb") as file:
            start = file.read(512)
        for name in allowed:
            if _CHECKS[name](item, start, size):
                return name
    except (OSError, CasemateError, ValueError, zipfile.BadZipFile) as error:
        raise UntrustedDataError(f"{item.name} could not be scanned: {error}", check="release-format") from error
    raise UntrustedDataError(
        f"{item.name} is {name_format(start, size)}: only {', '.join(allowed)} may be in such a release",
        check="release-format",
        hint="a file that was not recognised is never released",
    )


def _is_text(item: Input, start: bytes, size: int) -> bool:
    """Whether all of it is UTF-8 without control characters, small, and no start of a program."""
    if size > _TEXT_LIMIT or start[:2] == b"#!":
        return False
    try:
        text = item.path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        return False
    return not any(char < " " and char not in "\t\n\r\f" for char in text) and "\x7f" not in text


def _is_json(item: Input, start: bytes, size: int) -> bool:
    if not item.name.endswith(".json") or not _is_text(item, start, size):
        return False
    json.loads(item.path.read_bytes())
    return True


def _is_guard(item: Input, _start: bytes, _size: int) -> bool:
    """Whether it is what a device would take for its guard's data, and could be."""
    if item.name != bundle.FILE:
        return False
    Guard.from_bytes(item.path.read_bytes())
    return True


def _is_policy(item: Input, start: bytes, size: int) -> bool:
    if not item.name.endswith(".toml") or not _is_text(item, start, size):
        return False
    parse_policy(item.path.read_bytes(), source=item.name)
    return True


def _is_wheel(item: Input, start: bytes, size: int) -> bool:
    """Whether it is a zip whose every member is intact and stays inside."""
    del size
    if not start.startswith(b"PK\3\4"):
        return False
    with zipfile.ZipFile(item.path) as archive:
        names = archive.namelist()
        if any(name.startswith("/") or ".." in name.split("/") for name in names) or len(set(names)) != len(names):
            raise ValueError("its members leave the archive, or are there twice")
        damaged = archive.testzip()
    if damaged:
        raise ValueError(f"its member {damaged} is damaged")
    return True


_CHECKS: Final[dict[str, Callable[[Input, bytes, int], bool]]] = {
    "gguf": lambda _item, start, _size: start[:4] == b"GGUF",
    "text": _is_text,
    "json": _is_json,
    "policy": _is_policy,
    "guard": _is_guard,
    "image": lambda _item, start, _size: start.startswith(_IMAGES) or (start[:4] == b"RIFF" and start[8:12] == b"WEBP"),
    "elf": lambda _item, start, _size: start[:4] == b"\x7fELF",
    "wheel": _is_wheel,
    "squashfs": lambda _item, start, _size: start[:4] == b"hsqs",
}
