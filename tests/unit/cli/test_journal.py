"""`casemate journal` as a person and a script see it, on a home with a real keystore and no device."""

from __future__ import annotations

import json
import stat
import subprocess
import tarfile
import threading
import time

import pytest

from casemate import keystores
from casemate.cli.main import run
from casemate.device.home import Home
from casemate.device.journal import JournalWriter, append_offline
from casemate.errors import BusyError
from casemate.formats import event, tlog

FACTS = {"size", "root", "origin", "pending", "epochs"}


@pytest.fixture
def home(home_path):
    made = Home(home_path).create()
    keystores.create(made, keystores.from_environment(made, ask=None)).wipe()
    return made


@pytest.fixture
def logged(home):
    for number in range(3):
        append_offline(home, [event.model_added(model=f"m{number}", digest="sha256:00", size=9, now=1_700_000_000)])
    return home


def casemate(capsys, *argv):
    code = run(["journal", *map(str, argv)])
    out, err = capsys.readouterr()
    return code, out, err


def rows(text):
    return [json.loads(line) for line in text.splitlines()]


def test_verify_says_size_and_root(logged, capsys):
    code, out, _ = casemate(capsys, "verify", "--json")
    (row,) = rows(out)
    assert (code, row["schema"], row["ok"], row["size"]) == (0, 1, True, 9)
    assert set(row) >= FACTS
    assert casemate(capsys, "verify")[0] == 0


def test_verify_names_the_check_that_failed(logged, capsys):
    bundle = next((logged.journal / "tile" / "entries").rglob("9"))
    data = bundle.read_bytes()
    bundle.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    code, out, _ = casemate(capsys, "verify", "--json")
    assert code == 10
    assert (rows(out)[0]["ok"], rows(out)[0]["failed"]) == (False, "entries")
    code, out, err = casemate(capsys, "verify")
    assert (code, out) == (10, "")
    assert "tile/entries/000.p/9 does not fit" in err


def test_nothing_to_verify_yet(home, capsys):
    code, _, err = casemate(capsys, "verify")
    assert code == 5
    assert "casemate up" in err


def test_show_decrypts_in_order(logged, capsys):
    code, out, _ = casemate(capsys, "show", "--json")
    assert code == 0
    shown = rows(out)
    assert [row["event"]["message"] for row in shown][1::2] == [f"model m{n} added (9 bytes)" for n in range(3)]
    assert {row["event"]["metadata"]["log_provider"] for row in shown} == {"journal", "cli"}
    assert all(row["published"] for row in shown)
    _, out, _ = casemate(capsys, "show", "-n", "2")
    assert len(out.splitlines()) == 2
    assert "2023-11-14 22:13:20Z  info      cli       model m2 added (9 bytes)" in out.splitlines()[-1]
    _, out, _ = casemate(capsys, "show", "-n", "0", "--json")
    assert len(rows(out)) == 6


def test_show_refuses_a_forged_log(logged, capsys):
    bundle = next((logged.journal / "tile" / "0").rglob("9"))
    data = bytearray(bundle.read_bytes())
    data[40] ^= 1
    bundle.write_bytes(bytes(data))
    code, out, err = casemate(capsys, "show")
    assert (code, out) == (10, "")
    assert "another root" in err


def test_against_a_kept_checkpoint(logged, capsys, tmp_path):
    kept = tmp_path / "kept"
    kept.write_bytes((logged.journal / "checkpoint").read_bytes())
    append_offline(logged, [event.backup_made(now=1.0)])
    assert casemate(capsys, "verify", "--against", kept)[0] == 0
    bad = kept.read_bytes().replace(b"\n9\n", b"\n8\n")
    kept.write_bytes(bad)
    code, out, _ = casemate(capsys, "verify", "--json", "--against", kept)
    assert (code, rows(out)[0]["failed"]) == (10, "against-log")


def test_prove_stands_alone(logged, capsys, tmp_path):
    code, out, _ = casemate(capsys, "prove", 4, "--json", "--out", tmp_path / "p", "--entry", tmp_path / "e")
    assert code == 0
    assert (tmp_path / "p").read_text() == rows(out)[0]["proof"]
    proof = tlog.parse_proof((tmp_path / "p").read_bytes())
    key = tlog.VerifierKey.parse((logged.journal / "log.vkey").read_text())
    assert proof.verify((tmp_path / "e").read_bytes(), [key]).size == 9
    assert casemate(capsys, "prove", 4)[1] == (tmp_path / "p").read_text()
    assert casemate(capsys, "prove", 9)[0] == 5


def test_an_export_verifies_elsewhere_with_a_pinned_key(logged, capsys, tmp_path):
    vkey = (logged.journal / "log.vkey").read_text().strip()
    code, out, _ = casemate(capsys, "export", tmp_path / "log.tar", "--json")
    assert (code, rows(out)[0]["size"]) == (0, 9)
    with tarfile.open(tmp_path / "log.tar") as tar:
        names = tar.getnames()
    (tmp_path / "copy").mkdir()
    subprocess.run(["tar", "-xf", tmp_path / "log.tar", "-C", tmp_path / "copy"], check=True)
    assert not {"log.key", "tail", "lock"} & set(names)
    code, out, _ = casemate(capsys, "verify", "--log", tmp_path / "copy", "--vkey", vkey, "--json")
    assert (code, rows(out)[0]["size"]) == (0, 9)
    other = str(tlog.VerifierKey("casemate/other", bytes(32)))
    code, out, _ = casemate(capsys, "verify", "--log", tmp_path / "copy", "--vkey", other, "--json")
    assert (code, rows(out)[0]["failed"]) == (10, "checkpoint-signature")
    assert "journal exported (9 entries)" in casemate(capsys, "show", "-n", "1")[1]


def test_a_clear_export_is_private_and_recorded(logged, capsys, tmp_path):
    code, _, _ = casemate(capsys, "export", "--decrypt", tmp_path / "log.jsonl")
    assert code == 0
    lines = rows((tmp_path / "log.jsonl").read_text())
    assert [line["event"]["metadata"]["event_code"] for line in lines][1::2] == ["model_added"] * 3
    assert stat.S_IMODE((tmp_path / "log.jsonl").stat().st_mode) == 0o600
    last = rows(casemate(capsys, "show", "--json", "-n", "1")[1])[0]["event"]
    assert last["unmapped"]["decrypted"] is True


def test_an_altered_log_is_archived_and_a_new_one_says_so(logged, capsys):
    tail = logged.journal / "tail"
    tail.write_bytes(tail.read_bytes()[:-20])
    assert casemate(capsys, "verify")[0] == 10
    assert casemate(capsys, "export", logged.path / "x")[0] == 10  # nothing is recorded behind a broken history
    code, out, _ = casemate(capsys, "archive", "--yes", "--json")
    assert code == 0
    assert rows(out)[0]["reason"] == "entries-missing"
    assert rows(out)[0]["size"] == 9
    assert rows(out)[0]["origin"] == f"casemate/{logged.id}/2"
    assert casemate(capsys, "verify")[0] == 0
    shown = rows(casemate(capsys, "show", "--json")[1])
    assert shown[-1]["event"]["message"] == "a journal of 9 entries was archived: entries-missing"
    assert (logged.journal / "archive" / "0001" / "log.key").exists()
    assert casemate(capsys, "archive")[0] == 2  # nobody at a terminal to say yes


def test_archive_while_a_device_writes_is_refused(logged, capsys, monkeypatch):
    class Now:
        def wall(self):
            return 1.0

        def monotonic(self):
            return 1e9

    with JournalWriter(logged.journal, home_id=logged.id, owner_public=bytes(31) + b"\x09", clock=Now()):
        assert casemate(capsys, "archive", "--yes")[0] == 6
        monkeypatch.setattr("casemate.device.journal.offline._PATIENCE", 0.0)
        with pytest.raises(BusyError):
            append_offline(logged, [event.backup_made(now=1.0)])


def test_follow_shows_what_comes(logged, capsys, monkeypatch):
    sleep = time.sleep

    def one_more(seconds, rounds=[]):  # noqa: B006 - counts its calls
        if threading.current_thread() is not threading.main_thread():
            return sleep(seconds)  # a thread that another test left behind
        rounds.append(1)
        if len(rounds) == 2:
            raise KeyboardInterrupt
        append_offline(logged, [event.backup_made(now=1.0)])
        return None

    monkeypatch.setattr("time.sleep", one_more)
    code, out, _ = casemate(capsys, "show", "--follow", "-n", "1")
    assert code == 130
    assert [line.split("  ")[-1].strip() for line in out.splitlines()] == [
        "model m2 added (9 bytes)",
        "journal epoch 3 opened",
        "home backed up",
    ]
