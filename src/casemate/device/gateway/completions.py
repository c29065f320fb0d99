"""POST /v1/completions: raw prompts, without a chat template. The policy's system prompt has no place here."""

from __future__ import annotations

from casemate.device.apps import App
from casemate.device.gateway import refusals, schema, sse
from casemate.device.gateway.admission import admit, converse, require_policy, require_texts, screen
from casemate.device.gateway.context import Gateway
from casemate.device.gateway.exchange import Exchange
from casemate.device.gateway.generation import Generation
from casemate.device.gateway.schema import CompletionRequest
from casemate.device.gateway.screening import Piece
from casemate.guard import Channel


async def completions(gateway: Gateway, exchange: Exchange, app: App) -> None:
    """Answer one text completion request.

    Raises:
        ApiError: every refusal. An app with a system prompt cannot use raw prompts, which would go around it.
        ClientGone: the client left.

    """
    policy = require_policy(app)
    if policy.system_prompt:
        raise refusals.unsupported("prompt", "this app has a system prompt: use /v1/chat/completions")
    body = await exchange.body(gateway.budget, schema.look_for_messages)
    request = schema.parse(body, CompletionRequest, drop_extras=policy.extra_fields == "drop")
    prompts = request.prompts
    choices = schema.choices(request.n, policy)
    if len(prompts) * choices > policy.max_choices:
        raise refusals.unsupported("prompt", f"this app may ask for {policy.max_choices} answers in one request")
    ticket = admit(
        gateway,
        exchange,
        app,
        model=request.model,
        operation="text_completion",
        input_bytes=sum(len(prompt.encode("utf-8", "surrogatepass")) for prompt in prompts) * choices,
        output_tokens=request.output_limit,
        choices=len(prompts) * choices,
    )
    with ticket.preparing():
        talk = converse(ticket, prompts[0])
        pieces = [Piece(prompt, Channel.USER, f"prompt[{index}]") for index, prompt in enumerate(prompts)]
        texts = await screen(ticket, pieces, talk)
        require_texts(texts, "prompt")
    shape = sse.CompletionShape(
        request_id=exchange.request_id,
        model=request.model,
        created=int(gateway.clock.wall()),
        nulls=request.wants_usage,
    )
    common = {"max_tokens": ticket.output_tokens, "tenant": app.name, **request.sampling()}
    runs = [run for text in texts for run in schema.numbered({"prompt": text, **common}, choices)]
    await Generation(ticket, talk, shape, runs).run(
        "completion", stream=bool(request.stream), usage=request.wants_usage
    )
