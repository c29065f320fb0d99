"""What stands in a text where a value stood: a type and a tag that is stable within one conversation.

The tag is a keyed hash of the value, so equal values keep one name (a log stays joinable, a model can still refer to
"the same address") and nobody without the key can try values against it. Spelling differences that do not change a
value (case, spaces and dashes between digits) do not change its tag.
"""

from __future__ import annotations

import hmac
import re
from typing import Final

TAG_LENGTH: Final = 6
PLACEHOLDER = re.compile(r"\[[A-Z][A-Z0-9_]{0,63}_[0-9a-f]{4,16}\]")
_KIND_CHARACTER = re.compile(r"[^A-Z0-9]+")
_SEPARATORS = re.compile(r"[\s()./\-]+")
MIN_KEY: Final = 16


class Placeholders:
    """Makes placeholders under one conversation's key."""

    def __init__(self, key: bytes) -> None:
        if len(key) < MIN_KEY:
            raise ValueError(f"a placeholder key has at least {MIN_KEY} bytes")
        self._key = bytes(key)

    def __repr__(self) -> str:
        """Show nothing of the key."""
        return "Placeholders(***)"

    def for_value(self, kind: str, value: str) -> str:
        """Return the placeholder of *value*: `[EMAIL_ADDRESS_3f2a1c]` for kind `pii:EMAIL_ADDRESS`."""
        name = kind_name(kind)
        plain = value.casefold()
        plain = _SEPARATORS.sub("", plain) or plain
        message = f"{name}\0{plain}".encode(errors="surrogatepass")
        tag = hmac.digest(self._key, message, "sha256").hex()[:TAG_LENGTH]
        return f"[{name}_{tag}]"


def kind_name(kind: str) -> str:
    """Return how a placeholder spells *kind*: `secret:github-pat` is `GITHUB_PAT`."""
    name = _KIND_CHARACTER.sub("_", kind.partition(":")[2].upper() or kind.upper()).strip("_")
    return (name if name[:1].isalpha() else f"X{name}")[:63]
