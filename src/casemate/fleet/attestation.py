"""Challenge and evidence: what a device must show, and the judgement that is kept until it ends.

A nonce is ours, single-use, for one device and sixty seconds; it is spent before the evidence is looked at, so the same
evidence cannot be tried twice. The judgement is kept with its end, and everything that relies on it looks at the end
again: a server that stops judging leaves no "good" behind.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
from collections.abc import Sequence
from typing import Any, Final

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.responses import Response
from starlette.routing import Route

from casemate.crypto.ecdsa import EcKey
from casemate.errors import NotFoundError, PolicyDeniedError, UntrustedDataError
from casemate.fleet import devices, inventory, learning, policies, verifier
from casemate.fleet.audit import Act
from casemate.fleet.context import Fleet
from casemate.fleet.exchange import DeviceCall, device_route, reply
from casemate.fleet.home import FleetHome
from casemate.fleet.identity import Known
from casemate.fleet.states import Use
from casemate.fleet.store import tables
from casemate.fleet.verifier import Appraisal, KnownTpm, ProvenEvidence, TpmClock
from casemate.formats import ear, evidence, fleet_api
from casemate.formats.evidence import UntrustedEvidence
from casemate.formats.reference_policy import ReferencePolicy, VerifiedPolicy

CHALLENGE_SECONDS: Final = 60
KEY_FILE: Final = "ear.key"
_PURPOSE: Final = "evidence"


@dataclasses.dataclass(frozen=True, slots=True)
class Judged:
    """Evidence after its judgement."""

    appraisal: Appraisal
    answer: fleet_api.AttestAnswer


@dataclasses.dataclass(frozen=True, slots=True)
class _Shown:
    """Evidence as it came, and what was proven of it; None: nothing."""

    given: UntrustedEvidence
    proven: ProvenEvidence | None


async def challenge(call: DeviceCall) -> Response:
    """Give a device a nonce and say which PCRs to quote; an older nonce of its is void."""
    nonce, row = os.urandom(evidence.NONCE_BYTES), tables.attest_nonce
    async with call.fleet.store.write() as connection:
        await known_tpm(connection, call.device.id)
        wanted = verifier.wanted_pcrs(await _policy(call.fleet, connection, call.device))
        await connection.execute(sa.delete(row).where(row.c.device_id == call.device.id, row.c.purpose == _PURPOSE))
        await connection.execute(
            sa.insert(row).values(
                digest=hashlib.sha256(nonce).hexdigest(),
                device_id=call.device.id,
                purpose=_PURPOSE,
                expires=call.now + CHALLENGE_SECONDS,
                context=msgspec.json.encode(sorted(wanted)),
            )
        )
    return reply(fleet_api.Challenge(nonce, tuple(sorted(wanted)), CHALLENGE_SECONDS))


async def take_evidence(call: DeviceCall) -> Response:
    """Judge a device's evidence; the answer says what it came to, and never why its caller should be believed."""
    given = evidence.parse(call.body)
    wanted = await _spend_nonce(call.fleet, call.device.id, given.nonce, call.now)
    judged = await _judge(call, given, wanted)
    call.fleet.directory.forget(call.device.id)
    return reply(judged.answer)


async def known_tpm(connection: AsyncConnection, device: str) -> KnownTpm:
    """Return our record of *device*'s TPM.

    Raises:
        PolicyDeniedError: it did not enrol with one: nothing it says about itself can be proven.

    """
    identity = tables.tpm_identity.c
    row = (
        await connection.execute(sa.select(identity.ak_public, identity.ek_trusted).where(identity.device_id == device))
    ).one_or_none()
    if row is None:
        raise PolicyDeniedError(
            "this device did not enrol with a TPM: it cannot be attested", hint="enrol it again with its TPM"
        )
    return KnownTpm(bytes(row.ak_public), bool(row.ek_trusted), await _last_clock(connection, device))


async def proven_evidence(connection: AsyncConnection, device: str) -> ProvenEvidence:
    """Return the newest evidence of *device* that was proven, proven once more.

    Raises:
        NotFoundError: there is none.

    """
    given = await _newest(connection, device)
    if given is None:
        raise NotFoundError("this device has shown no evidence yet", hint="`casemate fleet device show` says why")
    known = dataclasses.replace(await known_tpm(connection, device), last=None)
    return verifier.prove(given, nonce=given.nonce, known=known, wanted=frozenset(given.pcrs))


async def learn_from(fleet: Fleet, name: str, group: str, models: Sequence[str] = ()) -> ReferencePolicy:
    """Propose a policy from what the device *name* (an id or asset tag) proved last, one version above the newest.

    *models* are listed before any device served them: NAME, or NAME=DIGEST (`learning.coming`).

    Raises:
        NotFoundError: no such device, it has shown nothing, or has said nothing of such a model.
        UsageError: a model is not written so.
        UntrustedDataError: `policy-form`: it showed too little.

    """
    policy = tables.attest_policy.c
    async with fleet.store.read() as connection:
        row = await devices.find(connection, name)
        group = group or row.group_name or policies.DEFAULT
        proven = await proven_evidence(connection, row.id)
        newest = sa.select(sa.func.max(policy.version)).where(policy.name == group)
        above = (await connection.execute(newest)).scalar() or 0
        held = await inventory.of(connection, row.id) if models else None
    listed = [learning.coming(text, held) for text in models]
    return learning.propose(proven, name=group, version=above + 1, now=fleet.clock.wall(), models=listed)


@functools.lru_cache(maxsize=4)
def signing_key(home: FleetHome) -> EcKey:
    """Return the key that signs results; the fleet made it with its other keys.

    Raises:
        NotFoundError: it is gone: nothing can be affirmed.

    """
    return home.ec_key(home.keys / KEY_FILE)


async def _judge(call: DeviceCall, given: UntrustedEvidence, wanted: frozenset[int]) -> Judged:
    fleet, device, now = call.fleet, call.device, call.now
    async with fleet.store.write() as connection:
        known = await known_tpm(connection, device.id)
        proven: ProvenEvidence | None = None
        policy: VerifiedPolicy | None = None
        try:
            proven = verifier.prove(given, nonce=given.nonce, known=known, wanted=wanted)
            policy = await _policy(fleet, connection, device)
            appraisal = verifier.appraise(proven, policy=policy, known=known, now=now)
        except UntrustedDataError as error:
            appraisal = verifier.refused(error.check, error.message)
            fleet.metrics.refusals.labels("attestation", error.check).inc()
        until = float(policy.policy.expires) if policy else now + verifier.RESULT_SECONDS
        result = verifier.result(
            appraisal,
            device=device.id,
            nonce=given.nonce,
            certificate_digest=hashlib.sha256(call.peer.certificate).digest(),
            until=until,
            now=now,
        )
        token = ear.sign(result, signing_key(fleet.home))
        answer = fleet_api.AttestAnswer(
            appraisal.status, appraisal.level, float(result.exp), token, appraisal.reasons[:32]
        )
        await _keep(connection, call, _Shown(given, proven), answer, appraisal)
    return Judged(appraisal, answer)


async def _keep(
    connection: AsyncConnection,
    call: DeviceCall,
    shown: _Shown,
    answer: fleet_api.AttestAnswer,
    appraisal: Appraisal,
) -> None:
    """Keep the judgement; only evidence that was proven is kept with it. A change is an entry of the audit log."""
    result, device = tables.attest_result, tables.device
    newest = sa.select(result.c.status).where(result.c.device_id == call.device.id).order_by(result.c.id.desc())
    before = (await connection.execute(newest.limit(1))).scalar()
    await connection.execute(
        sa.insert(result).values(
            device_id=call.device.id,
            status=answer.status,
            assurance=answer.assurance,
            reasons=msgspec.json.encode(answer.reasons).decode(),
            policy=appraisal.policy,
            policy_version=appraisal.policy_version,
            evidence_digest=hashlib.sha256(call.body).hexdigest(),
            evidence=evidence.encode(shown.given) if shown.proven else None,
            generation=evidence.served(shown.proven.events) if shown.proven else "",
            ear=answer.ear,
            created=call.now,
            expires=answer.expires,
        )
    )
    good = answer.status == "affirming"
    await connection.execute(
        sa.update(device)
        .where(device.c.id == call.device.id)
        .values(assurance=answer.assurance, assurance_expires=answer.expires if good else 0.0)
    )
    if before != answer.status:
        detail: dict[str, Any] = {"from": before, "to": answer.status, "reasons": list(answer.reasons)}
        act = Act("verifier", "device.attest", call.device.id, call.device.asset, detail)
        await call.fleet.audit.append(connection, act, call.now)


async def _spend_nonce(fleet: Fleet, device: str, nonce: bytes, now: float) -> frozenset[int]:
    """Take the nonce out of the list, whatever comes next; returns the PCRs it was given with.

    Raises:
        UntrustedDataError: `nonce`: not ours, not for this device, spent or too old.

    """
    row = tables.attest_nonce
    async with fleet.store.write() as connection:
        spent = await connection.execute(
            sa.delete(row)
            .where(
                row.c.digest == hashlib.sha256(nonce).hexdigest(),
                row.c.device_id == device,
                row.c.purpose == _PURPOSE,
                row.c.expires > now,
            )
            .returning(row.c.context)
        )
        found = spent.one_or_none()
    if found is None:
        raise UntrustedDataError(
            "this challenge is not open", check="nonce", hint="ask for a new one: it is good once, for a minute"
        )
    return frozenset(msgspec.json.decode(bytes(found.context), type=list[int]))


async def _policy(fleet: Fleet, connection: AsyncConnection, device: Known) -> VerifiedPolicy | None:
    return await policies.in_force(fleet, connection, device.group)


async def _last_clock(connection: AsyncConnection, device: str) -> TpmClock | None:
    given = await _newest(connection, device)
    if given is None:
        return None
    quote = verifier.quote_of(given)
    return TpmClock(quote.reset_count, quote.restart_count, quote.clock)


async def _newest(connection: AsyncConnection, device: str) -> UntrustedEvidence | None:
    result = tables.attest_result.c
    query = sa.select(result.evidence).where(result.device_id == device, result.evidence.is_not(None))
    row = (await connection.execute(query.order_by(result.id.desc()).limit(1))).one_or_none()
    return evidence.parse(bytes(row.evidence)) if row else None


ROUTES: Final[list[Route]] = [
    device_route("POST", "/device/v1/attest/challenge", Use.REPORT, challenge),
    device_route("POST", "/device/v1/attest/evidence", Use.REPORT, take_evidence),
]
