"""POST /v1/embeddings."""

from __future__ import annotations

import array
import base64
from typing import Any

from casemate.device.apps import App
from casemate.device.gateway import refusals, schema
from casemate.device.gateway.admission import Ticket, admit, converse, require_policy, require_texts, screen
from casemate.device.gateway.context import Gateway
from casemate.device.gateway.exchange import ClientGone, Exchange
from casemate.device.gateway.refusals import ApiError
from casemate.device.gateway.schema import EmbeddingRequest
from casemate.device.gateway.screening import Piece
from casemate.formats import ipc
from casemate.guard import Channel


async def embeddings(gateway: Gateway, exchange: Exchange, app: App) -> None:
    """Answer with one vector per input.

    Raises:
        ApiError: every refusal.
        ClientGone: the client left.

    """
    policy = require_policy(app)
    body = await exchange.body(gateway.budget, schema.look_for_messages)
    request = schema.parse(body, EmbeddingRequest, drop_extras=policy.extra_fields == "drop")
    ticket = admit(
        gateway,
        exchange,
        app,
        model=request.model,
        operation="embeddings",
        input_bytes=sum(len(text.encode("utf-8", "surrogatepass")) for text in request.inputs),
    )
    used, error = 0, "internal_error"
    try:
        pieces = [Piece(text, Channel.USER, f"input[{index}]") for index, text in enumerate(request.inputs)]
        texts = await screen(ticket, pieces, converse(ticket, request.inputs[0]))
        require_texts(texts, "input")
        async with exchange.while_connected():
            done = await _embed(ticket, texts)
            used, error = done.prompt_tokens, ""
            await exchange.reply_json(_answer(request, ticket.model, done))
    except ApiError as refusal:
        error = refusal.code
        raise
    except ClientGone:
        error = "client_gone"
        raise
    finally:
        ticket.settle(prompt=used, completion=0, error=error)


async def _embed(ticket: Ticket, texts: tuple[str, ...]) -> ipc.Done:
    params = {"input": list(texts), "tenant": ticket.app.name}
    call = await ticket.link.start("embedding", params, seconds=ticket.gateway.seconds)
    try:
        while not isinstance(event := await call.next(), ipc.Done):
            pass
    finally:
        call.cancel()
    if event.vectors is None or len(event.vectors) != len(texts):
        raise refusals.internal()
    return event


def _answer(request: EmbeddingRequest, model: str, done: ipc.Done) -> dict[str, Any]:
    packed = request.encoding_format == "base64"
    data = [
        {"object": "embedding", "index": index, "embedding": _pack(vector) if packed else vector}
        for index, vector in enumerate(done.vectors or ())
    ]
    usage = {"prompt_tokens": done.prompt_tokens, "total_tokens": done.prompt_tokens}
    return {"object": "list", "data": data, "model": model, "usage": usage}


def _pack(vector: list[float]) -> str:
    """Return little-endian float32 in base64, what OpenAI's clients ask for by default."""
    numbers = array.array("f", vector)
    if array.array("H", [1]).tobytes() != b"\1\0":
        numbers.byteswap()
    return base64.b64encode(numbers.tobytes()).decode()
