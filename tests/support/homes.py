"""A home with a keystore and a tiny model, without processes: the journal is a list."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from casemate import keystores
from casemate.crypto import kdf
from casemate.device import containers, inspector, models, rotation, transfer
from casemate.device.home import Home
from casemate.device.models import ModelInfo
from support import gguf_files

CHEAP = kdf.Argon2Cost(memory_kib=8 * 1024, passes=1, lanes=1)


@dataclass
class Bench:
    """One home and everything a test does to it."""

    home: Home
    keyfile: Path
    events: list[dict[str, Any]] = field(default_factory=list)

    @property
    def environ(self) -> dict[str, str]:
        return {"CASEMATE_KEYFILE": str(self.keyfile)}

    @property
    def sources(self) -> keystores.Sources:
        return keystores.from_environment(self.home, self.environ)

    def unlock(self) -> keystores.UnlockedKeystore:
        return keystores.unlock(self.home, self.sources)

    def add(self, data: bytes | None = None, name: str = "tiny", **options: Any) -> ModelInfo:
        source = self.home.path.parent / f"{name}.gguf"
        source.write_bytes(gguf_files.tiny() if data is None else data)
        return models.add_model(self.home, self.sources, source, name=name, **options)

    def verify(self, name: str = "tiny") -> str:
        return models.verify_model(self.home, self.sources, name)

    def said(self) -> list[str]:
        return [event["metadata"]["event_code"] for event in self.events]


def make(root: Path, monkeypatch: pytest.MonkeyPatch, name: str = "home") -> Bench:
    """Make a home under *root* with a key-file keystore; events of commands land in `Bench.events`."""
    monkeypatch.setattr(kdf, "DEFAULT_COST", CHEAP)
    bench = Bench(Home(root / name).create(), root / f"{name}-keys" / "device.key")
    for module in (models, rotation, transfer):
        monkeypatch.setattr(module, "record", lambda _home, *events: bench.events.extend(events))
    keystores.create(bench.home, bench.sources).wipe()
    return bench


def inspect_here(fd: int, size: int) -> inspector.Inspection:
    """Check a header without the sandboxed child, which has tests of its own."""
    os.lseek(fd, 0, os.SEEK_SET)
    return inspector.examine(fd, size)


def container_of(bench: Bench, name: str = "tiny") -> Path:
    return bench.home.models / f"{name}{containers.SUFFIX}"
