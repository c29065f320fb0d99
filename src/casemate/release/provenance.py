"""Provenance: an in-toto statement (SLSA v1) of what a release was made from, by what, and which gates it passed.

No time and no host is in it unless the build was given one (`SOURCE_DATE_EPOCH`): the same input gives the same bytes.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from casemate import __version__
from casemate.release.spec import Spec

STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE: Final = "https://slsa.dev/provenance/v1"
BUILD_TYPE: Final = "https://casemate.dev/release/build/v1"
BUILDER: Final = "https://casemate.dev/release/local-build"


def make(spec: Spec, digests: dict[str, str], mlbom: bytes, gates: Sequence[str], *, epoch: int | None = None) -> bytes:
    """Return the statement over *digests* (name -> SHA-256) and the digest of the ML-BOM; *epoch* is in seconds."""
    described = msgspec.to_builtins(spec)
    invocation = hashlib.sha256(msgspec.json.encode([described, digests], order="sorted")).hexdigest()
    metadata: dict[str, Any] = {"invocationId": invocation}
    if epoch is not None:
        metadata["finishedOn"] = dt.datetime.fromtimestamp(epoch, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    bases = [{"name": base.name, "digest": {"sha256": base.sha256}} for base in spec.base_models]
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": digests[name]}} for name in sorted(digests)],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {"specification": described},
                "internalParameters": {"gates": list(gates)},
                "resolvedDependencies": bases,
            },
            "runDetails": {
                "builder": {"id": BUILDER, "version": {"casemate": __version__}},
                "metadata": metadata,
                "byproducts": [{"name": "mlbom.cdx.json", "digest": {"sha256": hashlib.sha256(mlbom).hexdigest()}}],
            },
        },
    }
    return msgspec.json.format(msgspec.json.encode(statement), indent=1) + b"\n"
