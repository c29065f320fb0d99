"""Offline proofs (C2SP tlog-proof v1): an entry's place in a log, with the checkpoint that fixes it."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import re
from collections.abc import Sequence
from typing import Final

from casemate.errors import UntrustedDataError
from casemate.formats.tlog.checkpoint import Checkpoint, open_checkpoint
from casemate.formats.tlog.hashes import HASH_SIZE, leaf_hash
from casemate.formats.tlog.note import MAX_NOTE_BYTES, VerifierKey
from casemate.formats.tlog.proofs import MAX_PROOF, check_inclusion

_MAGIC: Final = "c2sp.org/tlog-proof@v1"
_INDEX = re.compile(r"index (0|[1-9][0-9]{0,18})\Z")


@dataclasses.dataclass(frozen=True, slots=True)
class ProofFile:
    """Entry *index* is in the tree of *checkpoint* (a signed note) by the hashes of *proof*. *extra* is unchecked."""

    index: int
    proof: tuple[bytes, ...]
    checkpoint: bytes
    extra: bytes = b""

    def pack(self) -> bytes:
        """Return the file's bytes."""
        lines = [_MAGIC]
        if self.extra:
            lines.append(f"extra {base64.b64encode(self.extra).decode()}")
        lines.append(f"index {self.index}")
        lines += [base64.b64encode(part).decode() for part in self.proof]
        return "\n".join(lines).encode() + b"\n\n" + self.checkpoint

    def verify(self, entry: bytes, known: Sequence[VerifierKey]) -> Checkpoint:
        """Return the checkpoint after checking its signature and that *entry* is in its tree.

        Raises:
            UntrustedDataError: `checkpoint-*` or `inclusion-proof`.

        """
        checkpoint = open_checkpoint(self.checkpoint, known)
        check_inclusion(leaf_hash(entry), self.index, checkpoint.size, self.proof, checkpoint.root)
        return checkpoint


def parse_proof(data: bytes) -> ProofFile:
    """Read a proof file; nothing in it is verified yet.

    Raises:
        UntrustedDataError: `proof-format`.

    """
    head, blank, checkpoint = data[: MAX_NOTE_BYTES * 2].partition(b"\n\n")
    try:
        lines = head.decode("ascii").split("\n")
        if not blank or len(data) > MAX_NOTE_BYTES * 2 or lines.pop(0) != _MAGIC:
            raise UntrustedDataError("not a tlog-proof", check="proof-format")
        extra = b""
        if lines and lines[0].startswith("extra "):
            extra = base64.b64decode(lines.pop(0).removeprefix("extra "), validate=True)
        index = _INDEX.match(lines.pop(0)) if lines else None
        proof = tuple(base64.b64decode(line, validate=True) for line in lines)
    except (UnicodeDecodeError, binascii.Error, ValueError) as error:
        raise UntrustedDataError("a tlog-proof is malformed", check="proof-format") from error
    if not index or len(proof) > MAX_PROOF or any(len(part) != HASH_SIZE for part in proof):
        raise UntrustedDataError("a tlog-proof is malformed", check="proof-format")
    return ProofFile(int(index[1]), proof, checkpoint, extra)
