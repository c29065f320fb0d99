"""What the channel offers now: the signed set, every member's manifest, and whom to believe about their contents.

Reading is verification (`read_offer`); whether the device may follow is a decision over what was read
(`require_acceptable`), which touches nothing.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Final

import msgspec

from casemate.crypto import x509
from casemate.device.update.client import Client, Freshness
from casemate.device.update.floors import Floors
from casemate.errors import HostError, PolicyDeniedError, UntrustedDataError
from casemate.formats import channel_set, manifest, signature_log
from casemate.formats.channel_set import Member, VerifiedChannelSet
from casemate.formats.manifest import Manifest, VerifiedManifest
from casemate.formats.signature_log import SigningTrust

TRUST_LIMIT: Final = 128 * 1024


class Offered(msgspec.Struct, frozen=True):
    """One member with its manifest; *raw* is the manifest's file, which the vault reads for itself."""

    member: Member
    verified: VerifiedManifest
    raw: bytes

    @property
    def manifest(self) -> Manifest:
        """The manifest's public part."""
        return self.verified.manifest


class Offer(msgspec.Struct, frozen=True):
    """A channel's generation. `signing`: who may sign releases, for `signature_log.verify_part`."""

    verified: VerifiedChannelSet
    members: tuple[Offered, ...]
    signing: SigningTrust
    freshness: Freshness

    @property
    def generation(self) -> int:
        """Its number; for people. What it is, is `content_digest`."""
        return self.verified.set.generation

    @property
    def content_digest(self) -> str:
        """What a deny list remembers."""
        return self.verified.set.content_digest

    @property
    def stopped(self) -> bool:
        """Whether devices shall fetch and arm nothing for now."""
        return self.verified.set.stop

    def member(self, kind: str) -> Offered | None:
        """Return the member of *kind*, when there is one."""
        return next((item for item in self.members if item.member.kind == kind), None)


def read_offer(client: Client, channel: str) -> Offer:
    """Read what *channel* offers now: refreshes, then reads the set and every manifest.

    Raises:
        UntrustedDataError: as `Client.refresh` and `Client.read`; `channel-set-*`, `manifest-*`, `signing-trust`.
        NotFoundError: no such channel.
        OperationError: the repository cannot be reached.

    """
    freshness = client.refresh()
    signing = signature_log.parse_trust(client.read(signature_log.TRUST_PATH, TRUST_LIMIT).data)
    client.allow_offline(signing.offline_days)
    client.learn_time(max(x509.valid_from(root) for root in signing.roots()))
    verified = _read_set(client, channel)
    members = tuple(_read_member(client, member) for member in verified.set.members)
    return Offer(verified, members, signing, freshness)


def still_offered(client: Client, offer: Offer) -> None:
    """Look again, in the middle of a download: one request when nothing changed.

    Raises:
        PolicyDeniedError: the publisher stopped the channel, or it offers something else now.
        UntrustedDataError: as `Client.refresh`.
        OperationError: the repository cannot be reached.

    """
    client.refresh()
    found = _read_set(client, offer.verified.set.channel).set
    if found.stop:
        raise _stopped()
    if found.content_digest != offer.content_digest:
        raise PolicyDeniedError(
            "the channel offers something else now", hint="what was fetched is kept; `casemate update fetch` again"
        )


def require_acceptable(offer: Offer, floors: Floors, denied: Container[str], version: str) -> None:
    """Decide whether a device with these *floors*, which runs casemate *version*, may follow *offer*.

    Raises:
        PolicyDeniedError: the channel is stopped, this generation failed here before, or it is below a floor.
        HostError: it needs a newer casemate.

    """
    if offer.stopped:
        raise _stopped()
    if offer.content_digest in denied:
        raise PolicyDeniedError(
            f"generation {offer.generation} failed on this device before", hint="the publisher has to promote another"
        )
    for offered in offer.members:
        member, requires = offered.member, offered.manifest.requires
        floor = floors.security_of(member.kind, member.name)
        if member.security_version < floor:
            raise PolicyDeniedError(
                f"{member.kind}/{member.name} {member.version} has security version {member.security_version}; "
                f"this device goes no lower than {floor}",
                hint="publish it again with a higher security_version, if it is safe",
            )
        if requires.min_agent and _numbers(version) < _numbers(requires.min_agent):
            raise HostError(
                f"{member.kind}/{member.name} {member.version} needs casemate {requires.min_agent}; this is {version}",
                hint="upgrade casemate on this device first",
            )


def _read_set(client: Client, channel: str) -> VerifiedChannelSet:
    target = client.read(channel_set.path(channel), channel_set.LIMIT)
    parsed = channel_set.parse(target.data)
    return channel_set.verify(parsed, channel=channel, size=len(target.data), sha256=target.sha256)


def _read_member(client: Client, member: Member) -> Offered:
    target = client.read(member.target_path, manifest.LIMIT)
    verified = manifest.verify(
        manifest.parse(target.data), path=member.target_path, size=len(target.data), sha256=target.sha256
    )
    found = verified.manifest
    named = (member.manifest_sha256, member.release, member.security_version)
    if named != (verified.sha256, found.release, found.security_version):
        raise UntrustedDataError(
            f"the channel's set names another {member.kind}/{member.name} {member.version} than is published",
            check="channel-set-member",
            hint="the publisher has to promote it again",
        )
    return Offered(member, verified, target.data)


def _stopped() -> PolicyDeniedError:
    return PolicyDeniedError(
        "the publisher has stopped this channel for now", hint="nothing to do: devices go on when it is resumed"
    )


def _numbers(version: str) -> tuple[int, ...]:
    """Return a version as numbers; whatever is no number is higher than any, so that it is not met by accident."""
    return tuple(int(part) if part.isdecimal() else 1 << 62 for part in version.split("+", maxsplit=1)[0].split("."))
