"""One order for many devices at the fleet's console: show them, have their number typed, do it."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from casemate.cli.fleet import on_console
from casemate.cli.output import emit, say

if TYPE_CHECKING:
    from casemate.fleet.bulk import Shown

_OPTIONS: Final[list[Callable[[Any], Any]]] = [
    click.option("--group", metavar="G", help="Instead of DEVICE: every device of this group."),
    click.option("--state", metavar="S", help="Instead of DEVICE: every device in this state."),
    click.option("--asset", metavar="PREFIX", help="Instead of DEVICE: every device whose tag begins so."),
    click.option("--count", type=int, metavar="N", help="How many devices that is, when nobody is there to type it."),
    click.option("--dry-run", is_flag=True, help="Only show for which devices it would be."),
]


def options(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command what it takes in place of a device."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def order(action: str, directory: Path | None, *, as_json: bool, **given: Any) -> None:
    """Carry out *action* on every device that fits, once somebody said how many they are."""
    from casemate.errors import UsageError
    from casemate.fleet.bulk import Wish
    from casemate.fleet.listing import Filter
    from casemate.fleet.states import State

    if given["state"] and given["state"] not in set(State):
        raise UsageError(f"no device can be {given['state']!r}", hint=f"states: {', '.join(State)}")
    chosen = Filter(State(given["state"]) if given["state"] else None, given["group"], given["asset"] or "")
    wish = Wish(action, chosen, given.get("to_group", ""), given.get("reason", ""))
    keep = not given["dry_run"]
    shown: Shown = on_console(directory, lambda console: console.show_bulk(wish, keep=keep))
    if keep:
        count = given["count"] if given["count"] is not None else _asked(shown)
        shown = on_console(directory, lambda console: console.run_bulk(shown.id, count))
    told = {**dataclasses.asdict(shown), "dry_run": not keep}
    emit({"bulk": told}, as_json=as_json, text=_done(shown) if keep else _words(shown))


def _asked(shown: Shown) -> int:
    """Return what somebody typed who saw for which devices it is.

    Raises:
        UsageError: nobody can be asked.

    """
    from casemate.errors import UsageError

    if not sys.stdin.isatty():
        raise UsageError(f"nobody is here to say that {_words(shown)}", hint=f"add --count {shown.count}")
    say(_words(shown))
    typed: int = click.prompt("type how many devices it is for", type=int, err=True)
    return typed


def _words(shown: Shown) -> str:
    more = shown.count - len(shown.sample)
    names = ", ".join(shown.sample) + (f" and {more} more" if more else "")
    left = f"; {shown.left_out} left out: not in a state for it" if shown.left_out else ""
    return f"{shown.action} is for {shown.count}: {names}{left}"


def _done(shown: Shown) -> str:
    return f"{shown.action}: {shown.done} done, {shown.refused} left as they were"
