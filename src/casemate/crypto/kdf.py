"""From one secret to the next: HKDF for keys that are already random, Argon2id for what people remember.

Every derived key has a label, and labels are never shared between purposes, so no two parts of the product can be made
to use one key for two jobs. Outputs are written straight into `Secret` memory.
"""

from __future__ import annotations

import hmac
from typing import Final, cast

import msgspec
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.hmac import HMAC
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from casemate.crypto.secret import Secret
from casemate.errors import OperationError

KEY_BYTES: Final = 32
SALT_BYTES: Final = 16
MAC_BYTES: Final = 32


class Argon2Cost(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one guess costs (RFC 9106). Stored beside the salt, so it can rise later without breaking old slots.

    Bounds are checked when a file is parsed: a hostile file can neither ask for gigabytes nor for a trivial cost.
    """

    memory_kib: int
    passes: int
    lanes: int

    def __post_init__(self) -> None:
        """Refuse costs outside the bounds."""
        if not (8 * 1024 <= self.memory_kib <= 1024 * 1024 and 1 <= self.passes <= 16 and 1 <= self.lanes <= 8):  # noqa: PLR2004 - the bounds themselves
            raise ValueError("argon2 cost is out of bounds")


DEFAULT_COST: Final = Argon2Cost(memory_kib=128 * 1024, passes=3, lanes=4)
"""About 0.3 s on a small board's core; twice the memory of RFC 9106's second recommended option."""


def derive(key: Secret, label: str, context: bytes = b"") -> Secret:
    """Derive a 32-byte key for the purpose *label*, bound to *context* (HKDF-SHA256, RFC 5869).

    *key* must already be uniformly random. The label ends in a zero byte, so no label is a prefix of another's input.
    """
    out = Secret(bytes(KEY_BYTES))
    info = b"casemate/1/" + label.encode("ascii") + b"\0" + context
    HKDF(hashes.SHA256(), KEY_BYTES, salt=None, info=info).derive_into(key.view(), out.view())
    return out


def stretch(passphrase: Secret, salt: bytes, cost: Argon2Cost) -> Secret:
    """Turn a passphrase into a 32-byte key (Argon2id).

    Raises:
        OperationError: not enough memory for the cost.

    """
    out = Secret(bytes(KEY_BYTES))
    function = Argon2id(
        salt=salt, length=KEY_BYTES, iterations=cost.passes, lanes=cost.lanes, memory_cost=cost.memory_kib
    )
    try:
        # The stub says bytes; the function takes any buffer, and a copy would outlive the wipe.
        function.derive_into(cast("bytes", passphrase.view()), out.view())
    except MemoryError as error:
        raise OperationError(
            f"not enough memory to check a passphrase ({cost.memory_kib // 1024} MiB are needed)",
            hint="free some memory, then try again",
        ) from error
    return out


def mac(key: Secret, *parts: bytes | memoryview) -> bytes:
    """Return HMAC-SHA256 over *parts*, each preceded by its length, so that parts cannot be shifted."""
    state = HMAC(key.view(), hashes.SHA256())
    for part in parts:
        state.update(len(part).to_bytes(8, "big"))
        state.update(part)
    return state.finalize()


def same(left: bytes | memoryview, right: bytes | memoryview) -> bool:
    """Compare two tags in constant time."""
    return hmac.compare_digest(left, right)
