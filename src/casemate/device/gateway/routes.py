"""Which path is which endpoint."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.routing import Route, Router
from starlette.types import Receive, Scope, Send

from casemate.device.apps import App
from casemate.device.gateway import refusals
from casemate.device.gateway.chat import chat
from casemate.device.gateway.completions import completions
from casemate.device.gateway.context import Gateway
from casemate.device.gateway.embeddings import embeddings
from casemate.device.gateway.exchange import Exchange
from casemate.device.gateway.models import list_models, one_model
from casemate.device.gateway.page import page_routes
from casemate.device.gateway.refusals import ApiError
from casemate.device.gateway.shell import Shell

Handler = Callable[[Gateway, Exchange, App], Awaitable[None]]


class Endpoint:
    """An API endpoint as an ASGI application: a key first, then the handler."""

    def __init__(self, gateway: Gateway, name: str, handler: Handler) -> None:
        """Serve *handler*; *name* is the metrics' label."""
        self._gateway = gateway
        self._name = name
        self._handler = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        del receive, send
        exchange: Exchange = scope["exchange"]
        scope["route_name"] = self._name
        app = self._identify(exchange)
        await self._handler(self._gateway, exchange, app)

    def _identify(self, exchange: Exchange) -> App:
        try:
            app = self._gateway.authenticator.identify(exchange)
        except ApiError as error:
            self._gateway.wrong_key(exchange.client, error.code)
            raise
        if not self._gateway.app_accepts_host(app, exchange.host or "", exchange.local):
            raise refusals.misdirected()
        return app


class Probe:
    """`/healthz` and `/readyz`: no key, no detail."""

    def __init__(self, name: str, good: Callable[[], bool]) -> None:
        """Answer 200 while *good*, else 503."""
        self._name = name
        self._good = good

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        del receive, send
        scope["route_name"] = self._name
        good = self._good()
        body = b'{"status":"ok"}' if good else b'{"status":"unavailable"}'
        await scope["exchange"].reply(body, status=200 if good else 503)


def build_app(gateway: Gateway) -> Shell:
    """Return the whole ASGI application."""
    api: list[tuple[str, str, str, Handler]] = [
        ("/v1/chat/completions", "POST", "chat", chat),
        ("/v1/completions", "POST", "completions", completions),
        ("/v1/embeddings", "POST", "embeddings", embeddings),
        ("/v1/models", "GET", "models", list_models),
        ("/v1/models/{model}", "GET", "model", one_model),
    ]
    routes = [Route(path, Endpoint(gateway, name, handler), methods=[method]) for path, method, name, handler in api]
    routes.append(Route("/healthz", Probe("healthz", lambda: True), methods=["GET"]))
    routes.append(Route("/readyz", Probe("readyz", lambda: gateway.ready), methods=["GET"]))
    routes.extend(page_routes())
    return Shell(gateway, Router(routes, redirect_slashes=False))
