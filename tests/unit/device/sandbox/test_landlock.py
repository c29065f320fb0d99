from __future__ import annotations

import struct
import subprocess
import sys

import pytest

from casemate.device.sandbox import landlock
from casemate.errors import HostError

NEEDS = pytest.mark.skipif(landlock.abi() < 1, reason="no Landlock here")


def test_each_abi_gets_the_attribute_it_knows():
    """struct landlock_ruleset_attr grew twice; a kernel refuses bits or bytes from its future."""
    rights = {1: 0x1FFF, 2: 0x3FFF, 3: 0x7FFF, 4: 0x7FFF, 5: 0xFFFF, 6: 0xFFFF, 7: 0xFFFF}
    for version, expected in rights.items():
        attribute = landlock.ruleset_attribute(version)
        assert struct.unpack_from("=Q", attribute)[0] == expected
        assert len(attribute) == (8 if version < 4 else 16 if version < 6 else 24)


def test_no_landlock_is_exit_12_with_the_fix(monkeypatch):
    monkeypatch.setattr(landlock, "abi", lambda: 0)
    with pytest.raises(HostError) as caught:
        landlock.restrict()
    assert caught.value.exit_code == 12
    assert "CONFIG_SECURITY_LANDLOCK" in caught.value.hint


PROGRAM = """
import os, sys
from casemate.device.sandbox import landlock
fd = os.memfd_create("m")
os.write(fd, b"mine")
landlock.restrict(sys.argv[1:])
print(os.pread(os.open(f"/proc/self/fd/{fd}", os.O_RDONLY), 4, 0).decode())
for path, mode in (("/etc/hostname", "r"), ("/proc/self/status", "r"), ("/tmp", None)):
    try:
        open(path, mode) if mode else os.listdir(path)
        print("open", path)
    except PermissionError:
        print("denied")
if sys.argv[1:]:
    open(sys.argv[1] + "/x", "w").write("x")
    print("written")
"""


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-I", "-c", PROGRAM, *arguments], capture_output=True, text=True, check=True
    ).stdout.split()


@NEEDS
def test_an_empty_list_leaves_only_descriptors():
    assert run() == ["mine", "denied", "denied", "denied"]


@NEEDS
def test_one_directory_may_be_left(tmp_path):
    assert run(str(tmp_path))[-1] == "written"
