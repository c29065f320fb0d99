"""Granting a release to devices: its content key, sealed to each device's public key."""

from __future__ import annotations

import os
from collections.abc import Sequence

from casemate.errors import PolicyDeniedError
from casemate.formats import grant as fmt
from casemate.release import files, store
from casemate.release.repository import Repository


def grant(repository: Repository, record: store.Record, recipients: Sequence[bytes]) -> list[str]:
    """Publish a grant of *record* for each of *recipients* (X25519 public keys); return the files' paths.

    Raises:
        PolicyDeniedError: the release is gated, and one of them is not its gate.
        NotAuthorisedError: the passphrase of the content key is missing or wrong.

    """
    gate = record.manifest.gate
    if gate and any(public != gate.recipient for public in recipients):
        raise PolicyDeniedError(
            f"{record.header.label} is gated: it is granted to its fleet's broker and to no device",
            hint="its devices get the key from their fleet; publishing it granted it already",
        )
    paths = []
    with store.load_key(repository, record) as key:
        for public in recipients:
            path = fmt.path(record.id, fmt.recipient_id(public))
            files.replace(repository.public / path, fmt.make(key, record.id, public), sync=False)
            paths.append(path)
    os.sync()
    return paths
