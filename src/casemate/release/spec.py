"""SPEC.toml: what a person writes to make a release. Unknown keys are errors; paths are relative to the file.

kind = "model"                      # model | policy | engine | app | os
name = "saffron"
version = "2.1.0"
security_version = 3                # rises only when older versions must never run again
licence = "Apache-2.0"              # SPDX identifier
files = ["saffron-q8_0.gguf"]       # or { path = "build/x.gguf", as = "saffron.gguf" }; a directory is taken whole

smoke = [{ prompt = "Where can we eat pasta?", expect = "(?i)trattoria" }]
requires = { min_agent = "0.1.0" }
bounds = { first_token_ms = 2000, memory_mib = 900 }
base_models = [{ name = "base-3b", sha256 = "..." }]
gate = { model = "saffron", min_assurance = "L2", recipient = "x25519:..." }  # a fleet's broker opens it alone
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Annotated, Final

import msgspec

from casemate.errors import ConfigError, UsageError
from casemate.formats import grant, manifest
from casemate.formats.gate import Gate
from casemate.formats.lease import Level, ModelName
from casemate.formats.signature_log import MLBOM, PROVENANCE
from casemate.release import files

_LIMIT: Final = 1 << 20
_PATH: Final = re.compile(r"[A-Za-z0-9_+][A-Za-z0-9._+-]{0,99}(/[A-Za-z0-9_+][A-Za-z0-9._+-]{0,99}){0,15}\Z")
_RESERVED: Final = frozenset({MLBOM, PROVENANCE})


class SpecFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"name": "as"}):
    """One entry of `files`: where it is, and what it is called in the release."""

    path: str
    name: str = ""


class BaseModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A model that this one was made from; goes into the ML-BOM and the provenance."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    sha256: manifest.Sha256


class SpecGate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Gate the model: *recipient* is what `casemate fleet model gate MODEL` shows."""

    model: ModelName
    min_assurance: Level
    recipient: str

    def checked(self) -> Gate:
        """Return what is signed.

        Raises:
            UsageError: the recipient is none.

        """
        return Gate(self.model, self.min_assurance, grant.parse_recipient(self.recipient))


class Spec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A parsed SPEC.toml."""

    kind: manifest.Kind
    name: manifest.Name
    version: manifest.Version
    security_version: manifest.SecurityVersion
    licence: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    files: Annotated[tuple[str | SpecFile, ...], msgspec.Meta(min_length=1, max_length=4096)]
    smoke: Annotated[tuple[manifest.Smoke, ...], msgspec.Meta(max_length=64)] = ()
    requires: manifest.Requires = manifest.Requires()
    bounds: manifest.Bounds = manifest.Bounds()
    base_models: Annotated[tuple[BaseModel, ...], msgspec.Meta(max_length=16)] = ()
    gate: SpecGate | None = None


class Input(msgspec.Struct, frozen=True):
    """One file of the release: its name in it, and where it is now."""

    name: str
    path: Path


def load(path: Path) -> Spec:
    """Read SPEC.toml.

    Raises:
        ConfigError: it does not parse, or a value is wrong; says which.

    """
    raw = files.read(path, "release specification", _LIMIT)
    try:
        spec = msgspec.convert(tomllib.loads(raw.decode("utf-8")), Spec)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise ConfigError(f"{path}: {error}", hint="docs/releases.md lists the keys") from error
    for smoke in spec.smoke:
        try:
            re.compile(smoke.expect)
        except re.error as error:
            raise ConfigError(f"{path}: smoke: {smoke.expect!r} is no regular expression: {error}") from error
    if spec.gate:
        if spec.kind != "model":
            raise ConfigError(f"{path}: only a model can be gated", hint="take `gate` out, or make it a model")
        try:
            spec.gate.checked()
        except UsageError as error:
            raise ConfigError(f"{path}: gate: {error.message}", hint=error.hint) from error
    if spec.kind == "model" and not spec.smoke:
        raise ConfigError(f"{path}: a model needs smoke prompts", hint="smoke = [{ prompt = ..., expect = ... }]")
    return spec


def inputs(spec: Spec, directory: Path) -> list[Input]:
    """Return every file of the release, sorted by name; directories are taken whole.

    Raises:
        ConfigError: a file is missing, is a link or special, has an unusable name, or is there twice.

    """
    found: dict[str, Path] = {}
    for item in spec.files:
        entry = SpecFile(item) if isinstance(item, str) else item
        for name, path in _expand(entry, directory):
            if not _PATH.match(name) or name in _RESERVED:
                raise ConfigError(f"{name!r} cannot be the name of a released file", hint="use a-z A-Z 0-9 . _ + - /")
            if name in found:
                raise ConfigError(f"{name!r} is there twice", hint="give one of them another name with `as`")
            found[name] = path
    if not found:
        raise ConfigError("the release has no files")
    return [Input(name, found[name]) for name in sorted(found)]


def _expand(entry: SpecFile, directory: Path) -> list[tuple[str, Path]]:
    path = directory / entry.path
    if path.is_dir() and not path.is_symlink():
        prefix = f"{entry.name.rstrip('/')}/" if entry.name else ""
        inside = [item for item in sorted(path.rglob("*")) if not _is_directory(item)]
        return [(prefix + item.relative_to(path).as_posix(), _regular(item)) for item in inside]
    return [(entry.name or path.name, _regular(path))]


def _is_directory(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _regular(path: Path) -> Path:
    if path.is_symlink() or not path.is_file():
        raise ConfigError(f"{path} is not a regular file", hint="links and special files are never released")
    return path
