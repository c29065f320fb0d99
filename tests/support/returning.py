"""What the tests of coming back need: certificates that ended long ago, in the records and on the device."""

from __future__ import annotations

import asyncio
import base64
import json

import sqlalchemy as sa

from casemate.clock import SystemClock
from casemate.crypto import authority, client_certificate
from casemate.crypto.ecdsa import EcPublic
from casemate.fleet.context import Fleet
from casemate.fleet.home import FleetHome
from casemate.fleet.store import tables
from support.fleet import Answer, Device, Server

WEEKS = 21 * 86400.0


def expired(server: Server, name: str, public: EcPublic) -> bytes:
    """Return a certificate (PEM, with its chain) of the device *name* that ended two weeks ago; it has no other."""

    async def work() -> bytes:
        fleet = Fleet.open(FleetHome(server.directory), SystemClock())
        try:
            made = fleet.authority.issue_device(public, name, fleet.clock.wall() - WEEKS)
            facts, cert, device = authority.facts(made), tables.device_cert, tables.device
            async with fleet.store.write() as connection:
                await connection.execute(sa.delete(cert).where(cert.c.device_id == name))
                row = {"serial": facts.serial, "device_id": name, "state": "active", "certificate": made}
                row |= {"not_before": facts.not_before, "not_after": facts.not_after}
                await connection.execute(sa.insert(cert).values(row))
                ends = {"certificate_expires": facts.not_after}
                await connection.execute(sa.update(device).where(device.c.id == name).values(ends))
            chain = [client_certificate.read(made), client_certificate.read(fleet.authority.issuer.certificate)]
            return client_certificate.to_pem(chain)
        finally:
            await fleet.store.close()

    return asyncio.run(work())


def put_away(server: Server, device: Device) -> None:
    """Leave *device* switched off until its certificate has ended."""
    chain = expired(server, device.id, device.key.public)
    device.certificate = client_certificate.from_pem(chain)[0].der
    device.identity.write_bytes(device.key.pem() + chain)


def ask_back(device: Device, **changes: str) -> Answer:
    """Ask with the old key, as the link does."""
    serial = authority.facts(device.certificate).serial
    csr = base64.b64encode(client_certificate.make_request(device.key)).decode()
    return post(device.server, "return", {"device": device.id, "serial": serial, "csr": csr, **changes})


def post(server: Server, path: str, body: dict[str, str]) -> Answer:
    return server.ask("enrol", "POST", f"/device/v1/enroll/{path}", json.dumps(body).encode())


def take(device: Device, answer: Answer) -> None:
    """Use the certificate in *answer* from now on."""
    assert answer.status == 200, answer.body
    chain = [client_certificate.read(base64.b64decode(each)) for each in answer.json()["chain"]]
    device.certificate = chain[0].der
    device.identity.write_bytes(device.key.pem() + client_certificate.to_pem(chain))
