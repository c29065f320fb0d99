"""A thief puts an older disk back, floors and their key and all, to run a release with a known hole once more.

Without a TPM that works: the control. With one, its counter has seen the update that the old disk has not.
"""

from __future__ import annotations

import os
import shutil

import msgspec
import pytest

from casemate import config, keystores
from casemate.device import generation
from casemate.device.home import Home
from casemate.device.update import counted
from casemate.device.update.floors import COUNTED, SOFTWARE, FileFloorStore, Floors
from casemate.errors import HostError, NotAuthorisedError, NotFoundError, UntrustedDataError
from casemate.keystores import tss
from support.swtpm import needs_swtpm, software_tpm

pytestmark = needs_swtpm
SECURE = Floors(security={"model/m": 2})


@pytest.fixture
def chip(tmp_path):
    with software_tpm(tmp_path / "tpm") as made:
        yield made


@pytest.fixture
def home(home_path):
    made = Home(home_path).create()
    os.chown(made.update, os.getuid(), os.getgid())  # as root the update uid would own it
    FileFloorStore(made.update).begin(Floors(trust="a" * 64))
    return made


def refused(home, tcti):
    with pytest.raises(UntrustedDataError) as caught:
        counted.hold(home.update, tcti)
    return caught.value.check


def commit(home, chip, floors=SECURE):
    """What the end of a soak does on a running device: the floors first, then the counter."""

    def rose(number):
        with tss.open_tpm(chip.tcti) as opened:
            assert counted.reach(opened, number) == number

    return FileFloorStore(home.update, rose=rose).raise_to(floors)


def test_an_older_disk_is_refused_by_the_counter_and_believed_without_one(home, chip, tmp_path, monkeypatch):
    counted.hold(home.update, chip.tcti)
    assert FileFloorStore(home.update).kind == COUNTED
    shutil.copytree(home.update, tmp_path / "backup")
    commit(home, chip)
    counted.hold(home.update, chip.tcti)
    shutil.rmtree(home.update)
    shutil.copytree(tmp_path / "backup", home.update)
    assert FileFloorStore(home.update).read().security == {}  # the control: whole, and its MAC holds
    assert refused(home, chip.tcti) == "floors-old"
    monkeypatch.setenv("CASEMATE_KEYSTORE_TPM", chip.tcti)
    with pytest.raises(UntrustedDataError, match="the TPM knows of updates"):
        generation.boot(home, config.load())
    chip.power_cycle()
    assert refused(home, chip.tcti) == "floors-old"
    counted.begin_anew(home.update, chip.tcti)  # a person said so
    counted.hold(home.update, chip.tcti)


def test_a_disk_from_before_the_tpm_held_the_floors_is_refused(home, chip, tmp_path):
    shutil.copytree(home.update, tmp_path / "backup")
    assert FileFloorStore(home.update).kind == SOFTWARE
    counted.hold(home.update, chip.tcti)
    shutil.rmtree(home.update)
    shutil.copytree(tmp_path / "backup", home.update)
    assert refused(home, chip.tcti) == "floors-old"


def test_deleting_the_counter_does_not_help(home, chip):
    counted.hold(home.update, chip.tcti)
    commit(home, chip)
    with tss.open_tpm(chip.tcti) as opened:
        opened.undefine_counter(counted.COUNTER)
    assert refused(home, chip.tcti) == "floors-old"
    with tss.open_tpm(chip.tcti) as opened:
        opened.define_counter(counted.COUNTER)
    assert refused(home, chip.tcti) == "floors-old"


def test_taking_the_setting_out_does_not_make_the_floors_a_files_word_again(home, chip, tmp_path, monkeypatch):
    counted.hold(home.update, "")  # the control: what no TPM ever counted is believed as it stands
    counted.hold(home.update, chip.tcti)
    shutil.copytree(home.update, tmp_path / "backup")
    commit(home, chip)
    assert refused(home, "") == "floors-uncounted"
    shutil.rmtree(home.update)
    shutil.copytree(tmp_path / "backup", home.update)
    assert refused(home, "") == "floors-uncounted"
    monkeypatch.delenv("CASEMATE_KEYSTORE_TPM", raising=False)
    with pytest.raises(UntrustedDataError, match="the settings name none") as caught:
        generation.boot(home, config.load())
    assert "keystore.tpm" in caught.value.hint
    floors = FileFloorStore(home.update)
    known = floors.read()
    floors.path.write_bytes(floors.path.read_bytes().replace(b'"base":', b'"abse":'))
    assert refused(home, "") in {"floors-form", "floors-mac"}
    floors.begin(msgspec.structs.replace(known, base=None, commits=0))  # who has the floors' key and the settings...
    counted.hold(home.update, "")  # ...has a device of before the TPM: what the documents say is left
    assert refused(home, chip.tcti) == "floors-old"  # and nothing where the TPM is asked


def test_who_says_so_begins_anew_without_the_tpm(home, chip):
    counted.hold(home.update, chip.tcti)
    FileFloorStore(home.update).begin(Floors(trust="b" * 64))  # `update trust --forget-floors`
    counted.begin_anew(home.update, "")
    counted.hold(home.update, "")
    assert FileFloorStore(home.update).kind == SOFTWARE


def test_a_tpm_that_is_named_and_does_not_answer_stops_the_start(home, chip, monkeypatch):
    monkeypatch.setenv("CASEMATE_KEYSTORE_TPM", chip.tcti)
    generation.boot(home, config.load())  # the control: it answers
    chip.power_off()
    with pytest.raises(HostError, match="counts this device's updates") as caught:
        generation.boot(home, config.load())
    assert "is there a TPM" in caught.value.hint


def test_a_cut_between_floors_and_counter_is_caught_up(home, chip):
    counted.hold(home.update, chip.tcti)
    FileFloorStore(home.update).raise_to(SECURE)  # the power fails before the counter rises
    counted.hold(home.update, chip.tcti)
    with tss.open_tpm(chip.tcti) as opened:
        assert opened.counter(counted.COUNTER) == FileFloorStore(home.update).read().counter


def test_what_raises_no_security_floor_wears_no_memory(home, chip):
    counted.hold(home.update, chip.tcti)
    before = FileFloorStore(home.update).read().counter
    assert commit(home, chip, Floors(versions={"timestamp": 9}, clock=7)).counter == before


def test_after_a_wipe_a_copy_of_the_keystore_does_not_open_with_its_own_tpm(home, chip):
    sources = keystores.Sources(home, tpm=chip.tcti)
    keystores.create(home, sources).wipe()
    keystores.unlock(home, sources).wipe()  # the control: the copy is as good as the original
    with tss.open_tpm(chip.tcti) as opened:
        opened.undefine_counter()
        opened.undefine_counter()  # twice is the same as once
    with pytest.raises(NotFoundError, match="no counter of ours"):
        keystores.unlock(home, sources)
    with tss.open_tpm(chip.tcti) as opened:
        opened.define_counter()
    with pytest.raises(NotAuthorisedError):
        keystores.unlock(home, sources)
