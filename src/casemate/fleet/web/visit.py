"""The edge of the console: who asks, may they, is it really their browser, and what every answer carries.

A request that changes something must come from our own page: the Origin (or Sec-Fetch-Site) is ours and the form holds
a token that only a page of this session was given. Either alone would do; one of them fails in some browser some day.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final
from urllib.parse import parse_qsl, quote, urlsplit

import msgspec
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from casemate.errors import CasemateError, NotAuthorisedError, OperationError, UsageError
from casemate.fleet.accounts import roles, sessions
from casemate.fleet.accounts.passkeys import RelyingParty
from casemate.fleet.accounts.provider import Provider
from casemate.fleet.accounts.roles import NEEDS_PROOF, Permission
from casemate.fleet.accounts.sessions import Person
from casemate.fleet.commands import Commander
from casemate.fleet.context import Fleet
from casemate.fleet.exchange import problem, read_body, require_text, status_of
from casemate.fleet.web import render

COOKIE: Final = "__Host-casemate"
CEREMONY: Final = "__Host-ceremony"
HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), publickey-credentials-get=(self)",
    "Referrer-Policy": "same-origin",
    "Strict-Transport-Security": "max-age=31536000",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_FIELDS: Final = 64
_log = logging.getLogger("casemate.fleet")


@dataclasses.dataclass(frozen=True)
class Site:
    """Where the console is: what its applications share."""

    fleet: Fleet
    commander: Commander
    party: RelyingParty
    provider: Provider


@dataclasses.dataclass(frozen=True)
class Visit:
    """One request whose sender was checked. *person* is None at the door only."""

    site: Site
    request: Request
    person: Person | None
    form: dict[str, str]
    body: bytes

    @property
    def now(self) -> float:
        """Return the server's time."""
        return self.site.fleet.clock.wall()

    @property
    def who(self) -> Person:
        """Return the person, who is there."""
        if self.person is None:
            raise NotAuthorisedError("sign in first")
        return self.person

    def demand(self, permission: Permission, *, proof: bool = False) -> None:
        """Refuse what the person may not do; what needs proof (or is said to) sends them to `/prove` first.

        Raises:
            NotAuthorisedError: their role may not.

        """
        roles.require(self.who.role, permission)
        if (proof or permission in NEEDS_PROOF) and not self.who.has_proved(self.now):
            raise _SignIn(f"/prove?next={quote(_way_back(self.request), safe='')}")

    def field(self, name: str, limit: int = 200) -> str:
        """Return a field of the form, at most *limit* characters, without surrounding space; "" when it is not there.

        Raises:
            UsageError: it is longer.

        """
        value = self.form.get(name, "").strip()
        if len(value) > limit:
            raise UsageError(f"{name} is longer than {limit} characters")
        return value

    def number(self, name: str) -> int | None:
        """Return a field that is a whole number, None when it is not there.

        Raises:
            UsageError: it is something else.

        """
        text = self.field(name)
        if not text:
            return None
        if not (text.isascii() and text.isdecimal() and len(text) < 19):  # noqa: PLR2004 - fits the column
            raise UsageError(f"{name} is a number")
        return int(text)

    def moment(self, name: str) -> float | None:
        """Return a moment that a page of ours put into its form, None when there is none.

        Raises:
            UsageError: it is no number.

        """
        text = self.field(name, 32)
        try:
            return float(text) if text else None
        except ValueError as error:
            raise UsageError(f"{name} is a number") from error

    def page(self, template: str, status: int = 200, **values: Any) -> Response:
        """Return a page for the person."""
        common = {"person": self.person, "csrf_token": csrf_token(self.request), "here": self.request.url.path}
        text = render.page(template, self.now, **common, **values)
        return HTMLResponse(text, status)


class EveryAnswer:
    """Middleware: what every answer carries, the ones that no handler made too."""

    def __init__(self, app: ASGIApp) -> None:
        """Wrap *app*."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Add `HEADERS`, and keep pages out of caches unless they say otherwise."""

        async def dressed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        await self._app(scope, receive, dressed)


Handler = Callable[[Visit], Awaitable[Response]]


def door(method: str, path: str, handler: Handler) -> Route:
    """Return a route for somebody who is not signed in (or may not be)."""
    return _route(method, path, handler, None)


def page(path: str, permission: Permission, handler: Handler) -> Route:
    """Return a route that shows something to who may see it."""
    return _route("GET", path, handler, permission)


def action(path: str, permission: Permission, handler: Handler, *, proof: bool | None = None) -> Route:
    """Return a route that changes something; *proof*: as `NEEDS_PROOF` says, unless it is given."""
    return _route("POST", path, handler, permission, permission in NEEDS_PROOF if proof is None else proof)


def _route(method: str, path: str, handler: Handler, permission: Permission | None, proof: bool = False) -> Route:  # noqa: FBT001, FBT002 - a column of the table
    async def answer(request: Request) -> Response:
        site: Site = request.app.state.site
        try:
            response = await _answered(site, request, handler, permission, proof=proof)
        except _SignIn as asked:
            script = request.headers.get("content-type", "").startswith("application/json")
            response = json_answer({"next": asked.path}) if script else RedirectResponse(asked.path, 303)
        except CasemateError as error:
            response = await _refused(request, error)
        except Exception:  # noqa: BLE001 - the edge: a page that says nothing, a trace in our own log
            _log.exception("a page failed")
            response = await _refused(request, OperationError("the server failed"))
        return response

    return Route(path, answer, methods=[method])


class _SignIn(Exception):  # noqa: N818 - it is an answer
    """Somebody must show a passkey first, and comes back."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path


async def _answered(
    site: Site, request: Request, handler: Handler, permission: Permission | None, *, proof: bool
) -> Response:
    body = await read_body(request)
    require_text(*map(str, request.path_params.values()), *_form(request, body).values())
    person = await _person(site, request)
    if request.method == "POST":
        _require_own_page(site, request, person, body)
    if permission is not None:
        if person is None:
            raise _SignIn(f"/sign-in?next={quote(_way_back(request), safe='')}")
        roles.require(person.role, permission)
        if proof and not person.has_proved(site.fleet.clock.wall()):
            raise _SignIn(f"/prove?next={quote(_way_back(request), safe='')}")
    return await handler(Visit(site, request, person, _form(request, body), body))


async def _person(site: Site, request: Request) -> Person | None:
    cookie = request.cookies.get(COOKIE, "")
    if not cookie:
        return None
    now = site.fleet.clock.wall()
    async with site.fleet.store.read() as connection:
        person = await sessions.find(connection, cookie, now)
    if person is not None and request.method == "POST":
        async with site.fleet.store.write() as connection:
            await sessions.touch(connection, person, now)
    return person


def _require_own_page(site: Site, request: Request, person: Person | None, body: bytes) -> None:
    """Refuse a request that another site made.

    Raises:
        NotAuthorisedError: it did.

    """
    origin = request.headers.get("origin")
    fetched = request.headers.get("sec-fetch-site", "same-origin")
    if origin != site.party.origin or fetched != "same-origin":
        raise NotAuthorisedError("this did not come from our own page", hint="open the console, and try there")
    if person is None:
        return
    token = request.headers.get("x-csrf-token") or _form(request, body).get("csrf", "")
    if not hmac.compare_digest(token.encode(), csrf_token(request).encode()):
        raise NotAuthorisedError("this page is from an earlier session", hint="reload it, and try again")


def csrf_token(request: Request) -> str:
    """Return what a form of this session must hold: it follows from the cookie, which scripts cannot read."""
    cookie = request.cookies.get(COOKIE, "")
    return hashlib.sha256(b"casemate/1/csrf\0" + cookie.encode()).hexdigest()[:40] if cookie else ""


def _form(request: Request, body: bytes) -> dict[str, str]:
    """Return the fields of a posted form, or of the query of a page."""
    if request.method == "GET":
        return dict(request.query_params)
    kind = request.headers.get("content-type", "").partition(";")[0].strip()
    if kind != "application/x-www-form-urlencoded":
        return {}
    try:
        return dict(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=_FIELDS))
    except ValueError as error:
        raise UsageError("not a form of ours") from error


def _way_back(request: Request) -> str:
    """Return where to go after signing in: a page that was asked for, or the page that an action stands on."""
    if request.method == "GET":
        return request.url.path + (f"?{request.url.query}" if request.url.query else "")
    return own_path(urlsplit(request.headers.get("referer", "")).path or request.url.path.rpartition("/")[0] or "/")


def own_path(text: str) -> str:
    """Return *text* if it is a path of this site, else "/": nobody is sent elsewhere."""
    safe = text.startswith("/") and not text.startswith(("//", "/\\")) and text.isprintable() and "\\" not in text
    return text if safe and len(text) <= 500 else "/"  # noqa: PLR2004 - longer than any path here


async def _refused(request: Request, error: CasemateError) -> Response:
    request.app.state.fleet.metrics.refused("people", error)
    if request.headers.get("content-type", "").startswith("application/json"):
        return problem(error)
    site: Site = request.app.state.site
    status = status_of(error)
    if isinstance(error, NotAuthorisedError):
        status = 403
    values = {"title": error.message, "hint": error.hint, "status": status, "person": None, "csrf_token": ""}
    return HTMLResponse(render.page("error.html", site.fleet.clock.wall(), **values), status)


def json_answer(value: Any, status: int = 200) -> Response:
    """Return *value* as JSON."""
    return Response(msgspec.json.encode(value), status, media_type="application/json")
