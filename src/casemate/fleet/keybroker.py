"""Keys of models that only proven devices get. `decide` is the rule; everything else carries it out and writes it down.

A gated model has one key-encryption key, made here and wrapped by the broker's own key, which follows from a key of the
fleet's directory and is not in its database. It leaves only for `TPM2_ActivateCredential` of the one TPM we know, so a
stolen connection, certificate or disk is no use for it; in answer to one question of that device; and with a lease,
after which the device's TPM does not give it out any more (`formats.lease`).

Every answer is a row and an entry of the audit log, refusals too: who asked, for what, and why not.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.responses import Response
from starlette.routing import Route

from casemate.crypto import aead
from casemate.crypto import tpm as tpm_crypto
from casemate.crypto.aead import TagMismatch
from casemate.crypto.secret import Secret
from casemate.errors import NotFoundError, OperationError, PolicyDeniedError, UsageError
from casemate.fleet import results
from casemate.fleet.audit import Act
from casemate.fleet.context import Fleet
from casemate.fleet.exchange import DeviceCall, device_route, reply
from casemate.fleet.home import FleetHome
from casemate.fleet.states import State, Use, may
from casemate.fleet.store import Store, retention, tables
from casemate.formats import fleet_api, keystore, lease, tpm
from casemate.formats import gate as release_gate
from casemate.formats.grant import show_recipient

LEVELS: Final = ("L0", "L1", "L2", "L3")
LEASE_SECONDS: Final = 24 * 3600
LONGEST_LEASE: Final = lease.LONGEST_S
RESULT_AGE: Final = 900.0
_KEY_BYTES: Final = 32
_LABEL: Final = "casemate fleet broker 1"
_PURPOSE: Final = b"casemate/1/model-key/"
_MODEL: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}\Z")


@dataclasses.dataclass(frozen=True, slots=True)
class Gate:
    """What a model asks of a device."""

    min_assurance: str
    lease_s: int
    licence_ends: float | None


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """The newest judgement of a device."""

    id: int
    status: str
    assurance: str
    created: float
    expires: float


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """*lease_s* is 0 when the key is not granted; *reason* says why, or with what."""

    lease_s: int
    reason: str

    @property
    def granted(self) -> bool:
        """Whether the key goes out."""
        return self.lease_s > 0


def decide(gate: Gate | None, result: Result | None, state: State, now: float) -> Verdict:
    """Decide whether a device in *state* whose newest judgement is *result* gets a model's key at *now*.

    Only the newest judgement counts: a good one from before does not outlive a bad one.
    """
    refusals = (
        (gate is None, "the fleet has no key for this model"),
        (not may(state, Use.KEYS), f"the device is {state}"),
        (result is None, "the device was never attested"),
        (result is not None and result.status != "affirming", "the newest attestation is not affirming"),
        (result is not None and not result.created <= now < result.expires, "the newest attestation has expired"),
        (result is not None and now - result.created > RESULT_AGE, "the newest attestation has expired"),
        (gate is not None and result is not None and not _reaches(result, gate), "the assurance is too low"),
        (gate is not None and gate.licence_ends is not None and now >= gate.licence_ends, "the licence has ended"),
    )
    for refused, why in refusals:
        if refused:
            return Verdict(0, why)
    assert gate is not None
    assert result is not None
    lease = gate.lease_s if gate.licence_ends is None else min(gate.lease_s, int(gate.licence_ends - now))
    return Verdict(max(lease, 1), f"{result.assurance}, attestation {result.id}")


def _reaches(result: Result, gate: Gate) -> bool:
    known = result.assurance in LEVELS and gate.min_assurance in LEVELS
    return known and LEVELS.index(result.assurance) >= LEVELS.index(gate.min_assurance)


async def release(call: DeviceCall) -> Response:
    """Give a device the key of a model, or say why not."""
    model = call.request.path_params["model"]
    if not _MODEL.match(model):
        raise NotFoundError("the fleet has no key for this model")
    asked = fleet_api.parse(call.body, fleet_api.KeyQuestion)
    fleet, device, now = call.fleet, call.device, call.now
    async with fleet.store.write() as connection:
        # the record is locked: a revocation or quarantine that commits first is seen, one that comes later waits
        state = State(
            (
                await connection.execute(
                    sa.select(tables.device.c.state).where(tables.device.c.id == device.id).with_for_update()
                )
            ).scalar_one()
        )
        row = await _row(connection, model)
        gate = Gate(row.min_assurance, row.lease_s, row.licence_ends) if row else None
        result = await _newest_result(connection, device.id)
        verdict = decide(gate, result, state, now)
        answer = await _sealed(connection, call, row, verdict, asked.nonce) if verdict.granted and row else None
        await _note(connection, call, model, verdict, result)
    if answer is None:
        raise PolicyDeniedError(f"no key: {verdict.reason}", hint="`casemate device status` says what is missing")
    return reply(answer)


async def gate_model(fleet: Fleet, model: str, gate: Gate, actor: str) -> tuple[str, bytes]:
    """Make the key of *model*, or change what it asks for; returns its name, and what releases of it are granted to.

    Raises:
        UsageError: not a name, an unknown level, or a lease out of bounds.

    """
    if not _MODEL.match(model) or gate.min_assurance not in LEVELS[2:]:
        raise UsageError("a gated model has a name and asks for L2 or L3", hint="L2: a TPM. L3: and a measured boot")
    if not 60 <= gate.lease_s <= LONGEST_LEASE:  # noqa: PLR2004 - a minute
        raise UsageError(f"a lease is 60 to {LONGEST_LEASE} seconds")
    now, table = fleet.clock.wall(), tables.model_key
    asks = {"min_assurance": gate.min_assurance, "lease_s": gate.lease_s, "licence_ends": gate.licence_ends}
    async with fleet.store.write() as connection:
        row = await _row(connection, model)
        if row:
            key_id, recipient = str(row.key_id), _recipient(fleet.home, row)
            await connection.execute(sa.update(table).where(table.c.model == model).values(**asks))
        else:
            with Secret.random(_KEY_BYTES) as key, broker_key(fleet.home) as broker:
                key_id, recipient = keystore.key_id(key), release_gate.public_of(key)
                wrapped = aead.wrap(broker, key, _PURPOSE + model.encode("ascii"))
            values = {"model": model, "key_id": key_id, "wrapped": wrapped, "created": now, "created_by": actor}
            await connection.execute(sa.insert(table).values(**values, **asks))
        await fleet.audit.append(connection, Act(actor, "model.gate", detail={"model": model, **asks}), now)
    return key_id, recipient


async def list_models(fleet: Fleet) -> list[dict[str, Any]]:
    """Return the gated models, what they ask for and what releases of them are granted to; never their keys."""
    table = tables.model_key
    async with fleet.store.read() as connection:
        rows = (await connection.execute(sa.select(table).order_by(table.c.model))).all()
    shown = ("model", "key_id", "min_assurance", "lease_s", "licence_ends")
    return [
        {**{name: getattr(row, name) for name in shown}, "recipient": show_recipient(_recipient(fleet.home, row))}
        for row in rows
    ]


async def require_gates(fleet: Fleet, connection: AsyncConnection, gates: Iterable[release_gate.Gate]) -> None:
    """Refuse to roll out what no device could open: a release's gate and the fleet's must fit.

    Where the fleet asks for more than the release, its own word holds at every grant.

    Raises:
        PolicyDeniedError: the fleet has no such model, another key of it, or asks for less than the release.

    """
    for gate in gates:
        row = await _row(connection, gate.model)
        hint = f"on the fleet: `casemate fleet model gate {gate.model} --min-assurance {gate.min_assurance}`"
        if row is None:
            raise PolicyDeniedError(
                f"the release is gated by {gate.model!r}, which this fleet has no key of", hint=hint
            )
        if _recipient(fleet.home, row) != gate.recipient:
            raise PolicyDeniedError(
                f"the release was made for another key of {gate.model!r} than this fleet's",
                hint="build it again with the recipient that `casemate fleet model list` shows",
            )
        if not release_gate.reaches(row.min_assurance, gate.min_assurance):
            raise PolicyDeniedError(
                f"the release asks for {gate.min_assurance}, this fleet gives {gate.model!r} to {row.min_assurance}",
                hint=hint,
            )


async def list_grants(fleet: Fleet, limit: int = 100) -> list[dict[str, Any]]:
    """Return the newest answers of the broker, refusals too."""
    table = tables.key_grant
    async with fleet.store.read() as connection:
        query = sa.select(table).order_by(table.c.id.desc()).limit(limit)
        rows = (await connection.execute(query)).mappings()
        return [{key: value for key, value in row.items() if key != "tenant_id"} for row in rows]


async def prune(store: Store, now: float, kept: float) -> int:
    """Forget answers older than *kept* seconds whose lease is over; returns how many went. The audit log keeps them.

    Raises:
        OperationError: the database does not answer.

    """
    ends = tables.key_grant.c.expires
    return await retention.forget(store, tables.key_grant, now - kept, sa.or_(ends.is_(None), ends < now))


def broker_key(home: FleetHome) -> Secret:
    """Return the key that wraps every model's key. It follows from the fleet's own: every server has the same."""
    return home.signing_key("audit").derive(_LABEL)


def model_key(home: FleetHome, row: sa.Row[Any]) -> Secret:
    """Return the key of a gated model.

    Raises:
        OperationError: it does not open: another directory, or a changed row.

    """
    try:
        with broker_key(home) as broker:
            return aead.unwrap(broker, bytes(row.wrapped), _PURPOSE + row.model.encode("ascii"))
    except TagMismatch:
        raise OperationError(
            "the model's key does not open with the broker's", hint="the fleet's keys and database do not fit"
        ) from None


async def wrap_again(connection: AsyncConnection, home: FleetHome, old: Secret) -> int:
    """Wrap what a server's own key *old* opens under the key that all share; returns how many models that were."""
    table, done = tables.model_key, 0
    for row in (await connection.execute(sa.select(table.c.model, table.c.wrapped))).all():
        context = _PURPOSE + row.model.encode("ascii")
        try:
            with aead.unwrap(old, bytes(row.wrapped), context) as key, broker_key(home) as broker:
                wrapped = aead.wrap(broker, key, context)
        except TagMismatch:
            continue  # wrapped again already, or under another server's key
        await connection.execute(sa.update(table).where(table.c.model == row.model).values(wrapped=wrapped))
        done += 1
    return done


def _recipient(home: FleetHome, row: sa.Row[Any]) -> bytes:
    with model_key(home, row) as key:
        return release_gate.public_of(key)


async def _sealed(
    connection: AsyncConnection, call: DeviceCall, row: sa.Row[Any], verdict: Verdict, nonce: bytes
) -> fleet_api.KeyAnswer:
    """Return the key for the one TPM that may open it, in answer to *nonce*.

    Raises:
        OperationError: the wrapped key does not open: another directory, or a changed row.

    """
    identity = tables.tpm_identity.c
    query = sa.select(identity.ek_public, identity.ak_public).where(identity.device_id == call.device.id)
    known = (await connection.execute(query)).one()
    ek, ak = tpm.parse_public(bytes(known.ek_public)), tpm.parse_public(bytes(known.ak_public))
    terms = lease.Terms(
        schema=1,
        fleet=call.fleet.settings.fleet,
        device=call.device.id,
        model=row.model,
        key=row.key_id,
        min_assurance=row.min_assurance,
        lease_s=verdict.lease_s,
        nonce=nonce,
    )
    with model_key(call.fleet.home, row) as key, Secret.random(_KEY_BYTES) as transport:
        grant = lease.make_grant(transport, key, terms)
        sealed = tpm_crypto.make_credential(ek.key, ek.name_algorithm, ek.symmetric_bits, ak.name, transport.reveal())
    return fleet_api.KeyAnswer(row.key_id, *sealed, *grant, verdict.lease_s)


async def _row(connection: AsyncConnection, model: str) -> sa.Row[Any] | None:
    return (
        await connection.execute(sa.select(tables.model_key).where(tables.model_key.c.model == model))
    ).one_or_none()


async def _newest_result(connection: AsyncConnection, device: str) -> Result | None:
    row = await results.newest(connection, device)
    return Result(row.id, row.status, row.assurance, row.created, row.expires) if row else None


async def _note(
    connection: AsyncConnection, call: DeviceCall, model: str, verdict: Verdict, result: Result | None
) -> None:
    await connection.execute(
        sa.insert(tables.key_grant).values(
            device_id=call.device.id,
            model=model,
            granted=verdict.granted,
            reason=verdict.reason,
            result_id=result.id if result else None,
            created=call.now,
            expires=call.now + verdict.lease_s if verdict.granted else None,
        )
    )
    action = "key.grant" if verdict.granted else "key.refuse"
    detail = {"model": model, "reason": verdict.reason, "lease": verdict.lease_s}
    act = Act("broker", action, call.device.id, call.device.asset, detail)
    await call.fleet.audit.append(connection, act, call.now)


ROUTES: Final[list[Route]] = [
    # admitted like a report, so that a device in quarantine is refused by `decide`, and that is written down
    device_route("POST", "/device/v1/keys/{model}/release", Use.REPORT, release),
]
