"""Building a release: files in, gates in order, one deterministic bundle out. The build holds no key.

Signing is a step of its own on the host that has the keys (`publish`), so that whoever can change a build cannot sign,
and whoever signs gets a bundle whose every byte has a digest. Each gate can fail the build; none can be skipped but the
evals of a machine without a device runtime, and that is written into the provenance.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

import msgspec

from casemate.errors import ConfigError
from casemate.formats import manifest
from casemate.formats.gguf import GgufFacts
from casemate.formats.signature_log import MLBOM, PROVENANCE
from casemate.release import bundle, licences, mlbom, provenance, scan, spec

_BLOCK: Final = 1 << 20

Evaluate = Callable[[spec.Spec, list[spec.Input]], None]
"""Run the evals of a release; raises when one fails."""
Progress = Callable[[int, str], AbstractContextManager[Callable[[int], None]]]


class Built(msgspec.Struct, frozen=True):
    """What was built."""

    header: bundle.Header
    path: Path
    size: int
    sha256: str


def build(
    specification: Path,
    out: Path,
    *,
    policy: licences.LicencePolicy,
    evaluate: Evaluate | None,
    progress: Progress,
    environ: Mapping[str, str] = os.environ,
) -> Built:
    """Build the release that *specification* describes and write its bundle to *out*.

    Raises:
        ConfigError: the specification is wrong.
        UntrustedDataError, PolicyDeniedError, OperationError: a gate failed; its message names it.

    """
    wanted = spec.load(specification)
    inputs = spec.inputs(wanted, specification.absolute().parent)
    gates: list[str] = []
    facts, passed = examine(wanted.kind, inputs)
    gates.extend(passed)
    licences.check(policy, wanted.licence, facts.licence if facts else "")
    gates.append("licence")
    if evaluate is not None:
        evaluate(wanted, inputs)
    gates.append("evals" if evaluate is not None else "evals: not run")
    rows = _measure(inputs, progress)
    digests = {row.path: row.sha256 for row in rows}
    bom = mlbom.make(wanted, digests, facts)
    gates.append("ml-bom")
    papers = {MLBOM: bom, PROVENANCE: provenance.make(wanted, digests, bom, gates, epoch=_epoch(environ))}
    header = _header(wanted, rows, gates, papers)
    with progress(sum(row.size for row in rows), "writing") as advance:
        bundle.write(out, header, inputs, papers, advance)
    return Built(header, out, out.stat().st_size, _digest_of(out))


def examine(kind: str, inputs: list[spec.Input]) -> tuple[GgufFacts | None, list[str]]:
    """Pass the gates that look into files; returns what the (first) model's header says, and the gates' names.

    Raises:
        UntrustedDataError: `release-format`, `gguf-*`: a file is not what a release of *kind* may hold.

    """
    formats = scan.scan(kind, inputs)
    models = [scan.check_model(item) for item in inputs if formats[item.name] == "gguf"]
    return (models[0], ["formats", "gguf"]) if models else (None, ["formats"])


def _measure(inputs: list[spec.Input], progress: Progress) -> tuple[manifest.File, ...]:
    with progress(sum(item.path.stat().st_size for item in inputs), "reading") as advance:
        return tuple(_measure_one(item, advance) for item in inputs)


def _measure_one(item: spec.Input, advance: Callable[[int], None]) -> manifest.File:
    digest, size = hashlib.sha256(), 0
    with item.path.open("rb") as file:
        while piece := file.read(_BLOCK):
            digest.update(piece)
            size += len(piece)
            advance(len(piece))
    return manifest.File(item.name, size, digest.hexdigest())


def _header(
    wanted: spec.Spec, rows: tuple[manifest.File, ...], gates: list[str], papers: Mapping[str, bytes]
) -> bundle.Header:
    return bundle.Header(
        schema=bundle.SCHEMA,
        kind=wanted.kind,
        name=wanted.name,
        version=wanted.version,
        security_version=wanted.security_version,
        licence=wanted.licence,
        requires=wanted.requires,
        bounds=wanted.bounds,
        smoke=wanted.smoke,
        gates=tuple(gates),
        files=rows,
        mlbom_sha256=hashlib.sha256(papers[MLBOM]).hexdigest(),
        provenance_sha256=hashlib.sha256(papers[PROVENANCE]).hexdigest(),
        gate=wanted.gate.checked() if wanted.gate else None,
    )


def _epoch(environ: Mapping[str, str]) -> int | None:
    text = environ.get("SOURCE_DATE_EPOCH", "")
    if not text:
        return None
    if not text.isdecimal() or len(text) > 12:  # noqa: PLR2004 - seconds until far beyond any certificate
        raise ConfigError("SOURCE_DATE_EPOCH is not a number of seconds")
    return int(text)


def _digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
