"""Before an engine hears of a request: model, limits, guard. The ticket it gets is what it must give back."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import hashlib
import hmac
import secrets
from collections.abc import Iterator, Sequence
from typing import Final

from casemate.device.apps import App
from casemate.device.gateway import refusals
from casemate.device.gateway.audit import Subject
from casemate.device.gateway.context import Gateway
from casemate.device.gateway.engines import EngineLink
from casemate.device.gateway.exchange import Exchange
from casemate.device.gateway.limits import Over, Reservation
from casemate.device.gateway.refusals import ApiError
from casemate.device.gateway.screening import Piece
from casemate.device.gateway.shield import Conversation, guard_policy
from casemate.formats.policy import AppPolicy
from casemate.guard import Verdict
from casemate.guard.conformity import Form

BYTES_PER_TOKEN: Final = 4


@dataclasses.dataclass
class Ticket:
    """One request that may run. `settle` must be called when it ended, however it ended."""

    gateway: Gateway
    exchange: Exchange
    app: App
    policy: AppPolicy
    link: EngineLink
    operation: str
    reservation: Reservation
    input_tokens: int
    output_tokens: int
    started: float
    flagged: dict[str, list[str]] = dataclasses.field(default_factory=dict)

    @property
    def model(self) -> str:
        """Return the model's name."""
        return self.link.info.model

    @property
    def labels(self) -> tuple[str, str, str]:
        """Return the metric labels: operation, model, app."""
        return self.operation, self.model, self.app.name

    @property
    def subject(self) -> Subject:
        """Return whom events are about."""
        return Subject(self.app.name, self.exchange.request_id, self.model)

    @contextlib.contextmanager
    def preparing(self) -> Iterator[None]:
        """Give the ticket back when the block does not get as far as the engine."""
        try:
            yield
        except BaseException as error:
            self.settle(prompt=0, completion=0, error=error.code if isinstance(error, ApiError) else "internal_error")
            raise

    def settle(self, *, prompt: int | None, completion: int, error: str, cut: bool = False) -> None:
        """Charge what was really used (*prompt* None: the estimate) and count the request; *cut*: by the guard."""
        now = self.gateway.clock.monotonic()
        used = (self.input_tokens if prompt is None else prompt) + completion
        self.reservation.settle(used, now)
        metrics = self.gateway.metrics
        metrics.duration.labels(*self.labels, error).observe(now - self.started)
        if not error:
            metrics.tokens.labels(*self.labels, "input").observe(used - completion)
            metrics.tokens.labels(*self.labels, "output").observe(completion)
        if self.app.key_id:  # a rehearsal is nobody's request
            refused = cut or error == refusals.CONTENT_FILTER
            self.gateway.tally.ended(seconds=now - self.started, tokens=used, answered=not error, refused=refused)


def require_policy(app: App) -> AppPolicy:
    """Return the app's policy.

    Raises:
        ApiError: 403 its file is broken.

    """
    if app.policy is None:
        raise refusals.policy_broken()
    return app.policy


def admit(
    gateway: Gateway,
    exchange: Exchange,
    app: App,
    *,
    model: str,
    operation: str,
    input_bytes: int,
    output_tokens: int | None = 0,
    choices: int = 1,
) -> Ticket:
    """Check the model and the app's limits, and reserve what the request may use.

    *output_tokens* is what the client wants per choice (None: as much as it may have).

    Raises:
        ApiError: 404 no such model for this app; 503 its engine is down; 400 too long; 429 over a limit.

    """
    policy = require_policy(app)
    if not policy.allows_model(model):
        raise refusals.no_model(model)
    link = gateway.engines.find(model)
    tokens = -(-input_bytes // BYTES_PER_TOKEN)
    if tokens > policy.max_input_tokens:
        raise refusals.too_long(f"about {tokens} tokens of input; this app may send {policy.max_input_tokens}")
    most = min(policy.max_output_tokens, output_tokens if output_tokens is not None else policy.max_output_tokens)
    outcome = gateway.limits.admit(app.name, policy, tokens + most * choices)
    if isinstance(outcome, Over):
        gateway.audit.limited(app.name, outcome.limit, exchange.client)
        gateway.metrics.limited.labels(app.name, outcome.limit).inc()
        raise refusals.limited(outcome.limit, outcome.retry_after)
    return Ticket(
        gateway, exchange, app, policy, link, operation, outcome, tokens, most, started=gateway.clock.monotonic()
    )


def converse(
    ticket: Ticket,
    first_text: str,
    *,
    system_prompt: str = "",
    canary: str | None = None,
    documents: bool = False,
    form: Form | None = None,
) -> Conversation:
    """Return what the guard must know. The key is the same for every request that begins with *first_text*."""
    material = ticket.app.name.encode() + b"\0" + first_text.encode("utf-8", "surrogatepass")
    key = hmac.new(ticket.gateway.secret, material, hashlib.sha256).digest()
    canaries = (canary,) if canary else ()
    today = dt.datetime.fromtimestamp(ticket.gateway.clock.wall(), dt.UTC).date()
    return Conversation(guard_policy(ticket.policy, today, documents=documents), key, canaries, system_prompt, form)


def new_canary(policy: AppPolicy) -> str | None:
    """Return a fresh mark for the system prompt, when there is one and the policy wants it."""
    return secrets.token_hex(8) if policy.canary and policy.system_prompt else None


async def screen(ticket: Ticket, pieces: Sequence[Piece], conversation: Conversation) -> tuple[str, ...]:
    """Have every piece judged; return the texts to use.

    Raises:
        ApiError: 400 refused by the guard; 413 too long for it; 503 it cannot judge.

    """
    gateway = ticket.gateway
    screened = await gateway.screening.screen(pieces, conversation)
    enforce = ticket.policy.guard.mode == "enforce"
    found = [(piece.channel, verdict) for piece, verdict in screened.verdicts]
    _count(ticket, screened.verdicts)
    gateway.audit.verdicts(ticket.subject, found, enforce=enforce)
    if refusal := screened.refusal(enforce=enforce):
        raise refusal
    ticket.flagged = screened.flagged
    return screened.texts


def require_texts(texts: Sequence[str], param: str) -> None:
    """Refuse an empty text among *texts*.

    Raises:
        ApiError: 400.

    """
    if not all(texts):
        raise refusals.bad_request(f"'{param}' is empty", param=param)


def _count(ticket: Ticket, verdicts: Sequence[tuple[Piece, Verdict]]) -> None:
    for piece, verdict in verdicts:
        ticket.gateway.metrics.verdicts.labels(ticket.app.name, piece.channel.value, verdict.action.value).inc()
