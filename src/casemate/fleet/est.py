"""EST (RFC 7030): cacerts, csrattrs, simpleenroll on the enrolment listener; simplereenroll on the devices'.

Plain `curl` and `openssl` are clients enough. Of a request only its key is used.
"""

from __future__ import annotations

import base64
import binascii
from typing import Final

from starlette.responses import Response
from starlette.routing import Route

from casemate.crypto import authority
from casemate.errors import NotAuthorisedError
from casemate.fleet import enrolment
from casemate.fleet.exchange import Call, DeviceCall, device_route, open_route
from casemate.fleet.states import Use
from casemate.formats import enrolment as bundle_format

PREFIX: Final = "/.well-known/est"
_CERTS: Final = "application/pkcs7-mime; smime-type=certs-only"
_BASE64: Final = {"Content-Transfer-Encoding": "base64"}
_RETRY: Final = 30
"""Seconds until a device that waits for a person asks again (RFC 7030 4.2.3)."""
# SEQUENCE { SEQUENCE { ecPublicKey, SET { P-256, P-384 } }, ecdsa-with-SHA256 }: keys we take (RFC 7030 4.5.2)
_CSR_ATTRIBUTES: Final = bytes.fromhex(
    "3028301c06072a8648ce3d0201311106082a8648ce3d03010706052b8104002206082a8648ce3d040302"
)


async def cacerts(call: Call) -> Response:
    """Answer the root and the intermediates, on both listeners: one who renews may need a new intermediate."""
    return _certificates(*call.fleet.authority.chain())


async def csrattrs(call: Call) -> Response:
    """Answer which keys are taken."""
    del call
    return Response(base64.encodebytes(_CSR_ATTRIBUTES), headers=_BASE64, media_type="application/csrattrs")


async def simpleenroll(call: Call) -> Response:
    """Turn a one-time token (HTTP Basic; any user name) and a request into a certificate."""
    try:
        issued = await enrolment.enrol(call.fleet, _password(call.request.headers.get("authorization", "")), call.body)
    except enrolment.WaitsForApprovalError:
        return Response("an operator has to approve this device\n", 202, {"Retry-After": str(_RETRY)}, "text/plain")
    return _certificates(issued)  # and nothing else (RFC 7030 4.2.3): the chain is in cacerts


async def simplereenroll(call: DeviceCall) -> Response:
    """Give an enrolled device its next certificate."""
    issued = await enrolment.renew(call.fleet, call.device, call.body)
    return _certificates(issued)


async def bundle(call: Call) -> Response:
    """Answer the charter and where devices connect: public, and worth nothing without the root's signature."""
    charter = call.fleet.home.read(call.fleet.home.charter)
    answer = bundle_format.Bundle(schema=1, charter=charter, devices=call.fleet.devices_url)
    return Response(bundle_format.encode_bundle(answer), media_type="application/json")


OPEN_ROUTES: Final[list[Route]] = [
    open_route("GET", f"{PREFIX}/cacerts", cacerts),
    open_route("GET", f"{PREFIX}/csrattrs", csrattrs),
    open_route("POST", f"{PREFIX}/simpleenroll", simpleenroll),
    open_route("GET", "/device/v1/enroll/bundle", bundle),
]
DEVICE_ROUTES: Final[list[Route]] = [
    device_route("GET", f"{PREFIX}/cacerts", Use.RENEW, cacerts),
    device_route("POST", f"{PREFIX}/simplereenroll", Use.RENEW, simplereenroll),
]


def _certificates(*certificates: bytes) -> Response:
    body = base64.encodebytes(authority.certificates_only(certificates))
    return Response(body, headers=_BASE64, media_type=_CERTS)


def _password(header: str) -> str:
    scheme, _, value = header.partition(" ")
    try:
        _, colon, password = base64.b64decode(value, validate=True).decode("ascii").partition(":")
    except (binascii.Error, ValueError):
        colon = password = ""
    if scheme.lower() != "basic" or not colon or not password:
        raise NotAuthorisedError("a one-time token is needed", hint="HTTP Basic, with the token as the password")
    return password
