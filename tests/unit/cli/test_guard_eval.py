from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from casemate.cli.main import root

CORPUS = Path(__file__).resolve().parents[2] / "corpus/guard"


def evaluated(*files):
    result = CliRunner().invoke(root, ["guard", "eval", "--json", *map(str, files)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.output)


def cell(body, name, measure):
    [found] = [row for row in body["redaction"] if (row["cell"], row["measure"]) == (name, measure)]
    return found


def labelled(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def value(text, word, kind):
    at = text.index(word)
    return {"text": text, "spans": [{"start": at, "end": at + len(word), "type": kind}]}


def test_the_corpus_holds_the_line():
    body = evaluated(CORPUS / "pii.jsonl", CORPUS / "secrets.jsonl")
    assert cell(body, "personal data, kind own-locales", "F2")["value"] >= 0.97
    assert cell(body, "personal data, kind free-text", "F2")["value"] >= 0.93
    assert cell(body, "personal data, kind obfuscated", "found")["value"] >= 0.95
    assert cell(body, "personal data, texts without", "wrongly cut")["value"] <= 0.015
    assert cell(body, "secrets", "found")["value"] >= 0.96
    assert cell(body, "secrets, kinds without their own form", "found")["value"] >= 0.92
    assert cell(body, "secrets, texts without", "wrongly cut")["value"] <= 0.03


def test_what_is_missed_and_what_is_wrongly_cut_both_count(tmp_path):
    found = value("mail bob@x.org now", "bob@x.org", "EMAIL_ADDRESS")
    missed = value("it was long ago", "long ago", "DATE_TIME")
    wrong = {"text": "bob@x.org again", "spans": []}
    body = evaluated(labelled(tmp_path / "a.jsonl", *[found] * 30, *[missed] * 30, *[wrong] * 60))
    assert cell(body, "personal data", "found")["value"] == 0.5
    assert cell(body, "personal data, texts without", "wrongly cut")["value"] == 1.0
    assert cell(body, "personal data", "F2")["value"] == round(5 * 30 / (5 * 30 + 4 * 30 + 60), 4)


def test_few_values_are_too_few_to_say(tmp_path):
    body = evaluated(labelled(tmp_path / "a.jsonl", value("mail bob@x.org now", "bob@x.org", "EMAIL_ADDRESS")))
    assert (cell(body, "personal data", "found")["value"], cell(body, "personal data", "found")["n"]) == (None, 1)


def test_rows_with_labels_and_rows_with_values_go_together(tmp_path):
    values = labelled(tmp_path / "a.jsonl", value("mail bob@x.org now", "bob@x.org", "EMAIL_ADDRESS"))
    labels = labelled(tmp_path / "b.jsonl", {"text": "hello there", "label": 0})
    body = evaluated(values, labels)
    assert body["cells"][0]["harmless"] == 1
    assert cell(body, "CPU time of the thread per KiB, redaction + injection", "p50")["n"] == 0


def test_values_outside_their_text_are_refused(tmp_path):
    bad = labelled(tmp_path / "a.jsonl", {"text": "abc", "spans": [{"start": 1, "end": 9, "type": "PERSON"}]})
    result = CliRunner().invoke(root, ["guard", "eval", str(bad)])
    assert result.exit_code != 0
    assert "labelled values" in str(result.exception)
