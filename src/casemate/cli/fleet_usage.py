"""`casemate fleet usage`: what the fleet is used for, estimated from reports that are noise each."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Final

import click

from casemate.cli.fleet import dir_option, on_console
from casemate.cli.output import emit, json_option, table

_BAR: Final = 24


@click.command()
@click.option(
    "--period", type=click.IntRange(0), metavar="N", help="Another period than the newest that says anything."
)
@click.option("--group", metavar="G", help="Only the devices of a group.")
@dir_option
@json_option
def command(*, period: int | None, group: str | None, directory: Path | None, as_json: bool) -> None:
    """Show the usage of a period of thirty days, each number with its 95 % interval.

    Only devices whose owners agreed report, one question each, with noise added on the device (docs/privacy.md).
    """
    found = on_console(directory, lambda console: console.show_usage(period, group))
    emit({"usage": found}, as_json=as_json, text=lambda: _render(found))


def _render(found: dict[str, Any]) -> str:
    if found["period"] is None:
        return "no device has reported yet: its owner agrees with `casemate usage on`"
    state = "" if found["complete"] else ", reports still come"
    whom = f"group {found['group']}" if found["group"] is not None else "the whole fleet"
    head = f"period {found['period']}: {_day(found['begins'])} to {_day(found['ends'] - 1)}{state}"
    parts = [f"{head}\n{found['devices']} devices reported ({whom}), one question each"]
    parts += [_question(each, found["fewest"]) for each in found["questions"]]
    return "\n\n".join(parts)


def _question(found: dict[str, Any], fewest: int) -> str:
    if not found["shown"]:
        return f"{found['asks']}\n  fewer than {fewest} reports: nothing to show yet"
    rows = [
        (f"  {each['answer']}", f"{each['share']:.1%}", f"{each['low']:.1%} to {each['high']:.1%}", _bar(each["share"]))
        for each in found["answers"]
    ]
    head = f"{found['asks']}  ({found['reports']} reports; one device moves this by {found['one_device_moves']:.2%})"
    return f"{head}\n{table(rows, ('  ANSWER', 'SHARE', '95 % INTERVAL', ''))}"


def _bar(share: float) -> str:
    return "#" * round(min(max(share, 0.0), 1.0) * _BAR)


def _day(moment: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(moment))
