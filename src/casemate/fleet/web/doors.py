"""Coming in and going out: invitations, signing in, showing the passkey again, signing out."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.responses import RedirectResponse, Response

from casemate.errors import UsageError
from casemate.fleet.accounts import ceremonies, entry, people, sessions
from casemate.fleet.accounts.people import Begun
from casemate.fleet.audit import Act
from casemate.fleet.web import oidc, welcome
from casemate.fleet.web.visit import CEREMONY, COOKIE, Visit, json_answer, own_path
from casemate.formats.decoding import MALFORMED

_STRICT: Final[dict[str, Any]] = {"path": "/", "secure": True, "httponly": True}


class _Answer(msgspec.Struct):
    """What the page sends after the browser's WebAuthn call; the passkey's new *name*, when it is one."""

    answer: msgspec.Raw
    name: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class _Ended:
    """What came of a ceremony: the page that follows, what is written down, and the cookie of a new session."""

    after: str
    act: Act | None = None
    cookie: str = ""


@dataclasses.dataclass(frozen=True)
class Ceremony:
    """What a passkey is asked for: two handlers around what differs. *end* gets the handle from the cookie."""

    ask: Callable[[AsyncConnection, Visit], Awaitable[Begun]]
    end: Callable[[AsyncConnection, Visit, str, _Answer], Awaitable[_Ended]]

    async def begin(self, visit: Visit) -> Response:
        """Give the browser its options, and remember the ceremony in a cookie."""
        async with visit.site.fleet.store.write() as connection:
            begun = await self.ask(connection, visit)
        answer = json_answer({"options": begun.options})
        answer.set_cookie(CEREMONY, begun.handle, max_age=int(ceremonies.TIME), samesite="strict", **_STRICT)
        return answer

    async def finish(self, visit: Visit) -> Response:
        """Take what the browser brought: it and its entry in the log are one transaction."""
        fleet, told = visit.site.fleet, _told(visit)
        async with fleet.store.write() as connection:
            ended = await self.end(connection, visit, visit.request.cookies.get(CEREMONY, ""), told)
            if ended.act is not None:
                await fleet.audit.append(connection, ended.act, visit.now)
        answer = json_answer({"next": ended.after})
        if ended.cookie:
            answer.set_cookie(COOKIE, ended.cookie, max_age=int(sessions.LIFETIME), samesite="lax", **_STRICT)
            answer.delete_cookie(CEREMONY, samesite="strict", **_STRICT)
        return answer


async def _signed_in(connection: AsyncConnection, visit: Visit, handle: str, told: _Answer) -> _Ended:
    name, cookie = await people.finish_login(connection, visit.site.party, handle, bytes(told.answer), visit.now)
    return _Ended(_next(visit), Act(name, "person.signed-in"), cookie)


async def _joined(connection: AsyncConnection, visit: Visit, handle: str, told: _Answer) -> _Ended:
    name, cookie = await people.finish_joining(connection, visit.site.party, handle, bytes(told.answer), visit.now)
    person = await sessions.find(connection, cookie, visit.now)
    after = await welcome.first_page(connection, person.role if person else "")
    return _Ended(after, Act(name, "person.joined"), cookie)


async def _proved(connection: AsyncConnection, visit: Visit, handle: str, told: _Answer) -> _Ended:
    party, answer = visit.site.party, bytes(told.answer)
    await people.finish_proof(connection, party, visit.who, handle=handle, answer=answer, now=visit.now)
    return _Ended(_next(visit))


async def _added(connection: AsyncConnection, visit: Visit, handle: str, told: _Answer) -> _Ended:
    party, answer = visit.site.party, bytes(told.answer)
    await people.finish_adding(
        connection, party, visit.who, handle=handle, answer=answer, name=told.name, now=visit.now
    )
    return _Ended("/people", Act(visit.who.name, "person.passkey-added"))


def _invited(connection: AsyncConnection, visit: Visit) -> Awaitable[Begun]:
    return people.begin_joining(connection, visit.site.party, visit.request.path_params["token"], visit.now)


SIGN_IN: Final = Ceremony(lambda to, visit: people.begin_login(to, visit.site.party, visit.now), _signed_in)
JOIN: Final = Ceremony(_invited, _joined)
PROVE: Final = Ceremony(lambda to, visit: people.begin_proof(to, visit.site.party, visit.who, visit.now), _proved)
PASSKEY: Final = Ceremony(lambda to, visit: people.begin_adding(to, visit.site.party, visit.who, visit.now), _added)
"""Another passkey of somebody who is signed in."""


async def show_sign_in(visit: Visit) -> Response:
    """Show the door."""
    after = own_path(visit.form.get("next", "/"))
    if visit.person is not None:
        return RedirectResponse(after, 303)
    return visit.page("sign_in.html", next=after, provider=await oidc.button(visit, "/sign-in/oidc", after))


async def show_join(visit: Visit) -> Response:
    """Show whom an invitation is for."""
    token = visit.request.path_params["token"]
    async with visit.site.fleet.store.read() as connection:
        name, role = await people.invited(connection, token, visit.now)
    return visit.page("join.html", token=token, name=name, role=role)


async def show_prove(visit: Visit) -> Response:
    """Ask for the passkey again, or for a new sign-in at the provider."""
    after, settings = own_path(visit.form.get("next", "/")), await oidc.settings_of(visit)
    async with visit.site.fleet.store.read() as connection:
        passkeys = bool(await people.credentials(connection, visit.who.id))
        linked = settings is not None and await entry.is_linked(connection, visit.who.id, settings.issuer)
    provider = await oidc.button(visit, "/prove/oidc", after) if linked else None
    minutes = int(sessions.PROOF // 60)
    return visit.page("prove.html", next=after, minutes=minutes, passkeys=passkeys, provider=provider)


async def sign_out(visit: Visit) -> Response:
    """End this session."""
    if visit.person is not None:
        async with visit.site.fleet.store.write() as connection:
            await sessions.end(connection, visit.person)
    answer = RedirectResponse("/sign-in", 303)
    answer.delete_cookie(COOKIE, **_STRICT, samesite="lax")
    return answer


def _next(visit: Visit) -> str:
    return own_path(visit.request.query_params.get("next", "/"))


def _told(visit: Visit) -> _Answer:
    try:
        return msgspec.json.decode(visit.body, type=_Answer)
    except MALFORMED as error:
        raise UsageError("not an answer of our page") from error
