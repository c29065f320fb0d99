"""The chat page: a few static files from the package, read once. No template, no CDN, no inline script."""

from __future__ import annotations

import hashlib
import importlib.resources
from typing import Final

from starlette.routing import Route
from starlette.types import Receive, Scope, Send

_FILES: Final = {
    "/": ("index.html", b"text/html; charset=utf-8"),
    "/chat.css": ("chat.css", b"text/css; charset=utf-8"),
    "/chat.js": ("chat.js", b"text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", b"image/svg+xml"),
}


class StaticFile:
    """One file, with a validator so that browsers ask cheaply."""

    def __init__(self, body: bytes, kind: bytes) -> None:
        """Serve *body* as *kind*."""
        self._body = body
        self._kind = kind
        self._tag = f'"{hashlib.sha256(body).hexdigest()[:16]}"'

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        del receive, send
        scope["route_name"] = "page"
        exchange = scope["exchange"]
        headers = {"etag": self._tag, "cache-control": "no-cache"}
        if exchange.headers.get("if-none-match") == self._tag:
            await exchange.reply(b"", status=304, kind=self._kind, headers=headers)
        else:
            await exchange.reply(self._body, kind=self._kind, headers=headers)


def page_routes() -> list[Route]:
    """Return the page's routes."""
    web = importlib.resources.files(__package__) / "web"
    return [
        Route(path, StaticFile((web / name).read_bytes(), kind), methods=["GET"])
        for path, (name, kind) in _FILES.items()
    ]
