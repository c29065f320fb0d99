"""What a generation brings besides models, read from its directory and judged before anything serves it.

policy   every `NAME.toml` is the policy of the app NAME; `guard.json` is the guard's data
app      an unpacked tree; nothing of it is ever executed here
engine   the files of a runtime: kept, and held against what models ask for; the running engine is not replaced
os       one bundle for the OS's updater: kept
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from casemate.device.update.generation import Generation, Item
from casemate.device.update.staging import read_bounded
from casemate.errors import HostError, UntrustedDataError
from casemate.formats.policy import POLICY_LIMIT, parse_policy
from casemate.guard import Guard, bundle
from casemate.ids import parse_name

APP_LIMIT: Final = 1000
APPS_LIMIT: Final = 2 * 1024 * 1024
"""Bytes of all apps' policies: with the guard's data they go to the gateway in one frame."""
NOT_INSTALLED: Final = {
    "engine": "the engine comes with casemate itself",
    "os": "write its bundle to a slot with the host's own updater",
}
"""Kinds that a switch does not put to use yet, and why."""
RUNTIMES: Final = ("llama.cpp",)
"""What this version's engine is."""


class Policy(msgspec.Struct, frozen=True):
    """A generation's policy: text by app, and the guard's data (empty: that of this version)."""

    apps: dict[str, str] = {}
    guard: bytes = b""


def read_policy(generation: Generation | None, directory: Path) -> Policy:
    """Return the policy of *generation*, whose files lie in *directory*; empty when it has none.

    Raises:
        UntrustedDataError: `policy-form`, `guard-...`: a signed policy that is no policy.

    """
    item = generation.item("policy") if generation else None
    if item is None:
        return Policy()
    apps: dict[str, str] = {}
    guard = b""
    for file in item.tree:
        path = directory / "policy" / file.path
        if file.path == bundle.FILE:
            guard = read_bounded(path, bundle.BYTE_LIMIT)
            Guard.from_bytes(guard)
        elif path.suffix == ".toml":
            if (app := _app(path)) in apps:
                raise UntrustedDataError(f"it has two policies for the app {app}", check="policy-form")
            apps[app] = _text(path)
    if len(apps) > APP_LIMIT or sum(len(text.encode()) for text in apps.values()) > APPS_LIMIT:
        raise UntrustedDataError(f"its policies are for more than {APP_LIMIT} apps, or too large", check="policy-form")
    return Policy(apps, guard)


def _app(path: Path) -> str:
    try:
        return parse_name(path.stem, "app")
    except Exception as error:
        raise UntrustedDataError(f"{path.name} is named like no app", check="policy-form") from error


def _text(path: Path) -> str:
    raw = read_bounded(path, POLICY_LIMIT)
    try:
        parse_policy(raw, source=path.name)
        return raw.decode("utf-8")
    except Exception as error:
        raise UntrustedDataError(f"the policy {path.name} is refused: {error}", check="policy-form") from error


def model_file(item: Item) -> str:
    """Return the path of the one model file of a release.

    Raises:
        UntrustedDataError: `release-model`: there is none, or more than one.

    """
    models = [file.path for file in item.files if file.path.endswith(".gguf") or len(item.files) == 1]
    if len(models) != 1:
        raise UntrustedDataError(f"the release has {len(models)} model files, not one", check="release-model")
    return models[0]


def require_runtime(item: Item) -> None:
    """Refuse a release for another runtime than this device has (`requires.runtime`, empty means any).

    Raises:
        HostError: it is.

    """
    if item.runtime and item.runtime not in RUNTIMES:
        raise HostError(
            f"{item.kind}/{item.name} {item.version} needs the runtime {item.runtime!r}; here is {', '.join(RUNTIMES)}",
            hint="upgrade casemate on this device first",
        )
