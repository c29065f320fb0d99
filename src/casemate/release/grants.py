"""Granting a release to devices: its content key, sealed to each device's public key."""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Sequence
from typing import Final

from casemate.crypto import hpke
from casemate.errors import UsageError
from casemate.formats import grant as fmt
from casemate.release import files, store
from casemate.release.repository import Repository

PREFIX: Final = "x25519:"


def parse_recipient(text: str) -> bytes:
    """Read a device's public key, as the device prints it.

    Raises:
        UsageError: it is not one.

    """
    try:
        public = base64.b64decode(text.strip().removeprefix(PREFIX) + "=", altchars=b"-_", validate=True)
        if len(public) != hpke.PUBLIC_BYTES:
            raise ValueError("32 bytes are needed")  # noqa: TRY301 - one refusal for every way to be wrong
        hpke.seal(public, b"", b"", b"")  # refuses points of small order
    except (binascii.Error, ValueError) as error:
        raise UsageError(
            f"{text[:60]!r} is not a recipient", hint="a device shows its own; it begins with x25519:"
        ) from error
    return public


def grant(repository: Repository, record: store.Record, recipients: Sequence[bytes]) -> list[str]:
    """Publish a grant of *record* for each of *recipients* (X25519 public keys); return the files' paths.

    Raises:
        NotAuthorisedError: the passphrase of the content key is missing or wrong.

    """
    paths = []
    with store.load_key(repository, record) as key:
        for public in recipients:
            path = fmt.path(record.id, fmt.recipient_id(public))
            files.replace(repository.public / path, fmt.make(key, record.id, public), sync=False)
            paths.append(path)
    os.sync()
    return paths
