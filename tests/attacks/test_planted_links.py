"""A taken-over process waits for root: in the directory it owns it plants a link where a command of root's will write.

Every case is run twice: as the product does it, and with the defence taken away, when the victim must be harmed.
"""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
from pathlib import Path

import pytest

from casemate.device import models, ownership
from casemate.device.home import Home, owner_of
from casemate.device.journal import append_offline, offline
from casemate.device.ownership import hand_over
from casemate.device.service.setup import open_run
from casemate.errors import CasemateError
from casemate.formats import event
from casemate.keystores.files import replace_small
from support import homes

pytestmark = pytest.mark.root


@pytest.fixture
def home(tmp_path, monkeypatch) -> Home:
    return homes.make(tmp_path, monkeypatch).home


@pytest.fixture
def victim(tmp_path) -> Path:
    """A directory of root's with a file in it, as /etc is."""
    folder = tmp_path / "etc"
    folder.mkdir(mode=0o700)
    (folder / "shadow").write_text("root:secret\n")
    (folder / "shadow").chmod(0o600)
    return folder


def looks(folder: Path) -> list[tuple[str, int, int, bytes]]:
    """Everything about *folder* that an attacker may not change."""
    rows = []
    for path in (folder, *sorted(folder.rglob("*"))):
        facts = path.lstat()
        data = path.read_bytes() if stat.S_ISREG(facts.st_mode) else b""
        rows.append((str(path), facts.st_uid, facts.st_mode, data))
    return rows


def plant(place: Path, target: Path, role: str) -> None:
    """Make *place* a link to *target*, as the process *role* could."""
    owner = owner_of(role)
    assert owner
    assert place.parent.stat().st_uid == owner.uid, "the process could not plant it: this is no attack"
    if place.exists():
        place.rename(place.with_name(".aside"))
    place.symlink_to(target)
    os.chown(place, owner.uid, owner.gid, follow_symlinks=False)


def note(home: Home) -> None:
    """What every command of root's does while no device runs."""
    append_offline(home, [event.backup_made(now=1.0)])


def take_lock(home: Home) -> None:
    with home.lock():
        pass


CASES = {
    "the device's lock, on a file": ("run/lock", "shadow", "agent", take_lock),
    "the device's lock, on nothing": ("run/lock", "cron.d", "agent", take_lock),
    "the journal's lock": ("journal/lock", "cron.d", "journal", note),
    "a folder of the journal": ("journal/epochs", "", "journal", note),
    "the folder of the link socket": ("run/link", "", "agent", open_run),
}


def attack(case: str, home: Home, victim: Path) -> None:
    name, target, role, command = CASES[case]
    if role == "journal":
        note(home)
    plant(home.path / name, victim / target if target else victim, role)
    with contextlib.suppress(CasemateError):
        command(home)


@pytest.mark.parametrize("case", CASES)
def test_root_follows_no_link_that_a_process_planted(home, victim, case):
    before = looks(victim)
    attack(case, home, victim)
    assert looks(victim) == before


@pytest.mark.parametrize("case", CASES)
def test_control_without_the_defence_the_victim_is_changed(home, victim, case, monkeypatch):
    monkeypatch.setattr(os, "O_NOFOLLOW", 0)
    monkeypatch.setattr(ownership, "_LOOK", os.O_RDONLY)
    monkeypatch.setattr(offline, "rights_of_owner", lambda _directory: contextlib.nullcontext())
    before = looks(victim)
    attack(case, home, victim)
    assert looks(victim) != before


def test_what_root_writes_in_the_journal_is_the_journals(home):
    note(home)
    owner = owner_of("journal")
    assert {path.stat().st_uid for path in home.journal.rglob("*")} == {owner.uid}
    assert os.geteuid() == os.getegid() == 0


def test_handing_over_a_home_gives_away_neither_linked_nor_hard_linked_files(home, victim):
    before = looks(victim)
    plant(home.journal / "a", victim / "shadow", "journal")
    plant(home.journal / "b", victim, "journal")
    os.link(victim / "shadow", home.journal / "c")
    hand_over(home)
    assert looks(victim) == before


PIPES = {
    "a leftover of the models": ("models/.new-0", models.list_models),
    "a leftover of the keystore": (
        "keystore/.keystore.json.0.tmp",
        lambda home: replace(home.keystore / "keystore.json"),
    ),
}


def replace(path: Path) -> None:
    replace_small(path, path.read_bytes(), "keystore")


@pytest.mark.timeout(30)
@pytest.mark.parametrize("case", PIPES)
def test_a_planted_pipe_does_not_hang_root(home, case):
    name, command = PIPES[case]
    os.mkfifo(home.path / name)
    command(home)  # the time limit above is the check: who opens the pipe waits for ever


def test_control_who_opens_a_pipe_as_a_file_waits_for_ever(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(subprocess.TimeoutExpired):
        subprocess.run(["cat", str(tmp_path / "pipe")], timeout=0.5, check=False)
