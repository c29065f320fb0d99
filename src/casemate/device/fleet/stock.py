"""What is installed here, for the fleet's inventory: engine, models, policies, system, board, packages.

Read from the machine's own records, which this device trusts as far as it trusts itself: an inventory is a claim.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final, Literal

from casemate.formats.fleet_api import MAX_PACKAGES, Inventory, Item, canonical_inventory

DPKG: Final = Path("/var/lib/dpkg/status")
_LIMIT: Final = 64 * 1024 * 1024
_TEXT: Final = 128
ENGINE: Final = "xllamacpp"
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_SMALL: Final = 4096
_FACT: Final = re.compile(r'^(ID|VERSION_ID)="?([^"\n]*)"?$', re.MULTILINE)
_FIELD: Final = re.compile(rb"^(Package|Version|Status): (.*)$", re.MULTILINE)


def take(
    models: Iterable[tuple[str, str, str]],
    policies: Mapping[str, str],
    dpkg: Path = DPKG,
    root: Path = Path("/"),
) -> Inventory:
    """Return everything that is found, in its one order.

    *models* are names, containers and digests (`sha256:` and hex; "": nobody looked), *policies* SHA-256 (hex) by app.
    What is over the limit is left out.
    """
    named = [Item("policy", _text(app), "", digest) for app, digest in policies.items()]
    items = [*_engine(), *_models(models), *named, *_machine(root), *_python(), *_debian(dpkg)]
    found = sorted(set(items), key=lambda item: (item.kind, item.name, item.version))
    return Inventory(tuple(found[:MAX_PACKAGES]))


def digest(inventory: Inventory) -> str:
    """Return the name of the set (hex SHA-256), as the server computes it."""
    return hashlib.sha256(canonical_inventory(inventory)).hexdigest()


def _debian(path: Path) -> Iterator[Item]:
    try:
        with path.open("rb") as file:
            data = file.read(_LIMIT)
    except OSError:
        return  # not a Debian machine, or not ours to read
    for paragraph in data.split(b"\n\n"):
        fields = dict(_FIELD.findall(paragraph))
        if fields.get(b"Status", b"").endswith(b" installed") and b"Package" in fields and b"Version" in fields:
            yield Item(
                "dpkg",
                _text(fields[b"Package"].decode("utf-8", "replace")),
                _text(fields[b"Version"].decode("utf-8", "replace")),
            )


def _python() -> Iterator[Item]:
    for package in importlib.metadata.distributions():
        name = package.metadata["Name"]
        if name:
            yield Item("python", _text(name), _text(package.version))


def _engine() -> Iterator[Item]:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        yield Item("engine", ENGINE, _text(importlib.metadata.version(ENGINE)))


def _machine(root: Path) -> Iterator[Item]:
    """Yield the operating system, and the board with what is plugged on it: a device tree's words, or a PC's (DMI)."""
    facts = dict(_FACT.findall(_read(root / "etc/os-release")))
    if "ID" in facts:
        yield Item("os", _text(facts["ID"]), _text(facts.get("VERSION_ID", "")))
    tree, dmi = root / "proc/device-tree", root / "sys/class/dmi/id"
    places: tuple[tuple[Literal["firmware", "hat"], Path, Path], ...] = (
        ("firmware", tree / "model", tree / "chosen/bootloader/version"),
        ("firmware", dmi / "product_name", dmi / "bios_version"),
        ("hat", tree / "hat/product", tree / "hat/product_ver"),
    )
    for kind, name, version in places:
        if text := _read(name).strip("\0\n "):
            yield Item(kind, _text(text), _text(_read(version).strip("\0\n ")))


def _read(path: Path) -> str:
    """Return a small file as text; "" when it is not there or not ours to read."""
    try:
        with path.open("rb") as file:
            return file.read(_SMALL).decode("utf-8", "replace")
    except OSError:
        return ""


def _models(models: Iterable[tuple[str, str, str]]) -> Iterator[Item]:
    for name, container, digest in models:
        plain = digest.removeprefix("sha256:")
        yield Item("model", _text(name), _text(container), plain if _DIGEST.fullmatch(plain) else None)


def _decoded(data: bytes) -> str:
    return _text(data.decode("utf-8", "replace"))


def _text(text: str) -> str:
    return "".join(char if " " <= char <= "~" else "?" for char in text)[:_TEXT]
