"""What an update takes over from the generation that runs."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from casemate.device.update import obtain
from casemate.errors import OperationError
from casemate.formats.manifest import File

BODY = b"schema = 1\n"
FILE = File("default.toml", len(BODY), hashlib.sha256(BODY).hexdigest())


def test_a_file_that_did_not_change_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / "default.toml").write_bytes(BODY)
    assert b"".join(obtain._pieces(tmp_path / "default.toml", FILE)) == BODY


@pytest.mark.parametrize("changed", [b"schema = 2\n", BODY * 2, b""], ids=["other", "longer", "empty"])
def test_one_that_this_disk_changed_is_not_blamed_on_the_update(tmp_path: Path, changed: bytes) -> None:
    """An UntrustedDataError would put the new, good release on the deny list."""
    (tmp_path / "default.toml").write_bytes(changed)
    with pytest.raises(OperationError, match="of the generation that runs was changed"):
        list(obtain._pieces(tmp_path / "default.toml", FILE))
