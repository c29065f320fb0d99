"""Pages that list: tokens, policies, key grants, alerts, the audit log, people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec
import sqlalchemy as sa
from starlette.responses import RedirectResponse, Response

from casemate.errors import NotFoundError, UsageError
from casemate.fleet import alerts, enrolment, listing, returns, setup
from casemate.fleet.accounts import people, roles
from casemate.fleet.accounts.roles import Permission, Role
from casemate.fleet.api import tokens
from casemate.fleet.audit import Act
from casemate.fleet.enrolment import Wanted
from casemate.fleet.store import tables
from casemate.fleet.web.menu import navigation
from casemate.fleet.web.visit import Visit
from casemate.ids import parse_name

PAGE: Final = 50
_MOST_ALERTS: Final = 500
_TOKEN_DAYS: Final = 366
_HOURS: Final = {"1": 3600, "24": 86400, "168": 7 * 86400}


async def show_enrolment(visit: Visit) -> Response:
    """Show who waits for approval, and the tokens."""
    return await _enrolment(visit, None)


async def _enrolment(visit: Visit, made: Any) -> Response:
    async with visit.site.fleet.store.read() as connection:
        pending = await listing.pending(connection)
        returning = await returns.waiting(connection)
    return visit.page(
        "enrolment.html",
        navigation=await navigation(visit),
        pending=pending,
        returning=returning,
        tokens=await enrolment.list_tokens(visit.site.fleet),
        made=made,
        address=setup.enrol_url(visit.site.fleet),
        may=roles.allowed(visit.who.role, Permission.ENROL),
    )


async def make_token(visit: Visit) -> Response:
    """Make a one-time token and show it, once."""
    hours = visit.field("hours", 4)
    if hours not in _HOURS:
        raise UsageError("choose how long the token is good")
    wanted = Wanted(
        asset=visit.field("asset", 128),
        group=visit.field("group", 128),
        seconds=_HOURS[hours],
        needs_approval=visit.field("approval", 4) == "yes",
    )
    made = await enrolment.create_token(visit.site.fleet, wanted, visit.who.name)
    return await _enrolment(visit, made)


async def revoke_token(visit: Visit) -> Response:
    """Make a token worthless."""
    await enrolment.revoke_token(visit.site.fleet, visit.request.path_params["token"], visit.who.name)
    return RedirectResponse("/enrolment", 303)


async def show_policies(visit: Visit) -> Response:
    """Show the reference policies devices are held against."""
    policy = tables.attest_policy.c
    rows = await _rows(
        visit,
        sa.select(policy.name, policy.version, policy.created, policy.created_by).order_by(
            policy.name, policy.version.desc()
        ),
    )
    return visit.page("policies.html", navigation=await navigation(visit), policies=rows)


async def show_grants(visit: Visit) -> Response:
    """Show who got which key, and who was refused and why."""
    grant, device = tables.key_grant.c, tables.device.c
    query = (
        sa.select(tables.key_grant, device.asset)
        .join(tables.device, device.id == grant.device_id, isouter=True)
        .order_by(grant.id.desc())
        .limit(PAGE + 1)
    )
    before = visit.number("before")
    if before is not None:
        query = query.where(grant.id < before)
    rows = await _rows(visit, query)
    after = f"?before={rows[PAGE - 1].id}" if len(rows) > PAGE else ""
    return visit.page("grants.html", navigation=await navigation(visit), grants=rows[:PAGE], after=after)


async def show_alerts(visit: Visit) -> Response:
    """Show open alerts, then the newest closed ones."""
    alert = tables.alert.c
    async with visit.site.fleet.store.read() as connection:
        opened = await alerts.open_ones(connection, _MOST_ALERTS)
    closed = await _rows(
        visit, sa.select(tables.alert).where(alert.closed.is_not(None)).order_by(alert.closed.desc()).limit(PAGE)
    )
    may = roles.allowed(visit.who.role, Permission.ALERT)
    return visit.page("alerts.html", navigation=await navigation(visit), opened=opened, closed=closed, may=may)


async def close_alert(visit: Visit) -> Response:
    """Close an alert that somebody looked at."""
    alert = tables.alert.c
    async with visit.site.fleet.store.write() as connection:
        row = (
            await connection.execute(
                sa.update(tables.alert)
                .where(alert.id == visit.request.path_params["alert"], alert.closed.is_(None))
                .values(closed=visit.now)
                .returning(alert.kind, alert.device_id, alert.asset)
            )
        ).one_or_none()
        if row is None:
            raise NotFoundError("this alert is not open", hint="somebody was faster")
        act = Act(visit.who.name, f"alert.{row.kind}.closed", row.device_id or None, row.asset or None)
        await visit.site.fleet.audit.append(connection, act, visit.now)
    return RedirectResponse("/alerts", 303)


async def show_audit(visit: Visit) -> Response:
    """Show the fleet's own log, newest first, with the checkpoint that proves it."""
    event = tables.audit_event.c
    query = sa.select(event.seq, event.entry).order_by(event.seq.desc()).limit(PAGE + 1)
    before = visit.number("before")
    if before is not None:
        query = query.where(event.seq < before)
    action = visit.field("action", 64)
    if action:
        query = query.where(event.action == action)
    rows = await _rows(visit, query)
    async with visit.site.fleet.store.read() as connection:
        note = await visit.site.fleet.audit.checkpoint(connection)
    entries = [msgspec.json.decode(row.entry) for row in rows[:PAGE]]
    after = f"?before={rows[PAGE - 1].seq}" + (f"&action={action}" if action else "") if len(rows) > PAGE else ""
    return visit.page(
        "audit.html",
        navigation=await navigation(visit),
        entries=entries,
        after=after,
        action=action,
        checkpoint=bytes(note).decode(),
    )


async def show_people(visit: Visit) -> Response:
    """Show who has a role here, and one's own passkeys."""
    return await _people(visit)


async def _people(visit: Visit, *, link: str = "", token: str = "") -> Response:
    user, passkey = tables.user.c, tables.passkey.c
    rows = await _rows(
        visit,
        sa.select(
            user.id, user.name, user.role, user.state, user.email, user.created, sa.func.max(passkey.used).label("used")
        )
        .join(tables.passkey, passkey.user_id == user.id, isouter=True)
        .group_by(user.id, user.name, user.role, user.state, user.email, user.created)
        .order_by(user.name),
    )
    own = await _rows(
        visit,
        sa.select(passkey.name, passkey.created, passkey.used)
        .where(passkey.user_id == visit.who.id)
        .order_by(passkey.created),
    )
    return visit.page(
        "people.html",
        navigation=await navigation(visit),
        people=rows,
        own=own,
        link=link,
        token=token,
        tokens=await _tokens(visit),
        roles=roles.DESCRIPTIONS,
        may=roles.allowed(visit.who.role, Permission.PEOPLE),
    )


async def invite(visit: Visit) -> Response:
    """Make an invitation and show its link, once."""
    role = visit.field("role", 32)
    if role not in {known.value for known in Role}:
        raise UsageError("choose a role")
    fleet = visit.site.fleet
    async with fleet.store.write() as connection:
        token = await people.invite(connection, visit.field("name", 64), Role(role), visit.now)
        detail = {"name": visit.field("name", 64), "role": role}
        await fleet.audit.append(connection, Act(visit.who.name, "person.invited", detail=detail), visit.now)
    return await _people(visit, link=f"{visit.site.party.origin}/join/{token}")


async def _tokens(visit: Visit) -> list[dict[str, Any]]:
    """Return the API tokens that are good, for who may end them."""
    if not roles.allowed(visit.who.role, Permission.PEOPLE):
        return []
    async with visit.site.fleet.store.read() as connection:
        found = await tokens.listed(connection)
    return [each for each in found if each["revoked"] is None and each["expires"] > visit.now]


async def make_api_token(visit: Visit) -> Response:
    """Make a token for a program and show it, once."""
    role, days = visit.field("role", 32), visit.number("days")
    if role not in {known.value for known in Role}:
        raise UsageError("choose a role")
    if days is None or not 1 <= days <= _TOKEN_DAYS:
        raise UsageError(f"a token is good for 1 to {_TOKEN_DAYS} days")
    fleet, name, who = visit.site.fleet, parse_name(visit.field("name", 64), "token"), visit.who
    async with fleet.store.write() as connection:
        _, made = await tokens.create(
            connection, fleet.audit, name=name, role=Role(role), seconds=days * 86400.0, actor=who.name, now=visit.now,
            user_id=who.id,
        )  # fmt: skip
    return await _people(visit, token=made)


async def end_api_token(visit: Visit) -> Response:
    """End an API token."""
    fleet, known = visit.site.fleet, visit.request.path_params["token"]
    async with fleet.store.write() as connection:
        await tokens.revoke(connection, fleet.audit, known, actor=visit.who.name, now=visit.now)
    return RedirectResponse("/people", 303)


async def disable(visit: Visit) -> Response:
    """Let somebody in no more."""
    fleet, name = visit.site.fleet, visit.field("name", 64)
    async with fleet.store.write() as connection:
        await people.disable(connection, name)
        await fleet.audit.append(connection, Act(visit.who.name, "person.disabled", detail={"name": name}), visit.now)
    return RedirectResponse("/people", 303)


async def set_email(visit: Visit) -> Response:
    """Note where somebody is told of what waits for them, and who they are to a sign-in provider."""
    fleet, name = visit.site.fleet, visit.field("name", 64)
    async with fleet.store.write() as connection:
        address = await people.set_email(connection, name, visit.field("email", 254))
        detail = {"name": name, "email": address}
        await fleet.audit.append(connection, Act(visit.who.name, "person.email", detail=detail), visit.now)
    return RedirectResponse("/people", 303)


async def _rows(visit: Visit, query: sa.Select[Any]) -> Sequence[sa.Row[Any]]:
    async with visit.site.fleet.store.read() as connection:
        rows: Sequence[sa.Row[Any]] = (await connection.execute(query)).all()
        return rows
