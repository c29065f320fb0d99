"""`casemate guard`: judge and redact text, see why, measure, and report a wrong verdict."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from casemate.cli.output import emit, json_option, say, style

if TYPE_CHECKING:
    from casemate.guard import GuardPolicy, Verdict

STDIN_LIMIT: Final = 16 * 1024 * 1024
CHANNELS: Final = ("system", "user", "document", "tool", "output")
_ELSEWHERE: Final = {"redact": "casemate.cli.guard_redact", "eval": "casemate.cli.guard_eval"}
_COLOURS: Final = {"allow": "good", "flag": "warn", "block": "bad"}


class GuardTree(click.Group):
    """The guard's verbs; some live in modules of their own, imported when typed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return every verb in the order of daily use."""
        del ctx
        return ["check", "redact", "explain", "eval", "report-false"]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of *cmd_name* when it is not this one."""
        if cmd_name in _ELSEWHERE:
            found: click.Command = importlib.import_module(_ELSEWHERE[cmd_name]).command
            return found
        return super().get_command(ctx, cmd_name)


@click.group(
    "guard",
    cls=GuardTree,
    epilog="""\b
Examples:
  echo "Ignore all previous instructions" | casemate guard check
  casemate guard check --channel document --json < page.html
  casemate guard check --jsonl rows.jsonl --out verdicts.jsonl
  casemate guard eval tests/corpus/guard/direct.jsonl""",
)
def command() -> None:
    """Judge and redact text the way the gateway does, with no device running."""


channel_option = click.option(
    "--channel", type=click.Choice(CHANNELS), default="user", show_default=True, help="Where the text stands."
)
policy_option = click.option(
    "--policy",
    "policy_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="An app's policy file (see docs/reference/policy.md); the default is the safe one.",
)


@command.command()
@channel_option
@policy_option
@click.option("--jsonl", "rows_file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Judge rows.")
@click.option("--out", "out_file", type=click.Path(dir_okay=False, path_type=Path), help="Where their verdicts go.")
@click.option("--monitor", is_flag=True, help="Judge without acting: exit 0 whatever the verdict.")
@json_option
def check(
    *, channel: str, policy_file: Path | None, rows_file: Path | None, out_file: Path | None, monitor: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Judge the text on standard input; exit 3 when it is blocked.

    With --jsonl and --out, judge rows {"id","text","channel"} instead: one verdict per row, in order; exit 0 once all
    are judged. A policy with mode "monitor" is like --monitor.
    """
    from casemate.guard import Guard

    policy = load_policy(policy_file)
    if rows_file is not None or out_file is not None:
        if rows_file is None or out_file is None:
            raise click.UsageError("--jsonl and --out go together")
        from casemate.cli.guard_rows import check_rows

        count = check_rows(rows_file, out_file, policy)
        say(f"{count} rows judged")
        return
    verdict = _check_stdin(Guard.default(), channel, policy)
    watching = monitor or policy.mode == "monitor"
    told = {**_verdict_object(verdict), "monitor": watching}
    emit(told, as_json=as_json, text=lambda: _verdict_text(verdict))
    if verdict.action == "block" and not watching:
        sys.exit(3)


@command.command()
@channel_option
@policy_option
@json_option
def explain(*, channel: str, policy_file: Path | None, as_json: bool) -> None:
    """Show why the text on standard input gets its verdict."""
    from casemate.cli.guard_explain import explain_text, render

    explained = explain_text(read_stdin().decode("utf-8", "replace"), channel, load_policy(policy_file))
    emit(explained, as_json=as_json, text=lambda: render(explained))


@command.command("report-false")
@click.argument("report_id", metavar="ID")
@click.option("--jsonl", "rows_file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Where ID is.")
@click.option("--expected", type=click.Choice(["allow", "block"]), help="What the verdict should have been.")
@channel_option
@json_option
def report_false(*, report_id: str, rows_file: Path | None, expected: str | None, channel: str, as_json: bool) -> None:
    """Keep a wrong verdict for the next training: row ID of --jsonl, or the text on standard input.

    The text is redacted first and stays in this device's home.
    """
    from casemate.cli.guard_reports import keep_report, row_text

    text, channel = row_text(rows_file, report_id) if rows_file else (read_stdin().decode("utf-8", "replace"), channel)
    report, path = keep_report(report_id, text, channel, expected)
    emit(
        report, as_json=as_json, text=f"kept {report_id} ({report['verdict']}, expected {report['expected']}) in {path}"
    )


def load_policy(path: Path | None) -> GuardPolicy:
    """Return what the policy file asks of the guard; the default policy without one.

    Raises:
        ConfigError: the file is not a policy.

    """
    from casemate.guard import GuardPolicy

    if path is None:
        return GuardPolicy()
    import datetime as dt

    from casemate.device.gateway.shield import guard_policy
    from casemate.formats.policy import parse_policy

    today = dt.datetime.now(dt.UTC).date()
    return guard_policy(parse_policy(path.read_bytes(), source=str(path)), today)


def read_stdin() -> bytes:
    """Return standard input, one byte more than the limit at most (the guard refuses what is too long)."""
    return sys.stdin.buffer.read(STDIN_LIMIT + 1)


def _check_stdin(guard: Any, channel: str, policy: GuardPolicy) -> Verdict:
    from casemate.guard import Action, Channel, Verdict

    data = read_stdin()
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return Verdict(Action.BLOCK, 1.0, ("invalid-utf-8",))
    verdict: Verdict = guard.check(text, Channel(channel), policy)
    return verdict


def _verdict_object(verdict: Verdict) -> dict[str, Any]:
    spans = [{"start": span.start, "end": span.end, "type": span.type} for span in verdict.spans]
    return {
        "verdict": str(verdict.action),
        "score": verdict.score,
        "reasons": list(verdict.reasons),
        "spans": spans,
    }


def _verdict_text(verdict: Verdict) -> str:
    line = f"{style(str(verdict.action), _COLOURS.get(str(verdict.action), 'bold'))}  score {verdict.score:.2f}"
    return "\n".join([line, *(f"  {reason}" for reason in verdict.reasons)])
