"""What is installed here, for the fleet's inventory: Debian and Python packages and models, by name and version.

Read from the machine's own records, which this device trusts as far as it trusts itself: an inventory is a claim.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from casemate.formats.fleet_api import MAX_PACKAGES, Inventory, Item, canonical_inventory

DPKG: Final = Path("/var/lib/dpkg/status")
_LIMIT: Final = 64 * 1024 * 1024
_TEXT: Final = 128
_FIELD: Final = re.compile(rb"^(Package|Version|Status): (.*)$", re.MULTILINE)


def take(models: Iterable[tuple[str, str]], dpkg: Path = DPKG) -> Inventory:
    """Return everything that is found, in its one order; *models* are names and containers.

    What is over the limit is left out.
    """
    items = [*_models(models), *_python(), *_debian(dpkg)]
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


def _models(models: Iterable[tuple[str, str]]) -> Iterator[Item]:
    for name, container in models:
        yield Item("model", _text(name), _text(container))


def _decoded(data: bytes) -> str:
    return _text(data.decode("utf-8", "replace"))


def _text(text: str) -> str:
    return "".join(char if " " <= char <= "~" else "?" for char in text)[:_TEXT]
