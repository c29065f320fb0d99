"""The TPM as a keystore: a random secret sealed in the chip, released in the state it was sealed in.

The policy is PolicyAuthorize over PCRs and a counter (see `crypto.tpm_policy`). Each sealing has an approver of its
own, whose private key is forgotten at once: nobody can approve another state later. The counter makes rotation final:
the approval of a new sealing allows one more than the counter has, and `retire_older` raises it there, which ends every
sealing before, in the chip itself, also for who kept an old copy of keystore.json.

PCR 7 (secure boot: its state and who may sign) is what is sealed to. PCRs that software extends would add nothing
against a thief who boots a system of his own: he can extend the same values. What they are worth is decided by a
verifier, not here. A change of the firmware's keys locks the door: the recovery code opens it again.
"""

from __future__ import annotations

import contextlib
import os
from typing import Final

import msgspec

from casemate.crypto import tpm_policy
from casemate.crypto.ecdsa import EcKey
from casemate.crypto.keystore import Assurance
from casemate.crypto.secret import Secret
from casemate.errors import NotAuthorisedError, NotFoundError, OperationError
from casemate.formats.keystore import Approval, TpmSlot
from casemate.keystores import tss
from casemate.keystores.document import HomePlace
from casemate.keystores.files import memory_file

SEALED_TO: Final = frozenset({7})
_REFERENCE: Final = b"casemate/1/keystore/"
_SECRET_BYTES: Final = 32
_SOFTWARE: Final = Assurance("L0", ("the TPM is a program: its state is a file like any other",))
_CHIP: Final = Assurance("L2", ("the key is sealed in this machine's TPM",))
_LIMIT: Final = 4096


class TpmKeystore:
    """The TPM at a TCTI."""

    kind: Final = "tpm"

    def __init__(self, home: HomePlace, tcti: str) -> None:
        """Use the TPM at *tcti* for *home*; it is opened for each call alone."""
        self._tcti = tcti
        self._reference = _REFERENCE + home.id.encode("ascii")

    def enrol(self) -> tuple[TpmSlot, Secret]:
        """Seal a fresh secret to the state this machine is in."""
        approver, secret = EcKey.generate(), Secret.random(_SECRET_BYTES)
        with tss.open_tpm(self._tcti) as chip:
            counter = chip.define_counter()
            pcrs, limit = chip.pcrs(SEALED_TO), chip.counter() + 1
            sealed = chip.seal(
                secret, tpm_policy.policy_authorize(tpm_policy.approver_name(approver.public), self._reference)
            )
        policy = tpm_policy.approved_policy(pcrs, counter, limit)
        approval = Approval(pcrs, limit, tpm_policy.approve(approver, policy, self._reference))
        return TpmSlot(sealed, approver.public.pem(), approval, tss.COUNTER), secret

    def recall(self, slot: TpmSlot) -> Secret:
        """Have the TPM release the secret of *slot*."""
        with tss.open_tpm(self._tcti) as chip:
            return chip.unseal(slot.sealed, slot.approver, self._reference, slot.approval, slot.counter)

    def retire_older(self, slot: TpmSlot) -> None:
        """End every sealing before *slot*, which must be durable: there is no way back."""
        with tss.open_tpm(self._tcti) as chip:
            while chip.counter(slot.counter) < slot.approval.limit:
                chip.increment(slot.counter)

    def retire_all(self) -> None:
        """End every sealing: the home has another way in now. No approval allows more than one above the counter."""
        with tss.open_tpm(self._tcti) as chip, contextlib.suppress(NotFoundError):
            chip.increment()
            chip.increment()

    def assurance(self) -> Assurance:
        """Judge the TPM by what it says it is: only a chip binds a key to a machine."""
        with tss.open_tpm(self._tcti) as chip:
            return _SOFTWARE if chip.is_software else _CHIP


class HandedTpmKeystore:
    """What a TPM released to another process of ours, in a memory file; see `hand_over`."""

    kind: Final = "tpm"

    def __init__(self, descriptor: int) -> None:
        """Read from *descriptor*, which stays the caller's."""
        self._descriptor = descriptor

    def enrol(self) -> tuple[TpmSlot, Secret]:
        """Refuse: sealing needs the TPM."""
        raise OperationError("there is no TPM in this process")

    def recall(self, slot: TpmSlot) -> Secret:
        """Return what was released; the slot only opens when it was released for it."""
        del slot
        data = bytearray(_SECRET_BYTES)
        with memoryview(data) as view:
            try:
                if os.preadv(self._descriptor, [view], 0) != _SECRET_BYTES:
                    raise NotAuthorisedError("the TPM's key did not arrive", hint="start casemate again")
                return Secret(view)
            finally:
                view[:] = bytes(_SECRET_BYTES)

    def assurance(self) -> Assurance:
        """Return the judgement of the process that saw the TPM."""
        return msgspec.json.decode(os.pread(self._descriptor, _LIMIT, _SECRET_BYTES), type=Assurance)


def hand_over(secret: Secret, assurance: Assurance) -> int:
    """Return a sealed memory file with what a TPM released and how much that is worth; the caller closes it."""
    return memory_file("tpm", secret.view(), msgspec.json.encode(assurance))
