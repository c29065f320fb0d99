"""The agent's side of usage reports: keeps what the gateway counted, and has the link send what the diary answers.

Counts are saved every few minutes and may be lost in a crash; a charge never is. Nothing is sent that is not durable.
A disk that is full or a diary that is damaged ends the reports and nothing else.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, Literal, Protocol

from casemate.clock import Clock
from casemate.device.home import Home
from casemate.device.usage import choice, diary
from casemate.device.usage.diary import Diary, Lot
from casemate.errors import CasemateError
from casemate.formats import event, ipc

PATH: Final = "usage"
SAVE_EVERY: Final = 600.0
"""Seconds: an SD card is not written for every request."""
_OUTCOMES: Final[dict[int, Literal["taken", "refused"]]] = {200: "taken", 204: "taken", 409: "taken", 400: "refused"}
"""409: the fleet has this period's report already. Anything else is asked again at the next contact."""


class Recorder(Protocol):
    """What is asked of the agent."""

    clock: Clock

    def record(self, *events: dict[str, Any]) -> None:
        """Journal *events*."""
        ...


class Reporter:
    """One device's reports. `fault` says why there are none, when that is not the owner's wish."""

    def __init__(
        self,
        home: Home,
        agent: Recorder,
        post: Callable[[str, bytes], Awaitable[ipc.Posted]],
        *,
        setting: bool,
        lot: Lot | None = None,
    ) -> None:
        """Keep the diary of *home*, send with *post*; *setting* is `telemetry.usage`."""
        self._home = home
        self._agent = agent
        self._post = post
        self._setting = setting
        self._lot = lot or Lot()
        self._diary: Diary | None = None
        self._durable: Diary | None = None
        self._saved = agent.clock.monotonic()
        self._busy = False
        self._listening = self.on
        self.fault = ""

    @property
    def on(self) -> bool:
        """Whether the owner wants it."""
        return choice.is_on(self._home, self._setting)

    def count(self, more: ipc.Used) -> None:
        """Take what the gateway counted. What came before the owner's yes is not counted."""
        if not self.settle() or not self._listening:
            self._listening = self.on
            return
        now = self._agent.clock.wall()
        self._advance(lambda diary_: diary.counted(diary_, more, now, self._lot))

    def settle(self) -> bool:
        """Obey the owner's word as it is now; returns whether there is something to count into."""
        if not self.on:
            self._listening = False
            self._silence()
            return False
        return self._open() is not None

    def save(self) -> None:
        """Make what was counted durable: the device stops, or somebody wants to see it."""
        if self.settle():
            self._keep()

    async def give(self) -> None:
        """Send the report that waits, if one does; one at a time."""
        if self._busy or not self.settle():
            return
        self._busy = True
        try:
            await self._give()
        finally:
            self._busy = False

    async def _give(self) -> None:
        now = self._agent.clock.wall()
        self._advance(lambda held: diary.turn(held, now, self._lot))
        report = self._durable.pending if self._durable else None
        if report is None or self.fault:
            return
        reply = await self._post(PATH, diary.encode_report(report))
        if outcome := _OUTCOMES.get(reply.status):
            now = self._agent.clock.wall()
            self._advance(lambda held: diary.sent(held, report, outcome, now))

    def _advance(self, step: Callable[[Diary], Diary]) -> None:
        """Take one step of the diary; any but a mere count is durable before this returns, or is not taken."""
        held = self._open()
        if held is None:
            return
        self._diary = step(held)
        before = self._durable
        settled = before and (before.closed, before.pending, before.last) == (
            self._diary.closed,
            self._diary.pending,
            self._diary.last,
        )
        if settled and self._agent.clock.monotonic() - self._saved < SAVE_EVERY:
            return
        if not self._keep():
            self._diary = held
        elif self._diary.pending and (before is None or before.pending != self._diary.pending):
            made, now = self._diary.pending, self._agent.clock.wall()
            self._agent.record(event.usage_reported(question=made.question, period=made.period, now=now))

    def _open(self) -> Diary | None:
        if self._diary is None:
            try:
                self._durable = diary.read(self._home)
                self.fault = ""
            except CasemateError as error:
                self.fault = error.message
                return None
            self._diary = self._durable or diary.first(self._agent.clock.wall())
        return self._diary

    def _keep(self) -> bool:
        """Write the diary; returns whether it is durable."""
        assert self._diary is not None
        try:
            if self._diary != self._durable:
                diary.write(self._home, self._diary)
        except CasemateError as error:
            self.fault = error.message
            return False
        self._durable, self._saved, self.fault = self._diary, self._agent.clock.monotonic(), ""
        return True

    def _silence(self) -> None:
        """Forget what was counted, durably."""
        held = self._open()
        if held is None or self._durable is None:
            self._diary = None
            return
        self._diary = diary.silenced(held, self._agent.clock.wall())
        self._keep()
