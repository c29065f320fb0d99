"""What a server's directory held before and the whole fleet shares since: brought over once.

It happens at a start, before anything is served. Settings go into the database; what was set at any server since, or
switched off, stays as it is, and what the directory says otherwise is gone with it. Keys of models that were wrapped by
a key of this directory alone are wrapped by the one that all servers have. The files go last: a start that was cut off
does the rest again.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from casemate.clock import Clock
from casemate.crypto.secret import Secret
from casemate.errors import OperationError
from casemate.fleet import keybroker, shared_settings
from casemate.fleet.audit import Act, AuditLog
from casemate.fleet.home import SCHEMA, FleetHome, Settings
from casemate.fleet.shared_settings import Held, MailSettings, OidcSettings, WebhookSettings
from casemate.fleet.store import Store
from casemate.formats.decoding import MALFORMED

_BROKER: Final = "broker.key"
_KEY_BYTES: Final = 32
_FILES: Final = ("webhook.key", "mail.key", "oidc.key", _BROKER)


class _Oidc(OidcSettings, frozen=True, forbid_unknown_fields=True):
    has_secret: bool = False


class Earlier(msgspec.Struct, frozen=True):
    """What settings.json held beside what it still holds."""

    webhook: str = ""
    oidc: _Oidc | None = None
    mail: MailSettings | None = None
    schema: int = 1

    def names(self) -> list[str]:
        """Return the names of what was set."""
        return [name for name in ("webhook", "oidc", "mail") if getattr(self, name)]


def read(home: FleetHome) -> tuple[Settings, Earlier | None]:
    """Return the settings in *home*, and what has to be brought over, None when they are of this version.

    Raises:
        NotFoundError: no fleet there.
        OperationError: they are damaged.

    """
    if not home.exists:
        return home.settings(), None
    stored = home.read(home.settings_file)
    try:
        earlier = msgspec.json.decode(stored, type=Earlier)
        if earlier.schema >= SCHEMA:
            return home.settings(), None
        fields = msgspec.json.decode(stored, type=dict[str, Any])
        kept = {name: value for name, value in fields.items() if name not in {"webhook", "oidc", "mail", "schema"}}
        return msgspec.convert(kept, type=Settings), earlier
    except MALFORMED as error:
        raise OperationError(f"{home.settings_file} is damaged: {error}", hint="restore a backup") from error


async def bring_over(home: FleetHome, settings: Settings, earlier: Earlier, store: Store, clock: Clock) -> None:
    """Write what *earlier* says into the database, where nothing was said yet.

    Raises:
        OperationError: this server has no key to seal it with.
        NotFoundError: a secret is missing.

    """
    now = clock.wall()
    async with store.write() as connection:
        said = await shared_settings.known(connection)
        missing = {name for name in earlier.names() if name not in said}
        if not missing:
            return
        if not (home.keys / "commands.key").exists():
            raise OperationError(
                "this server cannot bring its settings into the database: it has no commands key",
                hint="start the server that serves people first",
            )
        for kind, held in _found(home, earlier, missing).items():
            await shared_settings.put_first(connection, home, kind, held, now)
        log = AuditLog(settings.fleet, home.signing_key("audit"))
        detail = {"taken": sorted(missing), "left": sorted(set(earlier.names()) - missing)}
        await log.append(connection, Act("server", "settings.shared", detail=detail), now)


async def wrap_again(home: FleetHome, store: Store) -> None:
    """Have every server open the keys of models that only this directory could.

    Raises:
        OperationError: its key is damaged.

    """
    path = home.keys / _BROKER
    if not path.exists():
        return
    stored = home.read(path)
    if len(stored) != _KEY_BYTES:
        raise OperationError(f"{path} is damaged", hint="restore a backup of the fleet's keys")
    with Secret(stored) as old:
        async with store.write() as connection:
            await keybroker.wrap_again(connection, home, old)


def clear(home: FleetHome) -> None:
    """Remove the secrets that are elsewhere now."""
    for name in _FILES:
        (home.keys / name).unlink(missing_ok=True)


def _found(home: FleetHome, earlier: Earlier, wanted: set[str]) -> dict[Any, Held[Any]]:
    found: dict[Any, Held[Any]] = {}
    if earlier.webhook and "webhook" in wanted:
        found[WebhookSettings] = Held(WebhookSettings(earlier.webhook), home.read(home.keys / "webhook.key"))
    if earlier.mail and "mail" in wanted:
        secret = home.read(home.keys / "mail.key") if earlier.mail.user else b""
        found[MailSettings] = Held(earlier.mail, secret)
    if earlier.oidc and "oidc" in wanted:
        fields = {name: getattr(earlier.oidc, name) for name in OidcSettings.__struct_fields__}
        secret = home.read(home.keys / "oidc.key") if earlier.oidc.has_secret else b""
        found[OidcSettings] = Held(OidcSettings(**fields), secret)
    return found
