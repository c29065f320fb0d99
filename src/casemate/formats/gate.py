"""The gate of a released model: its maker says, signed, that only a fleet's key broker lets a device open it.

The content key of a gated release is granted to no device. It is sealed to a key that only the model's own key at the
broker leads to, so whoever has a mirror, a disk and the keys of a home reads nothing of it without a lease. The gate
stands in the channel's set, in the manifest, and again in the manifest's sealed part: a device wants all three alike.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from casemate.crypto import hpke, kdf
from casemate.crypto.secret import Secret
from casemate.errors import PolicyDeniedError
from casemate.formats.grant import recipient_id
from casemate.formats.lease import LEVELS, LeasedKey, Level, ModelName

_PURPOSE: Final = "release-gate"


class Gate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`model`: what the broker calls it. `min_assurance`: what a device has to prove, at least.

    `recipient`: the public key of that model's key at the broker (`casemate fleet model gate` shows it).
    """

    model: ModelName
    min_assurance: Level
    recipient: Annotated[bytes, msgspec.Meta(min_length=hpke.PUBLIC_BYTES, max_length=hpke.PUBLIC_BYTES)]

    @property
    def recipient_id(self) -> str:
        """How its grant is called."""
        return recipient_id(self.recipient)


def private_of(key: Secret) -> Secret:
    """Derive, from a model's key at the broker, the private key that releases of that model are granted to."""
    return kdf.derive(key, _PURPOSE)


def public_of(key: Secret) -> bytes:
    """Return what a release names as its gate's `recipient`."""
    with private_of(key) as private:
        return hpke.public_of(private)


def reaches(level: str, asked: str) -> bool:
    """Say whether a key that is given to *level* may open what asks for *asked*; an unknown level is none."""
    return level in LEVELS and asked in LEVELS and LEVELS.index(level) >= LEVELS.index(asked)


def require_key(gate: Gate, leased: LeasedKey | None) -> Secret:
    """Return the private key of *gate*, from the key that the fleet leased.

    Raises:
        PolicyDeniedError: there is none; it is another model's or fleet's; or the fleet gives it to devices that prove
            less than the release asks for.

    """
    if leased is None:
        raise PolicyDeniedError(
            f"the release is gated: it opens with the fleet's key of {gate.model!r} alone",
            hint="a running, enrolled device with a TPM takes it: `casemate device status`",
        )
    if leased.model != gate.model:
        raise PolicyDeniedError(f"the key is that of {leased.model!r}, not of {gate.model!r}", hint="this is a bug")
    if not reaches(leased.min_assurance, gate.min_assurance):
        raise PolicyDeniedError(
            f"the release asks for {gate.min_assurance} and the fleet gives {gate.model!r} to {leased.min_assurance}",
            hint=f"on the fleet: `casemate fleet model gate {gate.model} --min-assurance {gate.min_assurance}`",
        )
    private = private_of(leased.secret)
    if hpke.public_of(private) != gate.recipient:
        private.wipe()
        raise PolicyDeniedError(
            f"the release was made for another key of {gate.model!r} than this fleet's",
            hint="its publisher names the recipient that `casemate fleet model list` shows",
        )
    return private
