"""`/metrics` on a socket of its own: whoever may read numbers need not be able to reach the API."""

from __future__ import annotations

from starlette.types import Receive, Scope, Send

from casemate.device.gateway.context import Gateway
from casemate.device.gateway.exchange import Exchange
from casemate.device.gateway.metrics import CONTENT_TYPE
from casemate.device.gateway.refusals import misdirected, no_path


class MetricsApp:
    """An ASGI application with one path."""

    def __init__(self, gateway: Gateway) -> None:
        """Show the metrics of *gateway*."""
        self._gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; the Host check is the API's."""
        exchange = Exchange(scope, receive, send)
        if not self._gateway.accepts_host(exchange.host or "", exchange.local):
            await exchange.refuse(misdirected())
        elif scope["path"] == "/metrics" and scope["method"] in {"GET", "HEAD"}:
            await exchange.reply(self._gateway.metrics.scrape(), kind=CONTENT_TYPE)
        else:
            await exchange.refuse(no_path())
