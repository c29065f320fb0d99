from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest

from casemate.errors import UntrustedDataError
from casemate.guard import Guard
from casemate.guard.bundle import BYTE_LIMIT, shipped_bundle
from casemate.guard.classes import FEATURES, allowed_signs
from casemate.guard.model import LinearModel, Weights, families

ROOT = Path(__file__).resolve().parents[3]
SHIPPED = json.loads((resources.files("casemate.guard") / "data" / "injection.json").read_bytes())


def weights(raw):
    return Weights(base64.b64encode(raw).decode(), 0.1, -1.0, 0.0, 1.0)


def changed(**changes):
    bundle = json.loads(shipped_bundle())
    bundle["model"].update(changes)
    return json.dumps(bundle).encode()


def test_the_shipped_bundle_loads_and_is_small():
    data = shipped_bundle()
    assert len(data) < 2_000_000
    Guard.from_bytes(data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"\x00" * 100,
        b"[" * 100_000,
        changed(schema=2),
        changed(classes=["OVERRIDE"]),
        changed(sets={}),
        changed(sets={"user": 1, "document": 2}),
        changed(extra=1),
        changed(sets={kind: {**sets, "weights": "\u00e9"} for kind, sets in SHIPPED["sets"].items()}),
        shipped_bundle().replace(b'"abuse":"', b'"abuse":"\xff'),
        shipped_bundle().replace(b'"model":{', b'"model":{"x":' + b"[" * 100_000 + b"],"),
        b" " * (BYTE_LIMIT + 1),
    ],
)
def test_a_bundle_that_is_not_one_is_refused(data):
    with pytest.raises(UntrustedDataError):
        Guard.from_bytes(data)


def test_weights_of_the_wrong_size_are_refused():
    with pytest.raises(UntrustedDataError):
        LinearModel(weights(b"\0" * (FEATURES - 1)))
    with pytest.raises(UntrustedDataError):
        LinearModel(Weights("not base64!", 0.1, 0.0, 0.0, 1.0))


def test_a_weight_against_the_meaning_of_its_feature_is_refused():
    raw = bytearray(FEATURES)
    raw[allowed_signs().index(-1)] = 1
    with pytest.raises(UntrustedDataError):
        LinearModel(weights(bytes(raw)))


def test_families_share_what_convicts():
    shares = dict(families([(0, 1.0), (3, 1.0), (5, -9.0)]))
    assert sum(shares.values()) == pytest.approx(1.0)


def test_the_model_was_trained_from_the_files_beside_it():
    """A lexicon or grammar that changed needs `make guard-train`."""
    for name, digest in SHIPPED["provenance"]["inputs"].items():
        assert hashlib.sha256((ROOT / name).read_bytes()).hexdigest()[:16] == digest, name
    lexicons = {str(p.relative_to(ROOT)) for p in (ROOT / "src/casemate/guard/data/lexicon").glob("*.txt")}
    assert lexicons <= set(SHIPPED["provenance"]["inputs"])


def trained(target, *options, seed="random"):
    command = [sys.executable, "-m", "tools.train_guard", "--out", str(target), *options]
    subprocess.run(command, cwd=ROOT, check=True, env={**os.environ, "PYTHONHASHSEED": seed})
    return target.read_bytes()


@pytest.mark.long
def test_training_is_deterministic(tmp_path):
    """A slice of the texts, trained twice by interpreters that order their sets differently."""
    first, second = (trained(tmp_path / seed, "--per-template", "1", seed=seed) for seed in ("1", "2"))
    assert first == second
    assert json.loads(first)["sets"] != SHIPPED["sets"]


@pytest.mark.long
def test_training_again_writes_the_shipped_model(tmp_path):
    assert json.loads(trained(tmp_path / "injection.json")) == SHIPPED
