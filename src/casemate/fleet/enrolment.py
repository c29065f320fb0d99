"""How a device becomes one of ours: a one-time token, a record made by us, a certificate for its own key.

Everything a device is called comes from our record. The token, the record, the certificate and the audit entry are one
transaction: a request that fails burns nothing, one that succeeds cannot be repeated.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import secrets
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from casemate.crypto import authority
from casemate.crypto.ecdsa import EcPublic
from casemate.errors import NotAuthorisedError, NotFoundError, UntrustedDataError
from casemate.fleet import devices
from casemate.fleet.audit import Act
from casemate.fleet.context import Fleet
from casemate.fleet.identity import Known
from casemate.fleet.states import State
from casemate.fleet.store import tables
from casemate.formats.enrolment import SECRET_BYTES, make_token, parse_token

TOKEN_SECONDS: Final = 24 * 3600.0


@dataclasses.dataclass(frozen=True, slots=True)
class NewToken:
    """A token as it is shown once; the server keeps its hash."""

    id: str
    token: str
    expires: float


@dataclasses.dataclass(frozen=True, slots=True)
class Wanted:
    """What a token will make: a device for *asset*, or a new certificate for the device *renews*."""

    asset: str
    group: str = ""
    renews: str | None = None
    needs_approval: bool = False
    seconds: float = TOKEN_SECONDS


class WaitsForApprovalError(Exception):
    """The device is known and a person has to say yes first."""


async def create_token(fleet: Fleet, wanted: Wanted, actor: str) -> NewToken:
    """Make a one-time token."""
    now = fleet.clock.wall()
    token = make_token(secrets.token_bytes(SECRET_BYTES), fleet.authority.root)
    name = secrets.token_hex(6)
    async with fleet.store.write() as connection:
        if wanted.renews:
            row = await devices.find(connection, wanted.renews)
            wanted = dataclasses.replace(wanted, renews=row.id, asset=row.asset, group=row.group_name)
        await connection.execute(
            sa.insert(tables.enrolment_token).values(
                id=name,
                digest=digest(token),
                asset=wanted.asset,
                group_name=wanted.group,
                device_id=wanted.renews,
                needs_approval=wanted.needs_approval,
                created=now,
                created_by=actor,
                expires=now + wanted.seconds,
                state="open",
            )
        )
        detail = {"token": name, "expires": round(now + wanted.seconds), "approval": wanted.needs_approval}
        act = Act(actor, "token.create", wanted.renews, wanted.asset, detail)
        await fleet.audit.append(connection, act, now)
    return NewToken(name, token, now + wanted.seconds)


async def revoke_token(fleet: Fleet, name: str, actor: str) -> None:
    """Make a token worthless.

    Raises:
        NotFoundError: there is no open token of that name.

    """
    now, token = fleet.clock.wall(), tables.enrolment_token
    async with fleet.store.write() as connection:
        done = await connection.execute(
            sa.update(token).where(token.c.id == name, token.c.state == "open").values(state="revoked")
        )
        if not done.rowcount:
            raise NotFoundError(f"no open token {name!r}", hint="`casemate fleet token list` shows them")
        await fleet.audit.append(connection, Act(actor, "token.revoke", detail={"token": name}), now)


async def list_tokens(fleet: Fleet) -> list[dict[str, Any]]:
    """Return the newest tokens, never their secrets."""
    token = tables.enrolment_token.c
    async with fleet.store.read() as connection:
        rows = await connection.execute(sa.select(tables.enrolment_token).order_by(token.created.desc()).limit(1000))
        hidden = ("digest", "tenant_id")
        return [{key: value for key, value in row.items() if key not in hidden} for row in rows.mappings()]


async def enrol(fleet: Fleet, token: str, csr: bytes) -> bytes:
    """Turn *token* into a certificate (DER) for the key of *csr*.

    Raises:
        UntrustedDataError: the request is none, or its key is weak; the token stays good.
        NotAuthorisedError: the token is unknown, used, revoked or expired. Which one is for our log only.
        WaitsForApprovalError: the record was made; the same request works after an operator's yes.

    """
    public = authority.parse_csr(csr)
    key, now = key_digest(public), fleet.clock.wall()
    async with fleet.store.write() as connection:
        row = await open_token(connection, token, now)
        if row.state == "used":
            device, asset = await _approved(connection, row, key), row.asset
        else:
            device = row.device_id or await devices.create(
                connection,
                fleet.audit,
                asset=row.asset,
                group=row.group_name,
                state=State.PENDING if row.needs_approval else State.ENROLLED,
                by="token",
                key=key,
                now=now,
            )
            asset = row.asset
            await use_token(connection, row.id, device)
            if row.needs_approval and not row.device_id:
                await _note(connection, fleet, Act("device", "device.asks", device, asset, {"token": row.id}))
        if device is None or await _is_pending(connection, device):
            certificate = None
        else:
            certificate = await issue(connection, fleet, device, public, now)
            await _note(connection, fleet, Act("device", "device.enrol", device, asset, {"token": row.id}))
    if certificate is None:
        raise WaitsForApprovalError
    fleet.metrics.issued.labels("token").inc()
    return certificate


async def renew(fleet: Fleet, device: Known, csr: bytes) -> bytes:
    """Return a fresh certificate for *device*, which proved itself with the one it has; the key may change.

    Raises:
        UntrustedDataError: the request is none, or its key is weak.

    """
    public, now = authority.parse_csr(csr), fleet.clock.wall()
    cert = tables.device_cert.c
    async with fleet.store.write() as connection:
        # its record is locked: a renewal and a revocation at the same moment end with a revocation
        state = (await devices.find(connection, device.id, lock=True)).state
        if state not in {State.ENROLLED, State.QUARANTINED}:
            raise NotAuthorisedError("this device was revoked")
        certificate = await issue(connection, fleet, device.id, public, now)
        # two count at once: the one it holds, and the new one, which may not arrive
        allowed = (device.serial, authority.facts(certificate).serial)
        await connection.execute(
            sa.update(tables.device_cert)
            .where(cert.device_id == device.id, cert.state == "active", cert.serial.not_in(allowed))
            .values(state="superseded")
        )
        await _note(connection, fleet, Act("device", "device.renew", device.id, device.asset))
    fleet.metrics.issued.labels("renewal").inc()
    return certificate


async def issue(connection: AsyncConnection, fleet: Fleet, device: str, public: EcPublic, now: float) -> bytes:
    """Sign a certificate (DER) for *device* and store it, in the caller's transaction."""
    certificate = fleet.authority.issue_device(public, device, now)
    facts = authority.facts(certificate)
    await connection.execute(
        sa.insert(tables.device_cert).values(
            serial=facts.serial,
            device_id=device,
            state="active",
            not_before=facts.not_before,
            not_after=facts.not_after,
            certificate=certificate,
        )
    )
    await connection.execute(
        sa.update(tables.device)
        .where(tables.device.c.id == device)
        .values(certificate_expires=facts.not_after, key_digest=key_digest(public))
    )
    return certificate


def digest(token: str) -> str:
    """Return how the database knows a token: 256 random bits need no slow hash."""
    return hashlib.sha256(token.encode("utf-8")).hexdigest()


def key_digest(public: EcPublic) -> str:
    """Return the SHA-256 (hex) of a public key."""
    return hashlib.sha256(public.der()).hexdigest()


async def open_token(connection: AsyncConnection, text: str, now: float) -> sa.Row[Any]:
    """Return the row of a token that still enrols somebody, locked; one that waits for approval may be used already.

    Raises:
        NotAuthorisedError: unknown, used, revoked or expired. Which one is for our log only.

    """
    refusal = NotAuthorisedError("this token does not enrol anybody", hint="ask for a new one")
    try:
        wanted = digest(parse_token(text).text)
    except UntrustedDataError:
        raise refusal from None
    token = tables.enrolment_token
    row = (await connection.execute(sa.select(token).where(token.c.digest == wanted).with_for_update())).one_or_none()
    if row is None or row.expires <= now or row.state == "revoked":
        raise refusal
    if row.state == "used" and not row.needs_approval:
        raise refusal
    return row


async def use_token(connection: AsyncConnection, name: str, device: str) -> None:
    """Spend a token for *device*.

    Raises:
        NotAuthorisedError: somebody was faster.

    """
    token = tables.enrolment_token
    done = await connection.execute(
        sa.update(token).where(token.c.id == name, token.c.state == "open").values(state="used", used_by=device)
    )
    if done.rowcount != 1:
        raise NotAuthorisedError("this token does not enrol anybody", hint="ask for a new one")


async def _approved(connection: AsyncConnection, token: sa.Row[Any], key: str) -> str | None:
    """Return the device that asked with this token; None while a person has to decide.

    A person says yes to a key, whose digest they compared with what the device shows. Whoever learnt the token and
    comes with another key gets nothing by that yes.

    Raises:
        NotAuthorisedError: it was refused, has its certificate, or comes with another key than at first.

    """
    row = await devices.find(connection, token.used_by, lock=True)
    if not hmac.compare_digest(row.key_digest, key):
        raise NotAuthorisedError("this device asked with another key", hint="revoke it, and give it a new token")
    if row.certificate_expires is not None:
        raise NotAuthorisedError("this token does not enrol anybody", hint="ask for a new one")
    if row.state == State.PENDING:
        return None
    if row.state != State.ENROLLED:
        raise NotAuthorisedError("this device was refused")
    return str(row.id)


async def _is_pending(connection: AsyncConnection, device: str) -> bool:
    """Return whether a person has to decide.

    Raises:
        NotAuthorisedError: the device that the token renews is out.

    """
    state = (await devices.find(connection, device)).state
    if state not in {State.PENDING, State.ENROLLED, State.QUARANTINED}:
        raise NotAuthorisedError("this device was revoked")
    return bool(state == State.PENDING)


async def _note(connection: AsyncConnection, fleet: Fleet, act: Act) -> None:
    await fleet.audit.append(connection, act, fleet.clock.wall())
