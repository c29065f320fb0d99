"""The ML-BOM: CycloneDX 1.6 JSON from our own types, checked offline against the official schema.

The popular library's model silently drops `modelCard` and `data`, so only its validator is used. Everything is derived
from the release's content (the serial number too), so the same input gives the same bytes.
"""

from __future__ import annotations

import uuid
from typing import Any, Final

import msgspec

from casemate.errors import OperationError
from casemate.formats.gguf import GgufFacts
from casemate.release.spec import Spec

_NAMESPACE: Final = uuid.UUID("6ba7b811-9dad-11d1-80b4-00c04fd430c8")  # RFC 9562: names that are URLs


class _Part(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """CycloneDX writes camel case, and leaves out what is not known."""


class Hash(_Part, frozen=True):
    """A digest; *alg* as CycloneDX names it."""

    alg: str
    content: str


class LicenceName(_Part, frozen=True):
    """An SPDX identifier, or a name that SPDX does not know."""

    id: str = ""
    name: str = ""


class Licence(_Part, frozen=True):
    """One licence of a component."""

    license: LicenceName


class Property(_Part, frozen=True):
    """A fact that CycloneDX has no field for."""

    name: str
    value: str


class ModelParameters(_Part, frozen=True):
    """What kind of model it is."""

    task: str = ""
    architecture_family: str = ""
    model_architecture: str = ""
    inputs: tuple[dict[str, str], ...] = ()
    outputs: tuple[dict[str, str], ...] = ()


class ModelCard(_Part, frozen=True):
    """What the model is, for a person who must judge it."""

    model_parameters: ModelParameters
    properties: tuple[Property, ...] = ()


class Pedigree(_Part, frozen=True):
    """What it was made from."""

    ancestors: tuple[Component, ...] = ()


class Component(_Part, frozen=True):
    """One thing in the bill."""

    type: str
    name: str
    version: str = ""
    bom_ref: str = msgspec.field(name="bom-ref", default="")
    hashes: tuple[Hash, ...] = ()
    licenses: tuple[Licence, ...] = ()
    pedigree: Pedigree | None = None
    model_card: ModelCard | None = None


class Metadata(_Part, frozen=True):
    """What the bill is about."""

    component: Component


class Dependency(_Part, frozen=True):
    """An edge: *ref* holds *depends_on*."""

    ref: str
    depends_on: tuple[str, ...] = ()


class Bom(_Part, frozen=True):
    """The document."""

    bom_format: str
    spec_version: str
    serial_number: str
    version: int
    metadata: Metadata
    components: tuple[Component, ...] = ()
    dependencies: tuple[Dependency, ...] = ()


def make(spec: Spec, digests: dict[str, str], facts: GgufFacts | None) -> bytes:
    """Return the validated ML-BOM of a release whose files have *digests* (name -> SHA-256).

    Raises:
        OperationError: the document breaks the schema: a bug, and the release stops.

    """
    ref = f"{spec.kind}/{spec.name}@{spec.version}"
    parts = tuple(
        Component("file", name, bom_ref=f"{ref}/{name}", hashes=(Hash("SHA-256", digest),))
        for name, digest in sorted(digests.items())
    )
    top = Component(
        "machine-learning-model" if spec.kind == "model" else "application",
        spec.name,
        spec.version,
        bom_ref=ref,
        licenses=(Licence(LicenceName(name=spec.licence)),),
        pedigree=_pedigree(spec),
        model_card=_card(facts) if facts else None,
    )
    listed = "\n".join(f"{digest} {name}" for name, digest in sorted(digests.items()))
    bom = Bom(
        "CycloneDX",
        "1.6",
        f"urn:uuid:{uuid.uuid5(_NAMESPACE, ref + listed)}",
        1,
        Metadata(top),
        parts,
        (Dependency(ref, tuple(part.bom_ref for part in parts)),),
    )
    raw = msgspec.json.format(msgspec.json.encode(bom), indent=1) + b"\n"
    validate(raw)
    return raw


def validate(raw: bytes) -> None:
    """Check a document against the CycloneDX 1.6 schema, offline.

    Raises:
        OperationError: it breaks the schema.

    """
    from cyclonedx.schema import SchemaVersion  # noqa: PLC0415 - loads a schema library only a build needs
    from cyclonedx.validation.json import JsonStrictValidator  # noqa: PLC0415 - the same

    problem: Any = JsonStrictValidator(SchemaVersion.V1_6).validate_str(raw.decode("utf-8"))
    if problem is not None:
        raise OperationError(f"the ml-bom breaks the CycloneDX schema: {str(problem)[:200]}")


def _pedigree(spec: Spec) -> Pedigree | None:
    if not spec.base_models:
        return None
    return Pedigree(
        tuple(
            Component("machine-learning-model", base.name, hashes=(Hash("SHA-256", base.sha256),))
            for base in spec.base_models
        )
    )


def _card(facts: GgufFacts) -> ModelCard:
    kept = {
        "casemate:parameters": facts.parameters,
        "casemate:quantisation": facts.quantisation,
        "casemate:context_length": facts.context_length,
        "casemate:vocabulary": facts.vocabulary,
    }
    text = ({"format": "string"},)
    return ModelCard(
        ModelParameters("text-generation", facts.architecture, facts.name or facts.architecture, text, text),
        tuple(Property(name, str(value)) for name, value in kept.items()),
    )
