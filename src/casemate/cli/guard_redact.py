"""`casemate guard redact`: what the guard would replace in a text, or in a file of rows.

Without a policy every kind is replaced, also those that a policy has to name (dates, addresses of web pages): the tool
shows what can be found. Links are the business of answers and are left alone.
"""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from casemate.cli.output import emit, json_option, progress, say
from casemate.errors import OperationError

if TYPE_CHECKING:
    from casemate.guard import Channel, GuardPolicy, Redaction

KEY_BYTES: Final = 32


@click.command("redact")
@click.option("--channel", type=click.Choice(["system", "user", "document", "tool", "output"]), default="output",
              show_default=True, help="Where the text stands: a policy may treat channels differently.")  # fmt: skip
@click.option("--policy", "policy_file", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="An app's policy file; without one every kind is replaced.")  # fmt: skip
@click.option("--jsonl", "rows_file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Redact rows.")
@click.option("--out", "out_file", type=click.Path(dir_okay=False, path_type=Path), help="Where they go.")
@json_option
def command(
    *, channel: str, policy_file: Path | None, rows_file: Path | None, out_file: Path | None, as_json: bool
) -> None:
    """Replace personal data and secrets in the text on standard input.

    With --jsonl and --out, redact rows {"id","text"} instead: one row {"id","text","spans"} each, in order. Spans are
    offsets in code points of the input; docs/reference/guard-entities.md lists their types.
    """
    from casemate.guard import Channel

    policy = _policy(policy_file)
    if (rows_file is None) is not (out_file is None):
        raise click.UsageError("--jsonl and --out go together")
    if rows_file is not None and out_file is not None:
        count = redact_rows(rows_file, out_file, policy, Channel(channel))
        say(f"{count} rows redacted")
        return
    from casemate.cli.guard import read_stdin

    text = read_stdin().decode("utf-8", "replace")
    done = _redact(text, policy, Channel(channel))
    if as_json:
        emit({"text": done.text, "spans": spans_of(done)}, as_json=True, text="")
    else:
        click.echo(done.text, nl=not done.text.endswith("\n"))


def redact_rows(rows_file: Path, out_file: Path, policy: GuardPolicy, channel: Channel) -> int:
    """Redact every line of *rows_file* into *out_file* and return how many there were.

    Raises:
        OperationError: a file cannot be read or written.

    """
    from casemate.cli.guard_rows import lines_of, written

    count = 0
    try:
        size = rows_file.stat().st_size
        with rows_file.open("rb") as rows, written(out_file) as out, progress(size, "redacting") as advance:
            for line in lines_of(rows):
                advance(len(line))
                out.write(json.dumps(redact_line(line, policy, channel)).encode() + b"\n")
                count += 1
    except OSError as error:
        hint = "free some space, or choose another place"
        raise OperationError(f"cannot write {out_file}: {error.strerror}", hint=hint) from error
    return count


def redact_line(line: bytes, policy: GuardPolicy, channel: Channel) -> dict[str, Any]:
    """Return the redacted row of one input line; of a line that is no row, nothing is let out."""
    from casemate.cli.guard_rows import read_row

    try:
        row = read_row(line)
        name, text = row["id"], row["text"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return {"id": None, "text": "", "spans": [], "error": "invalid-row"}
    if not isinstance(name, str | int) or isinstance(name, bool) or not isinstance(text, str):
        return {"id": None, "text": "", "spans": [], "error": "invalid-row"}
    done = _redact(text, policy, channel)
    return {"id": name, "text": done.text, "spans": spans_of(done)}


def spans_of(done: Redaction) -> list[dict[str, Any]]:
    """Return the spans as rows spell them: kinds of personal data and ids of secret rules without their family."""
    return [
        {"start": span.start, "end": span.end, "type": span.type.partition(":")[2] or span.type} for span in done.spans
    ]


def _redact(text: str, policy: GuardPolicy, channel: Channel) -> Redaction:
    from casemate.guard.placeholders import Placeholders
    from casemate.guard.redact import redact_text

    return redact_text(text, policy, channel, Placeholders(secrets.token_bytes(KEY_BYTES)))


def _policy(path: Path | None) -> GuardPolicy:
    if path is not None:
        from casemate.cli.guard import load_policy

        return load_policy(path)
    return every_kind()


def every_kind() -> GuardPolicy:
    """Return the policy that replaces every kind but links."""
    from casemate.guard import Action, GuardPolicy
    from casemate.guard.entities import QUIET

    every: dict[str, Action] = {"*": Action.REDACT, "link:*": Action.ALLOW, **dict.fromkeys(QUIET, Action.REDACT)}
    return GuardPolicy(input_entities=every, output_entities=every)
