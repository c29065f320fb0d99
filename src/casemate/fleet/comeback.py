"""The way back of a device without a TPM: it shows the key of its last certificate, and a person says yes.

    POST /device/v1/enroll/return   200 the certificate · 202 waits for a person · 401 not this key · 403 out for good
                                    409 the certificate it names holds

The request for a certificate is signed with the key, which is the proof of it. Whoever replays one gets a certificate
that is worth nothing without that key.
"""

from __future__ import annotations

from typing import Final

from starlette.responses import Response
from starlette.routing import Route

from casemate.crypto import authority
from casemate.fleet import returns
from casemate.fleet.audit import Act
from casemate.fleet.enrolment import issue, key_digest
from casemate.fleet.exchange import Call, open_route, reply
from casemate.formats import fleet_api
from casemate.formats.fleet_api import ReturnAsk, TpmWelcome

RETRY: Final = 5
"""Seconds until a device that waits asks again; it adds its own jitter."""


async def come_back(call: Call) -> Response:
    """Give a device of ours its next certificate, or let it wait."""
    asked = fleet_api.parse(call.body, ReturnAsk)
    public = authority.parse_csr(asked.csr)
    fleet, now = call.fleet, call.now
    async with fleet.store.write() as connection:
        row = await returns.require_may(connection, asked.device, asked.serial, now, key=key_digest(public))
        if not await returns.is_let_in(connection, fleet.audit, row, now):
            certificate = None
        else:
            certificate = await issue(connection, fleet, row.id, public, now)
            await returns.settled(connection, row.id, authority.facts(certificate).serial)
            act = Act("device", "device.return", row.id, row.asset, {"by": "key"})
            await fleet.audit.append(connection, act, now)
    if certificate is None:
        return Response(b"{}", 202, {"Retry-After": str(RETRY)}, "application/json")
    fleet.directory.forget(asked.device)
    fleet.metrics.issued.labels("return").inc()
    return reply(TpmWelcome(asked.device, (certificate, fleet.authority.issuer.certificate)))


ROUTES: Final[list[Route]] = [open_route("POST", "/device/v1/enroll/return", come_back)]
