"""A gated model's key under way: granted by a fleet's broker to one TPM, for a lease.

    broker      transport secret -> MakeCredential for one TPM;  key wrapped under it, bound to the `Terms`
    attester    opens the credential, checks that the terms answer its own nonce, keeps the key sealed for the lease
    vault       gets a `LeasedKey` per use and opens the one slot of a gated container with it

Terms are in the clear and are the associated data of the wrapped key: whoever carries them (the link, the agent) reads
them and changes nothing. A grant answers one question of one attester, so it is no use a second time.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Final, Literal, NoReturn, Self

import msgspec

from casemate.crypto import aead, kdf
from casemate.crypto.aead import TagMismatch
from casemate.crypto.secret import Secret
from casemate.errors import UntrustedDataError
from casemate.formats.decoding import MALFORMED
from casemate.formats.keystore import KeyId, PcrIndex, PcrValue, Sealed, key_id

KEY_BYTES: Final = 32
NONCE_BYTES: Final = 32
LIMIT: Final = 4096
LONGEST_S: Final = 30 * 86_400
RESTARTS: Final = 4
"""How often a machine may start within one lease: a TPM's clock may lose minutes each time the power is cut."""
_PURPOSE: Final = b"casemate/1/model-key-grant\0"
_MARKS: Final = 8

Level = Literal["L2", "L3"]
LEVELS: Final[tuple[Level, ...]] = ("L2", "L3")
ModelName = Annotated[str, msgspec.Meta(pattern=r"\A[a-z0-9][a-z0-9._-]{0,62}\Z")]
FleetName = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-zA-Z._-]{1,64}\Z")]
Seconds = Annotated[int, msgspec.Meta(ge=1, le=LONGEST_S)]
Nonce = Annotated[bytes, msgspec.Meta(min_length=NONCE_BYTES, max_length=NONCE_BYTES)]
Moment = Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]


class Terms(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """On what terms a broker gives *model*'s key: to whom, for how long, in answer to which question."""

    schema: Literal[1]
    fleet: FleetName
    device: FleetName
    model: ModelName
    key: KeyId
    min_assurance: Level
    lease_s: Seconds
    nonce: Nonce


class KeptLease(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an attester keeps of a grant.

    `sealed` opens while the TPM's clock is at most *until_ms*, it was reset at most *resets* times and *pcrs* hold;
    inside are the key and, again, when it was granted and when it ends.
    """

    schema: Literal[1]
    fleet: FleetName
    model: ModelName
    key: KeyId
    min_assurance: Level
    granted: Moment
    ends: Moment
    until_ms: Moment
    resets: Annotated[int, msgspec.Meta(ge=0, le=(1 << 32) - 1)]
    pcrs: dict[PcrIndex, PcrValue]
    sealed: Sealed


@dataclasses.dataclass(frozen=True)
class LeasedKey:
    """A key for one use, with what it is for; a context that wipes it."""

    fleet: str
    model: str
    key: str
    min_assurance: Level
    secret: Secret

    def __enter__(self) -> Self:
        """Use as a context: wiped at the end."""
        return self

    def __exit__(self, *_: object) -> None:
        """Wipe."""
        self.secret.wipe()


class _Handed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What follows the key's bytes on their way to the vault."""

    fleet: FleetName
    model: ModelName
    key: KeyId
    min_assurance: Level


def _refuse(check: str, what: str) -> NoReturn:
    raise UntrustedDataError(f"the key was not taken: {what}", check=check, hint="the device asks again by itself")


# --- grants ---------------------------------------------------------------------------------------------------------


def make_grant(transport: Secret, key: Secret, terms: Terms) -> tuple[bytes, bytes]:
    """Wrap *key* for whoever opens the credential that carries *transport*; returns the terms and the wrapped key."""
    raw = msgspec.json.encode(terms)
    with kdf.derive(transport, "key-grant") as wrapping:
        return raw, aead.wrap(wrapping, key, _PURPOSE + raw)


def open_grant(transport: Secret, raw: bytes, wrapped: bytes, *, model: str, nonce: bytes) -> tuple[Terms, Secret]:
    """Take the key of *model* out of the answer to the question that *nonce* was.

    Raises:
        UntrustedDataError: `grant-form`, `grant-seal` (changed, or for another TPM), `grant-nonce` (an answer to
            another question), `grant-model`, `grant-key`.

    """
    if len(raw) > LIMIT:
        _refuse("grant-form", "its terms are too long")
    try:
        terms = msgspec.json.decode(raw, type=Terms)
    except MALFORMED as error:
        raise UntrustedDataError(
            "the key was not taken: its terms do not parse", check="grant-form", hint="update the device or the fleet"
        ) from error
    if not kdf.same(terms.nonce, nonce):
        _refuse("grant-nonce", "it answers another question")
    if terms.model != model:
        _refuse("grant-model", "it is another model's")
    try:
        with kdf.derive(transport, "key-grant") as wrapping:
            key = aead.unwrap(wrapping, wrapped, _PURPOSE + raw)
    except TagMismatch:
        _refuse("grant-seal", "its terms were changed")
    if len(key) != KEY_BYTES or key_id(key) != terms.key:
        key.wipe()
        _refuse("grant-key", "it is not the key it is called")
    return terms, key


# --- what a TPM keeps -------------------------------------------------------------------------------------------------


def to_seal(key: Secret, granted: int, ends: int) -> Secret:
    """Return what is sealed: the key, and between which moments (Unix seconds) it may be used."""
    marks = granted.to_bytes(_MARKS, "big") + ends.to_bytes(_MARKS, "big")
    whole = Secret(bytes(KEY_BYTES + len(marks)))
    whole.view()[:KEY_BYTES] = key.view()
    whole.view()[KEY_BYTES:] = marks
    return whole


def unsealed(whole: Secret) -> tuple[Secret, int, int]:
    """Return the key and its two moments.

    Raises:
        UntrustedDataError: `lease-form`.

    """
    view = whole.view()
    if len(view) != KEY_BYTES + 2 * _MARKS:
        _refuse("lease-form", "what the TPM kept is not a lease")
    granted, ends = (int.from_bytes(view[at : at + _MARKS], "big") for at in (KEY_BYTES, KEY_BYTES + _MARKS))
    return Secret(view[:KEY_BYTES]), granted, ends


def encode_kept(kept: KeptLease) -> bytes:
    """Return the bytes of the file."""
    return msgspec.json.encode(kept)


def parse_kept(raw: bytes) -> KeptLease:
    """Read the file; the TPM proves it.

    Raises:
        UntrustedDataError: `lease-form`.

    """
    try:
        if len(raw) > LIMIT * 2:
            _refuse("lease-form", "the file is too long")
        return msgspec.json.decode(raw, type=KeptLease)
    except MALFORMED as error:
        raise UntrustedDataError(
            "the kept lease does not parse", check="lease-form", hint="the device asks its fleet again by itself"
        ) from error


def seconds_left(*, until_ms: int, clock_ms: int, granted: int, ends: int, now: float, slack: float = 600.0) -> float:
    """Return how long a lease still runs by both clocks; 0 when one of them says that it does not.

    The TPM's clock counts time with power and cannot be set back; the machine's counts the rest. One that shows a time
    before the grant (by more than *slack*) was set back: it says nothing, and the lease is over.
    """
    if now < granted - slack:
        return 0.0
    return max(0.0, min((until_ms - clock_ms) / 1000, ends - now))


# --- on the way to the vault ------------------------------------------------------------------------------------------


def hand(leased: LeasedKey) -> bytes:
    """Return what goes down the pipe to the vault."""
    named = _Handed(leased.fleet, leased.model, leased.key, leased.min_assurance)
    return leased.secret.reveal() + msgspec.json.encode(named)


def handed(raw: bytes) -> LeasedKey:
    """Read what came down the pipe.

    Raises:
        UntrustedDataError: `lease-form`: nothing came, or not all of it.

    """
    try:
        named = msgspec.json.decode(raw[KEY_BYTES:LIMIT], type=_Handed)
    except MALFORMED as error:
        raise UntrustedDataError("the model's key did not arrive", check="lease-form", hint="try again") from error
    return LeasedKey(named.fleet, named.model, named.key, named.min_assurance, Secret(raw[:KEY_BYTES]))
