"""Names with meaning: NewTypes for identifiers, and the one rule for names people type."""

from __future__ import annotations

import re
from typing import NewType

from casemate.errors import UsageError

ModelName = NewType("ModelName", str)
ModelDigest = NewType("ModelDigest", str)  # "sha256:" + 64 lower-case hex digits, of the plain file
AppName = NewType("AppName", str)

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}\Z")


def parse_name(text: str, what: str) -> str:
    """Check a name that becomes a file name, a URL part and a log field.

    Raises:
        UsageError: it is empty, too long, or has a character outside a-z 0-9 . _ -

    """
    if not _NAME.match(text) or ".." in text:
        raise UsageError(
            f"{what} name {text!r} is not valid",
            hint="use 1 to 63 characters: a-z, 0-9, '.', '_', '-', starting with a letter or digit",
        )
    return text
