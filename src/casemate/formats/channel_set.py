"""What a channel offers: one release per kind, as one signed set. That list *is* the generation.

Published as the TUF target `channels/<name>.json`. A device runs exactly one set, never a mix of two; the digest of the
members (not their version texts) is what a deny list remembers.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Final, Literal, NoReturn

import msgspec

from casemate.errors import UntrustedDataError
from casemate.formats.decoding import MALFORMED
from casemate.formats.gate import Gate
from casemate.formats.manifest import Id, Kind, Name, SecurityVersion, Sha256, Version, target_path

LIMIT: Final = 64 * 1024
MEMBER_LIMIT: Final = 8


class Member(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One artefact of the set; `manifest_sha256` is the digest of its public manifest, `gate` the same as there."""

    kind: Kind
    name: Name
    version: Version
    security_version: SecurityVersion
    release: Id
    manifest_sha256: Sha256
    gate: Gate | None = None

    @property
    def target_path(self) -> str:
        """The TUF target of its manifest."""
        return target_path(self.kind, self.name, self.version)


class ChannelSet(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The set. `generation` rises with every change of the members. `stop`: devices fetch and arm nothing for now."""

    schema: Literal[1]
    channel: Name
    generation: Annotated[int, msgspec.Meta(ge=1, le=1 << 53)]
    members: Annotated[tuple[Member, ...], msgspec.Meta(min_length=1, max_length=MEMBER_LIMIT)]
    stop: bool = False

    @property
    def content_digest(self) -> str:
        """Hex SHA-256 of the members: what this generation is, whatever it is called."""
        return hashlib.sha256(msgspec.json.encode(self.members)).hexdigest()

    def member(self, kind: str) -> Member | None:
        """Return the member of *kind*, when the set has one."""
        return next((member for member in self.members if member.kind == kind), None)


class UntrustedChannelSet(msgspec.Struct, frozen=True):
    """Well-formed and bounded; `claimed` is what it says about itself."""

    claimed: ChannelSet
    size: int
    sha256: str


class VerifiedChannelSet(msgspec.Struct, frozen=True):
    """It is byte for byte the target that signed metadata names."""

    set: ChannelSet
    sha256: str


def path(channel: str) -> str:
    """Return the TUF target of *channel*."""
    return f"channels/{channel}.json"


def parse(raw: bytes) -> UntrustedChannelSet:
    """Check form and bounds: kinds sorted and each once, bytes canonical.

    Raises:
        UntrustedDataError: `channel-set-form`.

    """
    if len(raw) > LIMIT:
        _refuse(f"it is larger than {LIMIT >> 10} KiB")
    try:
        value = _decoder.decode(raw)
    except MALFORMED as error:
        raise UntrustedDataError(
            f"the channel's set was refused: it is not well-formed: {error}", check="channel-set-form"
        ) from error
    kinds = [member.kind for member in value.members]
    if kinds != sorted(set(kinds)):
        _refuse("its kinds are not in order, each once")
    if msgspec.json.encode(value) != raw:
        _refuse("it is not in its canonical form")
    return UntrustedChannelSet(value, len(raw), hashlib.sha256(raw).hexdigest())


def verify(untrusted: UntrustedChannelSet, *, channel: str, size: int, sha256: str) -> VerifiedChannelSet:
    """Take *untrusted* for the target of *channel*: *size* bytes with the digest *sha256*, as signed metadata says.

    Raises:
        UntrustedDataError: `channel-set-digest` other bytes, `channel-set-name` another channel's.

    """
    if (untrusted.size, untrusted.sha256) != (size, sha256):
        _refuse("it is not the file that the metadata names", check="channel-set-digest")
    if untrusted.claimed.channel != channel:
        _refuse(f"it is that of {untrusted.claimed.channel}", check="channel-set-name")
    return VerifiedChannelSet(untrusted.claimed, sha256)


def encode(value: ChannelSet) -> bytes:
    """Make the file.

    Raises:
        UntrustedDataError: as `parse`.

    """
    raw = msgspec.json.encode(value)
    parse(raw)
    return raw


_decoder: Final = msgspec.json.Decoder(ChannelSet)


def _refuse(what: str, *, check: str = "channel-set-form") -> NoReturn:
    raise UntrustedDataError(
        f"the channel's set was refused: {what}", check=check, hint="fetch it again; nothing of it was used"
    )
