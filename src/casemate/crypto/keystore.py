"""What a keystore is: a way to reach the home key, and how much that way is worth.

A home has one random key-encryption key (KEK). Each way in holds a *slot*: the KEK wrapped by a secret that only that
way can produce. `Keystore` is the seam: a TPM, a passphrase, a key file and a recovery code implement it.

| level | what a thief of the storage still needs                                                                |
|-------|--------------------------------------------------------------------------------------------------------|
| L0    | nothing: the secret lies with the same owner, or where others can read it, or beside the models         |
| L1    | something that is not beside the models: a passphrase that is not stored, or a key file that has        |
|       | another owner *and* another directory. Root on the device, and a thief of the whole storage who also    |
|       | takes the key file, still win                                                                           |
| L2    | this machine: the secret is bound to its hardware (a TPM; one that is a program is L0: a file)         |
| L3    | this machine in a good state, as judged by a fleet's verifier: never claimed locally                    |

A passphrase is L1, not L2: it is not bound to the machine, and whoever copies the storage may guess at leisure.
The level comes from evidence (who owns what, where it lies, its mode), never from what a file says about itself.
"""

from __future__ import annotations

from typing import Protocol, TypeVar

import msgspec

from casemate.crypto.secret import Secret

SlotT = TypeVar("SlotT")


class Assurance(msgspec.Struct, frozen=True):
    """How well the keys are kept, and the evidence that says so."""

    level: str  # L0 | L1 | L2
    reasons: tuple[str, ...]


class Keystore(Protocol[SlotT]):
    """One way in. `enrol` makes a slot, `recall` brings its secret back."""

    @property
    def kind(self) -> str:
        """The slot's tag in keystore.json."""
        ...

    def enrol(self) -> tuple[SlotT, Secret]:
        """Make a new slot, still without its wrapped key, and the 32-byte secret that will open it."""
        ...

    def recall(self, slot: SlotT) -> Secret:
        """Return the 32-byte secret of *slot*.

        Raises:
            NotAuthorisedError: this is not the way that made the slot.

        """
        ...

    def assurance(self) -> Assurance:
        """Judge this way in from evidence."""
        ...
