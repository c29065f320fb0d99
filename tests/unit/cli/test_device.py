"""`casemate device key show`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from casemate.cli.main import root
from casemate.formats.grant import parse_recipient


def test_shows_the_recipient_that_a_release_is_granted_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CASEMATE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CASEMATE_KEYFILE", str(tmp_path / "device.key"))
    first = CliRunner().invoke(root, ["device", "key", "show", "--json"])
    again = CliRunner().invoke(root, ["device", "key", "show"])
    assert first.exit_code == 0, first.output
    shown = json.loads(first.stdout)
    assert shown["recipient"] == again.stdout.strip()
    assert len(parse_recipient(shown["recipient"])) == 32
