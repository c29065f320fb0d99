"""What this device is made of, as events: digests of files as they lie on the disk, taken before they are used.

A digest over a tree covers names and contents in one order, so two installations of the same release agree. Generated
files (`__pycache__`) are left out: Python checks them against the sources.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from casemate import __version__
from casemate.errors import HostError
from casemate.formats.evidence import Event, EventKind

_ENGINE: Final = "xllamacpp"
_PACKAGE: Final = Path(__file__).parents[2]
_SANDBOX: Final = ("device/sandbox", "device/launch.py")
_SKIPPED: Final = "__pycache__"


def stack_events() -> tuple[Event, ...]:
    """Return what runs: our own code, the part of it that builds the sandbox, and the engine.

    Raises:
        HostError: the engine is not installed.

    """
    sandbox = [path for part in _SANDBOX for path in _files(_PACKAGE / part)]
    engine = _engine_directory()
    return (
        Event(EventKind.AGENT, "casemate", __version__, tree_digest(_PACKAGE, _files(_PACKAGE))),
        Event(EventKind.SANDBOX, "engine", __version__, tree_digest(_PACKAGE, sandbox)),
        Event(EventKind.ENGINE, _ENGINE, importlib.metadata.version(_ENGINE), tree_digest(engine, _files(engine))),
    )


def guard_event() -> Event:
    """Return the data the guard decides by."""
    data = _PACKAGE / "guard" / "data"
    return Event(EventKind.GUARD, "guard", __version__, tree_digest(data, _files(data)))


def policy_event(app: str, policy: bytes) -> Event:
    """Return the policy (its file's bytes) of *app*."""
    return Event(EventKind.POLICY, app, "", hashlib.sha256(policy).hexdigest())


def taken_events(apps: Mapping[str, str], guard: bytes) -> list[Event]:
    """Return what an update brought: the policy's text by app, and the guard's data (empty: what is installed)."""
    found = [policy_event(app, text.encode()) for app, text in sorted(apps.items())]
    return [*found, Event(EventKind.GUARD, "update", "", hashlib.sha256(guard).hexdigest())] if guard else found


def model_event(name: str, digest: str) -> Event:
    """Return a model by its *digest* (`sha256:` and hex), which the vault has proven."""
    return Event(EventKind.MODEL, name, "", digest.removeprefix("sha256:"))


def tree_digest(root: Path, files: Iterable[Path]) -> str:
    """Return the SHA-256 (hex) over the sorted names below *root* and the digests of *files*."""
    whole = hashlib.sha256()
    for path in sorted(files):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        whole.update(f"{digest}  {path.relative_to(root).as_posix()}\n".encode())
    return whole.hexdigest()


def _files(place: Path) -> list[Path]:
    found = [place] if place.is_file() else place.rglob("*")
    return [path for path in found if path.is_file() and _SKIPPED not in path.parts]


def _engine_directory() -> Path:
    spec = importlib.util.find_spec(_ENGINE)
    if spec is None or spec.origin is None:
        raise HostError("the engine is not installed", hint="pip install 'casemate[device]'")
    return Path(spec.origin).parent
