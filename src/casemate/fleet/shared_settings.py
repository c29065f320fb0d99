"""What every server of a fleet must know and a person may change: in the database, read where it is used.

A row is a name and sealed bytes. The key follows from the fleet's commands key, which every server for people has and
the database does not; the name is bound in, so no row opens as another. Who reads the database, or a dump of it, learns
that something is set, and when. Nothing is held in memory: a provider that was removed at one server lets nobody in at
any other.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Final, Generic, TypeVar

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from casemate.crypto import aead
from casemate.crypto.aead import TagMismatch
from casemate.crypto.secret import Secret
from casemate.errors import OperationError
from casemate.fleet.audit import Act
from casemate.fleet.context import Fleet
from casemate.fleet.home import FleetHome
from casemate.fleet.store import desk
from casemate.formats.decoding import MALFORMED

_LABEL: Final = "casemate fleet settings 1"
_PURPOSE: Final = b"casemate fleet setting 1\0"


class WebhookSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where alerts are posted. The secret beside it signs them."""

    url: str


class OidcSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A provider that people may sign in with (OpenID Connect). The secret beside it is the client's, if it has one."""

    issuer: str
    client_id: str
    label: str = "single sign-on"
    """What the button says."""
    role_claim: str = ""
    roles: tuple[tuple[str, str], ...] = ()
    """Values of that claim and the role each gives; the first that fits counts. None: only people who are known."""


class MailSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A mail server, and whom mail is from. With a user there is a password beside it."""

    host: str
    port: int
    tls: str
    """starttls | tls | none"""
    sender: str
    user: str = ""


Kind = TypeVar("Kind", WebhookSettings, OidcSettings, MailSettings)
NAMES: Final[dict[type, str]] = {WebhookSettings: "webhook", OidcSettings: "oidc", MailSettings: "mail"}


@dataclasses.dataclass(frozen=True, slots=True)
class Held(Generic[Kind]):
    """Settings, and the secret that belongs to them, which is shown nowhere."""

    settings: Kind
    secret: bytes = dataclasses.field(default=b"", repr=False)


class _Plain(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is sealed. *settings* null: switched off, which is not the same as never set."""

    settings: msgspec.Raw
    secret: bytes


async def find(connection: AsyncConnection, home: FleetHome, kind: type[Kind]) -> Held[Kind] | None:
    """Return the settings of *kind*, None when there are none.

    Raises:
        OperationError: they do not open with the keys in *home*, or are not what was sealed.

    """
    table = desk.fleet_setting.c
    row = (await connection.execute(sa.select(table.sealed).where(table.name == NAMES[kind]))).scalar()
    if row is None:
        return None
    refusal = OperationError(
        f"the fleet's {NAMES[kind]} settings do not open with this server's keys",
        hint="use the directory that belongs to this database, or set them again",
    )
    try:
        with _key(home) as key, aead.unwrap(key, bytes(row), _context(kind)) as plain:
            found = msgspec.json.decode(plain.view(), type=_Plain)
            settings: Kind | None = msgspec.json.decode(found.settings, type=kind | None)  # a view into *plain*
    except (TagMismatch, *MALFORMED) as error:
        raise refusal from error
    return None if settings is None else Held(settings, found.secret)


async def look_up(fleet: Fleet, kind: type[Kind]) -> Held[Kind] | None:
    """Return the settings of *kind* as of now; see `find`."""
    async with fleet.store.read() as connection:
        return await find(connection, fleet.home, kind)


async def put(connection: AsyncConnection, fleet: Fleet, kind: type[Kind], held: Held[Kind] | None, act: Act) -> None:
    """Write down the settings of *kind* (None: off) and who did it: every server goes by them from the commit on."""
    now = fleet.clock.wall()
    await fleet.audit.append(connection, act, now)
    statement: Any = _insert(connection)(desk.fleet_setting).values(_row(fleet.home, kind, held, now))
    new = {column: statement.excluded[column] for column in ("sealed", "changed")}
    await connection.execute(statement.on_conflict_do_update(index_elements=["name"], set_=new))


async def put_first(
    connection: AsyncConnection, home: FleetHome, kind: type[Kind], held: Held[Kind], now: float
) -> None:
    """Write down the settings of *kind*, unless they were ever set or switched off."""
    values = _row(home, kind, held, now)
    await connection.execute(_insert(connection)(desk.fleet_setting).values(values).on_conflict_do_nothing())


async def known(connection: AsyncConnection) -> set[str]:
    """Return the names of what was ever set."""
    return set((await connection.execute(sa.select(desk.fleet_setting.c.name))).scalars())


def _insert(connection: AsyncConnection) -> Any:
    return postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert


def _row(home: FleetHome, kind: type[Kind], held: Held[Kind] | None, now: float) -> dict[str, Any]:
    """Return a row. There is one of what is switched off, too: what an old directory says never counts again."""
    settings = msgspec.Raw(msgspec.json.encode(held.settings if held else None))
    plain = msgspec.json.encode(_Plain(settings, held.secret if held else b""))
    with _key(home) as key, Secret(plain) as secret:
        return {"name": NAMES[kind], "sealed": aead.wrap(key, secret, _context(kind)), "changed": now}


def _key(home: FleetHome) -> Secret:
    return home.signing_key("commands").derive(_LABEL)


def _context(kind: type) -> bytes:
    return _PURPOSE + NAMES[kind].encode("ascii")
