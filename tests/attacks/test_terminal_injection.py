"""A taken-over engine writes to the terminal or log of whoever started the device: escape sequences, or until the disk
is full. The engine must not hold that descriptor; the control shows that a process that was not told to let go does.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from support.device import running


def descriptors(pid: int) -> set[str]:
    return {str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()}


@pytest.fixture(scope="module")
def device(tmp_path_factory):
    root = tmp_path_factory.mktemp("terminal")
    root.chmod(0o755)
    with running(root / "home") as device:
        yield device


@pytest.mark.root
def test_the_engine_holds_neither_terminal_nor_log_nor_any_file(device):
    held = descriptors(device.pid_of("engine"))
    assert str(device.log) not in held
    own = {name for name in held if name.startswith("/proc/") and name.endswith("/status")}  # its own memory, read only
    assert len(own) <= 1
    assert {name.partition(":")[0] for name in held - own} <= {"socket", "/dev/null", "anon_inode", "pipe"}


@pytest.mark.root
def test_control_the_gateway_does_hold_the_log(device):
    assert str(device.log) in descriptors(device.pid_of("gateway"))
