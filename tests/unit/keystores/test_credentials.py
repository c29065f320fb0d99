"""A secret that the service manager hands over is judged by where it lies, not by who owns the copy."""

from __future__ import annotations

from pathlib import Path

import pytest

from casemate.keystores.evidence import judge_stored_secret


@pytest.mark.parametrize(
    ("where", "level"),
    [
        ("/run/credentials/casemate-vault.service/casemate-keys_00112233445566aa.key", "L1"),
        ("/run/credentialsx/key", "L0"),
        ("/run/other/credentials/key", "L0"),
    ],
)
def test_only_the_service_managers_own_directory_counts(tmp_path, where, level):
    (tmp_path / "keystore").mkdir()
    secret = tmp_path / "secret"
    secret.touch(mode=0o600)
    found = judge_stored_secret("key file", secret.stat(), Path(where), tmp_path)
    assert found.level == level
    assert ("credential of the service manager" in found.reasons[0]) is (level == "L1")
