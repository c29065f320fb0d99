"""The outermost layer: what holds for every request, and the last catch of every error.

Host check (DNS rebinding), security headers, request ids, one place where errors become answers. An unexpected fault
is told to the client as an id and to the log as a type and a line of code: never as text that may quote a prompt.
"""

from __future__ import annotations

import logging
import traceback
from typing import Final

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from casemate.device.gateway import refusals
from casemate.device.gateway.context import Gateway
from casemate.device.gateway.exchange import ClientGone, Exchange
from casemate.device.gateway.refusals import ApiError

_log = logging.getLogger("casemate.gateway")

SECURITY_HEADERS: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), microphone=(), geolocation=(), browsing-topics=()"),
    (
        b"content-security-policy",
        b"; ".join(
            (
                b"default-src 'none'",
                b"script-src 'self'",
                b"style-src 'self'",
                b"connect-src 'self'",
                b"img-src 'self'",
                b"base-uri 'none'",
                b"form-action 'none'",
                b"frame-ancestors 'none'",
                b"require-trusted-types-for 'script'",
            )
        ),
    ),
)
_NO_STORE: Final = (b"cache-control", b"no-store")


class Shell:
    """An ASGI application around the router."""

    def __init__(self, gateway: Gateway, router: ASGIApp) -> None:
        """Pass what is well addressed on to *router*."""
        self._gateway = gateway
        self._router = router

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (uvicorn runs without lifespan and websockets)."""
        if scope["type"] != "http":
            return
        exchange = Exchange(scope, receive, _with_headers(send, scope))
        scope["app"] = self  # Starlette's router raises HTTPException instead of answering in plain text
        scope["exchange"] = exchange
        try:
            self._check_host(exchange)
            await self._router(scope, receive, exchange.send)
        except ClientGone:
            pass
        except ApiError as error:
            await exchange.refuse(error)
        except HTTPException as error:
            await exchange.refuse(_from_starlette(error))
        except Exception as error:  # noqa: BLE001 - the edge: whatever it was, the client gets an id and no detail
            _log.error("request %s failed: %s", exchange.request_id, fault_place(error))
            await exchange.refuse(refusals.internal())
        finally:
            route = scope.get("route_name", "other")
            self._gateway.metrics.requests.labels(route, str(exchange.status or 499)).inc()

    def _check_host(self, exchange: Exchange) -> None:
        if exchange.host is None or not self._gateway.accepts_host(exchange.host, exchange.local):
            raise refusals.misdirected()


def _with_headers(send: Send, scope: Scope) -> Send:
    async def wrapped(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = list(message.get("headers", ()))
            headers.append((b"x-request-id", scope["exchange"].request_id.encode()))
            headers.extend(SECURITY_HEADERS)
            if not any(name == b"cache-control" for name, _ in headers):
                headers.append(_NO_STORE)
            if scope["scheme"] == "https":
                headers.append((b"strict-transport-security", b"max-age=31536000"))
            message = {**message, "headers": headers}
        await send(message)

    return wrapped


def _from_starlette(error: HTTPException) -> ApiError:
    if error.status_code == 405:  # noqa: PLR2004 - method not allowed
        return refusals.no_method((error.headers or {}).get("Allow", ""))
    return refusals.no_path()


def fault_place(error: BaseException) -> str:
    """Return the type of *error* and the line it came from, without its message."""
    frames = traceback.extract_tb(error.__traceback__)
    last = frames[-1] if frames else None
    return (
        f"{type(error).__name__} at {last.filename.rpartition('/')[2]}:{last.lineno}" if last else type(error).__name__
    )
