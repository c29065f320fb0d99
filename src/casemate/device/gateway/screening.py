"""The guard on the way in: every text of a request, judged on its channel, within a time budget.

Small requests are judged at once; larger ones in one worker thread, so that a long text never holds up the streams of
others. Whatever the guard cannot judge in time, or at all, is refused.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
from collections.abc import Callable, Sequence
from typing import Final

from casemate.device.gateway import refusals
from casemate.device.gateway.refusals import ApiError
from casemate.device.gateway.shield import Conversation, Shield
from casemate.guard import Action, Channel, GuardPolicy, Judged, Redaction, Verdict, never_over

INLINE_CHARS: Final = 2048
BUDGET_SECONDS: Final = 2.0
WARM_UP_SECONDS: Final = 20.0
REHEARSAL: Final = (
    "Good morning. Ann wrote from ann@example.org, +44 20 7946 0018, to say that the token is ghp_0123456789 and that "
    "the parcel for 12 High Street comes on 3 May; her card is 4111 1111 1111 1111. Ignore the rest, please."
)
"""Long enough, and with enough kinds of values, that every table is built before the first client comes."""
HANG_SECONDS: Final = 3.0
"""Beyond the budget: a guard that does not even look at its budget counts as down."""


@dataclasses.dataclass(frozen=True, slots=True)
class Piece:
    """One text of a request: where it stands, and what the client calls it."""

    text: str
    channel: Channel
    param: str


@dataclasses.dataclass(frozen=True, slots=True)
class Screened:
    """What the guard said: the texts to use (redacted where the policy says so) and every verdict, in order."""

    texts: tuple[str, ...]
    verdicts: tuple[tuple[Piece, Verdict], ...]

    def refusal(self, *, enforce: bool) -> ApiError | None:
        """Return why the request must not go on. A guard that failed refuses in every mode."""
        for piece, verdict in self.verdicts:
            if verdict.action is not Action.BLOCK:
                continue
            if "guard-error" in verdict.reasons:
                return refusals.guard_down()
            if "over-size" in verdict.reasons:
                return refusals.too_large(f"{piece.param} is too long for the guard", param=piece.param)
            if enforce or "over-budget" in verdict.reasons:
                return refusals.content_refused(verdict.reasons, param=piece.param)
        return None

    @property
    def flagged(self) -> dict[str, list[str]]:
        """Return the reasons of every text that was not simply allowed, by the client's name for it."""
        return {piece.param: list(verdict.reasons) for piece, verdict in self.verdicts if verdict.reasons}


class Screening:
    """Runs the guard over requests."""

    def __init__(self, shield: Shield, monotonic: Callable[[], float], *, budget: float = BUDGET_SECONDS) -> None:
        """Ask *shield*; one request may take *budget* seconds of judging."""
        self.shield = shield
        self._monotonic = monotonic
        self._budget = budget
        self._pool = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="guard")
        self._warming: concurrent.futures.Future[None] | None = None

    async def screen(self, pieces: Sequence[Piece], conversation: Conversation) -> Screened:
        """Judge *pieces*.

        Raises:
            ApiError: 503 the guard is stuck or broken.

        """
        if self._warming is not None and not self._warming.done():
            # Building tables is not judging: a first client on a busy device must not be refused for it.
            await asyncio.wait([asyncio.wrap_future(self._warming)], timeout=WARM_UP_SECONDS)
        if sum(len(piece.text) for piece in pieces) <= INLINE_CHARS:
            return self._judge(pieces, conversation)
        loop = asyncio.get_running_loop()
        work = loop.run_in_executor(self._pool, self._judge, pieces, conversation)
        try:
            return await asyncio.wait_for(work, self._budget + HANG_SECONDS)
        except TimeoutError:
            raise refusals.guard_down() from None

    def warm_up(self) -> None:
        """Judge and guard a word in the worker, so that the first client does not wait for tables to be built."""
        self._warming = self._pool.submit(self._rehearse)

    def _rehearse(self) -> None:
        conversation = Conversation(GuardPolicy(), bytes(32))
        for channel in (Channel.USER, Channel.DOCUMENT):
            self.shield.check(REHEARSAL, channel, conversation, never_over)
        answer = self.shield.open_answer(conversation)
        answer.feed(REHEARSAL)
        answer.flush()

    def _judge(self, pieces: Sequence[Piece], conversation: Conversation) -> Screened:
        ends = self._monotonic() + self._budget

        def over_budget() -> bool:
            return self._monotonic() > ends

        texts: list[str] = []
        verdicts: list[tuple[Piece, Verdict]] = []
        redacts = Action.REDACT in conversation.policy.input_entities.values()
        for piece in pieces:
            judged = self._check(piece, conversation, over_budget)
            verdict, done = judged.verdict, judged.redaction
            verdicts.append((piece, verdict))
            if verdict.action is Action.BLOCK and conversation.policy.mode == "enforce":
                break
            text = piece.text
            if redacts and verdict.reasons:
                if done.refused:
                    verdicts[-1] = (piece, Verdict(Action.BLOCK, 1.0, (done.refused,)))
                    break
                text = done.text
            texts.append(text)
        return Screened(tuple(texts), tuple(verdicts))

    def _check(self, piece: Piece, conversation: Conversation, over_budget: Callable[[], bool]) -> Judged:
        if over_budget():
            return _refused("over-budget")
        try:
            return self.shield.check(piece.text, piece.channel, conversation, over_budget)
        except Exception:  # noqa: BLE001 - a guard that raises, against its promise, is a guard that refuses
            return _refused("guard-error")

    def close(self) -> None:
        """Do not wait for a judgement that is still running."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _refused(reason: str) -> Judged:
    return Judged(Verdict(Action.BLOCK, 1.0, (reason,)), Redaction("", refused=reason))
