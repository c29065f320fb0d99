"""`casemate usage`: the owner's word on usage reports, and everything about them that this device knows."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import click

from casemate.cli.output import emit, json_option, say, style


@click.group(
    epilog="""\b
Examples:
  casemate usage show
  casemate usage on
  casemate usage off"""
)
def command() -> None:
    """Report use to the fleet, with noise added here. Off unless you switch it on; see docs/privacy.md."""


@command.command()
@json_option
def on(*, as_json: bool) -> None:
    """Answer one question a month about this device's use, with noise; from now on, whatever the settings say."""
    _choose(True, as_json=as_json)


@command.command()
@json_option
def off(*, as_json: bool) -> None:
    """Count and report nothing; what was counted is forgotten, what was sent cannot be taken back."""
    _choose(False, as_json=as_json)


def _choose(wanted: bool, *, as_json: bool) -> None:  # noqa: FBT001 - the value itself
    from casemate import config
    from casemate.clock import SystemClock
    from casemate.device.home import Home
    from casemate.device.record import record
    from casemate.device.usage import choice
    from casemate.errors import BusyError, NotFoundError
    from casemate.formats import event

    home, clock = Home(config.home_path()).open(), SystemClock()
    choice.choose(home, wanted, clock.wall())
    word = "on" if wanted else "off"
    with contextlib.suppress(NotFoundError, BusyError):  # before its first start, or while it starts: the word holds
        record(home, event.config_changed(what="usage reports", detail=word, now=clock.wall()))
    _refresh(home)
    emit({"on": wanted}, as_json=as_json, text=f"usage reports are {word}")
    if wanted and not as_json:
        say("see what is counted, and what was sent: `casemate usage show`")


def _refresh(home: Any) -> None:
    """Have a running device obey and write down what it counted; none running has nothing to add."""
    from casemate.device import admin
    from casemate.errors import NotFoundError, OperationError

    with contextlib.suppress(NotFoundError, OperationError):  # it obeys the file at its next contact
        admin.ask(home.run, "usage")


@command.command()
@json_option
def show(*, as_json: bool) -> None:
    """Show what is counted, what was sent, word for word, and what is left of the privacy budget."""
    from casemate import config
    from casemate.clock import SystemClock
    from casemate.device.fleet.membership import is_member
    from casemate.device.home import Home
    from casemate.device.usage import account

    home = Home(config.home_path()).open()
    _refresh(home)
    setting = config.load()["telemetry.usage"]
    found = {"member": is_member(home), **account.of(home, SystemClock().wall(), setting=setting)}
    emit({"usage": found}, as_json=as_json, text=lambda: _render(found))


def _render(found: dict[str, Any]) -> str:
    from casemate.formats.usage import EPSILON

    word = style("on", "good") if found["on"] else "off"
    lines = [f"reports   {word} (by {found['by']})"]
    if not found["member"]:
        lines.append("fleet     none: there is nobody to report to")
    if found["fault"]:
        lines.append(f"fault     {style(found['fault'], 'bad')}")
    if found["on"]:
        counts = ", ".join(f"{name} {value}" for name, value in found["counts"].items())
        lines.append(f"counting  until {_day(found['ends'])}: {counts}")
    if found["waits"]:
        lines.append(f"waiting   {found['waits']}")
    if found["pending"]:
        lines.append(f"to send   {found['pending']}")
    if found["last"]:
        lines.append(f"last sent {found['last']['report']}")
        lines.append(f"          {_day(found['last']['time'])}, {found['last']['outcome']} by the fleet")
    budget = found["budget"]
    lines.append(
        f"budget    {budget['left']:.2f} of {budget['cap']:.2f} is left; a report costs {budget['report']:.2f}"
    )
    lines += [f"          {_day(each['time'])}  {each['question']}  -{each['rho']:.2f}" for each in budget["spends"]]
    if budget["spends"]:
        lines.append(f"          in these thirty days: epsilon {len(budget['spends']) * EPSILON:g}")
    return "\n".join(lines)


def _day(moment: float) -> str:
    return time.strftime("%Y-%m-%d", time.localtime(moment))
