"""What the channel offers now: the signed set, every member's manifest, and whom to believe about their contents.

Reading is verification (`read_offer`); whether the device may follow is a decision over what was read
(`require_acceptable`), which touches nothing.
"""

from __future__ import annotations

import re
import types
from collections.abc import Collection, Container, Mapping
from typing import Final

import msgspec

from casemate.crypto import x509
from casemate.device.fleet.direction import Direction
from casemate.device.update.client import Client, Freshness
from casemate.device.update.floors import Floors
from casemate.device.update.pace import NotNowError
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


def is_picked(offer: Offer, direction: Direction, minute: int) -> bool:
    """Say whether a device may take *offer* at this *minute* of the day (UTC): its fleet's director has the last word.

    A pick names the signed set by its bytes. So a director that lies can withhold and can choose among what release
    keys signed, and no more.

    Raises:
        NotNowError: it may, but not outside the maintenance window.

    """
    if not direction.directed:
        return True
    pick = direction.pick
    if pick is None or pick.action != "take" or pick.choice is None:
        return False
    found = offer.verified
    named = (pick.choice.channel, pick.choice.content, pick.choice.sha256)
    if named != (found.set.channel, found.set.content_digest, found.sha256):
        return False
    if pick.window and not _inside(minute, *pick.window):
        start = f"{pick.window[0] // 60:02}:{pick.window[0] % 60:02}"
        raise NotNowError(f"the fleet's maintenance window opens at {start} UTC", reason="hours")
    return True


def _inside(minute: int, start: int, until: int) -> bool:
    return start <= minute < until if start <= until else minute >= start or minute < until


def require_acceptable(
    offer: Offer,
    floors: Floors,
    denied: Container[str],
    version: str,
    *,
    held: Collection[str],
    gated: Mapping[str, int] = types.MappingProxyType({}),
) -> None:
    """Decide whether a device with these *floors*, which runs casemate *version*, may follow *offer*.

    *held*: the kinds of its good generation. None of them may vanish: who may sign sets and nothing else could so take
    a device's policy and guard data from it, and a floor is no help where there is nothing to compare with it.
    *gated*: security versions of its gated models, by artefact: they come ungated only with a higher one.

    Raises:
        PolicyDeniedError: the channel is stopped, this generation failed here before, it is below a floor, lacks a
            kind that the device has, or a gate that it had.
        HostError: it needs a newer casemate.

    """
    if offer.stopped:
        raise _stopped()
    if offer.content_digest in denied:
        raise PolicyDeniedError(
            f"generation {offer.generation} failed on this device before", hint="the publisher has to promote another"
        )
    if missing := sorted(set(held) - {item.member.kind for item in offer.members}):
        raise PolicyDeniedError(
            f"the channel offers no {missing[0]} any more, and this device has one",
            hint=f"promote a {missing[0]} in this channel, if only one that asks for nothing",
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
        if member.gate is None and member.security_version <= gated.get(f"{member.kind}/{member.name}", -1):
            raise PolicyDeniedError(
                f"{member.kind}/{member.name} {member.version} is not gated, and the one that runs here is",
                hint="publish it with a gate, or with a higher security_version if it shall have none any more",
            )
        if requires.min_agent and not is_met(requires.min_agent, version):
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
    named = (member.manifest_sha256, member.release, member.security_version, member.gate)
    if named != (verified.sha256, found.release, found.security_version, found.gate):
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


def is_met(needed: str, version: str) -> bool:
    """Say whether *version* is *needed* or newer, both like `0.2.5`, or `0.2.5+local`.

    Only numbers are compared. Of *version* what follows them (`rc1`, `.dev3`) makes it one that comes before them; a
    *needed* version that is more than numbers is met by none, so that nothing is met by accident.
    """
    wanted, has = _PLAIN.fullmatch(needed), _LEADING.match(version)
    if not wanted or not has:
        return False
    least, found = _numbers(wanted[1]), _numbers(has[1])
    return found > least or (found == least and _PLAIN.fullmatch(version) is not None)


_PLAIN: Final = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9}){0,7})(?:\+.*)?", re.ASCII)
_LEADING: Final = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9}){0,7})", re.ASCII)


def _numbers(version: str) -> tuple[int, ...]:
    """Return a version's numbers without the zeros at its end: 0.2 and 0.2.0 are one."""
    numbers = [int(part) for part in version.split(".")]
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)
