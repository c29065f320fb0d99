"""What to fetch of a release, and from where: the cheapest payload, the sealed part, this device's grant.

A delta that cannot be fetched or applied is given up once, for this release, in favour of the full payload; deltas of
other releases are tried as before.
"""

from __future__ import annotations

import shutil
from collections.abc import Container
from pathlib import Path
from typing import Final

from casemate.device.home import write_atomic
from casemate.device.update.assembly import Assembly, Fetched, Terms, checked, path_of
from casemate.device.update.offer import Offered
from casemate.device.update.source import Source, Taken, ignore
from casemate.durable import sync_directory
from casemate.errors import NotAuthorisedError, NotFoundError, OperationError, UntrustedDataError
from casemate.formats import grant
from casemate.formats.manifest import Manifest, Payload

_FAILED: Final = "failed"
_FAILED_LIMIT: Final = 64 * 40


def choose(manifest: Manifest, bases: Container[str], failed: Container[str] = ()) -> Payload:
    """Return the payload that costs the least bytes on a device that has the releases *bases* (ids).

    *failed*: ids of deltas that did not work here. The full payload is always possible.
    """
    usable = [item for item in manifest.payloads if item.base_release in bases and item.id not in failed]
    return min([manifest.full, *usable], key=lambda item: item.transfer_bytes)


def fetch_release(
    source: Source,
    offered: Offered,
    directory: Path,
    *,
    bases: Container[str],
    terms: Terms | None = None,
) -> Fetched:
    """Fetch the cheapest payload of a release into *directory*; when that is a delta and fails, the full one, once.

    Calling again goes on where it was, and proves what is there.

    Raises:
        UntrustedDataError: `chunk-digest`, `chunk-size`, `transfer-size`: the source lies.
        NotFoundError: the source lacks a chunk.
        NotNowError: the owner's limits.
        PolicyDeniedError: the publisher stopped the channel meanwhile.
        OperationError: too little space; the source cannot be reached.

    """
    terms = terms or Terms()
    _make_directory(directory)
    manifest = offered.manifest
    payload = choose(manifest, bases, failed_deltas(directory))
    job = Assembly(source, manifest, payload, directory, terms)
    try:
        return job.run()
    except (UntrustedDataError, NotFoundError):
        if payload.role == "full" or not job.payload_failed:
            raise
    note_failed_delta(directory, payload.id)
    return Assembly(source, manifest, manifest.full, directory, terms).run()


def fetch_sealed(source: Source, manifest: Manifest, taken: Taken = ignore) -> bytes:
    """Return the manifest's sealed part.

    Raises:
        UntrustedDataError: `chunk-digest`, `chunk-size`.
        NotFoundError: the source lacks it.

    """
    ref = manifest.sealed
    return checked(source.get(ref.path, ref.size, taken), ref.sha256, ref.size)


def fetch_grant(source: Source, release: str, recipient: str) -> bytes:
    """Return the grant of *release* (its id) for *recipient* (`grant.recipient_id`).

    Raises:
        NotAuthorisedError: nobody granted the release to this device.

    """
    try:
        return source.get(grant.path(release, recipient), grant.LIMIT)
    except NotFoundError as error:
        raise NotAuthorisedError(
            "this release was not granted to this device",
            hint="give the publisher this device's recipient, for `casemate release grant REL --to RECIPIENT`",
        ) from error


def failed_deltas(directory: Path) -> frozenset[str]:
    """Return the ids of deltas that were given up for the release in *directory*."""
    try:
        with (directory / _FAILED).open("r", encoding="ascii") as file:
            return frozenset(file.read(_FAILED_LIMIT).split())
    except (FileNotFoundError, UnicodeError):
        return frozenset()
    except OSError as error:
        raise OperationError(f"cannot read {directory}: {error.strerror}", hint="run as its owner") from error


def note_failed_delta(directory: Path, payload: str) -> None:
    """Remember that the delta *payload* (its id) does not work here, and delete it; other releases' deltas may.

    Raises:
        OperationError: the disk is full.

    """
    path_of(directory, payload).unlink(missing_ok=True)
    ids = sorted({*failed_deltas(directory), payload})
    write_atomic(directory / _FAILED, "".join(f"{item}\n" for item in ids).encode("ascii"))


def sweep(fetched: Path) -> None:
    """Delete what was fetched of every release; *fetched* is the home's `update/fetch`."""
    for directory in fetched.iterdir() if fetched.is_dir() else ():
        shutil.rmtree(directory, ignore_errors=True)


def _make_directory(directory: Path) -> None:
    """Make a release's directory, durably.

    Raises:
        OperationError: it cannot be made.

    """
    try:
        for path in (directory.parent, directory):
            if not path.is_dir():
                path.mkdir(mode=0o700)
                sync_directory(path.parent)
    except OSError as error:
        raise OperationError(f"cannot make {directory}: {error.strerror}", hint="free space, then try again") from error
