"""What the gateway tells the journal: refusals and verdicts, without any text.

Events are posted, not awaited: a request does not wait for the disk. While the journal restarts, events wait here;
beyond `WAITING` the oldest are dropped, and the number dropped is itself an event.
"""

from __future__ import annotations

import collections
import socket
from collections.abc import Collection, Iterable
from typing import Any, Final, NamedTuple

from casemate.clock import Clock
from casemate.device.channel import AsyncJournalClient
from casemate.errors import OperationError
from casemate.formats import event
from casemate.guard import Action, Channel, Verdict
from casemate.guard.scrutiny import CANARY

WAITING: Final = 1000
LIMIT_REPORT_EVERY: Final = 60.0


class Subject(NamedTuple):
    """Whose request an event is about."""

    app: str
    request: str
    model: str


class Audit:
    """Builds and posts the gateway's events."""

    def __init__(self, clock: Clock) -> None:
        """Date events with *clock*; nothing is sent before `attach`."""
        self._clock = clock
        self._journal: AsyncJournalClient | None = None
        self._waiting: collections.deque[dict[str, Any]] = collections.deque(maxlen=WAITING)
        self._dropped = 0
        self._limited: dict[tuple[str, str], tuple[float, int]] = {}

    def attach(self, sock: socket.socket) -> None:
        """Send to the journal over *sock* from now on, beginning with what waited."""
        if self._journal:
            self._journal.close()
        self._journal = AsyncJournalClient(sock)
        waiting = [*self._waiting]
        self._waiting.clear()
        if self._dropped:
            waiting.append(event.events_dropped(count=self._dropped, now=self._clock.wall()))
            self._dropped = 0
        for item in waiting:
            self._post(item)

    def _post(self, item: dict[str, Any]) -> None:
        if self._journal:
            try:
                self._journal.post(item)
            except OperationError:
                self._journal.close()
                self._journal = None
            else:
                return
        if len(self._waiting) == WAITING:
            self._dropped += 1
        self._waiting.append(item)

    def wrong_keys(self, client: str, count: int) -> None:
        """Record *count* requests without a valid key from *client*."""
        self._post(event.auth_refused(client=client, count=count, now=self._clock.wall()))

    def limited(self, app: str, limit: str, client: str) -> None:
        """Record that *app* ran into *limit*: at once, then at most once a minute with the count since."""
        now = self._clock.monotonic()
        last, count = self._limited.get((app, limit), (-LIMIT_REPORT_EVERY, 0))
        count += 1
        if now - last >= LIMIT_REPORT_EVERY:
            self._post(event.rate_limited(app=app, limit=limit, client=client, count=count, now=self._clock.wall()))
            last, count = now, 0
        self._limited[(app, limit)] = (last, count)

    def verdicts(self, subject: Subject, found: Iterable[tuple[Channel, Verdict]], *, enforce: bool) -> None:
        """Record what the guard said about one request: one event per channel and action. A monitor only flags."""
        groups: dict[tuple[Channel, Action], dict[str, None]] = {}
        for channel, verdict in found:
            if verdict.action is not Action.ALLOW:
                groups.setdefault((channel, verdict.action), {}).update(dict.fromkeys(verdict.reasons))
        for (channel, action), reasons in groups.items():
            self._verdict(subject, channel, action if enforce else Action.FLAG, reasons)

    def redacted(self, subject: Subject, types: Collection[str]) -> None:
        """Record which kinds of findings were taken out of an answer."""
        self._answer(subject, Action.REDACT, types)

    def noted(self, subject: Subject, types: Collection[str]) -> None:
        """Record which kinds of findings an answer was let out with."""
        self._answer(subject, Action.FLAG, types)

    def _answer(self, subject: Subject, action: Action, types: Collection[str]) -> None:
        kinds = [kind for kind in types if kind != CANARY]
        if kinds:
            self._verdict(subject, Channel.OUTPUT, action, kinds)
        if CANARY in types:
            self._leaked(subject, stopped=False)

    def cut(self, subject: Subject, reason: str) -> None:
        """Record that an answer was stopped."""
        if reason == CANARY:
            self._leaked(subject, stopped=True)
        else:
            self._verdict(subject, Channel.OUTPUT, Action.BLOCK, (reason,))

    def _leaked(self, subject: Subject, *, stopped: bool) -> None:
        app, request, model = subject
        self._post(event.canary_leaked(app=app, request=request, model=model, stopped=stopped, now=self._clock.wall()))

    def _verdict(self, subject: Subject, channel: Channel, action: Action, reasons: Iterable[str]) -> None:
        self._post(
            event.guard_verdict(
                app=subject.app,
                request=subject.request,
                channel=channel.value,
                action=action.value,
                reasons=reasons,
                model=subject.model,
                now=self._clock.wall(),
            )
        )

    def apps_changed(self, detail: str) -> None:
        """Record that the apps or a policy changed, or cannot be read."""
        self._post(event.config_changed(what="apps", detail=detail, now=self._clock.wall()))

    def close(self) -> None:
        """Drop the link."""
        if self._journal:
            self._journal.close()
