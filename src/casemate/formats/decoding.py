"""What decoding somebody's JSON can raise. One list: each copy of it is a place to forget one, and that is a crash."""

from __future__ import annotations

from typing import Final

import msgspec

MALFORMED: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""Not JSON or not of this form, not UTF-8, nested beyond the interpreter's depth."""
