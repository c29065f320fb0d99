"""The passphrase: Argon2id of what somebody types, or of what another program hands over."""

from __future__ import annotations

import os
from typing import Final

from casemate.crypto import kdf
from casemate.crypto.keystore import Assurance
from casemate.crypto.secret import Secret
from casemate.formats.keystore import PassphraseSlot


class PassphraseKeystore:
    """A passphrase and the evidence about where it came from."""

    kind: Final = "passphrase"

    def __init__(self, passphrase: Secret, evidence: Assurance, cost: kdf.Argon2Cost | None = None) -> None:
        """Use *passphrase* (UTF-8, without its line end); new slots get *cost*, or the default."""
        self._passphrase = passphrase
        self._evidence = evidence
        self._cost = cost or kdf.DEFAULT_COST

    def enrol(self) -> tuple[PassphraseSlot, Secret]:
        """Make a slot with a fresh salt."""
        slot = PassphraseSlot(salt=os.urandom(kdf.SALT_BYTES), cost=self._cost)
        return slot, self.recall(slot)

    def recall(self, slot: PassphraseSlot) -> Secret:
        """Stretch the passphrase as *slot* says. A wrong passphrase shows only when the slot does not open."""
        return kdf.stretch(self._passphrase, slot.salt, slot.cost)

    def assurance(self) -> Assurance:
        """Return the judgement about where the passphrase came from."""
        return self._evidence
