"""`casemate fleet simulate` says the same thing for the same seed, and its last line is the outcome."""

from __future__ import annotations

import json

import pytest

from casemate.cli.main import run


def lines(capsys, *arguments):
    code = run(["fleet", "simulate", *arguments, "--json"])
    return code, [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_bad_release_is_paused_and_the_last_line_says_how_far_it_came(capsys):
    code, told = lines(capsys, "--devices", "1000000", "--fail-rate", "0.05", "--seed", "3")
    assert code == 0
    assert told[-1]["state"] == "paused"
    assert told[-1]["exposed"] < 1000
    assert "failed" in told[-1]["why"]
    assert all(line["schema"] == 1 for line in told)
    again = lines(capsys, "--devices", "1000000", "--fail-rate", "0.05", "--seed", "3")[1]
    assert [{**line, "cpu_seconds": 0} for line in again] == [{**line, "cpu_seconds": 0} for line in told]


@pytest.mark.parametrize("count", ["40", "500"])  # a whole server, and its decisions alone
def test_a_good_release_is_done(capsys, count):
    _, told = lines(capsys, "--devices", count, "--fail-rate", "0.001")
    assert (told[-1]["state"], told[-1]["exposed"]) == ("done", int(count))
    assert [line["offered"] for line in told[:-1]] == sorted(line["offered"] for line in told[:-1])


@pytest.mark.parametrize("wrong", [["--devices", "0"], ["--fail-rate", "2"], ["--baseline", "0.9"]])
def test_numbers_that_make_no_fleet_are_refused(capsys, wrong):
    code = run(["fleet", "simulate", "--devices", "10", "--fail-rate", "0.1", *wrong, "--json"])
    assert code == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "usage"
