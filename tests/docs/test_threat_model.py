"""The threat model's rows: whole, and each backed by a test that exists; no attack test stands outside it."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODEL = tomllib.loads((ROOT / "docs" / "threat-model.toml").read_text(encoding="utf-8"))
ROWS = MODEL["row"]


def functions_in(path: Path) -> set[str]:
    """Return the names of the test functions of a file, without running it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return {function.name for function in functions if function.name.startswith("test")}


@pytest.mark.parametrize("row", ROWS, ids=[row["id"] for row in ROWS])
def test_a_row_is_whole_and_names_tests_that_exist(row):
    assert set(row) == {"id", "asset", "adversary", "stride", "threat", "control", "residual", "tests"}
    assert row["asset"] in MODEL["assets"]
    assert row["adversary"] in MODEL["adversaries"]
    assert row["stride"] in set("STRIDE")
    assert row["threat"]
    assert row["control"]
    assert row["residual"]
    assert row["tests"]
    for test in row["tests"]:
        path, _, function = test.partition("::")
        file = ROOT / path
        assert file.is_file(), test
        assert functions_in(file), f"{path} has no test"
        assert not function or function in functions_in(file), test


def test_ids_are_unique():
    ids = [row["id"] for row in ROWS]
    assert len(ids) == len(set(ids))


def test_every_attack_test_belongs_to_a_row():
    named = {test.partition("::")[0] for row in ROWS for test in row["tests"]}
    present = {str(file.relative_to(ROOT)) for file in (ROOT / "tests" / "attacks").glob("test_*.py")}
    assert present <= named, present - named


def test_every_asset_and_adversary_is_in_a_row():
    assert {row["asset"] for row in ROWS} == set(MODEL["assets"])
    assert {row["adversary"] for row in ROWS} == set(MODEL["adversaries"])


def test_every_attack_has_a_positive_control():
    """A test that an attack fails shows nothing unless the attack can succeed."""
    without = [
        file.name
        for file in sorted((ROOT / "tests" / "attacks").glob("test_*.py"))
        if "control" not in file.read_text(encoding="utf-8").lower()
    ]
    assert not without
