"""A mirror hands out another wheel under the same name and version. Installing by hash refuses it.

The control is the same install without hashes, which takes the swapped wheel.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

UV = Path(sys.executable).parent / "uv"
NAME = "honest_dependency-1.0-py3-none-any.whl"


def wheel(folder: Path, body: str) -> Path:
    """Make a wheel by hand: one module and the least metadata an installer accepts."""
    path = folder / NAME
    info = "honest_dependency-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("honest_dependency.py", body)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: honest-dependency\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def mirror(tmp_path):
    """Return a folder that serves as a package mirror, and the requirements that pin what it held at first."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    digest = hashlib.sha256(wheel(folder, "GOOD = True\n").read_bytes()).hexdigest()
    pinned = tmp_path / "pinned.txt"
    pinned.write_text(f"honest-dependency==1.0 --hash=sha256:{digest}\n")
    return folder, pinned


def install(folder: Path, target: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    base = [str(UV), "pip", "install", "--quiet", "--offline", "--no-index", "--no-cache", "--target", str(target)]
    return subprocess.run(
        [*base, "--find-links", str(folder), *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def test_a_swapped_wheel_is_refused_by_its_hash(mirror, tmp_path):
    folder, pinned = mirror
    wheel(folder, "import os  # evil\n")
    done = install(folder, tmp_path / "site", "--require-hashes", "-r", str(pinned))
    assert done.returncode != 0
    assert "hash" in done.stderr.lower()
    assert not (tmp_path / "site" / "honest_dependency.py").exists()


def test_the_pinned_wheel_installs(mirror, tmp_path):
    folder, pinned = mirror
    done = install(folder, tmp_path / "site", "--require-hashes", "-r", str(pinned))
    assert done.returncode == 0, done.stderr
    assert "GOOD" in (tmp_path / "site" / "honest_dependency.py").read_text()


def test_control_without_hashes_the_swapped_wheel_goes_in(mirror, tmp_path):
    folder, _ = mirror
    wheel(folder, "import os  # evil\n")
    done = install(folder, tmp_path / "site", "honest-dependency==1.0")
    assert done.returncode == 0, done.stderr
    assert "evil" in (tmp_path / "site" / "honest_dependency.py").read_text()
