"""One admitted request, from the engine's first token to the last byte of the answer.

Choices run one after the other. Every character goes through the guard's output stream; when that says stop, the
engine is cancelled, the choice ends with `finish_reason: content_filter`, and nothing more of it is sent. A client
that leaves cancels the engine at its next token.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
from collections.abc import AsyncGenerator, Sequence
from typing import Any, Final

from casemate.device.gateway import sse
from casemate.device.gateway.admission import Ticket
from casemate.device.gateway.answer import Answer
from casemate.device.gateway.engines import Call
from casemate.device.gateway.exchange import ClientGone
from casemate.device.gateway.refusals import ApiError
from casemate.device.gateway.shield import Conversation
from casemate.formats import ipc

_CANCEL_WAIT: Final = 2.0
_REASONS: Final = {"stop": "stop", "length": "length"}


class Generation:
    """Runs the prompts of one request and writes the answer."""

    def __init__(
        self, ticket: Ticket, conversation: Conversation, shape: sse.Shape, prompts: Sequence[dict[str, Any]]
    ) -> None:
        """Run *prompts* (the engine's parameters, one per choice) and write them in *shape*."""
        self._ticket = ticket
        self._conversation = conversation
        self._shape = shape
        self._prompts = prompts
        self._exchange = ticket.exchange
        self._usage = sse.Usage()
        self._redacted: collections.Counter[str] = collections.Counter()
        self._noted: collections.Counter[str] = collections.Counter()
        self._first_text: float | None = None
        self._reason = "stop"
        self._stopped: str | None = None

    async def run(self, kind: str, *, stream: bool, usage: bool) -> None:
        """Write the whole answer, or a stream (ending with a usage chunk when *usage*).

        Raises:
            ApiError: the engine refused or failed; nothing, or the part of a stream before it, was written.
            ClientGone: nobody listens any more.

        """
        error = "internal_error"
        try:
            async with self._exchange.while_connected():
                await (self._stream(kind, usage=usage) if stream else self._whole(kind))
            error = ""
        except ApiError as refusal:
            error = refusal.code
            raise
        except ClientGone:
            error = "client_gone"
            raise
        finally:
            self._report(error)

    async def _stream(self, kind: str, *, usage: bool) -> None:
        for index, params in enumerate(self._prompts):
            opening = self._shape.first(index)
            async with contextlib.aclosing(self._pieces(kind, params)) as pieces:
                async for text in pieces:
                    if not self._exchange.streaming:
                        await self._exchange.start_stream()
                    lines = [line for line in (opening, self._shape.delta(index, text) if text else None) if line]
                    opening = None
                    if lines:
                        await self._exchange.events(*lines)
            await self._exchange.events(self._shape.last(index, self._reason, self._extra()))
        ending = [self._shape.usage(self._usage)] if usage else []
        await self._exchange.events(*ending, sse.DONE)
        await self._exchange.end_stream()

    async def _whole(self, kind: str) -> None:
        choices = []
        for params in self._prompts:
            async with contextlib.aclosing(self._pieces(kind, params)) as pieces:
                text = "".join([piece async for piece in pieces])
            choices.append(sse.Finished(text, self._reason))
        await self._exchange.reply(self._shape.whole(choices, self._usage, self._extra()))

    async def _pieces(self, kind: str, params: dict[str, Any]) -> AsyncGenerator[str, None]:
        """Yield safe text as it comes, at least once; then `_reason` is set. Usage is counted however it ends."""
        ticket = self._ticket
        call = await ticket.link.start(kind, params, seconds=ticket.gateway.seconds)
        conversation = self._conversation
        answer = Answer(
            ticket.gateway.screening.shield.open_answer(conversation), conversation.policy, conversation.form
        )
        done: ipc.Done | None = None
        try:
            while not answer.stopped and done is None:
                event = await call.next()
                if isinstance(event, ipc.Done):
                    done = event
                    yield self._timed(answer.flush())
                else:
                    yield self._timed(answer.feed(event.text))
            if done is None:
                call.cancel()
                done = await _last_word(call)
            ended = done.finish_reason if done else ""
            self._reason = "content_filter" if answer.stopped else _REASONS.get(ended, "stop")
        finally:
            call.cancel()
            self._count(answer, call, done)

    def _timed(self, text: str) -> str:
        if text and self._first_text is None:
            self._first_text = self._ticket.gateway.clock.monotonic()
        return text

    def _count(self, answer: Answer, call: Call, done: ipc.Done | None) -> None:
        self._redacted += answer.redacted
        self._noted += answer.noted
        self._stopped = self._stopped or answer.stopped
        self._usage.prompt += done.prompt_tokens if done else self._ticket.input_tokens
        self._usage.completion += done.completion_tokens if done else call.pieces

    def _extra(self) -> dict[str, Any]:
        """Return the `casemate` object: what a page or a person may want to know, beyond OpenAI's fields."""
        extra: dict[str, Any] = {"request_id": self._exchange.request_id}
        if self._redacted:
            extra["redacted"] = dict(self._redacted)
        if self._noted:
            extra["noted"] = dict(self._noted)
        if self._stopped:
            extra["stopped"] = self._stopped
        if self._ticket.flagged:
            extra["flagged"] = self._ticket.flagged
        return extra

    def _report(self, error: str) -> None:
        """Settle, measure and journal, once, however the request ended."""
        ticket, now = self._ticket, self._ticket.gateway.clock.monotonic()
        gateway, app = ticket.gateway, ticket.app.name
        if self._first_text is not None:
            gateway.metrics.first_token.labels(*ticket.labels).observe(self._first_text - ticket.started)
            if self._usage.completion > 1:
                pace = (now - self._first_text) / (self._usage.completion - 1)
                gateway.metrics.per_token.labels(*ticket.labels).observe(pace)
        for kind, count in self._redacted.items():
            gateway.metrics.redactions.labels(app, kind).inc(count)
        if self._redacted:
            gateway.audit.redacted(ticket.subject, self._redacted)
        if self._noted:
            gateway.audit.noted(ticket.subject, self._noted)
        if self._stopped:
            gateway.metrics.cut.labels(app, self._stopped).inc()
            gateway.audit.cut(ticket.subject, self._stopped)
        prompt, completion = self._usage.prompt or None, self._usage.completion
        ticket.settle(prompt=prompt, completion=completion, error=error, cut=bool(self._stopped))


async def _last_word(call: Call) -> ipc.Done | None:
    """Return how the engine ended a cancelled call; None when it does not say in time."""
    with contextlib.suppress(TimeoutError, ApiError):
        async with asyncio.timeout(_CANCEL_WAIT):
            while not isinstance(event := await call.next(), ipc.Done):
                pass
            return event
    return None
