"""What import-linter cannot see: what a fresh interpreter really loads, and what a device install really pulls."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SERVER_ONLY = {
    "aiosqlite", "alembic", "asyncpg", "authlib", "celery", "cyclonedx-python-lib", "django", "fastapi", "flask",
    "gunicorn", "jinja2", "pandas", "psycopg", "psycopg-binary", "pydantic", "redis", "requests", "rich", "sqlalchemy",
    "torch", "transformers", "typer", "webauthn",
}  # fmt: skip
TEST_ONLY = {"gguf", "hypothesis", "openai", "presidio-analyzer", "pytest", "scikit-learn", "selenium", "spacy"}


def loaded_by(code: str, *flags: str) -> set[str]:
    """Return the modules a fresh interpreter has loaded after *code*."""
    run = subprocess.run(
        [sys.executable, *flags, "-c", f"{code}\nimport sys, json; sys.stderr.write(json.dumps(sorted(sys.modules)))"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        timeout=60,
    )
    return set(json.loads(run.stderr))


@pytest.mark.parametrize("argument", ["--version", "--help"])
def test_the_command_line_starts_light(argument):
    loaded = loaded_by(f"from casemate.cli.main import run\nrun([{argument!r}])")
    heavy = {"asyncio", "cryptography", "hyperscan", "msgspec", "numpy", "regex", "ssl", "starlette", "uvicorn"}
    assert not heavy & loaded
    assert not {name for name in loaded if name.startswith(("casemate.device", "casemate.guard", "casemate.formats"))}


FOREIGN = {
    "agent": {"casemate.guard", "cryptography", "hyperscan", "numpy", "starlette", "uvicorn", "xllamacpp"},
    "vault": {"casemate.guard", "hyperscan", "numpy", "starlette", "uvicorn", "xllamacpp"},
    "engine": {"casemate.guard", "casemate.keystores", "hyperscan", "starlette", "uvicorn"},
    "gateway": {"casemate.device.vault", "casemate.keystores", "xllamacpp"},
    "journal": {"casemate.guard", "hyperscan", "numpy", "starlette", "uvicorn", "xllamacpp"},
}

IMPORT_ALL = """
import importlib, pkgutil
role = importlib.import_module("casemate.device.{role}")
for part in pkgutil.walk_packages(getattr(role, "__path__", []), role.__name__ + "."):
    if not part.name.endswith("__main__"):
        importlib.import_module(part.name)
"""


@pytest.mark.parametrize("role", FOREIGN)
def test_a_process_loads_nothing_of_another_ones_work(role):
    assert not FOREIGN[role] & loaded_by(IMPORT_ALL.format(role=role))


def test_the_sandbox_launcher_needs_nothing_but_the_standard_library():
    """It runs before anything is trusted: no site-packages, no environment, no user site."""
    loaded = loaded_by("import sys; sys.path.insert(0, 'src'); import casemate.device.sandbox", "-I", "-S")
    ours = {name for name in loaded if name.partition(".")[0] == "casemate"}
    assert ours
    assert {name.partition(".")[0] for name in loaded} <= sys.stdlib_module_names | {"casemate", "__main__"}


def requirements(kind: str) -> dict[str, tuple[set[str], set[str]]]:
    """Return name -> (versions, hashes) of a requirements file; every line must be a pin or a hash."""
    found: dict[str, tuple[set[str], set[str]]] = {}
    name = ""
    for line in (ROOT / "requirements" / f"{kind}.txt").read_text(encoding="utf-8").splitlines():
        text = line.partition("#")[0].strip().removesuffix("\\").strip()
        if not text:
            continue
        if text.startswith("--hash=sha256:"):
            found[name][1].add(text.removeprefix("--hash="))
            continue
        pin = re.fullmatch(r"([a-z0-9.-]+)(?:\[[a-z0-9,-]+\])?==([^ ;]+)(?: ;.*)?", text)
        assert pin, f"not a pin: {line}"
        name = pin[1]
        found.setdefault(name, (set(), set()))[0].add(pin[2])
    return found


def test_a_device_install_pulls_no_server_or_test_packages():
    assert not set(requirements("device")) & (SERVER_ONLY | TEST_ONLY)


@pytest.mark.parametrize("kind", ["device", "dev"])
def test_every_requirement_is_pinned_by_hash_and_is_what_the_lock_says(kind):
    lock = tomllib.loads((ROOT / "uv.lock").read_text(encoding="utf-8"))
    locked: dict[str, dict[str, set[str]]] = {}
    for package in lock["package"]:
        files = [*package.get("wheels", []), *([package["sdist"]] if "sdist" in package else [])]
        hashes = {file["hash"] for file in files}
        locked.setdefault(package["name"], {}).setdefault(package.get("version", ""), set()).update(hashes)
    for name, (versions, hashes) in requirements(kind).items():
        assert hashes, f"{name} has no hash"
        assert versions <= set(locked[name])
        assert hashes <= set().union(*(locked[name][version] for version in versions))


def test_the_setup_script_installs_by_hash_only():
    script = (ROOT / "setup").read_text(encoding="utf-8")
    installs = re.findall(r"bin/pip [^\n]*install(?:[^\n]*\\\n)*[^\n]*", script)
    assert installs
    for line in installs:
        assert "--require-hashes" in line or "--no-deps --no-build-isolation -e ." in line
    assert "uv sync" in script
    assert all("--locked" in line for line in script.splitlines() if line.strip().startswith("uv sync"))
