"""Following the fleet's director: a proven pick is kept, carried out by the update process, and answered with a word.

    delivered -> proven -> pick.json durable -> the update process takes it -> its word durable -> sent till it is known

The agent decides when; what is fetched, and whether it is good, is the update process's business, which asks for the
direction when it begins and again while it fetches. A device in quarantine takes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import platform
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, Final, Protocol

import msgspec

from casemate.clock import Clock
from casemate.device.fleet import direction, membership
from casemate.device.fleet.direction import Direction, PickFile, Record
from casemate.device.fleet.membership import Member
from casemate.device.home import Home
from casemate.errors import OperationError, UntrustedDataError
from casemate.formats import director, event, ipc
from casemate.formats.decoding import MALFORMED
from casemate.formats.director import Pick, Word

FIRST_PAUSE: Final = 15.0
LAST_PAUSE: Final = 900.0
NOT_READY: Final = 2.0
"""Seconds before a device that starts, or may not serve, is looked at again."""
_MODEL_FILES: Final = ("/proc/device-tree/model", "/sys/class/dmi/id/product_name")


class Stand(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the update process says things stand: *running* is the content that serves, *outcome* that of the pick."""

    running: Annotated[str, msgspec.Meta(max_length=64)] = ""
    content: Annotated[str, msgspec.Meta(max_length=64)] = ""
    outcome: str = ""
    why: str = ""
    tries: int = 0
    first_token_ms: float | None = None
    memory_mib: float | None = None


class Supervisor(Protocol):
    """What is asked of the agent."""

    clock: Clock

    def tell_link(self, message: ipc.ToLinkProcess) -> None:
        """Post *message* to the link."""
        ...

    def record(self, *events: dict[str, Any]) -> None:
        """Journal *events*."""
        ...


class Follower:
    """One member's part in rollouts."""

    def __init__(self, agent: Supervisor, home: Home, member: Member, *, running: str, earliest: float) -> None:
        """Follow from where pick.json stands; *running* is the content of the generation that serves."""
        self._agent = agent
        self._member, self._home = member, home
        self._file = PickFile(home)
        self._record, self._direction = direction.standing(home, member, earliest)
        self._news = asyncio.Event()
        self.running = running
        if self._direction.directed:  # devices that were directed before their membership said so
            self._mark()

    @property
    def direction(self) -> Direction:
        """Return what holds for an update now."""
        return self._direction

    def held(self, earliest: float) -> int:
        """Return the sequence of the pick that is followed; 0 when another is needed soon."""
        pick = self._direction.pick
        return pick.sequence if pick and pick.expires - direction.RENEW_BEFORE > earliest else 0

    def picked(self, message: ipc.Picked, earliest: float) -> None:
        """Take a pick, if it is one for us; what does not verify changes nothing and is journaled."""
        before = self._direction.pick
        try:
            after = before.sequence if before else 0
            found = direction.verify(message.envelope, self._member, after=after, earliest=earliest)
        except UntrustedDataError as error:
            now = self._agent.clock.wall()
            self._agent.record(event.fleet_command_refused(check=error.check, reason=error.message, count=1, now=now))
            return
        self._mark()
        self._keep(msgspec.structs.replace(self._record, pick=message.envelope))
        self._direction = Direction(directed=True, pick=found)
        if before is None or found.sequence != before.sequence:
            self._news.set()

    def stands(self, found: Stand) -> None:
        """Take the update process's word, and owe it to the fleet until the fleet has it."""
        self.running = found.running
        if found.outcome not in {"good", "failed"}:
            return
        word = Word(
            schema=1,
            fleet=self._member.fleet,
            device=self._member.device,
            content=found.content,
            outcome=found.outcome,  # type: ignore[arg-type]  # one of two, as checked above
            time=max(0, int(self._agent.clock.wall())),
            why=_plain(found.why, 200),
            tries=found.tries,
            hardware=hardware(),
            first_token_ms=found.first_token_ms,
            memory_mib=found.memory_mib,
        )
        if self._said(word):
            return
        self._keep(msgspec.structs.replace(self._record, word=director.encode_word(word), owed=True))
        self.owe()

    def owe(self) -> None:
        """Send the word that the fleet does not have yet."""
        if self._record.owed:
            self._agent.tell_link(ipc.SendWord(payload=self._record.word))

    def sent(self, message: ipc.WordSent) -> None:
        """Note that the fleet has the word."""
        if message.accepted and message.payload == self._record.word and self._record.owed:
            self._keep(msgspec.structs.replace(self._record, owed=False))

    async def attend(self, take: Callable[[], Awaitable[None]], may: Callable[[], bool]) -> None:
        """Have every new pick carried out by *take* while the device *may*; what did not work is tried again."""
        pause = FIRST_PAUSE
        while True:
            self._news.clear()  # before it is looked at: news that needs nothing done is no news a second time
            if self._unfinished() and may():
                await take()
                wait = pause * random.uniform(0.5, 1.5)  # noqa: S311 - jitter, no secret
                pause = min(pause * 2, LAST_PAUSE)
            elif self._unfinished():
                wait = NOT_READY
            else:
                wait, pause = LAST_PAUSE, FIRST_PAUSE
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._news.wait()
                pause = FIRST_PAUSE

    def _unfinished(self) -> bool:
        pick = self._direction.pick
        if pick is None or pick.choice is None:
            return False
        if pick.action == "back":
            return self.running == pick.choice.content
        return self.running != pick.choice.content and not self._failed(pick)

    def _failed(self, pick: Pick) -> bool:
        """Whether the last word says that this very content failed here: trying again would change nothing.

        Content that was refused before any try, because this device could not prove itself, is asked for again.
        """
        word = self._last()
        return (
            word is not None
            and word.tries > 0
            and pick.choice is not None
            and (word.content, word.outcome)
            == (
                pick.choice.content,
                "failed",
            )
        )

    def _said(self, word: Word) -> bool:
        last = self._last()
        return last is not None and (last.content, last.outcome) == (word.content, word.outcome)

    def _last(self) -> Word | None:
        with contextlib.suppress(*MALFORMED):
            return msgspec.json.decode(self._record.word, type=Word)
        return None

    def _mark(self) -> None:
        """Have the membership say that this device is directed, before there is a pick that could be taken away."""
        if self._member.directed:
            return
        with contextlib.suppress(OperationError):  # a full disk: again with the next pick and at the next start
            marked = msgspec.structs.replace(self._member, directed=True)
            membership.write_member(self._home, marked)
            self._member = marked

    def _keep(self, record: Record) -> None:
        with contextlib.suppress(OperationError):  # a full disk: the fleet gives it again, the device says it again
            self._file.write(record)
        self._record = record


def hardware() -> str:
    """Return what this machine is called: its own word, good for comparing like with like and nothing else."""
    for name in _MODEL_FILES:
        with contextlib.suppress(OSError):
            if found := _plain(Path(name).read_bytes()[:200].decode("ascii", "replace"), 100):
                return found
    return _plain(platform.machine(), 100)


def _plain(text: str, limit: int) -> str:
    return "".join(each for each in text if " " <= each <= "~").strip()[:limit]
