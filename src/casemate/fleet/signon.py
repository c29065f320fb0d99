"""The sign-in provider of a fleet, set and removed on the server's console. What its word is worth: `accounts.oidc`."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from casemate.errors import UsageError
from casemate.fleet import shared_settings
from casemate.fleet.accounts.provider import Provider, check_issuer
from casemate.fleet.accounts.roles import Role
from casemate.fleet.audit import Act
from casemate.fleet.context import Fleet
from casemate.fleet.shared_settings import Held, OidcSettings

_LONGEST: Final = 255
_MOST_ROLES: Final = 64


def parse_roles(rows: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """Return the mapping of VALUE=ROLE.

    Raises:
        UsageError: not of that form, or no role of ours.

    """
    known = {role.value for role in Role}
    found = [row.rpartition("=")[::2] for row in rows]
    if len(found) > _MOST_ROLES or any(not value or role not in known for value, role in found):
        raise UsageError("a mapping is VALUE=ROLE", hint=f"roles: {', '.join(sorted(known))}")
    return tuple((value, role) for value, role in found)


def parse_settings(settings: OidcSettings) -> OidcSettings:
    """Return *settings* when they make sense.

    Raises:
        UsageError: they do not.

    """
    check_issuer(settings.issuer)
    for text in (settings.issuer, settings.client_id, settings.label, settings.role_claim or "-"):
        if not 0 < len(text) <= _LONGEST or not text.isprintable():
            raise UsageError(f"{text[:60]!r} is empty, too long or not printable")
    if bool(settings.role_claim) != bool(settings.roles):
        raise UsageError("a claim for roles and what its values mean belong together", hint="--role-claim, --role")
    return settings


async def set_provider(fleet: Fleet, settings: OidcSettings, secret: bytes, actor: str) -> None:
    """Let people in by a provider from now on; it is asked first who it is.

    Raises:
        OperationError: it does not answer.
        UntrustedDataError: it is another one.

    """
    await Provider(fleet.clock).described(parse_settings(settings))
    detail: dict[str, Any] = {"issuer": settings.issuer, "client": settings.client_id, "roles": dict(settings.roles)}
    await _save(fleet, Held(settings, secret), Act(actor, "oidc.set", detail=detail))


async def remove_provider(fleet: Fleet, actor: str) -> None:
    """Let nobody in by a provider; sessions that began so go on until they end."""
    await _save(fleet, None, Act(actor, "oidc.remove"))


async def show(fleet: Fleet) -> dict[str, Any] | None:
    """Return the provider, and whether we share a secret with it, never which; None when there is none."""
    held = await shared_settings.look_up(fleet, OidcSettings)
    return {**msgspec.to_builtins(held.settings), "has_secret": bool(held.secret)} if held else None


async def _save(fleet: Fleet, held: Held[OidcSettings] | None, act: Act) -> None:
    async with fleet.store.write() as connection:
        await shared_settings.put(connection, fleet, OidcSettings, held, act)
