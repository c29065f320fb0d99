"""What decoding somebody's JSON can raise. One list: each copy of it is a place to forget one, and that is a crash.

What is signed has one spelling: keys sorted, no spaces, defaults written out. Two readers cannot take two meanings out
of the same bytes, and no other bytes mean the same.
"""

from __future__ import annotations

from typing import Final, TypeVar

import msgspec

from casemate.errors import UntrustedDataError

MALFORMED: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""Not JSON or not of this form, not UTF-8, nested beyond the interpreter's depth."""

Body = TypeVar("Body", bound=msgspec.Struct)
_encoder: Final = msgspec.json.Encoder(order="sorted")


def encode_canonical(body: msgspec.Struct) -> bytes:
    """Return *body* in its one spelling."""
    return _encoder.encode(body)


def decode_canonical(payload: bytes, decoder: msgspec.json.Decoder[Body], what: str, check: str) -> Body:
    """Return what *payload*, called *what* in a refusal, says; in any other spelling it says nothing.

    Raises:
        UntrustedDataError: *check*.

    """
    try:
        body = decoder.decode(payload)
    except MALFORMED as error:
        raise UntrustedDataError(f"the {what} is not well-formed: {error}", check=check) from error
    if encode_canonical(body) != payload:
        raise UntrustedDataError(f"the {what} is not canonical", check=check)
    return body
