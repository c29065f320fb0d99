"""The TPM as a way in: this chip in this state, and no older sealing. On a real software TPM."""

from __future__ import annotations

import os

import pytest

from casemate import keystores
from casemate.device import rotation
from casemate.device.home import Home
from casemate.errors import NotAuthorisedError, UntrustedDataError
from casemate.formats.keystore import TpmSlot
from casemate.keystores import tss
from support.swtpm import needs_swtpm, software_tpm

pytestmark = needs_swtpm


@pytest.fixture
def chip(tmp_path):
    with software_tpm(tmp_path / "tpm") as made:
        yield made


@pytest.fixture
def home(home_path):
    return Home(home_path).create()


def sources(home, chip, **more):
    return keystores.Sources(home, environ=dict(os.environ), tpm=chip.tcti, **more)


def test_a_keystore_made_with_a_tpm_is_opened_by_it_and_by_nothing_else(home, chip):
    with keystores.create(home, sources(home, chip)) as made:
        assert made.opened_by == "tpm"
        key = made.key_id
    with keystores.unlock(home, sources(home, chip)) as again:
        assert again.key_id == key
    with pytest.raises(NotAuthorisedError, match="opened by a TPM"):
        keystores.unlock(home, keystores.Sources(home, environ=dict(os.environ)))


def test_a_program_that_says_it_is_a_tpm_binds_nothing_to_a_machine(home, chip):
    keystores.create(home, sources(home, chip)).wipe()
    found = keystores.describe(home, sources(home, chip))
    assert (found.kind, found.level) == ("tpm", "L0")
    assert "a program" in found.reasons[0]


def test_a_copied_home_does_not_open_with_another_tpm(home, chip, tmp_path):
    keystores.create(home, sources(home, chip)).wipe()
    with software_tpm(tmp_path / "thief") as other, pytest.raises(NotAuthorisedError, match="not the TPM"):
        keystores.unlock(home, sources(home, other))


def test_changed_firmware_keys_lock_it(home, chip):
    keystores.create(home, sources(home, chip)).wipe()
    with tss.open_tpm(chip.tcti) as opened:
        opened.extend(7, b"k" * 32)
    with pytest.raises(NotAuthorisedError, match="does not release"):
        keystores.unlock(home, sources(home, chip))
    chip.power_cycle()
    keystores.unlock(home, sources(home, chip)).wipe()


def test_after_a_rotation_the_chip_itself_refuses_an_old_copy(home, chip):
    keystores.create(home, sources(home, chip)).wipe()
    old = (home.keystore / "keystore.json").read_bytes()
    done = rotation.rotate(home, sources(home, chip), sources(home, chip), to="tpm", show=lambda _: None)
    assert done.kind == "tpm"
    keystores.unlock(home, sources(home, chip)).wipe()
    (home.keystore / "keystore.json").write_bytes(old)
    with pytest.raises(NotAuthorisedError, match="does not release"):
        keystores.unlock(home, sources(home, chip))


def test_a_rotation_that_never_finished_leaves_the_old_way_open(home, chip):
    """Power fails between sealing and writing: the counter is raised last, so the old keystore.json still opens."""
    keystores.create(home, sources(home, chip)).wipe()
    sources(home, chip).tpm_keystore().enrol()
    keystores.unlock(home, sources(home, chip)).wipe()


def test_moving_from_a_key_file_to_the_tpm_and_back(home, chip):
    keystores.create(home, keystores.Sources(home, environ=dict(os.environ))).wipe()
    for kind in ("tpm", "keyfile"):
        rotation.rotate(home, sources(home, chip), sources(home, chip), to=kind, show=lambda _: None)
        assert keystores.describe(home, sources(home, chip)).kind == kind
        keystores.unlock(home, sources(home, chip)).wipe()
        if kind == "tpm":
            sealed = (home.keystore / "keystore.json").read_bytes()
    (home.keystore / "keystore.json").write_bytes(sealed)
    with pytest.raises(NotAuthorisedError, match="does not release"):
        keystores.unlock(home, sources(home, chip))


def test_the_vault_gets_what_the_tpm_released_and_no_way_to_the_tpm(home, chip):
    with keystores.create(home, sources(home, chip)) as made:
        key = made.key_id
    handed = sources(home, chip).descriptors()
    chip.power_off()
    try:
        with keystores.unlock(home, keystores.from_handover(home, handed)) as opened:
            assert (opened.key_id, opened.assurance.level) == (key, "L0")
    finally:
        os.close(handed["tpm"])


def test_a_changed_slot_is_refused(home, chip):
    keystores.create(home, sources(home, chip)).wipe()
    path = home.keystore / "keystore.json"
    slot = next(one for one in keystores.read_document(home).slots if isinstance(one, TpmSlot))
    path.write_bytes(path.read_bytes().replace(b'"limit": %d' % slot.approval.limit, b'"limit": 99'))
    with pytest.raises((NotAuthorisedError, UntrustedDataError)):
        keystores.unlock(home, sources(home, chip))
