"""GET /v1/models and /v1/models/{id}: what this app may use and what is up."""

from __future__ import annotations

from typing import Any

from casemate.device.apps import App
from casemate.device.gateway import refusals
from casemate.device.gateway.admission import require_policy
from casemate.device.gateway.context import Gateway
from casemate.device.gateway.engines import EngineLink
from casemate.device.gateway.exchange import Exchange


async def list_models(gateway: Gateway, exchange: Exchange, app: App) -> None:
    """Answer with the models that are up and allowed."""
    policy = require_policy(app)
    models = [_describe(link) for link in gateway.engines if link.serving and policy.allows_model(link.info.model)]
    await exchange.reply_json({"object": "list", "data": models})


async def one_model(gateway: Gateway, exchange: Exchange, app: App) -> None:
    """Answer with one of them.

    Raises:
        ApiError: 404 unknown or not for this app; 503 it is down.

    """
    name = str(exchange.scope["path_params"]["model"])
    if not require_policy(app).allows_model(name):
        raise refusals.no_model(name)
    await exchange.reply_json(_describe(gateway.engines.find(name)))


def _describe(link: EngineLink) -> dict[str, Any]:
    info = link.info
    return {
        "id": info.model,
        "object": "model",
        "created": info.created,
        "owned_by": "casemate",
        "casemate": {"digest": info.digest, "context": info.context},
    }
