"""One device's numbers on their way to a report: a state machine, and the one file that remembers it.

    counting   the period that is now; what the gateway counts is added
    closed     a period that is over, until `due`: a moment drawn by lot, so that no herd comes at midnight
    pending    its report: noise added, budget charged. What is sent, and sent again, is this and nothing else
    last       the report that was sent, and what the fleet said to it

    event                   counting   closed        pending          ledger
    the period ended        begins     it            -                -
    due, and budget left    -          -             its report       charged
    the fleet answered      -          -             -> last          -
    too old for the fleet   -          dropped       dropped          -
    switched off            begins     dropped       dropped          -

Each row is one atomic write, so that a crash lies before it or after it: the charge and the report it paid for are
durable together, before a byte is sent, and are never made twice.
"""

from __future__ import annotations

import dataclasses
import secrets
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec

from casemate.device.home import Home, owner_of, write_atomic
from casemate.device.usage import ledger as ledgers
from casemate.device.usage.counts import Counts
from casemate.device.usage.ledger import Ledger
from casemate.device.usage.randomize import Below, answer
from casemate.errors import OperationError, PolicyDeniedError, UntrustedDataError
from casemate.formats import fleet_api, ipc, usage
from casemate.formats.usage import Report

FILE: Final = "usage.json"
SPREAD: Final = 2 * usage.DAY
"""Reports of a period are made within so many seconds of its end."""
_LIMIT: Final = 1 << 20
Moment = Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]
Period = Annotated[int, msgspec.Meta(ge=0, le=1 << 20)]


class Closed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A period that is over."""

    period: Period
    counts: Counts
    due: Moment


class Sent(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A report that left, when, and what came of it."""

    report: Report
    time: Moment
    outcome: Literal["taken", "refused"]


class Diary(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`fleet/usage.json`; see the module."""

    schema: Literal[1]
    period: Period
    counts: Counts = Counts()
    ledger: Ledger = Ledger()
    closed: Closed | None = None
    pending: Report | None = None
    last: Sent | None = None


@dataclasses.dataclass(frozen=True)
class Lot:
    """Where chance comes from."""

    below: Below = secrets.randbelow


def first(now: float) -> Diary:
    """Return the diary of a device that begins to count."""
    return Diary(1, usage.period_of(now))


def counted(diary: Diary, more: ipc.Used, now: float, lot: Lot) -> Diary:
    """Return the diary after the gateway counted *more*."""
    turned = turn(diary, now, lot)
    return msgspec.structs.replace(turned, counts=turned.counts.plus(more))


def turn(diary: Diary, now: float, lot: Lot) -> Diary:
    """Return the diary at *now*: a period that is over is closed, one that is due is answered for, old things go.

    A clock that went back goes on counting where it was.
    """
    current = usage.period_of(now)
    if current > diary.period:
        due = usage.ends(diary.period) + lot.below(SPREAD)
        closed = Closed(diary.period, diary.counts, due)
        diary = msgspec.structs.replace(diary, period=current, counts=Counts(), closed=closed)
    if diary.pending and diary.pending.period < current - 1:
        diary = msgspec.structs.replace(diary, pending=None)
    if diary.closed and diary.closed.period < current - 1:
        diary = msgspec.structs.replace(diary, closed=None)
    if diary.closed and diary.pending is None and now >= diary.closed.due:
        return _answered(diary, diary.closed, now, lot)
    return diary


def _answered(diary: Diary, closed: Closed, now: float, lot: Lot) -> Diary:
    """Return the diary with a report of *closed* that is paid for; without budget it waits."""
    names = tuple(usage.QUESTIONS)
    question = usage.QUESTIONS[names[lot.below(len(names))]]
    try:
        paid = diary.ledger.spend(question.name, usage.EPSILON, int(now))
    except PolicyDeniedError:
        return diary
    said = answer(question, closed.counts.true_answer(question), lot.below)
    report = Report(usage.VERSION, closed.period, question.name, said)
    return msgspec.structs.replace(diary, ledger=paid, closed=None, pending=report)


def sent(diary: Diary, report: Report, outcome: Literal["taken", "refused"], now: float) -> Diary:
    """Return the diary after the fleet answered to *report*."""
    if diary.pending != report:
        return diary
    return msgspec.structs.replace(diary, pending=None, last=Sent(report, max(0, int(now)), outcome))


def silenced(diary: Diary, now: float) -> Diary:
    """Return the diary of an owner who switched it off: what was paid stays paid, everything that was counted goes."""
    return Diary(1, max(diary.period, usage.period_of(now)), ledger=diary.ledger, last=diary.last)


def leave(home: Home, now: float) -> None:
    """Forget what was counted for a fleet that this device leaves; what was paid stays paid, whoever comes next.

    Raises:
        OperationError: it cannot be read or written.

    """
    try:
        held = read(home)
    except UntrustedDataError:
        return  # it reports nothing, to nobody
    if held is not None:
        write(home, silenced(held, now))


def encode_report(report: Report) -> bytes:
    """Return what is sent."""
    return fleet_api.encode(report)


def path_of(home: Home) -> Path:
    """Return where the diary is."""
    return home.fleet / FILE


def read(home: Home) -> Diary | None:
    """Return the diary; None when there was never one.

    Raises:
        UntrustedDataError: `usage-diary` it cannot be believed: everything counts as spent.
        OperationError: it cannot be read.

    """
    try:
        with path_of(home).open("rb") as file:
            raw = file.read(_LIMIT + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise OperationError(f"cannot read {path_of(home)}: {error.strerror}", hint="check its owner") from error
    return parse(raw)


def parse(raw: bytes) -> Diary:
    """Read a stored diary.

    Raises:
        UntrustedDataError: `usage-diary`.

    """
    try:
        if len(raw) > _LIMIT:
            raise ValueError("too large")  # noqa: TRY301 - one refusal for all of them
        diary = msgspec.json.decode(raw, type=Diary)
        ledgers.check(diary.ledger)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise UntrustedDataError(
            f"the record of usage reports is damaged: {error}",
            check="usage-diary",
            hint=f"nothing is reported while {FILE} is there: what it cost cannot be told any more",
        ) from error
    return diary


def write(home: Home, diary: Diary) -> None:
    """Make *diary* durable.

    Raises:
        OperationError: the disk is full or read-only; the old diary holds, and nothing of the new one may be sent.

    """
    write_atomic(path_of(home), msgspec.json.encode(diary), owner=owner_of("agent"))
