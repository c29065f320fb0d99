r"""Small files that say whether they are whole and whether this device wrote them.

    casemate-update-1 <SHA-256 of the body> <MAC of label and body>\n<body>

The checksum tells rot and torn writes from forgery; only the MAC counts for trust. The key is a file of this device:
who can read the disk can forge it, which is why `update status` says "software only". Pure.
"""

from __future__ import annotations

import hashlib
from typing import Final

from casemate.crypto import kdf
from casemate.crypto.secret import Secret
from casemate.errors import UntrustedDataError

_MAGIC: Final = b"casemate-update-1 "
_HEAD_BYTES: Final = len(_MAGIC) + 64 + 1 + 64 + 1


def seal(key: Secret, label: str, body: bytes) -> bytes:
    """Return the file for *body*; *label* says what it is, so one file cannot stand for another."""
    return b"%s%s %s\n%s" % (_MAGIC, hashlib.sha256(body).hexdigest().encode(), _mac(key, label, body), body)


def unseal(key: Secret, label: str, raw: bytes) -> bytes:
    """Return the body of a file that `seal` made.

    Raises:
        UntrustedDataError: `update-file-torn`: it is not whole. `update-file-mac`: another key or label made it.

    """
    head, body = raw[:_HEAD_BYTES], raw[_HEAD_BYTES:]
    checksum = hashlib.sha256(body).hexdigest().encode()
    if head[: -65 - 1] != _MAGIC + checksum or head[-66:-65] != b" " or head[-1:] != b"\n":
        raise UntrustedDataError(f"the update's {label} file is not whole", check="update-file-torn")
    if not kdf.same(head[-65:-1], _mac(key, label, body)):
        raise UntrustedDataError(f"the update's {label} file was not written by this device", check="update-file-mac")
    return body


def _mac(key: Secret, label: str, body: bytes) -> bytes:
    with kdf.derive(key, "update-file") as derived:
        return kdf.mac(derived, label.encode(), body).hex().encode()
