"""`casemate update demo` shows every step, and says so when one fails."""

from __future__ import annotations

import json

import pytest

from casemate.cli import update_tour
from support.device import cli, environment

STEPS = ["release", "first", "trial", "delta", "killed", "bad", "denied", "backwards", "replay", "import"]


@pytest.mark.long
@pytest.mark.timeout(600)
def test_each_step_does_what_it_must(tmp_path):
    done = cli(environment(tmp_path / "home"), "update", "demo", "--json", check=False, within=400)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["step"] for row in rows] == STEPS
    assert [row["step"] for row in rows if not row["ok"]] == [], done.stdout
    assert done.returncode == 0
    assert not (tmp_path / "home").exists(), "it touched the home"


def test_one_broken_step_fails_the_demo(monkeypatch, capsys):
    def broken(_tour):
        raise RuntimeError("no such luck")

    monkeypatch.setattr(update_tour, "STEPS", (("broken", "a step that breaks", broken),))
    assert update_tour.run(as_json=True) == 1
    (row,) = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (row["ok"], row["detail"]) == (False, "RuntimeError: no such luck")
