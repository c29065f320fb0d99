"""Every decoder can be built and thrown away without harm.

msgspec 0.22 corrupts memory when a decoder whose type joins a `pattern` string with a list, dict or set is freed. The
fault shows long after, anywhere; the debug allocator shows it at once.
"""

from __future__ import annotations

import os
import subprocess
import sys

IMPORT_ALL = """
import importlib, pkgutil, casemate.formats
for module in pkgutil.walk_packages(casemate.formats.__path__, "casemate.formats."):
    importlib.import_module(module.name)
"""
FAULTY = """
import msgspec, typing
msgspec.json.Decoder(typing.Annotated[str, msgspec.Meta(pattern="^a")] | list[int])
"""


def run(code):
    environment = {**os.environ, "PYTHONMALLOC": "debug"}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment, check=False, capture_output=True, timeout=60).returncode


def test_decoders_of_all_formats_are_freed_cleanly():
    assert run(IMPORT_ALL) == 0


def test_the_debug_allocator_would_tell():
    assert run(FAULTY) != 0
