"""First trust: the root a person gave this device, and where updates come from. Everything else is verified from it.

The root is part of `trust.json`, which is written in one step; floors are bound to it, so neither can be swapped alone.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Annotated, Final, Literal, cast

import msgspec
from tuf.api.exceptions import RepositoryError, UnsignedMetadataError
from tuf.api.metadata import Metadata, Root  # type: ignore[attr-defined]  # re-exported without saying so
from tuf.api.serialization import DeserializationError

from casemate.device.home import write_atomic
from casemate.device.update import traces
from casemate.device.update.floors import FileFloorStore, Floors
from casemate.device.update.transport import URL_LIMIT, parse_endpoint
from casemate.errors import NotFoundError, OperationError, UntrustedDataError, UsageError
from casemate.formats.manifest import Name

ROOT_LIMIT: Final = 512_000  # python-tuf's own
_FILE: Final = "trust.json"
_CACHE: Final = "tuf"


class FirstTrust(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`trust.json`: where updates come from, and the *root* (the file's text) everything else is verified from."""

    schema: Literal[1]
    url: Annotated[str, msgspec.Meta(min_length=1, max_length=URL_LIMIT)]
    channel: Name
    pin: Annotated[str, msgspec.Meta(pattern=r"\A([0-9a-f]{64})?\Z")]
    root: Annotated[str, msgspec.Meta(min_length=2, max_length=ROOT_LIMIT)]

    @property
    def digest(self) -> str:
        """Hex SHA-256 of the root: which trust this is."""
        return hashlib.sha256(self.root.encode("utf-8")).hexdigest()


def parse_root(raw: bytes) -> Metadata[Root]:
    """Check a first root: its form, and that it is signed by as many of its own keys as it asks for.

    Raises:
        UntrustedDataError: `root-form` or `metadata-threshold`.

    """
    if len(raw) > ROOT_LIMIT:
        raise _bad_root(f"it is larger than {ROOT_LIMIT} bytes")
    try:
        raw.decode("utf-8")
        metadata = cast("Metadata[Root]", Metadata.from_bytes(raw))
        if not isinstance(metadata.signed, Root):
            raise _bad_root(f"it is {metadata.signed.type} metadata")
        if not metadata.signed.consistent_snapshot:
            raise _bad_root("its repository has no consistent snapshots")
        metadata.signed.verify_delegate("root", metadata.signed_bytes, metadata.signatures)
    except UnsignedMetadataError as error:
        raise UntrustedDataError(
            "the root is not signed by enough of its own keys",
            check="metadata-threshold",
            hint="take `public/metadata/1.root.json` from the release host itself",
        ) from error
    except (DeserializationError, RepositoryError, ValueError, RecursionError) as error:
        raise _bad_root("it does not parse") from error
    return metadata


def establish(
    directory: Path,
    root: bytes,
    *,
    url: str,
    channel: str = "stable",
    pin: str = "",
    allow_http: bool = False,
    forget_floors: bool = False,
) -> FirstTrust:
    """Give the device its first trust, or another one; *directory* is the home's `update/`.

    Floors of metadata belong to a root and start over with another one; floors of security versions stay. With
    *forget_floors* everything starts over: the way out when the floors were deleted or damaged.

    Raises:
        UntrustedDataError: as `parse_root` and `FloorStore.read`.
        UsageError: as `parse_endpoint`.
        OperationError: the disk is full.

    """
    parse_root(root)
    endpoint = parse_endpoint(url, pin=pin, allow_http=allow_http)
    try:
        raw = msgspec.json.encode(FirstTrust(1, endpoint.url, channel, pin, root.decode("utf-8")))
        trust = msgspec.json.decode(raw, type=FirstTrust)
    except msgspec.ValidationError as error:
        raise UsageError(f"{channel!r} is no channel's name", hint="use a-z, 0-9, '.', '_' and '-'") from error
    store = FileFloorStore(directory)
    known = store.exists or traces.has_any(directory)
    old = store.read() if known and not forget_floors else Floors()
    if old.trust != trust.digest:
        clear_cache(directory)
        store.begin(msgspec.structs.replace(old, trust=trust.digest, online="", versions={}))
    write_atomic(directory / _FILE, raw + b"\n")
    return trust


def load(directory: Path) -> FirstTrust:
    """Read the device's first trust.

    Raises:
        NotFoundError: it was given none.
        UntrustedDataError: `trust-form`.

    """
    try:
        with (directory / _FILE).open("rb") as file:
            raw = file.read(2 * ROOT_LIMIT)
        return msgspec.json.decode(raw, type=FirstTrust)
    except FileNotFoundError:
        raise NotFoundError(
            "this device trusts no repository yet", hint="casemate update trust ROOT.json --url https://..."
        ) from None
    except OSError as error:
        raise OperationError(f"cannot read {directory / _FILE}: {error.strerror}", hint="run as its owner") from error
    except (msgspec.DecodeError, UnicodeError) as error:
        raise UntrustedDataError(
            "the device's first trust does not parse", check="trust-form", hint="give it again: `casemate update trust`"
        ) from error


def cache_of(directory: Path) -> Path:
    """Return where python-tuf keeps metadata."""
    return directory / _CACHE


def clear_cache(directory: Path) -> None:
    """Delete python-tuf's cache: nothing is lost but a few requests."""
    shutil.rmtree(cache_of(directory), ignore_errors=True)


def _bad_root(why: str) -> UntrustedDataError:
    return UntrustedDataError(
        f"the root was refused: {why}",
        check="root-form",
        hint="take `public/metadata/1.root.json` from the release host",
    )
