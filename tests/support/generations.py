"""Generations of a device without its releases: small signed-looking sets, real stores, and what must always hold."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

from casemate.device.update.floors import FileFloorStore, Floors
from casemate.device.update.generation import Generation, Item
from casemate.device.update.generations import GenerationStore
from casemate.device.update.state import State
from casemate.durable import sync_directory
from casemate.formats.manifest import File, Smoke

APP = {"index.html": b"<p>version %d</p>", "js/app.js": b"let version = %d\n" * 300, "js/lib/a.js": b"// %d\n"}
SOAK = 1000


class Hand:
    """A clock that stands where it was put."""

    def __init__(self, now: float = 1_000_000) -> None:
        self.now = now

    def wall(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now


def memory() -> str | None:
    """Return a directory in memory, where there is one: these tests write a lot."""
    place = "/dev/shm"
    return place if os.access(place, os.W_OK) else None


def scratch() -> Path:
    """Make a directory to work in."""
    return Path(tempfile.mkdtemp(prefix="casemate-generations-", dir=memory()))


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def content(version: int, security: int = 1) -> str:
    return digest(f"set {version} {security}")


def generation(number: int, version: int, *, security: int = 1, container: str = "") -> tuple[Generation, dict]:
    """Return generation *number* of the set *version*: a model and an app, and the files of the app."""
    files = app_files(version)
    app = tuple(File(path, len(body), hashlib.sha256(body).hexdigest()) for path, body in sorted(files.items()))
    weights = File("saffron.gguf", 10, digest(f"weights {version}"))

    def item(kind: str, files: tuple[File, ...], container: str = "") -> Item:
        name, text = ("saffron", str(version))
        smoke = (Smoke("Where can we eat pasta?", "pasta"),) if container else ()
        release = digest(f"{kind} {version} {security}")
        return Item(kind, name, text, security, release[:32], release, files, container=container, smoke=smoke)

    items = item("app", app), item("model", (weights,), container or f"saffron.g{number}")
    record = Generation(1, number, "stable", version, content(version, security), items)
    return record, {f"app/{path}": (body[:100], body[100:]) for path, body in files.items()}


def app_files(version: int) -> dict[str, bytes]:
    return {path: body.replace(b"%d", str(version).encode()) for path, body in APP.items()}


def begin(root: Path, scenario: str) -> Device:
    """Make the device that a scenario of `generation_writer` begins with."""
    device = Device(root).create()
    if scenario != "first":
        device.update(1)
    return device


class Device:
    """A store with its floors, and models that are empty files."""

    def __init__(self, root: Path, *, clock: Hand | None = None) -> None:
        self.path = root / "update"
        self.models = root / "models"
        self.clock = clock or Hand()
        self.floors = FileFloorStore(self.path)
        self.store = GenerationStore(self.path, self.floors, self.containers, clock=self.clock, soak_seconds=SOAK)

    def create(self) -> Device:
        self.path.mkdir(parents=True, exist_ok=True)
        self.models.mkdir(exist_ok=True)
        if not self.floors.exists:
            self.floors.begin(Floors())
        return self

    def containers(self) -> list[str]:
        return [path.name for path in self.models.iterdir()]

    def on_disk(self) -> list[str]:
        """Return what lies in `gen/`."""
        return sorted(path.name for path in self.path.glob("gen/*"))

    def stage(self, version: int, *, security: int = 1) -> State:
        """Check, fetch and stage the set *version*."""
        state = self.store.checked(content(version, security), ["saffron"])
        if state.phase == "STAGED":
            return state
        self.store.fetching()
        record, files = generation(state.pending, version, security=security)
        (self.models / f"saffron.g{state.pending}").touch()
        sync_directory(self.models)  # the vault's containers are durable before anybody hears of them
        return self.store.stage(record, files)

    def update(self, version: int, *, security: int = 1) -> int:
        """Bring the set *version* to good, collect; returns its number."""
        if (state := self.store.state()).trial and state.content == content(version, security):
            pass  # a cut came after it was armed
        elif not (state.good and self.store.read(state.good).content_digest == content(version, security)):
            self.stage(version, security=security)
            self.store.arm()
        if self.store.state().trial:
            booted = self.store.boot()
            assert booted.trial, booted.note
            self.store.mark_good(booted.generation.number)
        self.collect()
        return self.store.state().good

    def collect(self) -> None:
        garbage = self.store.gc()
        for name in garbage.containers:
            (self.models / name).unlink(missing_ok=True)
        self.store.forget(garbage.containers)

    def runs(self) -> int:
        """Return the set that `boot` says to run, proven; 0 when none."""
        booted = self.store.boot()
        if booted.generation is None:
            return 0
        self.store.verify(booted.generation.number)
        return booted.generation.set_generation


def require_sound(root: Path, allowed: set[int], newest: int) -> int:
    """Hold what a cut left against the promises: it boots, proves itself, collects, and takes the next update.

    Recovery must not be needed for that: it is for disks that lie. Returns which set it ran.
    """
    device = Device(root)
    assert not device.store.state().last_error.startswith("recovered"), device.store.state().last_error
    ran = device.runs()
    assert ran in allowed, f"it runs {ran}"
    device.collect()
    assert device.runs() in allowed
    if device.store.state().trial:
        device.store.fail("the test is over")
    assert device.update(newest) in device.store.state().kept
    assert device.runs() == newest
    return ran
