"""What a generation is: everything a device runs together, as one immutable record (`gen/N/generation.json`).

It names, per kind, the release it came from and what lies where: a model's container in `models/`, the files of all
other kinds below `gen/N/<kind>/`. Smoke prompts and bounds come along, so that a trial can be judged without a network
and without the release. The record is sealed (`sealed_file`) under a key of this device.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final, Literal

import msgspec

from casemate.errors import UntrustedDataError
from casemate.formats.channel_set import MEMBER_LIMIT, Member
from casemate.formats.decoding import MALFORMED
from casemate.formats.manifest import (
    FILE_LIMIT,
    Bounds,
    File,
    Id,
    Kind,
    Label,
    Name,
    Requires,
    SealedPart,
    SecurityVersion,
    Sha256,
    Smoke,
    Version,
    is_tree,
)

RECORD: Final = "generation.json"
NUMBER_LIMIT: Final = 1 << 53

Number = Annotated[int, msgspec.Meta(ge=1, le=NUMBER_LIMIT)]


class Item(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One artefact of the generation.

    `container`: what `models/` calls a model ("saffron.g7", served as `name`); `files` are its plain files then, which
    are in no directory. `gate`: what the fleet calls a gated one. For any other kind `files` lie below `gen/N/<kind>/`.
    """

    kind: Kind
    name: Name
    version: Version
    security_version: SecurityVersion
    release: Id
    manifest_sha256: Sha256
    files: Annotated[tuple[File, ...], msgspec.Meta(max_length=FILE_LIMIT)]
    container: Annotated[str, msgspec.Meta(pattern=r"\A([a-z0-9](?!.*\.\.)[a-z0-9._-]{0,62})?\Z")] = ""
    gate: Annotated[str, msgspec.Meta(pattern=r"\A([a-z0-9][a-z0-9._-]{0,62})?\Z")] = ""
    runtime: Label = ""
    smoke: Annotated[tuple[Smoke, ...], msgspec.Meta(max_length=64)] = ()
    bounds: Bounds = Bounds()

    @property
    def artefact(self) -> str:
        """Its name among the floors: `<kind>/<name>`."""
        return f"{self.kind}/{self.name}"

    @property
    def tree(self) -> tuple[File, ...]:
        """The files that lie in the generation's directory."""
        return () if self.container else self.files


class Generation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The record. `content_digest` is the channel set's: what a deny list remembers."""

    schema: Literal[1]
    number: Number
    channel: Name
    set_generation: Annotated[int, msgspec.Meta(ge=1, le=NUMBER_LIMIT)]
    content_digest: Sha256
    items: Annotated[tuple[Item, ...], msgspec.Meta(min_length=1, max_length=MEMBER_LIMIT)]

    def item(self, kind: str) -> Item | None:
        """Return the artefact of *kind*, when the generation has one."""
        return next((item for item in self.items if item.kind == kind), None)

    @property
    def containers(self) -> tuple[str, ...]:
        """The model containers it needs."""
        return tuple(item.container for item in self.items if item.container)

    @property
    def versions(self) -> Mapping[str, int]:
        """Its security versions, by artefact: what floors are compared with and raised to."""
        return {item.artefact: item.security_version for item in self.items}

    @property
    def tree(self) -> Mapping[str, File]:
        """Every file of its directory, by the path below `gen/N/`."""
        return {f"{item.kind}/{file.path}": file for item in self.items for file in item.tree}


def item_of(member: Member, part: SealedPart, *, requires: Requires, container: str = "") -> Item:
    """Make an item from what signed metadata and the sealed part say.

    Raises:
        UntrustedDataError: `generation-member`: the sealed part is another release's, or has another gate.

    """
    said = (member.kind, member.name, member.version, member.security_version, member.release)
    found = (part.kind, part.name, part.version, part.security_version, part.release)
    if (said, member.gate) != (found, part.gate or None):
        raise UntrustedDataError("the release is not the one that the channel offers", check="generation-member")
    return Item(
        *said,
        member.manifest_sha256,
        part.files,
        container=container,
        gate=member.gate.model if member.gate else "",
        runtime=requires.runtime,
        smoke=part.smoke,
        bounds=part.bounds,
    )


def encode(generation: Generation) -> bytes:
    """Make the record's body.

    Raises:
        UntrustedDataError: as `parse`.

    """
    raw = msgspec.json.encode(generation)
    parse(raw)
    return raw


def parse(raw: bytes) -> Generation:
    """Read a record whose seal was verified.

    Raises:
        UntrustedDataError: `generation-form`.

    """
    try:
        generation = _decoder.decode(raw)
    except MALFORMED as error:
        raise UntrustedDataError(f"the generation's record is not well-formed: {error}", check=_FORM) from error
    kinds = [item.kind for item in generation.items]
    if len(set(kinds)) != len(kinds):
        raise UntrustedDataError("a generation has one artefact of each kind", check=_FORM)
    for item in generation.items:
        if (item.kind == "model") != bool(item.container) or (item.gate and not item.container):
            raise UntrustedDataError("a model, and nothing else, is in a container", check=_FORM)
        if not is_tree([file.path for file in item.files]):
            raise UntrustedDataError("the paths of a generation's files are no tree", check=_FORM)
    return generation


_FORM: Final = "generation-form"
_decoder: Final = msgspec.json.Decoder(Generation)
