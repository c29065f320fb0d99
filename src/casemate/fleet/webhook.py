"""Telling somebody else's program about alerts: a signed POST, tried again for a day, never followed anywhere.

The receiver checks `Casemate-Signature: sha256=<hex>`: HMAC-SHA-256 of the body under the secret that
`casemate fleet alert webhook` printed. A body holds the kind, the device, its asset tag and the moment; nothing of what
a device was asked.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from typing import Final
from urllib.parse import urlsplit

import msgspec
import sqlalchemy as sa
import urllib3

from casemate.errors import UsageError
from casemate.fleet.context import Fleet
from casemate.fleet.shared_settings import WebhookSettings, look_up
from casemate.fleet.store import tables

HEADER: Final = "Casemate-Signature"
_BATCH: Final = 50
_SECONDS: Final = 5.0
_FIRST_WAIT: Final = 15.0
_LONGEST_WAIT: Final = 3600.0
_MOST: Final = 30
"""Attempts: about a day."""
_CLAIM: Final = 60.0
_OK: Final = range(200, 300)


def check_url(text: str) -> str:
    """Return *text* when it is an address to post to.

    Raises:
        UsageError: not https, and not http on this machine.

    """
    place = urlsplit(text)
    local = place.hostname in {"127.0.0.1", "::1", "localhost"}
    if not place.hostname or place.username or not (place.scheme == "https" or (place.scheme == "http" and local)):
        raise UsageError("a webhook is an https address", hint="https://HOST/PATH; http only on this machine")
    return text


def host(url: str) -> str:
    """Return what of *url* may be shown: its path may hold a secret."""
    return urlsplit(url).hostname or ""


def sign(secret: bytes, body: bytes) -> str:
    """Return the value of the signature header."""
    return "sha256=" + hmac.new(secret, body, hashlib.sha256).hexdigest()


async def deliver(fleet: Fleet) -> int:
    """Send what was not sent yet and is due; returns how many arrived."""
    held = await look_up(fleet, WebhookSettings)
    if held is None:
        return 0
    url, secret = held.settings.url, held.secret
    alert, now, arrived = tables.alert.c, fleet.clock.wall(), 0
    due = sa.and_(alert.sent.is_(None), alert.next_attempt <= now, alert.attempts < _MOST)
    async with fleet.store.read() as connection:
        rows = (await connection.execute(sa.select(tables.alert).where(due).order_by(alert.id).limit(_BATCH))).all()
    for row in rows:
        wait = min(_FIRST_WAIT * 2**row.attempts, _LONGEST_WAIT)
        claim = sa.update(tables.alert).where(alert.id == row.id, due)
        async with fleet.store.write() as connection:  # claimed first: two servers do not tell it twice
            taken = await connection.execute(
                claim.values(attempts=alert.attempts + 1, next_attempt=now + max(wait, _CLAIM))
            )
        if not taken.rowcount:
            continue
        body = msgspec.json.encode(
            {
                "schema": 1,
                "fleet": fleet.settings.fleet,
                "alert": row.id,
                "kind": row.kind,
                "device": row.device_id,
                "asset": row.asset,
                "detail": row.detail,
                "opened": row.opened,
            }
        )
        done = await asyncio.to_thread(_post, url, body, sign(secret, body))
        fleet.metrics.deliveries.labels("done" if done else "failed").inc()
        if done:
            arrived += 1
            async with fleet.store.write() as connection:
                await connection.execute(sa.update(tables.alert).where(alert.id == row.id).values(sent=now))
    return arrived


def _post(url: str, body: bytes, signature: str) -> bool:
    headers = {"Content-Type": "application/json", HEADER: signature, "User-Agent": "casemate"}
    with urllib3.PoolManager(timeout=_SECONDS, retries=False) as pool:
        try:
            answer = pool.request("POST", url, body=body, headers=headers, redirect=False, preload_content=False)
            answer.release_conn()
        except (urllib3.exceptions.HTTPError, OSError):
            return False
    return answer.status in _OK
