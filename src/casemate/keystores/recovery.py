"""The recovery code: 256 random bits, shown once on paper-friendly groups, so a lost passphrase is not a lost model.

`XXXX-XXXX-...`: 14 groups of base32 (RFC 4648) with 32 bytes of key and 3 bytes of SHA-256 as a checksum, so a typing
error is told apart from a wrong code. Case and separators do not matter; 0, 1 and 8 are read as O, I and B.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import Final

from casemate.crypto.keystore import Assurance
from casemate.crypto.secret import Secret
from casemate.errors import NotAuthorisedError
from casemate.formats.keystore import RecoverySlot, key_id

_KEY_BYTES: Final = 32
_CHECK_BYTES: Final = 3
_GROUP: Final = 4
_CONFUSED: Final = str.maketrans("018", "OIB", "- \t\r\n")


class RecoveryKeystore:
    """A recovery code: a new one, or one that somebody typed."""

    kind: Final = "recovery"

    def __init__(self, secret: Secret) -> None:
        """Hold the code's 32 bytes; see `parse_code` and `format_code`."""
        self._secret = secret

    def enrol(self) -> tuple[RecoverySlot, Secret]:
        """Make the slot of this code."""
        return RecoverySlot(key=key_id(self._secret)), Secret(self._secret.view())

    def recall(self, slot: RecoverySlot) -> Secret:
        """Return the code's key when it is the code of *slot*."""
        if slot.key != key_id(self._secret):
            raise NotAuthorisedError(
                "this is a recovery code, but not of this keystore",
                hint="look for the latest one: making a new code or rotating replaces the old",
            )
        return Secret(self._secret.view())

    def assurance(self) -> Assurance:
        """Judge: the code is stored nowhere."""
        return Assurance("L1", ("the recovery code is not stored on this device",))


def format_code(secret: Secret) -> str:
    """Return the code that a person writes down."""
    check = hashlib.sha256(b"casemate-recovery\0" + secret.view()).digest()[:_CHECK_BYTES]
    text = base64.b32encode(bytes(secret.view()) + check).decode("ascii")
    return "-".join(text[at : at + _GROUP] for at in range(0, len(text), _GROUP))


def parse_code(text: str) -> Secret:
    """Read a code that a person typed.

    Raises:
        NotAuthorisedError: it cannot be a recovery code: a character is missing or wrong.

    """
    try:
        data = base64.b32decode(text.upper().translate(_CONFUSED), casefold=False)
    except (binascii.Error, ValueError):
        data = b""
    key, check = data[:_KEY_BYTES], data[_KEY_BYTES:]
    if len(check) != _CHECK_BYTES or hashlib.sha256(b"casemate-recovery\0" + key).digest()[:_CHECK_BYTES] != check:
        raise NotAuthorisedError(
            "the recovery code has a typing error", hint="it has 14 groups of 4 letters and digits 2 to 7"
        )
    return Secret(key)
