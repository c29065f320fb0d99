"""A bound for every request body of an application that would read whatever comes."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from casemate.errors import UntrustedDataError
from casemate.fleet.exchange import problem
from casemate.fleet.metrics import Metrics
from casemate.formats.fleet_api import MAX_BODY


class BoundedBody:
    """Answers 413 to a body that says it is over `MAX_BODY`, and cuts off one that does not say so."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        """Stand before *app*; what is too large is counted in *metrics*."""
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, counting."""
        headers = dict(scope.get("headers", ()))
        declared = headers.get(b"content-length", b"0")
        error = UntrustedDataError(f"a body is at most {MAX_BODY} bytes", check="body-size")
        if scope["type"] == "http" and (not declared.isdigit() or int(declared) > MAX_BODY):
            self._metrics.refused("people", error)
            await problem(error)(scope, receive, send)
            return
        size = 0

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > MAX_BODY:
                raise error
            return message

        await self._app(scope, counted, send)
