"""Publishing: a bundle becomes encrypted chunks, a manifest and an entry of signed metadata, in that order.

Nothing counts before the timestamp names it, so a cut leaves files that nobody asks for. A version is published once.
Deltas are made against the newest releases of the same name; the full payload is always there. What a build says it
checked is checked again here as far as files can tell: the host that signs believes no other.

A gated release is granted here, to its gate. It has a higher security version than what was published ungated, so that
floors keep devices from going back to that; and what comes ungated after it needs a higher one, said on purpose.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Final, cast

import msgspec

from casemate.crypto.secret import Secret
from casemate.durable import sync_directory
from casemate.errors import OperationError, UsageError
from casemate.formats import manifest, payload, signature_log
from casemate.formats.grant import CONTENT_KEY_BYTES
from casemate.release import build, bundle, files, grants, mlbom, sign, store
from casemate.release.delta import Source, pair
from casemate.release.repository import Repository
from casemate.release.roles import OF_KIND
from casemate.release.sealing import make_payload
from casemate.release.spec import Input

DELTAS: Final = 3

Tell = Callable[[str], None]


def publish(repository: Repository, bundles: Sequence[Path], *, deltas: int = DELTAS, tell: Tell) -> list[store.Record]:
    """Sign, seal and publish *bundles*; return them as published.

    Raises:
        UntrustedDataError: a bundle is damaged.
        UsageError: its version was published before.
        NotAuthorisedError: a key or passphrase is missing.

    """
    with repository.lock():
        _sweep(repository.directory / "private")
        made = [_stage(repository, path, deltas=deltas, tell=tell) for path in bundles]
        for record in made:
            if gate := record.manifest.gate:
                grants.grant(repository, record, [gate.recipient])
        os.sync()  # chunks were written without it, one by one
        for role in sorted({OF_KIND[record.header.kind] for record in made}):
            _announce(repository, role, [record for record in made if OF_KIND[record.header.kind] == role])
    return made


def _sweep(private: Path) -> None:
    """Remove what a publish left that was killed: plain files must not lie about."""
    for left in (*private.glob("tmp*"), *private.glob("releases/.*")):
        shutil.rmtree(left, ignore_errors=True)


def _stage(repository: Repository, path: Path, *, deltas: int, tell: Tell) -> store.Record:
    """Make everything of one release but its place in the metadata."""
    parent = repository.directory / "private" / "releases"
    parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    work = parent / f".{secrets.token_hex(8)}"
    try:
        opened = bundle.unpack(path, work)
        _refuse_again(repository, opened.header)
        build.examine(opened.header.kind, [Input(row.path, opened.directory / row.path) for row in opened.header.files])
        mlbom.validate(opened.mlbom)
        record = _seal(repository, opened, work, deltas=deltas, tell=tell)
        final = store.directory_of(repository, record.id)
        work.rename(final)
        sync_directory(parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return msgspec.structs.replace(record, directory=final)


def _refuse_again(repository: Repository, header: bundle.Header) -> None:
    if manifest.target_path(header.kind, header.name, header.version) in repository.targets(OF_KIND[header.kind]):
        raise UsageError(f"{header.label} is published already", hint="a version is published once: give a new one")
    for other in _bases(repository, header):
        changed = (other.header.gate is None) != (header.gate is None)
        if changed and header.security_version <= other.header.security_version:
            gated, plain = (header.label, other.header.label) if header.gate else (other.header.label, header.label)
            raise UsageError(
                f"{gated} is gated and {plain} is not: the newer of them needs a higher security_version",
                hint=f"give it security_version {other.header.security_version + 1}, so that devices do not go back",
            )


def _seal(repository: Repository, opened: bundle.Opened, work: Path, *, deltas: int, tell: Tell) -> store.Record:
    header = opened.header
    key = Secret.random(CONTENT_KEY_BYTES)
    release = payload.release_id(
        key,
        kind=header.kind,
        name=header.name,
        version=header.version,
        files=[(row.path, row.sha256) for row in header.files],
    )
    store.save_key(repository, work, release, key)
    digests = {row.path: row.sha256 for row in header.files}
    papers = {signature_log.MLBOM: header.mlbom_sha256, signature_log.PROVENANCE: header.provenance_sha256}
    tell(f"signing {header.label}")
    signed = sign.sign(repository, header.name, {**digests, **papers})
    made = list(_payloads(repository, header, release, key, opened.directory, deltas=deltas, tell=tell))
    part = _sealed_part(header, release, signed, tuple(plan for _, plan in made))
    ref, sealed = manifest.seal_part(part, key)
    _put_chunk(repository, ref.sha256, sealed)
    public = manifest.Manifest(
        schema=1,
        release=release,
        kind=header.kind,
        name=header.name,
        version=header.version,
        security_version=header.security_version,
        requires=header.requires,
        sealed=ref,
        payloads=tuple(item for item, _ in made),
        gate=header.gate,
    )
    kept = {
        "header.json": msgspec.json.encode(header),
        "signature.json": sign.encode(signed).encode(),
        signature_log.MLBOM: opened.mlbom,
        signature_log.PROVENANCE: opened.provenance,
        "manifest.json": manifest.encode(public),
    }
    for name, data in kept.items():
        files.replace(work / name, data, mode=files.PRIVATE)
    return store.Record(work, header, public)


def _sealed_part(
    header: bundle.Header, release: str, signed: signature_log.SignedRelease, plans: tuple[manifest.Plan, ...]
) -> manifest.SealedPart:
    return manifest.SealedPart(
        schema=1,
        release=release,
        kind=header.kind,
        name=header.name,
        version=header.version,
        security_version=header.security_version,
        files=header.files,
        plans=plans,
        licence=header.licence,
        smoke=header.smoke,
        bounds=header.bounds,
        signature=sign.encode(signed),
        mlbom_sha256=header.mlbom_sha256,
        provenance_sha256=header.provenance_sha256,
        gate=header.gate or msgspec.UNSET,
    )


def _payloads(
    repository: Repository,
    header: bundle.Header,
    release: str,
    key: Secret,
    directory: Path,
    *,
    deltas: int,
    tell: Tell,
) -> Iterator[tuple[manifest.Payload, manifest.Plan]]:
    """Yield the full payload, then one delta per base that is worth it."""
    with contextlib.ExitStack() as held, tempfile.TemporaryDirectory(dir=repository.directory / "private") as name:
        scratch = Path(name)

        def spool() -> BinaryIO:
            return cast("BinaryIO", tempfile.TemporaryFile(dir=scratch))

        new = [held.enter_context(_opened(directory, row)) for row in header.files]
        tell(f"sealing {header.label}")
        full, plan = make_payload(key, release, new, spool=spool, put=lambda at, data: _put_chunk(repository, at, data))
        yield full, plan
        for base in _bases(repository, header)[:deltas]:
            tell(f"delta from {base.header.version}")
            old = [held.enter_context(_opened(base.directory / bundle.PREFIX, row)) for row in base.header.files]
            item, steps = make_payload(
                key,
                release,
                new,
                spool=spool,
                put=lambda at, data: files.replace(scratch / at, data, sync=False),
                base_release=base.id,
                bases=pair(new, old),
            )
            if item.transfer_bytes < full.transfer_bytes:
                _move_chunks(repository, scratch, item)
                yield item, steps


def _move_chunks(repository: Repository, scratch: Path, item: manifest.Payload) -> None:
    for chunk in item.chunks:
        target = repository.public / chunk.path
        target.parent.mkdir(parents=True, exist_ok=True)
        (scratch / chunk.sha256).replace(target)


def _bases(repository: Repository, header: bundle.Header) -> list[store.Record]:
    """Return the published releases of the same name, newest version first."""
    same = [
        record
        for record in store.published(repository)
        if (record.header.kind, record.header.name) == (header.kind, header.name)
    ]
    return sorted(same, key=lambda record: _order(record.header), reverse=True)


def _order(header: bundle.Header) -> tuple[int, list[tuple[int, str]]]:
    """Order versions as people count: numbers by value."""
    parts = re.findall(r"\d+|[A-Za-z]+", header.version)
    return header.security_version, [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


@contextlib.contextmanager
def _opened(directory: Path, row: manifest.File) -> Iterator[Source]:
    fd = os.open(directory / row.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        if os.fstat(fd).st_size != row.size:
            raise OperationError(f"{row.path} is no longer what was released")
        yield Source(row.path, lambda offset, length: os.pread(fd, length, offset), row.size, row.sha256)
    finally:
        os.close(fd)


def _put_chunk(repository: Repository, address: str, sealed: bytes) -> None:
    files.replace(repository.public / manifest.chunk_path(address), sealed, sync=False)


def _announce(repository: Repository, role: str, made: list[store.Record]) -> None:
    """Let *role* sign for the manifests of *made*."""
    infos = {
        record.manifest.target_path: repository.add_target(
            record.manifest.target_path, files.read(record.directory / "manifest.json", "manifest")
        )
        for record in made
    }
    repository.edit({role: lambda targets: targets.targets.update(infos)})
