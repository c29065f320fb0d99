"""Signing in, and proving oneself again, at a sign-in provider: there and back."""

from __future__ import annotations

import logging
from typing import Any, Final
from urllib.parse import quote

from starlette.responses import RedirectResponse, Response

from casemate.errors import NotAuthorisedError, NotFoundError, OperationError
from casemate.fleet.accounts import ceremonies, entry
from casemate.fleet.accounts.entry import CALLBACK, Returned
from casemate.fleet.accounts.oidc import VerifiedLogin
from casemate.fleet.accounts.sessions import LIFETIME, Person
from casemate.fleet.audit import Act
from casemate.fleet.shared_settings import Held, OidcSettings, look_up
from casemate.fleet.web.visit import COOKIE, Visit, own_path

HANDLE: Final = "__Host-oidc"
"""Lax, unlike that of a passkey's ceremony: the browser comes back from another site."""
_COOKIE: Final[dict[str, Any]] = {"path": "/", "secure": True, "httponly": True, "samesite": "lax"}
_log = logging.getLogger("casemate.fleet")
_ACTS: Final = {"known": "person.signed-in", "linked": "person.linked", "made": "person.made"}


async def settings_of(visit: Visit) -> OidcSettings | None:
    """Return the provider that people may use now: any server may have changed it.

    Settings that cannot be read are none: nobody comes in by them, and passkeys still open the door.
    """
    try:
        held = await look_up(visit.site.fleet, OidcSettings)
    except OperationError as error:
        _log.warning("sign-in: %s", error.message)
        return None
    return held.settings if held else None


async def begin_sign_in(visit: Visit) -> Response:
    """Send a browser to the provider."""
    return await _sent_away(visit, None)


async def begin_prove(visit: Visit) -> Response:
    """Send somebody who is signed in to the provider, which must ask them again."""
    return await _sent_away(visit, visit.who)


async def callback(visit: Visit) -> Response:
    """Take a browser back, and let in who it is, or believe them again."""
    fleet, held = visit.site.fleet, await _required(visit)
    settings = held.settings
    handle = visit.request.cookies.get(HANDLE, "")
    async with fleet.store.write() as connection:  # first of all: whatever comes of it, it is used up
        returned = await entry.come_back(connection, handle, visit.now)
    entry.require_state(returned, visit.form.get("state", ""))
    _require_answer(visit, settings)
    login = await visit.site.provider.login(settings, held.secret.decode(), visit.form["code"], returned.question)
    if returned.proving:
        return await _proved(visit, returned, login)
    async with fleet.store.write() as connection:
        entered = await entry.enter(connection, settings, login, visit.now)
        given = {"role": entered.role} if entered.role else {}  # a provider that makes somebody an owner is seen to
        act = Act(entered.name, _ACTS[entered.how], detail={"by": settings.issuer, **given})
        await fleet.audit.append(connection, act, visit.now)
    answer = RedirectResponse(own_path(returned.next), 303)
    answer.set_cookie(COOKIE, entered.cookie, max_age=int(LIFETIME), **_COOKIE)
    answer.delete_cookie(HANDLE, **_COOKIE)
    return answer


async def _sent_away(visit: Visit, proving: Person | None) -> Response:
    settings = (await _required(visit)).settings
    redirect = visit.site.party.origin + CALLBACK
    after = own_path(visit.form.get("next", "/"))
    async with visit.site.fleet.store.write() as connection:
        handle, question = await entry.begin(connection, redirect, after, visit.now, proving=proving)
    answer = RedirectResponse(await visit.site.provider.address(settings, question), 303)
    answer.set_cookie(HANDLE, handle, max_age=int(ceremonies.TIME), **_COOKIE)
    return answer


async def _proved(visit: Visit, returned: Returned, login: VerifiedLogin) -> Response:
    if visit.person is None or visit.person.id != returned.proving:
        raise NotAuthorisedError("this was begun by somebody else", hint="start again")
    async with visit.site.fleet.store.write() as connection:
        await entry.prove(connection, visit.person, login, returned.begun, visit.now)
    answer = RedirectResponse(own_path(returned.next), 303)
    answer.delete_cookie(HANDLE, **_COOKIE)
    return answer


async def _required(visit: Visit) -> Held[OidcSettings]:
    held = await look_up(visit.site.fleet, OidcSettings)
    if held is None:
        raise NotFoundError("no sign-in provider is set", hint="use a passkey")
    return held


def _require_answer(visit: Visit, settings: OidcSettings) -> None:
    """Refuse an answer that is a refusal, or another provider's (RFC 9207)."""
    issuer = visit.form.get("iss", settings.issuer)
    if issuer != settings.issuer:
        raise NotAuthorisedError("another provider answered", hint="start again")
    if not 0 < len(visit.form.get("code", "")) <= 4096:  # noqa: PLR2004 - longer than any provider's
        raise NotAuthorisedError("the provider let nobody in", hint="start again, or use a passkey")


async def button(visit: Visit, path: str, after: str) -> dict[str, str] | None:
    """Return the link and the words of the provider's button, None when there is no provider."""
    settings = await settings_of(visit)
    if settings is None:
        return None
    return {"path": f"{path}?next={quote(after, safe='')}", "label": settings.label}
