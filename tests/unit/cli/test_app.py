"""`casemate app` as a script and as a person meet it."""

from __future__ import annotations

import json

import pytest

from casemate.cli.main import run
from casemate.device import record as record_module
from casemate.device.apps import read_apps
from casemate.device.home import Home
from casemate.errors import OperationError


@pytest.fixture
def home(home_path, monkeypatch):
    home_path.parent.chmod(0o755)
    home = Home(home_path).create()
    home.told = []
    monkeypatch.setattr(record_module, "record", lambda where, *events: home.told.extend(events))
    return home


def call(capsys, *arguments):
    code = run(["app", *arguments])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def as_json(capsys, *arguments):
    code, out, _ = call(capsys, *arguments, "--json")
    return code, json.loads(out)


def test_add_prints_the_key_once_and_it_works(home, capsys):
    code, made = as_json(capsys, "add", "kitchen")
    assert code == 0
    assert made == {"schema": 1, "app": "kitchen", "key": made["key"]}
    assert read_apps(home.apps).find(made["key"]).name == "kitchen"
    for arguments in (["list"], ["show", "kitchen"]):
        assert made["key"][13:] not in call(capsys, *arguments)[1]


def test_for_a_person_only_the_key_is_on_stdout(home, capsys):
    _, out, err = call(capsys, "add", "kitchen")
    assert out.startswith("cmk_")
    assert len(out.splitlines()) == 1
    assert "only time" in err


def test_every_change_is_journaled_by_name(home, capsys, tmp_path):
    policy = tmp_path / "p.toml"
    policy.write_text("max_choices = 2")
    for arguments in (["add", "a"], ["rotate", "a"], ["policy", "a", str(policy)], ["rm", "a", "--yes"]):
        assert call(capsys, *arguments)[0] == 0
    codes = [event["metadata"]["event_code"] for event in home.told]
    assert codes == ["app_added", "app_rotated", "config_changed", "app_removed"]
    assert "cmk_" not in json.dumps(home.told)


def test_a_policy_is_checked_before_anything_is_made(home, capsys, tmp_path):
    policy = tmp_path / "kitchen.toml"
    policy.write_text("max_choises = 2")
    code, said = as_json(capsys, "add", "kitchen", "--policy", str(policy))
    assert code == 2
    assert "kitchen.toml" in said["error"]["message"]
    assert "max_choices" in said["error"]["hint"]
    assert as_json(capsys, "list")[1]["apps"] == []
    policy.write_text('models = ["saffron"]')
    as_json(capsys, "add", "kitchen", "--policy", str(policy))
    assert as_json(capsys, "show", "kitchen")[1]["policy"]["models"] == ["saffron"]
    assert "guard.output" in call(capsys, "show", "kitchen")[1]


def test_mistakes_have_their_exit_codes(home, capsys):
    call(capsys, "add", "kitchen")
    assert call(capsys, "add", "kitchen")[0] == 2
    assert call(capsys, "add", "Kitchen!")[0] == 2
    assert call(capsys, "rotate", "nobody")[0] == 5
    assert call(capsys, "rm", "nobody", "--yes")[0] == 5
    assert call(capsys, "show", "nobody")[0] == 5


def test_removing_asks_first(home, capsys, monkeypatch):
    call(capsys, "add", "kitchen")
    code, _, err = call(capsys, "rm", "kitchen")
    assert (code, "add --yes" in err) == (2, True)  # nobody is here to answer
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("click.confirm", lambda *rest, **more: (_ for _ in ()).throw(KeyboardInterrupt))
    assert call(capsys, "rm", "kitchen")[0] == 130
    assert [app["app"] for app in as_json(capsys, "list")[1]["apps"]] == ["kitchen"]


def test_a_change_that_could_not_be_journaled_stands_and_says_so(home, capsys, monkeypatch):
    def away(where, *events):
        raise OperationError("the journal is away")

    monkeypatch.setattr(record_module, "record", away)
    code, out, err = call(capsys, "add", "kitchen")
    assert code == 0
    assert out.startswith("cmk_")
    assert "not in the journal" in err


def test_without_a_home_it_says_how_to_make_one(home_path, capsys):
    code, said = as_json(capsys, "list")
    assert code == 5
    assert "casemate up" in said["error"]["hint"]
