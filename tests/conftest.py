"""Deterministic property tests, no proxies, and a throw-away home for every test that asks."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import hypothesis
import pytest

hypothesis.settings.register_profile(
    "check",
    derandomize=True,
    deadline=None,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.data_too_large],
)
hypothesis.settings.register_profile("long", parent=hypothesis.settings.get_profile("check"), max_examples=2000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "check"))


def pytest_configure(config: pytest.Config) -> None:
    """As root the device's processes have uids of their own: their scratch must not lie below a 0700 directory."""
    if os.geteuid() == 0 and not config.option.basetemp:
        scratch = Path(tempfile.mkdtemp(prefix="casemate-tests-"))
        scratch.chmod(0o755)
        config.option.basetemp = scratch / "run"
        config.add_cleanup(lambda: shutil.rmtree(scratch, ignore_errors=True))


@pytest.fixture(autouse=True, scope="session")
def _scratch_others_may_enter(tmp_path_factory, request):
    base = tmp_path_factory.getbasetemp()
    base.chmod(0o755)
    if hasattr(request.config, "workerinput"):  # one of several: its directory lies in the whole run's
        base.parent.chmod(0o755)


@pytest.fixture(autouse=True)
def _tmp_path_others_may_enter(request):
    if "tmp_path" in request.fixturenames:
        request.getfixturevalue("tmp_path").chmod(0o755)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run long tests only when `-m` asks for them; skip root tests, with the reason, for an ordinary user."""
    wants_long = "long" in (config.getoption("-m") or "")
    for item in items:
        if "long" in item.keywords and not wants_long:
            item.add_marker(pytest.mark.skip(reason="runs in `make check-long`"))
        if "root" in item.keywords and os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="needs root"))


@pytest.fixture
def home_path(tmp_path, monkeypatch):
    """Point CASEMATE_HOME at an empty place and keep key files out of the user's real configuration."""
    path = tmp_path / "home"
    monkeypatch.setenv("CASEMATE_HOME", str(path))
    monkeypatch.setenv("CASEMATE_KEYFILE", str(tmp_path / "keys" / "device.key"))
    monkeypatch.delenv("CASEMATE_PASSPHRASE_FILE", raising=False)
    return path
