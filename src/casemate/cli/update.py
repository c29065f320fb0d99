"""`casemate update`: signed updates of what this device runs, and the ways back."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from casemate.cli.output import confirm as ask
from casemate.cli.output import emit, human_bytes, json_option, progress, say, style, yes_option

if TYPE_CHECKING:
    from casemate.device.update.desk import Desk, Step

Result = dict[str, Any]
WAITING = 3


@click.group()
def command() -> None:
    """Take signed updates: check, fetch, apply, and go back."""


@command.command()
@click.argument("root", type=click.Path(path_type=Path), metavar="ROOT.json")
@click.option("--url", required=True, metavar="U", help="Where `public/` of the release repository is served.")
@click.option("--channel", default="stable", show_default=True, metavar="C", help="What to follow.")
@click.option("--pin", default="", metavar="HEX", help="SHA-256 of the server's public key; instead of authorities.")
@click.option("--accept-clock", is_flag=True, help="The clock was wrong before and is right now.")
@click.option("--forget-floors", is_flag=True, help="Start over after the floors were deleted or damaged.")
@yes_option
@json_option
def trust(
    *,
    root: Path,
    url: str,
    channel: str,
    pin: str,
    accept_clock: bool,
    forget_floors: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Say whose updates this device takes: the root of their repository, from a hand you trust."""
    from casemate.device.update import run

    if forget_floors and not yes:
        ask("forget how far this device has come, and so take older releases again?")
    fd = _open(root)
    first = run.FirstTrust(fd, url, channel, pin, accept_clock=accept_clock, forget_floors=forget_floors)
    anew = forget_floors or not _has_floors()
    result = _run(lambda desk: run.trust(desk, first), opens=False)
    if anew:
        _begin_counting()
    _record_trust(result)
    emit(result, as_json=as_json, text=f"{style('trusted', 'good')} {result['url']}  channel {result['channel']}")


def _has_floors() -> bool:
    from casemate import config
    from casemate.device.home import Home
    from casemate.device.update.floors import FileFloorStore

    return FileFloorStore(Home(config.home_path()).update).exists


def _begin_counting() -> None:
    """Have the TPM, where there is one, count from here on how often a good update raised the floors."""
    from casemate import config
    from casemate.device.home import Home
    from casemate.device.update import counted

    counted.begin_anew(Home(config.home_path()).update, config.load()["keystore.tpm"])


def _record_trust(result: Result) -> None:
    from casemate import config
    from casemate.clock import SystemClock
    from casemate.device.home import Home
    from casemate.device.record import record
    from casemate.errors import NotFoundError
    from casemate.formats import event

    said = {key: result[key] for key in ("url", "channel", "root")}
    with contextlib.suppress(NotFoundError):  # without a keystore there is no journal yet
        record(Home(config.home_path()), event.update_trusted(**said, now=SystemClock().wall()))


@command.command()
@json_option
def check(*, as_json: bool) -> int:
    """Look whether an update waits; exits 3 when one does."""
    from casemate.device.update import run

    result = _run(run.check, opens=False)
    emit(result, as_json=as_json, text=lambda: _found(result))
    return WAITING if result["available"] else 0


def _found(result: Result) -> str:
    if not result["available"]:
        return "up to date"
    saved = result["full_bytes"] - result["bytes"]
    return f"generation {result['generation']} waits: {_bytes(result['bytes'], saved)}; casemate update apply"


def _bytes(count: int, saved: int) -> str:
    return f"{human_bytes(count)} ({human_bytes(saved)} saved)" if saved > 0 else human_bytes(count)


@command.command()
@json_option
def fetch(*, as_json: bool) -> None:
    """Fetch and prove what is offered; what runs is not touched. Goes on where it was cut off."""
    from casemate.device.update import run

    result = _run(run.fetch)
    emit(result, as_json=as_json, text=lambda: _staged(result))


@command.command("import")
@click.argument("file", type=click.Path(path_type=Path), metavar="F.tar")
@json_option
def import_(*, file: Path, as_json: bool) -> None:
    """Take an update from F.tar (`casemate release export`), without a network."""
    from casemate.device.update import run

    fd = _open(file)
    result = _run(lambda desk: run.bring_in(desk, fd))
    emit(result, as_json=as_json, text=lambda: _staged(result))


def _staged(result: Result) -> str:
    if not result["staged"]:
        return "up to date"
    cost = f", {_bytes(result['bytes'], result['saved'])}" if result["bytes"] else ""
    return f"{style('staged', 'good')} generation {result['generation']}{cost}; next: casemate update apply"


@command.command()
@click.option("--dry-run", is_flag=True, help="Say what would be done.")
@json_option
def apply(*, dry_run: bool, as_json: bool) -> None:
    """Fetch what is offered and switch to it: on trial first, and back by itself when it fails."""
    from casemate.device.update import run

    if dry_run:
        plan = _run(run.plan, opens=False)
        cost = f" ({human_bytes(plan['bytes'])} to fetch)" if plan["bytes"] else ""
        emit(plan, as_json=as_json, text=f"would {plan['would']}: generation {plan['generation']}{cost}")
        return
    result = _run(run.apply)
    emit(result, as_json=as_json, text=lambda: _applied(result))


def _applied(result: Result) -> str:
    if not result["applied"]:
        return "up to date"
    cost = f"  {_bytes(result['bytes'], result['saved'])}" if result.get("bytes") else ""
    if result["state"] == "ARMED":
        return f"{style('armed', 'good')} generation {result['generation']}{cost}; its trial is the next `casemate up`"
    return f"{style('good', 'good')} generation {result['generation']} serves{cost}"


@command.command()
@yes_option
@json_option
def rollback(*, yes: bool, as_json: bool) -> None:
    """Go back to the generation before; the one that is left is never taken again."""
    from casemate.device.update import run

    if not yes:
        ask("go back to the generation before, and deny the current one for good?")
    result = _run(run.rollback)
    emit(result, as_json=as_json, text=f"{style('rolled back', 'good')} generation {result['generation'] or 'none'}")


@command.command()
@json_option
def confirm(*, as_json: bool) -> None:
    """Say that the current generation is good: floors rise now, nothing older runs any more."""
    from casemate.device.update import run

    result = _run(run.confirm)
    emit(result, as_json=as_json, text=f"{style('confirmed', 'good')} generation {result['generation']}")


@command.command()
@json_option
def status(*, as_json: bool) -> None:
    """Show where updates stand: generations, tries, floors, what is denied and why."""
    from casemate.device.update import run

    result = _run(run.status, opens=False)
    emit(result, as_json=as_json, text=lambda: _status(result))


def _status(result: Result) -> str:
    import datetime as dt

    floors = ", ".join(f"{name} {version}" for name, version in sorted(result["floor"].items())) or "none yet"
    rows = [
        ("state", result["state"]),
        ("good", result["good"] or "none: serves what it was given by hand"),
        ("trial", f"{result['trial']} ({result['tries']} tries left)" if result["trial"] else "-"),
        ("floor", f"{floors} ({result['floor_kind']})"),
        ("denied", f"{len(result['denied'])} generations"),
        ("updates from", f"{result['url']}  channel {result['channel']}" if result["url"] else "nobody yet"),
    ]
    if result["soak_until"]:
        end = dt.datetime.fromtimestamp(result["soak_until"], dt.UTC).strftime("%Y-%m-%d %H:%M UTC")
        rows.append(("soaks until", f"{end}; casemate update confirm"))
    if result["last_error"]:
        rows.append(("last error", result["last_error"]))
    return "\n".join(f"{name:<14}{value}" for name, value in rows)


@command.command()
@json_option
def demo(*, as_json: bool) -> int:
    """Show updates at work on throw-away homes: delta, self-rollback, refusals; exits 0 only if each step did."""
    from casemate.cli import update_tour

    return update_tour.run(as_json=as_json)


# --- the update process -----------------------------------------------------------------------------------------------


class _Teller:
    """Draws the progress of an update, from inside its process."""

    def __init__(self) -> None:
        self._bar = contextlib.ExitStack()
        self._label = ""
        self._done = 0
        self._advance: Callable[[int], None] = lambda _count: None

    def tell(self, step: Step) -> None:
        """Draw one step; a new label begins a new bar."""
        if step.label != self._label:
            self.close()
            self._label, self._done = step.label, 0
            title = f"{step.label}, {human_bytes(step.saved)} saved" if step.saved > 0 else step.label
            self._advance = self._bar.enter_context(progress(step.total, title))
        self._advance(step.done - self._done)
        self._done = step.done
        if step.done >= step.total:
            self.close()

    def say(self, text: str) -> None:
        """Say something below the bar."""
        self.close()
        say(text)

    def close(self) -> None:
        """End the bar."""
        self._bar.close()
        self._label = ""


def _run(work: Callable[[Desk], Result], *, opens: bool = True) -> Result:
    from casemate import config
    from casemate.cli.passphrase import sources
    from casemate.device import updating
    from casemate.device.home import Home

    home = Home(config.home_path())
    return updating.run(home, config.load({}), sources, work, _Teller(), opens=opens)


def _open(path: Path) -> int:
    """Open a file that the person named, with that person's rights; the update process reads it."""
    import os

    from casemate.errors import NotFoundError, OperationError

    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise NotFoundError(f"there is no {path}", hint="check the path") from None
    except OSError as error:
        raise OperationError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from error
