"""How the tool speaks, in one place.

Results go to stdout, everything else to stderr. Messages are lower case without a full stop; an error is `error:` then
`hint:`. With --json, results and errors are JSON objects with `"schema": 1` on stdout. Progress is drawn only when
stderr is a terminal. Colour only on a terminal, never with NO_COLOR or TERM=dumb.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import click
import msgspec

from casemate.errors import CasemateError, UntrustedDataError, UsageError

SCHEMA: Final = 1
_STYLES: Final = {"good": "32", "bad": "31", "warn": "33", "dim": "2", "bold": "1"}

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON (stable, versioned).")
yes_option = click.option("--yes", is_flag=True, help="Do not ask.")


def style(text: str, name: str, *, stream: Any = None) -> str:
    """Colour *text* when the stream (stdout unless given) is a terminal that wants colour."""
    out = stream or sys.stdout
    plain = "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb" or not out.isatty()
    return text if plain and "FORCE_COLOR" not in os.environ else f"\x1b[{_STYLES[name]}m{text}\x1b[0m"


def emit(result: dict[str, Any], *, as_json: bool, text: str | Callable[[], str]) -> None:
    """Print one result: the JSON object, or *text* for a person."""
    if as_json:
        emit_line(result)
    else:
        click.echo(text if isinstance(text, str) else text())


def emit_line(result: dict[str, Any]) -> None:
    """Print one JSON line with its schema, flushed (streams are read as they come)."""
    click.echo(msgspec.json.encode({"schema": SCHEMA, **result}).decode())
    sys.stdout.flush()


def say(message: str) -> None:
    """Tell the person something that is not the result."""
    click.echo(message, err=True)


def warn(message: str) -> None:
    """Tell the person something is weaker than it should be."""
    click.echo(f"{style('warning:', 'warn', stream=sys.stderr)} {message}", err=True)


def confirm(question: str) -> None:
    """Have the person say yes before something is lost.

    Raises:
        UsageError: nobody can be asked.
        click.Abort: the answer was no.

    """
    if not sys.stdin.isatty():
        raise UsageError(f"nobody is here to answer: {question}", hint="add --yes")
    click.confirm(question, abort=True, err=True)


def render_error(error: CasemateError, *, as_json: bool) -> None:
    """Print *error* where scripts and people look for it."""
    if as_json:
        body: dict[str, Any] = {"code": error.code, "message": error.message, "hint": error.hint}
        if isinstance(error, UntrustedDataError):
            body["check"] = error.check
        emit_line({"error": body})
        return
    click.echo(f"{style('error:', 'bad', stream=sys.stderr)} {error.message}", err=True)
    if error.hint:
        advise(error.hint)


def advise(hint: str) -> None:
    """Tell the person what to do about what went wrong."""
    click.echo(f"{style('hint:', 'dim', stream=sys.stderr)} {hint}", err=True)


def human_bytes(count: float) -> str:
    """Return *count* bytes as a person reads them (powers of 1024)."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":  # noqa: PLR2004 - the step between units
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError


def table(rows: Sequence[Sequence[str]], header: tuple[str, ...]) -> str:
    """Align *rows* under *header* in plain columns."""
    widths = [max(len(str(line[i])) for line in [header, *rows]) for i in range(len(header))]
    lines = [
        "  ".join(str(cell).ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in [header, *rows]
    ]
    return "\n".join([style(lines[0], "bold"), *lines[1:]])


@contextmanager
def progress(total: int, label: str) -> Iterator[Callable[[int], None]]:
    """Show a bar with size, rate and time left on a terminal; yields `advance(count)`.

    *total* and *count* are bytes. Redraws at most ten times a second.
    """
    if not sys.stderr.isatty():
        yield lambda _count: None
        return
    started, done, drawn = time.monotonic(), 0, 0.0

    def draw() -> None:
        spent = max(time.monotonic() - started, 1e-6)
        rate = done / spent
        left = (total - done) / rate if rate else 0.0
        share = done / total if total else 1.0
        bar = "#" * int(24 * share)
        sys.stderr.write(
            f"\r\x1b[K{label} [{bar:<24}] {share:4.0%}  {human_bytes(done)} of {human_bytes(total)}"
            f"  {human_bytes(rate)}/s  {left:.0f} s left"
        )
        sys.stderr.flush()

    def advance(count: int) -> None:
        nonlocal done, drawn
        done += count
        if time.monotonic() - drawn > 0.1:  # noqa: PLR2004 - ten redraws a second
            drawn = time.monotonic()
            draw()

    try:
        yield advance
    finally:
        draw()
        sys.stderr.write("\n")
