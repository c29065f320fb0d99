"""DSSE envelopes (secure-systems-lab/dsse 1.0): what is signed is the type and the body, each with its length."""

from __future__ import annotations

import base64
import binascii
from typing import Final

from casemate.errors import UntrustedDataError

IN_TOTO: Final = "application/vnd.in-toto+json"


def pae(body: bytes, payload_type: str = IN_TOTO) -> bytes:
    """Return the pre-authentication encoding of *body*: the bytes that are signed."""
    kind = payload_type.encode("utf-8")
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(body), body)


def encode64(data: bytes) -> str:
    """Return standard base64."""
    return base64.b64encode(data).decode("ascii")


def decode64(text: str, check: str) -> bytes:
    """Read standard base64 in its one spelling.

    Raises:
        UntrustedDataError: named *check*.

    """
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UntrustedDataError("not standard base64", check=check) from error
    if encode64(data) != text:
        raise UntrustedDataError("base64 in a second spelling", check=check)
    return data
