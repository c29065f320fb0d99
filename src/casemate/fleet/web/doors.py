"""Coming in and going out: invitations, signing in, showing the passkey again, signing out."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from starlette.responses import RedirectResponse, Response

from casemate.errors import UsageError
from casemate.fleet.accounts import ceremonies, entry, people, sessions
from casemate.fleet.accounts.people import Begun
from casemate.fleet.audit import Act
from casemate.fleet.web import oidc, welcome
from casemate.fleet.web.visit import CEREMONY, COOKIE, Visit, json_answer, own_path

_STRICT: Final[dict[str, Any]] = {"path": "/", "secure": True, "httponly": True}


class _Answer(msgspec.Struct):
    """What the page sends after the browser's WebAuthn call."""

    answer: msgspec.Raw
    name: str = ""


async def show_sign_in(visit: Visit) -> Response:
    """Show the door."""
    after = own_path(visit.form.get("next", "/"))
    if visit.person is not None:
        return RedirectResponse(after, 303)
    return visit.page("sign_in.html", next=after, provider=oidc.button(visit, "/sign-in/oidc", after))


async def begin_sign_in(visit: Visit) -> Response:
    """Begin a login."""
    async with visit.site.fleet.store.write() as connection:
        begun = await people.begin_login(connection, visit.site.party, visit.now)
    return _begun(begun)


async def finish_sign_in(visit: Visit) -> Response:
    """End a login: a session, or a refusal that is written down."""
    fleet, told = visit.site.fleet, _told(visit)
    async with fleet.store.write() as connection:
        name, cookie = await people.finish_login(
            connection, visit.site.party, _handle(visit), bytes(told.answer), visit.now
        )
        await fleet.audit.append(connection, Act(name, "person.signed-in"), visit.now)
    return _entered(cookie, own_path(visit.request.query_params.get("next", "/")))


async def show_join(visit: Visit) -> Response:
    """Show whom an invitation is for."""
    token = visit.request.path_params["token"]
    async with visit.site.fleet.store.read() as connection:
        name, role = await people.invited(connection, token, visit.now)
    return visit.page("join.html", token=token, name=name, role=role)


async def begin_join(visit: Visit) -> Response:
    """Begin to make the first passkey of somebody."""
    async with visit.site.fleet.store.write() as connection:
        begun = await people.begin_joining(connection, visit.site.party, visit.request.path_params["token"], visit.now)
    return _begun(begun)


async def finish_join(visit: Visit) -> Response:
    """Make the person, and sign them in."""
    fleet, told = visit.site.fleet, _told(visit)
    async with fleet.store.write() as connection:
        name, cookie = await people.finish_joining(
            connection, visit.site.party, _handle(visit), bytes(told.answer), visit.now
        )
        await fleet.audit.append(connection, Act(name, "person.joined"), visit.now)
        person = await sessions.find(connection, cookie, visit.now)
    return _entered(cookie, await welcome.first_page(fleet, person.role if person else ""))


async def show_prove(visit: Visit) -> Response:
    """Ask for the passkey again, or for a new sign-in at the provider."""
    after, settings = own_path(visit.form.get("next", "/")), oidc.settings_of(visit)
    async with visit.site.fleet.store.read() as connection:
        passkeys = bool(await people.credentials(connection, visit.who.id))
        linked = settings is not None and await entry.is_linked(connection, visit.who.id, settings.issuer)
    provider = oidc.button(visit, "/prove/oidc", after) if linked else None
    minutes = int(sessions.PROOF // 60)
    return visit.page("prove.html", next=after, minutes=minutes, passkeys=passkeys, provider=provider)


async def begin_prove(visit: Visit) -> Response:
    """Begin the proof."""
    async with visit.site.fleet.store.write() as connection:
        begun = await people.begin_proof(connection, visit.site.party, visit.who, visit.now)
    return _begun(begun)


async def finish_prove(visit: Visit) -> Response:
    """Note the proof."""
    told = _told(visit)
    async with visit.site.fleet.store.write() as connection:
        await people.finish_proof(
            connection,
            visit.site.party,
            visit.who,
            handle=_handle(visit),
            answer=bytes(told.answer),
            now=visit.now,
        )
    return json_answer({"next": own_path(visit.request.query_params.get("next", "/"))})


async def begin_passkey(visit: Visit) -> Response:
    """Begin to add another passkey."""
    async with visit.site.fleet.store.write() as connection:
        begun = await people.begin_adding(connection, visit.site.party, visit.who, visit.now)
    return _begun(begun)


async def finish_passkey(visit: Visit) -> Response:
    """Keep another passkey."""
    fleet, told = visit.site.fleet, _told(visit)
    async with fleet.store.write() as connection:
        await people.finish_adding(
            connection,
            visit.site.party,
            visit.who,
            handle=_handle(visit),
            answer=bytes(told.answer),
            name=told.name,
            now=visit.now,
        )
        await fleet.audit.append(connection, Act(visit.who.name, "person.passkey-added"), visit.now)
    return json_answer({"next": "/people"})


async def sign_out(visit: Visit) -> Response:
    """End this session."""
    if visit.person is not None:
        async with visit.site.fleet.store.write() as connection:
            await sessions.end(connection, visit.person)
    answer = RedirectResponse("/sign-in", 303)
    answer.delete_cookie(COOKIE, **_STRICT, samesite="lax")
    return answer


def _begun(begun: Begun) -> Response:
    answer = json_answer({"options": begun.options})
    answer.set_cookie(CEREMONY, begun.handle, max_age=int(ceremonies.TIME), samesite="strict", **_STRICT)
    return answer


def _entered(cookie: str, after: str) -> Response:
    answer = json_answer({"next": after})
    answer.set_cookie(COOKIE, cookie, max_age=int(sessions.LIFETIME), samesite="lax", **_STRICT)
    answer.delete_cookie(CEREMONY, samesite="strict", **_STRICT)
    return answer


def _handle(visit: Visit) -> str:
    return visit.request.cookies.get(CEREMONY, "")


def _told(visit: Visit) -> _Answer:
    try:
        return msgspec.json.decode(visit.body, type=_Answer)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError("not an answer of our page") from error
