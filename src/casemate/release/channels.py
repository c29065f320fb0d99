"""Channels: which releases a group of devices runs together. Promoting changes one signed set; yanking takes back."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from casemate.errors import NotFoundError, UsageError
from casemate.formats import channel_set
from casemate.release import store
from casemate.release.repository import Repository, require_channel_name
from casemate.release.roles import OF_KIND

_ROLE = "channels"


def current(repository: Repository, channel: str) -> channel_set.ChannelSet | None:
    """Return what *channel* offers now; None for a channel that does not exist yet."""
    path = channel_set.path(channel)
    if path not in repository.targets(_ROLE):
        return None
    return channel_set.parse(repository.read_target(_ROLE, path)).claimed


def names(repository: Repository) -> list[str]:
    """Return every channel's name, sorted."""
    return sorted(path.removeprefix("channels/").removesuffix(".json") for path in repository.targets(_ROLE))


def promote(repository: Repository, channel: str, wanted: Sequence[store.Record]) -> channel_set.ChannelSet:
    """Offer *wanted* in *channel*: each replaces what the channel had of its kind; the rest of the set stays.

    Raises:
        UsageError: two of them are of one kind, or one was yanked.

    """
    require_channel_name(channel)
    offered = {record.id for record in store.published(repository)}
    for record in wanted:
        if record.id not in offered:
            raise UsageError(f"{record.header.label} was yanked", hint="publish a new version")
    if len({record.header.kind for record in wanted}) != len(wanted):
        raise UsageError("a channel has one release of each kind", hint="give one of them")
    with repository.lock():
        held = current(repository, channel)
        members = {member.kind: member for member in held.members} if held else {}
        members |= {record.header.kind: _member(repository, record) for record in wanted}
        chosen = tuple(members[kind] for kind in sorted(members))
        generation = held.generation + 1 if held and held.members != chosen else (held.generation if held else 1)
        changed = channel_set.ChannelSet(1, channel, generation, chosen)
        _write(repository, [changed])
    return changed


def stop(repository: Repository, channel: str, *, stopped: bool) -> channel_set.ChannelSet:
    """Tell the devices of *channel* to fetch and arm nothing for now, or to go on.

    Raises:
        NotFoundError: no such channel.

    """
    with repository.lock():
        held = current(repository, channel)
        if held is None:
            raise NotFoundError(f"no channel {channel!r}", hint="`casemate release promote` makes one")
        changed = msgspec.structs.replace(held, stop=stopped)
        _write(repository, [changed])
    return changed


def yank(repository: Repository, record: store.Record) -> list[str]:
    """Take *record* back: nobody is offered it any more; channels that offer it are stopped, and named.

    Raises:
        UsageError: it was yanked before.

    """
    role, path = OF_KIND[record.header.kind], record.manifest.target_path
    with repository.lock():
        if path not in repository.targets(role):
            raise UsageError(f"{record.header.label} was yanked before")
        sets = [held for name in names(repository) if (held := current(repository, name))]
        hit = [held for held in sets if any(member.release == record.id for member in held.members)]
        if hit:
            _write(repository, [msgspec.structs.replace(held, stop=True) for held in hit])
        repository.edit({role: lambda targets: targets.targets.pop(path)})
    return [held.channel for held in hit]


def _member(repository: Repository, record: store.Record) -> channel_set.Member:
    info = repository.targets(OF_KIND[record.header.kind])[record.manifest.target_path]
    return channel_set.Member(
        kind=record.header.kind,
        name=record.header.name,
        version=record.header.version,
        security_version=record.header.security_version,
        release=record.id,
        manifest_sha256=info.hashes["sha256"],
        gate=record.manifest.gate,
    )


def _write(repository: Repository, sets: Sequence[channel_set.ChannelSet]) -> None:
    made = {
        channel_set.path(item.channel): repository.add_target(channel_set.path(item.channel), channel_set.encode(item))
        for item in sets
    }
    repository.edit({_ROLE: lambda targets: targets.targets.update(made)})
