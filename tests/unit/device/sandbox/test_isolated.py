"""The launcher is the first code inside the sandbox: it may need nothing but the standard library."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import casemate

SOURCE = Path(casemate.__file__).parents[1]


def test_it_runs_without_any_installed_package():
    load = f"import sys; sys.path.append({str(SOURCE)!r}); import casemate.device.sandbox.__main__"
    program = f"{load}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, check=True)
    outside = {
        name
        for name in done.stdout.split()
        if name.split(".")[0] not in sys.stdlib_module_names | {"casemate", "__main__", "sitecustomize"}
    }
    ours = {name for name in done.stdout.split() if name.startswith("casemate")}
    assert not outside
    assert ours <= {"casemate", "casemate.errors", "casemate.device"} | {
        name for name in ours if name.startswith("casemate.device.sandbox")
    }
