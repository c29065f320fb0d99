"""Homes come forward one schema at a time: whole or not at all, wherever a crash falls, and never from the future."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from casemate import keystores
from casemate.device import migrate
from casemate.device.home import SCHEMA, Home
from casemate.device.journal import LogFiles, Reader, verify
from casemate.errors import BusyError, ConfigError, OperationError


class Crash(BaseException):
    """The power went off: nothing after it runs, no handler cleans up."""


def old_home(path: Path) -> Home:
    """Make a home as a version before the first would have: apps in one list, a file nobody needs any more."""
    home = Home(path).create()
    keystores.create(home, keystores.from_environment(home)).wipe()
    (home.apps / "list.txt").write_text("kiosk\nmenu\n")
    (home.path / "obsolete").write_text("x")
    (home.path / "home.json").write_text(json.dumps({"schema": 0, "id": home.id}) + "\n")
    return Home(path)


def zero_to_one(home: Path) -> dict[str, bytes | None]:
    names = (home / "apps/list.txt").read_text().split()
    return {"apps/apps.json": json.dumps(names).encode(), "apps/list.txt": None, "obsolete": None}


STEPS = {0: zero_to_one}


def is_old(home: Home) -> bool:
    return (
        home.identity().schema == 0
        and (home.apps / "list.txt").read_text() == "kiosk\nmenu\n"
        and (home.path / "obsolete").exists()
        and not (home.apps / "apps.json").exists()
    )


def is_new(home: Home) -> bool:
    return (
        home.identity().schema == 1
        and json.loads((home.apps / "apps.json").read_text()) == ["kiosk", "menu"]
        and not (home.apps / "list.txt").exists()
        and not (home.path / "obsolete").exists()
    )


def migrations(home: Home) -> int:
    """Return how often the journal says that the home came forward."""
    with (
        keystores.unlock(home, keystores.from_environment(home)) as keystore,
        keystore.owner_private() as private,
    ):
        return sum(b"home_migrated" in shown.raw for shown in Reader(LogFiles(home.journal), private).events())


def test_the_released_table_has_a_step_for_every_schema_below_the_current():
    assert set(migrate.STEPS) == set(range(1, SCHEMA))


def test_a_home_comes_forward_and_the_journal_says_so(home_path):
    home = old_home(home_path)
    assert migrate.bring_forward(home, steps=STEPS) == (0, 1)
    assert is_new(home.open())
    assert migrations(home) == 1
    assert verify(LogFiles(home.journal)).size > 0
    assert migrate.bring_forward(home, steps=STEPS) is None


def test_the_originals_are_kept(home_path):
    home = old_home(home_path)
    migrate.bring_forward(home, steps=STEPS)
    kept = home.path / "before-schema-1"
    plan = json.loads((kept / "plan.json").read_text())
    old = {row["path"]: (kept / "old" / str(n)).read_text() for n, row in enumerate(plan["changes"]) if row["had"]}
    assert old["apps/list.txt"] == "kiosk\nmenu\n"
    assert json.loads(old["home.json"])["schema"] == 0


def test_several_steps_run_in_order(home_path):
    home = old_home(home_path)
    steps = {**STEPS, 1: lambda top: {"apps/apps.json": (top / "apps/apps.json").read_bytes() + b"!"}}
    assert migrate.bring_forward(home, steps=steps, target=2) == (0, 2)
    assert home.identity().schema == 2
    assert (home.apps / "apps.json").read_text().endswith("!")
    with pytest.raises(ConfigError, match="understands up to 1"):
        home.open()


@pytest.mark.parametrize("operation", ["write_atomic", "sync_directory", "_carry_out", "record", "_finish"])
def test_a_crash_anywhere_leaves_the_old_home_or_one_that_the_next_start_completes(home_path, monkeypatch, operation):
    """Crash before and after every call of each durable operation in turn."""
    seen_old = seen_between = False
    real = getattr(migrate, operation)
    for late in (False, True):
        for nth in range(1, 50):
            path = home_path.with_name(f"{home_path.name}-{late}-{nth}")
            home, calls = old_home(path), []

            def crashing(*args, _calls=calls, _nth=nth, _late=late, **more):
                _calls.append(1)
                if len(_calls) == _nth and not _late:
                    raise Crash
                result = real(*args, **more)
                if len(_calls) == _nth:
                    raise Crash
                return result

            with monkeypatch.context() as patch:
                patch.setattr(migrate, operation, crashing)
                try:
                    migrate.bring_forward(home, steps=STEPS)
                except Crash:
                    pass
                else:
                    break
            if not (home.path / ".migration/plan.json").exists() and home.identity().schema == 0:
                assert is_old(home)
                seen_old = True
            seen_between = seen_between or (home.path / ".migration/plan.json").exists()
            migrate.bring_forward(home, steps=STEPS)
            assert is_new(home)
            assert not (home.path / ".migration").exists()
            assert 1 <= migrations(home) <= 2
        else:
            pytest.fail("never ran to the end")
    assert seen_old or seen_between


def test_a_full_disk_leaves_the_home_as_it_was(home_path, monkeypatch):
    home = old_home(home_path)

    def full(*_args, **_more):
        raise OperationError("cannot write: No space left on device")

    monkeypatch.setattr(migrate, "write_atomic", full)
    with pytest.raises(OperationError, match="No space"):
        migrate.bring_forward(home, steps=STEPS)
    assert is_old(home)


def test_a_home_of_the_future_is_refused_and_untouched(home_path):
    home = old_home(home_path)
    (home.path / "home.json").write_text(json.dumps({"schema": 7, "id": home.identity().id}))
    with pytest.raises(ConfigError, match="schema 7; this casemate understands up to 1") as caught:
        migrate.bring_forward(home, steps=STEPS)
    assert "upgrade" in caught.value.hint
    assert (home.apps / "list.txt").exists()


def test_a_home_without_a_step_is_refused(home_path):
    home = old_home(home_path)
    with pytest.raises(ConfigError, match="no step leads on from schema 0"):
        migrate.bring_forward(home, steps={})
    assert is_old(home)


def test_commands_do_not_work_on_a_home_that_has_not_come_forward(home_path):
    home = old_home(home_path)
    with pytest.raises(ConfigError, match="schema 0") as caught:
        Home(home_path).open()
    assert "casemate up" in caught.value.hint
    with pytest.raises(ConfigError, match="schema 0"):
        Home(home_path).create()
    assert is_old(home)


@pytest.mark.parametrize("raw", [b"", b"{}", b"\xff", b'{"\xff":0}'])
def test_a_damaged_plan_is_refused_with_the_fix(home_path, raw):
    home = old_home(home_path)
    (home.path / ".migration").mkdir()
    (home.path / ".migration/plan.json").write_bytes(raw)
    with pytest.raises(ConfigError, match="is damaged") as caught:
        migrate.bring_forward(home, steps=STEPS)
    assert "backup" in caught.value.hint


def test_a_running_device_keeps_its_home(home_path):
    home = old_home(home_path)
    with Home(home_path).lock(), pytest.raises(BusyError):
        migrate.bring_forward(home, steps=STEPS)
    assert is_old(home)


def test_no_home_needs_no_migration(tmp_path):
    assert migrate.bring_forward(Home(tmp_path / "none")) is None
