"""POST /v1/chat/completions."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

import msgspec

from casemate.device.apps import App
from casemate.device.gateway import conversation, refusals, schema, sse
from casemate.device.gateway.admission import Ticket, admit, converse, new_canary, require_policy, screen
from casemate.device.gateway.context import Gateway
from casemate.device.gateway.exchange import Exchange
from casemate.device.gateway.generation import Generation
from casemate.device.gateway.schema import ChatRequest
from casemate.device.gateway.screening import Piece
from casemate.formats.policy import AppPolicy
from casemate.guard import Channel, Document


async def chat(gateway: Gateway, exchange: Exchange, app: App) -> None:
    """Answer one chat request.

    Raises:
        ApiError: every refusal.
        ClientGone: the client left.

    """
    # 1 the bytes are a request, with nothing in it that the app's policy does not allow
    policy = require_policy(app)
    body = await exchange.body(gateway.budget, schema.look_for_messages)
    request = schema.parse(body, ChatRequest, drop_extras=policy.extra_fields == "drop")
    choices = schema.choices(request.n, policy)
    _check_format(request, policy)
    _check_documents(request, policy)
    # 2 the model answers, and the app has room for it
    ticket = admit(
        gateway,
        exchange,
        app,
        model=request.model,
        operation="chat",
        input_bytes=_size(request),
        output_tokens=request.output_limit,
        choices=choices,
    )
    # 3 the guard allows every text; 4 the engine gets its prompt and the client its answer
    with ticket.preparing():
        canary = new_canary(policy)
        talk = converse(
            ticket,
            request.messages[0].text,
            system_prompt=policy.system_prompt,
            canary=canary,
            documents=bool(request.documents),
            form=schema.form(request.response_format),
        )
        texts = await screen(ticket, _pieces(request, policy), talk)
        prompt = _prompt(ticket, request, texts, canary)
    shape = sse.ChatShape(
        request_id=exchange.request_id,
        model=request.model,
        created=int(gateway.clock.wall()),
        nulls=request.wants_usage,
    )
    prompts = schema.numbered(prompt, choices)
    await Generation(ticket, talk, shape, prompts).run("chat", stream=bool(request.stream), usage=request.wants_usage)


def _size(request: ChatRequest) -> int:
    texts = [message.text for message in request.messages]
    texts += [document.text for document in request.documents or ()]
    return sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)


def _check_format(request: ChatRequest, policy: AppPolicy) -> None:
    wanted = schema.format_name(request.response_format)
    if wanted not in policy.response_formats:
        allowed = ", ".join(policy.response_formats)
        raise refusals.unsupported("response_format", f"this app may ask for {allowed}, not {wanted}")
    if isinstance(request.response_format, schema.SchemaFormat):
        schema.check_schema(request.response_format.json_schema.schema)


def _check_documents(request: ChatRequest, policy: AppPolicy) -> None:
    """Refuse documents beside a system prompt that the policy did not declare fit for it."""
    enforced = policy.guard.mode == "enforce" and "system_prompt" not in policy.guard.beside_documents
    if request.documents and policy.system_prompt and enforced:
        raise refusals.unsupported(
            "documents",
            "this app has a system prompt, which documents could carry out: "
            'its policy does not say [guard] beside_documents = ["system_prompt"]',
        )


def _pieces(request: ChatRequest, policy: AppPolicy) -> list[Piece]:
    """Return every text the client sent, with the channel it stands on: messages first, in order."""
    pieces = [
        Piece(message.text, _channel(message.role, policy), f"messages[{index}].content")
        for index, message in enumerate(request.messages)
    ]
    pieces += [
        Piece(message.name, Channel.USER, f"messages[{index}].name")
        for index, message in enumerate(request.messages)
        if message.name
    ]
    for index, document in enumerate(request.documents or ()):
        pieces.append(Piece(document.text, Channel.DOCUMENT, f"documents[{index}].text"))
        pieces.append(Piece(document.title or "", Channel.DOCUMENT, f"documents[{index}].title"))
    pieces += _runs(pieces[: len(request.messages)], request, policy)
    if isinstance(request.response_format, schema.SchemaFormat):
        words = msgspec.json.encode(request.response_format.json_schema).decode()
        pieces.append(Piece(words, Channel.USER, "response_format"))
    return pieces


def _runs(messages: Sequence[Piece], request: ChatRequest, policy: AppPolicy) -> list[Piece]:
    """Return the texts of one speaker in a row as they will stand together: an attack may be split over messages."""
    runs: list[list[int]] = []
    roles = [conversation.effective_role(message.role, policy) for message in request.messages]
    for index, role in enumerate(roles):
        if index and role == roles[index - 1]:
            runs[-1].append(index)
        else:
            runs.append([index])
    return [
        Piece("\n\n".join(messages[i].text for i in run), messages[run[0]].channel, f"messages[{run[0]}..{run[-1]}]")
        for run in runs
        if len(run) > 1
    ]


def _channel(role: str, policy: AppPolicy) -> Channel:
    return Channel.SYSTEM if conversation.effective_role(role, policy) == "system" else Channel.USER


def _prompt(ticket: Ticket, request: ChatRequest, texts: tuple[str, ...], canary: str | None) -> dict[str, Any]:
    """Return the engine's parameters for one choice; *texts* are those of `_pieces`, after the guard."""
    count = len(request.messages)
    block = _documents(ticket, request, texts)
    turns = conversation.build(request.messages, texts[:count], ticket.policy, canary=canary, documents=block)
    if not turns:
        raise refusals.bad_request("'messages' hold no text", param="messages")
    params: dict[str, Any] = {
        "messages": [turn.as_dict() for turn in turns],
        "max_tokens": ticket.output_tokens,
        "tenant": ticket.app.name,
        **request.sampling(),
    }
    if request.response_format is not None and (wanted := schema.engine_format(request.response_format)):
        params["response_format"] = wanted
    return params


def _documents(ticket: Ticket, request: ChatRequest, texts: tuple[str, ...]) -> str:
    documents = request.documents or ()
    if not documents:
        return ""
    start = len(request.messages) + sum(1 for message in request.messages if message.name)
    pairs = [texts[start + 2 * index : start + 2 * index + 2] for index in range(len(documents))]
    marker = secrets.token_hex(4)
    fenced = [Document(text, title) for text, title in pairs]
    return ticket.gateway.screening.shield.wrap_documents(fenced, marker)
