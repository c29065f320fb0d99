"""Joining with a TPM: endorsement key, attestation key and certificate request are tied together by one credential.

    1  hello      EK public (and the maker's certificate), AK public, CSR, perhaps a one-time token
    2  credential a secret that only a TPM holding that EK *and* that AK opens
    3  proof      the secret: record, TPM and certificate are one transaction

Who is let in: a TPM whose endorsement key is on the fleet's list, or somebody with a one-time token. What the TPM is
worth is another question: it counts as a chip only when a listed maker signed for its endorsement key. A TPM we know
already gets its device's next certificate: that is the way back when the old one has expired.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from typing import Any, Final

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.responses import Response
from starlette.routing import Route

from casemate.crypto import authority, endorsement
from casemate.crypto import tpm as tpm_crypto
from casemate.errors import NotAuthorisedError, UntrustedDataError
from casemate.fleet import devices, returns
from casemate.fleet.audit import Act
from casemate.fleet.context import Fleet
from casemate.fleet.enrolment import issue, key_digest, open_token, use_token
from casemate.fleet.exchange import Call, open_route, reply
from casemate.fleet.states import State
from casemate.fleet.store import tables
from casemate.formats import fleet_api, tpm
from casemate.formats.fleet_api import TpmCredential, TpmHello, TpmProof, TpmWelcome
from casemate.formats.tpm import TpmPublic

SECONDS: Final = 120
"""A discrete TPM needs seconds for its keys."""
_PURPOSE: Final = "tpm-enrol"
_NOBODY: Final = "-"
_SECRET_BYTES: Final = 32
_STRANGER: Final = "this TPM is not on the fleet's list, and no token came with it"


class _Waiting(msgspec.Struct, frozen=True):
    """What step three needs again."""

    hello: TpmHello
    trusted: bool


async def hello(call: Call) -> Response:
    """Answer a credential for whoever this claims to be."""
    asked = fleet_api.parse(call.body, TpmHello)
    ek, ak = tpm.parse_public(asked.ek_public), tpm.parse_public(asked.ak_public)
    tpm.check_endorsement_key(ek)
    tpm.check_attestation_key(ak)
    authority.parse_csr(asked.csr)
    secret = os.urandom(_SECRET_BYTES)
    answer = fleet_api.return_proof(secret, asked.csr) if asked.device else secret
    async with call.fleet.store.write() as connection:
        trusted = await _vouched_for(connection, asked, ek, call.now)
        await _require_way_in(connection, call.fleet, asked, ek)
        await connection.execute(
            sa.insert(tables.attest_nonce).values(
                digest=hashlib.sha256(answer).hexdigest(),
                device_id=_NOBODY,
                purpose=_PURPOSE,
                expires=call.now + SECONDS,
                context=msgspec.json.encode(_Waiting(asked, trusted)),
            )
        )
    identity, encrypted = tpm_crypto.make_credential(ek.key, ek.name_algorithm, ek.symmetric_bits, ak.name, secret)
    return reply(TpmCredential(identity, encrypted, SECONDS))


async def complete(call: Call) -> Response:
    """Take the secret back and make the device, or give a known one its next certificate."""
    proof = fleet_api.parse(call.body, TpmProof)
    row = tables.attest_nonce
    async with call.fleet.store.write() as connection:
        spent = await connection.execute(
            sa.delete(row)
            .where(
                row.c.digest == hashlib.sha256(proof.secret).hexdigest(),
                row.c.purpose == _PURPOSE,
                row.c.expires > call.now,
            )
            .returning(row.c.context)
        )
        found = spent.one_or_none()
        if found is None:
            raise NotAuthorisedError("this proof answers no credential of ours", hint="begin again")
        waiting = msgspec.json.decode(bytes(found.context), type=_Waiting)
        device = await _admit(connection, call.fleet, waiting, call.now)
        public = authority.parse_csr(waiting.hello.csr)
        certificate = await issue(connection, call.fleet, device, public, call.now)
        if waiting.hello.device:
            await returns.settled(connection, device, authority.facts(certificate).serial)
    call.fleet.directory.forget(device)
    call.fleet.metrics.issued.labels("tpm").inc()
    return reply(TpmWelcome(device, (certificate, call.fleet.authority.issuer.certificate)))


async def add_maker(fleet: Fleet, certificate: bytes, actor: str, *, software: bool = False) -> str:
    """List an authority (PEM or DER) that vouches for TPMs; returns its name.

    *software* is for tests: it makes a program that plays a TPM count as a chip, and is said in the audit log.

    Raises:
        UntrustedDataError: `ek-certificate`: it is no authority's.

    """
    der, name = endorsement.issuer_certificate(certificate)
    digest, now, maker = hashlib.sha256(der).hexdigest(), fleet.clock.wall(), tables.tpm_maker
    async with fleet.store.write() as connection:
        await connection.execute(sa.delete(maker).where(maker.c.digest == digest))
        row = {"digest": digest, "name": name[:256], "certificate": der, "software": software}
        await connection.execute(sa.insert(maker).values(**row, created=now, created_by=actor))
        detail = {"maker": name, "software": software}
        await fleet.audit.append(connection, Act(actor, "tpm.maker.add", detail=detail), now)
    return name


async def allow(fleet: Fleet, ek_digest: str, asset: str, group: str, actor: str) -> None:
    """Let the TPM whose endorsement key has this SHA-256 (hex, of its SubjectPublicKeyInfo) join as *asset*."""
    now, listed = fleet.clock.wall(), tables.ek_allow
    async with fleet.store.write() as connection:
        await connection.execute(sa.delete(listed).where(listed.c.digest == ek_digest))
        row = {"digest": ek_digest, "asset": asset, "group_name": group}
        await connection.execute(sa.insert(listed).values(**row, created=now, created_by=actor))
        await fleet.audit.append(connection, Act(actor, "tpm.allow", None, asset, {"ek": ek_digest}), now)


def ek_digest(public: TpmPublic) -> str:
    """Return how an endorsement key is listed: SHA-256 (hex) of its SubjectPublicKeyInfo."""
    return hashlib.sha256(tpm_crypto.spki(public.key)).hexdigest()


async def _vouched_for(connection: AsyncConnection, asked: TpmHello, ek: TpmPublic, now: float) -> bool:
    """Return whether a listed maker signed for this very key.

    Raises:
        UntrustedDataError: `ek-certificate`: the certificate is for another key. (None at all is merely not trusted.)

    """
    if not asked.ek_certificate:
        return False
    makers = {bytes(row.certificate): row.software for row in await connection.execute(sa.select(tables.tpm_maker))}
    try:
        found = endorsement.verify_endorsement(asked.ek_certificate, makers, now)
    except UntrustedDataError as error:
        if error.check == "ek-issuer":
            return False
        raise
    if not hmac.compare_digest(tpm_crypto.spki(found.key), tpm_crypto.spki(ek.key)):
        raise UntrustedDataError("the EK certificate is for another key", check="ek-certificate")
    return not found.software or bool(makers[found.authority])


async def _require_way_in(connection: AsyncConnection, fleet: Fleet, asked: TpmHello, ek: TpmPublic) -> None:
    """Refuse strangers early: a credential costs us an RSA operation and a row."""
    known = await _device_of(connection, ek)
    if asked.device:
        _require_same(known, asked.device)
        await returns.require_may(connection, asked.device, asked.serial, fleet.clock.wall())
        return
    if known or await _listing_of(connection, ek):
        return
    if not asked.token:
        raise NotAuthorisedError(_STRANGER, hint="list its endorsement key, or give the device a one-time token")
    await open_token(connection, asked.token, fleet.clock.wall())


async def _admit(connection: AsyncConnection, fleet: Fleet, waiting: _Waiting, now: float) -> str:
    """Return the device this TPM is, making its record when it is new."""
    asked = waiting.hello
    ek = tpm.parse_public(asked.ek_public)
    known = await _device_of(connection, ek)
    if asked.device:
        _require_same(known, asked.device)
    if known is not None:
        return await _known_device(connection, fleet, known, waiting, now)
    listed, token = await _listing_of(connection, ek), None
    if listed is None:
        token = await open_token(connection, asked.token, now)
        if token.needs_approval or token.device_id:
            raise NotAuthorisedError("this token is for enrolment without a TPM", hint="ask for a plain one")
    source = listed or token
    assert source is not None
    public = authority.parse_csr(asked.csr)
    device = await devices.create(
        connection,
        fleet.audit,
        asset=source.asset,
        group=source.group_name,
        state=State.ENROLLED,
        by="tpm",
        key=key_digest(public),
        now=now,
    )
    if token is not None:
        await use_token(connection, token.id, device)
    await connection.execute(
        sa.insert(tables.tpm_identity).values(
            device_id=device,
            ek_digest=ek_digest(ek),
            ek_public=asked.ek_public,
            ak_public=asked.ak_public,
            ek_trusted=waiting.trusted,
            created=now,
        )
    )
    detail = {"ek": ek_digest(ek), "trusted": waiting.trusted, "by": "list" if listed else "token"}
    await fleet.audit.append(connection, Act("device", "device.enrol", device, source.asset, detail), now)
    return device


async def _known_device(connection: AsyncConnection, fleet: Fleet, device: str, waiting: _Waiting, now: float) -> str:
    """Return *device*, which proved its TPM; a maker that was listed meanwhile counts from now on.

    Raises:
        NotAuthorisedError: it is out.

    """
    comes_back = bool(waiting.hello.device)
    if comes_back:
        row = await returns.require_may(connection, device, waiting.hello.serial, now)
    else:
        row = await devices.find(connection, device, lock=True)
        if row.state not in {State.ENROLLED, State.QUARANTINED}:
            raise NotAuthorisedError("this device was revoked")
    identity = tables.tpm_identity
    await connection.execute(
        sa.update(identity)
        .where(identity.c.device_id == device)
        .values(ak_public=waiting.hello.ak_public, ek_trusted=waiting.trusted)
    )
    detail = {"by": "tpm", "trusted": waiting.trusted}
    act = Act("device", "device.return" if comes_back else "device.renew", device, row.asset, detail)
    await fleet.audit.append(connection, act, now)
    return device


def _require_same(known: str | None, device: str) -> None:
    if known != device:
        raise NotAuthorisedError("this is not the TPM of that device", hint="it comes back with the TPM it joined with")


async def _device_of(connection: AsyncConnection, ek: TpmPublic) -> str | None:
    identity = tables.tpm_identity.c
    query = sa.select(identity.device_id).where(identity.ek_digest == ek_digest(ek))
    return (await connection.execute(query)).scalar()


async def _listing_of(connection: AsyncConnection, ek: TpmPublic) -> sa.Row[Any] | None:
    query = sa.select(tables.ek_allow).where(tables.ek_allow.c.digest == ek_digest(ek))
    return (await connection.execute(query)).one_or_none()


ROUTES: Final[list[Route]] = [
    open_route("POST", "/device/v1/enroll/tpm/challenge", hello),
    open_route("POST", "/device/v1/enroll/tpm/complete", complete),
]
