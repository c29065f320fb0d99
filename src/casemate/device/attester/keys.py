"""Leased keys of gated models, as the attester keeps them: sealed in the TPM for the lease, and opened per use.

A grant answers a nonce that was made here, once. Its key is sealed to three things that the TPM checks itself at every
use: its own clock has not passed the lease's end, it was not reset more than a few times since, and the firmware's
state (PCR 7) is the one it was granted in. So a lease survives a restart, and neither a clock that is set back nor an
old copy of the file makes it longer.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final, Protocol

from casemate.clock import Clock
from casemate.crypto.secret import Secret
from casemate.device.home import write_atomic
from casemate.errors import NotAuthorisedError, NotFoundError, PolicyDeniedError
from casemate.formats import lease
from casemate.formats.keystore import Sealed
from casemate.formats.lease import KeptLease, LeasedKey
from casemate.ids import parse_name
from casemate.keystores.tpm import SEALED_TO
from casemate.keystores.tss import TpmTime

FOLDER: Final = "leases"
_ANSWER_WITHIN: Final = 120.0
_SUFFIX: Final = ".json"


class Chip(Protocol):
    """What is needed of a TPM (`keystores.tss.Tpm` is one)."""

    def activate(self, identity: bytes, encrypted: bytes) -> bytes:
        """Open a credential."""
        ...

    def pcrs(self, indexes: frozenset[int]) -> dict[int, bytes]:
        """Read PCRs."""
        ...

    def time(self) -> TpmTime:
        """Read the TPM's clock."""
        ...

    def seal_until(self, secret: Secret, pcrs: dict[int, bytes], until_ms: int, resets: int) -> Sealed:
        """Seal *secret* until a moment of the TPM's clock."""
        ...

    def unseal_until(self, sealed: Sealed, pcrs: dict[int, bytes], until_ms: int, resets: int) -> Secret:
        """Open what `seal_until` made."""
        ...


class KeyRing:
    """The leases of one device. Give every call the open *chip*: it is nobody's for longer."""

    def __init__(self, directory: Path, clock: Clock) -> None:
        """Keep them below *directory*."""
        self._directory = directory / FOLDER
        self._clock = clock
        self._asked: dict[str, tuple[bytes, float]] = {}

    def begin(self, model: str) -> bytes:
        """Return the nonce to ask for *model*'s key with; an earlier one is void."""
        nonce = os.urandom(lease.NONCE_BYTES)
        self._asked[parse_name(model, "model")] = nonce, self._clock.monotonic()
        return nonce

    def take(self, chip: Chip, model: str, sealed: tuple[bytes, bytes], grant: tuple[bytes, bytes]) -> int:
        """Take a grant: its credential (*sealed*), its terms and wrapped key (*grant*); returns the lease's seconds.

        Raises:
            PolicyDeniedError: nothing was asked, or too long ago.
            UntrustedDataError: `grant-...`: not the answer to what was asked.
            NotAuthorisedError: made for another TPM.

        """
        nonce, since = self._asked.pop(model, (b"", 0.0))
        if not nonce or self._clock.monotonic() - since > _ANSWER_WITHIN:
            raise PolicyDeniedError("no key was asked for, or too long ago", hint="the device asks again by itself")
        with Secret(chip.activate(*sealed)) as transport:
            terms, key = lease.open_grant(transport, *grant, model=model, nonce=nonce)
        with key:
            granted, time, pcrs = int(self._clock.wall()), chip.time(), chip.pcrs(SEALED_TO)
            ends, until = granted + terms.lease_s, time.clock_ms + terms.lease_s * 1000
            resets = time.resets + lease.RESTARTS
            with lease.to_seal(key, granted, ends) as whole:
                held = chip.seal_until(whole, pcrs, until, resets)
        kept = KeptLease(
            1, terms.fleet, model, terms.key, terms.min_assurance, granted, ends, until, resets, pcrs, held
        )
        self._directory.mkdir(mode=0o700, exist_ok=True)
        write_atomic(self._path(model), lease.encode_kept(kept))
        return terms.lease_s

    def use(self, chip: Chip, model: str) -> tuple[LeasedKey, float]:
        """Return *model*'s key and for how many seconds it may still be used.

        Raises:
            NotFoundError: there is no lease.
            PolicyDeniedError: it has ended, by the TPM's clock or the machine's.
            UntrustedDataError: `lease-form`.

        """
        try:
            kept = lease.parse_kept(self._path(model).read_bytes())
        except FileNotFoundError:
            raise NotFoundError(f"no lease on the key of {model!r}", hint="the device asks its fleet for one") from None
        over = PolicyDeniedError(
            f"the lease on the key of {model!r} is over", hint="the device asks its fleet for another one"
        )
        clock_ms, now = chip.time().clock_ms, self._clock.wall()
        if kept.until_ms <= clock_ms:
            raise over
        try:
            whole = chip.unseal_until(kept.sealed, kept.pcrs, kept.until_ms, kept.resets)
        except NotAuthorisedError:
            raise over from None
        with whole:
            key, granted, ends = lease.unsealed(whole)
        left = lease.seconds_left(until_ms=kept.until_ms, clock_ms=clock_ms, granted=granted, ends=ends, now=now)
        if left <= 0 or kept.model != model:
            key.wipe()
            raise over
        return LeasedKey(kept.fleet, model, kept.key, kept.min_assurance, key), left

    def drop(self) -> None:
        """Forget every lease, and every question that was asked."""
        self._asked.clear()
        with contextlib.suppress(FileNotFoundError):
            for path in self._directory.iterdir():
                path.unlink(missing_ok=True)

    def _path(self, model: str) -> Path:
        return self._directory / (parse_name(model, "model") + _SUFFIX)
