"""How this server is set up, for people to look at: addresses, certificates, where alerts go, how long what is kept.

Nothing secret is in it, and nothing can be changed here: settings are the command line's, on the server itself.
"""

from __future__ import annotations

import dataclasses
import socket
from typing import Any, Final
from urllib.parse import urlsplit

from casemate import __version__
from casemate.crypto import authority, x509
from casemate.errors import CasemateError
from casemate.fleet import approvals, shared_settings, trend, webhook
from casemate.fleet.accounts import sessions
from casemate.fleet.context import Fleet
from casemate.fleet.pki import DEVICE_SECONDS
from casemate.fleet.shared_settings import MailSettings, OidcSettings, WebhookSettings
from casemate.fleet.store.partitions import ROLLUPS_KEPT

_OWN_MACHINE: Final = ("127.0.0.1", "localhost", "[::1]")
_ANY: Final = ("0.0.0.0", "[::]")  # noqa: S104 - compared, not bound
_END: Final = "-----END CERTIFICATE-----\n"


@dataclasses.dataclass(frozen=True, slots=True)
class Listener:
    """One listener: *address* is where this process listens ("": another one does), *url* where it is reached."""

    name: str
    purpose: str
    address: str
    url: str

    @property
    def is_local(self) -> bool:
        """Whether nobody but this machine reaches it."""
        return (urlsplit(self.url).hostname or "") in {host.strip("[]") for host in _OWN_MACHINE}


@dataclasses.dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate and the moment it ends."""

    name: str
    fingerprint: str
    ends: float


@dataclasses.dataclass(frozen=True, slots=True)
class Setup:
    """What the settings page shows. Retention is in seconds."""

    version: str
    fleet: str
    database: str
    root_key_here: bool
    listeners: list[Listener]
    certificates: list[Certificate]
    webhook: str
    mail: str
    """The server that mail goes by; "": none is sent."""
    sign_in: dict[str, Any] | None
    retention: dict[str, float]


async def describe(fleet: Fleet) -> Setup:
    """Return how the server of *fleet* is set up, and what is set for all of them."""
    async with fleet.store.read() as connection:
        posted = await shared_settings.find(connection, fleet.home, WebhookSettings)
        mail = await shared_settings.find(connection, fleet.home, MailSettings)
        provider = await shared_settings.find(connection, fleet.home, OidcSettings)
    oidc = provider.settings if provider else None
    return Setup(
        version=__version__,
        fleet=fleet.settings.fleet,
        database="PostgreSQL" if fleet.store.is_postgresql else "SQLite",
        root_key_here=(fleet.home.ca / "root.key").exists(),
        listeners=listeners(fleet),
        certificates=_certificates(fleet),
        webhook=webhook.host(posted.settings.url) if posted else "",
        mail=f"{mail.settings.host}:{mail.settings.port}" if mail else "",
        sign_in={"label": oidc.label, "issuer": oidc.issuer, "roles": dict(oidc.roles)} if oidc else None,
        retention={
            "health of the fleet": trend.KEPT,
            "health of each device": ROLLUPS_KEPT,
            "attestation evidence": fleet.settings.evidence_days * 86400.0,
            "key grants": fleet.settings.grant_days * 86400.0,
            "device certificates": DEVICE_SECONDS,
            "sessions of people": sessions.LIFETIME,
            "open approvals": approvals.LIFE,
        },
    )


def enrol_url(fleet: Fleet) -> str:
    """Return where devices enrol; "" when this process cannot know."""
    return fleet.settings.enrol_url or _reached(fleet, fleet.served.enrol)


def listeners(fleet: Fleet) -> list[Listener]:
    """Return the three listeners, and where each is reached."""
    served, settings = fleet.served, fleet.settings
    people = settings.people_url or _reached(fleet, served.people)
    devices = settings.devices_url or _reached(fleet, served.devices)
    return [
        Listener("people", "the console and the API", served.people, people),
        Listener("devices", "check-ins and orders", served.devices, devices),
        Listener("enrolment", "becoming a device", served.enrol, enrol_url(fleet)),
    ]


def _reached(fleet: Fleet, address: str) -> str:
    """Return *address* as others reach it: a listener on every interface is called by the server's name."""
    parts = urlsplit(address)
    if parts.scheme != "https" or (parts.hostname or "") not in {host.strip("[]") for host in _ANY}:
        return address if parts.scheme == "https" else ""
    name = next(iter(fleet.settings.names), socket.gethostname())
    return f"https://{name}:{parts.port}"


def _certificates(fleet: Fleet) -> list[Certificate]:
    found = [_certificate("root", fleet.authority.root)]
    found += [_certificate("intermediate", each) for each in fleet.authority.intermediates]
    chain = fleet.served.people_chain or fleet.home.tls / "server.pem"
    try:
        text = fleet.home.read(chain).decode("ascii", "replace")
        found.append(_certificate("listeners", x509.from_pem(text.partition(_END)[0] + _END)))
    except CasemateError:
        pass  # behind a proxy there is none
    return found


def _certificate(name: str, certificate: bytes) -> Certificate:
    facts = authority.facts(certificate)
    return Certificate(name, authority.fingerprint(certificate), float(facts.not_after))
