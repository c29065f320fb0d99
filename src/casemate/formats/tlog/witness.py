r"""What a log asks of a witness, and what it gets (C2SP tlog-witness and tlog-cosignature v1). Pure.

The request body of `add-checkpoint`:

    old <size>            the size the witness is believed to have seen
    <base64 hash>         the consistency proof from there, a line each
    (empty line)
    <checkpoint>          a signed note

The answer is a note signature line by the witness. Its signature covers a timestamp and the checkpoint's text:

    cosignature/v1 \n time <seconds> \n <text of the checkpoint>
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import hashlib
import re
from typing import Final

from casemate.crypto import signing
from casemate.crypto.signing import SigningKey
from casemate.errors import UntrustedDataError
from casemate.formats.tlog import note
from casemate.formats.tlog.hashes import HASH_SIZE
from casemate.formats.tlog.note import VerifierKey
from casemate.formats.tlog.proofs import MAX_PROOF

LIMIT: Final = 128 * 1024
_COSIGNATURE: Final = 4  # the algorithm byte of cosignature/v1
_OLD: Final = re.compile(rb"old (0|[1-9][0-9]{0,18})\Z")
_TIME_BYTES: Final = 8


@dataclasses.dataclass(frozen=True, slots=True)
class AddCheckpoint:
    """A request: nothing of it is proven."""

    old: int
    proof: tuple[bytes, ...]
    checkpoint: bytes

    def encode(self) -> bytes:
        """Return the body."""
        lines = [f"old {self.old}", *(base64.b64encode(item).decode("ascii") for item in self.proof), "", ""]
        return "\n".join(lines).encode("ascii") + self.checkpoint


def parse_add_checkpoint(body: bytes) -> AddCheckpoint:
    """Read a request.

    Raises:
        UntrustedDataError: `witness-request`.

    """
    if len(body) > LIMIT:
        raise UntrustedDataError("the request is too large", check="witness-request")
    head, blank, checkpoint = body.partition(b"\n\n")
    first, *rest = head.split(b"\n")
    old = _OLD.match(first)
    if not old or not blank or len(rest) > MAX_PROOF:
        raise UntrustedDataError("a request is an old size, a proof and a checkpoint", check="witness-request")
    try:
        proof = tuple(base64.b64decode(line, validate=True) for line in rest)
    except (binascii.Error, ValueError) as error:
        raise UntrustedDataError("the proof is not base64", check="witness-request") from error
    if any(len(item) != HASH_SIZE for item in proof):
        raise UntrustedDataError("the proof is not made of hashes", check="witness-request")
    return AddCheckpoint(int(old[1]), proof, checkpoint)


def cosign(checkpoint: bytes, name: str, key: SigningKey, now: int) -> bytes:
    """Return the signature line of the witness *name* over *checkpoint* (a signed note) at *now* (Unix seconds)."""
    text, _ = note.split(checkpoint)
    signature = now.to_bytes(_TIME_BYTES, "big") + key.sign(_message(text, now))
    blob = base64.b64encode(_key_id(VerifierKey(name, key.public)) + signature).decode("ascii")
    return f"{note.MARK}{name} {blob}\n".encode()


def cosigned_at(checkpoint: bytes, witness: VerifierKey) -> int:
    """Return when *witness* cosigned *checkpoint* (Unix seconds), of several the last.

    Raises:
        UntrustedDataError: `cosignature` there is none of this witness, or it does not fit; `note-format`.

    """
    text, lines = note.split(checkpoint)
    found: list[int] = []
    for line in lines:
        name, key_id, signature = note.parse_signature(line)
        if (name, key_id) != (witness.name, _key_id(witness)):
            continue
        if len(signature) != _TIME_BYTES + signing.SIGNATURE_LENGTH:
            raise UntrustedDataError("the witness's signature has the wrong length", check="cosignature")
        moment = int.from_bytes(signature[:_TIME_BYTES], "big")
        if not signing.verify(witness.public, signature[_TIME_BYTES:], _message(text, moment)):
            raise UntrustedDataError("the witness's signature does not fit the checkpoint", check="cosignature")
        found.append(moment)
    if not found:
        raise UntrustedDataError("no witness has signed this checkpoint", check="cosignature")
    return max(found)


def _message(text: str, now: int) -> bytes:
    return f"cosignature/v1\ntime {now}\n{text}".encode()


def _key_id(witness: VerifierKey) -> bytes:
    return hashlib.sha256(witness.name.encode() + b"\n" + bytes([_COSIGNATURE]) + witness.public).digest()[:4]
