from __future__ import annotations

import json
import os
import threading

from click.testing import CliRunner

from casemate.cli.main import root


def run(*args, text=""):
    return CliRunner().invoke(root, ["guard", "redact", *args], input=text, catch_exceptions=False)


def rows(tmp_path, lines, *args):
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(
        b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)
    )
    result = run("--jsonl", str(source), "--out", str(out), *args)
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_text_in_redacted_text_out():
    result = run(text="mail bob@x.org on 2024-05-06\n")
    assert result.exit_code == 0
    assert result.output.startswith("mail [EMAIL_ADDRESS_")
    assert "[DATE_TIME_" in result.output


def test_spans_on_request():
    body = json.loads(run("--json", text="caf\u00e9 bob@x.org").output)
    assert (body["schema"], body["spans"]) == (1, [{"start": 5, "end": 14, "type": "EMAIL_ADDRESS"}])


def test_rows_in_order_with_offsets_of_the_input(tmp_path):
    first, second, bad, third = rows(
        tmp_path,
        [
            {"id": "a", "text": "\U0001f600 ghp_" + "a1B2" * 9},
            {"id": 2, "text": "nothing here"},
            b"not json",
            {"id": "c", "text": "see https://x.example/a"},
        ],
    )
    assert first["spans"] == [{"start": 2, "end": 42, "type": "github-pat"}]
    assert second == {"id": 2, "text": "nothing here", "spans": []}
    assert bad == {"id": None, "text": "", "spans": [], "error": "invalid-row"}
    assert third["spans"][0]["type"] == "URL"


def test_a_policy_decides_what_is_replaced(tmp_path):
    policy = tmp_path / "app.toml"
    policy.write_text('[guard]\noutput = { "*" = "redact", "pii:EMAIL_ADDRESS" = "allow" }\n')
    result = run("--policy", str(policy), text="bob@x.org 4111 1111 1111 1111")
    assert result.output.startswith("bob@x.org [CREDIT_CARD_"), result.output


def test_in_and_out_go_together(tmp_path):
    result = CliRunner().invoke(root, ["guard", "redact", "--out", str(tmp_path / "x")])
    assert result.exit_code == 2


def test_a_line_without_end_is_one_row_that_lets_nothing_out(tmp_path, monkeypatch):
    monkeypatch.setattr("casemate.cli.guard_rows.LINE_LIMIT", 200)
    long = json.dumps({"id": "long", "text": "bob@x.org " * 90}).encode()
    twice = b'{"id":"twice","text":"a","text":"bob@x.org"}'
    found = rows(tmp_path, [{"id": "a", "text": "x"}, long, twice, {"id": "c", "text": "y"}])
    assert [(row["id"], row.get("error")) for row in found] == [
        ("a", None),
        (None, "invalid-row"),
        (None, "invalid-row"),
        ("c", None),
    ]


def test_rows_go_into_a_device_as_they_are(tmp_path):
    source, pipe = tmp_path / "in.jsonl", tmp_path / "pipe"
    source.write_text(json.dumps({"id": "a", "text": "bob@x.org"}) + "\n")
    os.mkfifo(pipe)
    got = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_text()))
    reader.start()
    result = run("--jsonl", str(source), "--out", str(pipe))
    reader.join(20)
    assert result.exit_code == 0, result.output
    assert json.loads(got[0])["text"].startswith("[EMAIL_ADDRESS_")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["in.jsonl", "pipe"]
