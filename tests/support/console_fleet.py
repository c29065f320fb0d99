"""A fleet as it is after some weeks, for pictures, measurements and tests of the console: no page of it is empty.

Everything follows from the seed and the clock, so two runs differ in their ids and nothing else.
"""

from __future__ import annotations

import dataclasses
import json
import math
import random
import time

import sqlalchemy as sa

from casemate.fleet import inventory
from casemate.fleet.audit import Act
from casemate.fleet.seen import BUCKET
from casemate.fleet.states import State
from casemate.fleet.store import tables, usage_tables
from casemate.formats import usage
from casemate.formats.fleet_api import Inventory, Item
from support import console_rollouts

SHOPS = ("Aachen", "Bremen", "Coburg", "Detmold")
ENGINES = (Item("engine", "llama.cpp", "b6082", "4f" * 32), Item("engine", "llama.cpp", "b6097", "9c" * 32))
MODELS = (Item("model", "saffron", "3.2.0", "7a" * 32), Item("model", "saffron", "3.3.0", "e1" * 32))
BOARDS = (Item("firmware", "Raspberry Pi 5 Model B Rev 1.0", "2025-06-09"), Item("firmware", "Intel NUC 13", "0091"))
PYTHON = tuple(Item("python", name, version) for name, version in (
    ("certifi", "2026.8.2"), ("casemate", "0.1.0"), ("httptools", "0.7.1"), ("jinja2", "3.1.6"),
    ("llama-cpp-python", "0.3.16"), ("msgspec", "0.20.0"), ("numpy", "2.3.5"),
    ("starlette", "0.50.0"), ("uvicorn", "0.38.0"),
))  # fmt: skip

PAGES = {
    "overview": "/",
    "devices": "/devices",
    "device": "/devices/{device}",
    "health": "/health",
    "inventory": "/inventory?name=l",
    "usage": "/usage",
    "alerts": "/alerts",
    "releases": "/releases",
    "rollouts": "/rollouts",
    "rollout": "/rollouts/{running}",
    "rollout-stopped": "/rollouts/{stopped}",
    "rollout-draft": "/rollouts/{draft}",
    "enrolment": "/enrolment",
    "bulk": "/bulk",
    "policies": "/policies",
    "grants": "/grants",
    "audit": "/audit",
    "people": "/people",
    "settings": "/settings",
    "welcome": "/welcome",
}
"""Every page that has an address of its own, by a short name; names of `Seeded` in braces."""


@dataclasses.dataclass(frozen=True)
class Seeded:
    """Names of what was made."""

    device: str
    pending: str
    running: str
    """A rollout under way; *stopped*: one that the numbers stopped; *draft*: one that somebody else made."""
    stopped: str
    draft: str


def seed(site, *, devices=60, days=30, number=7):
    """Fill the fleet of *site* (see `fleet_site`)."""
    chance = random.Random(number)
    names = [_device(site, index, chance) for index in range(devices)]
    pending = site.add_device("kiosk-coburg-new", State.PENDING, certificate_expires=None)
    quarantined = site.add_device("kiosk-station-hall-with-a-long-name-02", State.QUARANTINED, group="stations")
    site.add_device("till-bremen-99", State.REVOKED)
    _packages(site, [*names, quarantined], chance)
    now = time.time()
    site.write(
        lambda connection: connection.execute(sa.insert(tables.fleet_sample), _trend(now, devices, days, chance))
    )
    asks = {"device_id": names[3], "asked": now - 600, "seen": now - 60}
    site.write(lambda connection: connection.execute(sa.insert(tables.device_return), [asks]))
    site.write(lambda connection: connection.execute(sa.insert(tables.alert), _alerts(now, names, quarantined)))
    site.write(lambda connection: connection.execute(sa.insert(tables.key_grant), _grants(now, names, chance)))
    site.write(lambda connection: connection.execute(sa.insert(tables.attest_result), _results(now, names)))
    policy = {"name": "pi5-shop", "version": 4, "document": b"{}", "created": now - 9 * 86400, "created_by": "Ada"}
    site.write(lambda connection: connection.execute(sa.insert(tables.attest_policy), [policy]))
    _usage(site, now, chance)
    _history(site, now, names[3])
    rollouts = console_rollouts.seed(site, names, chance)
    return Seeded(names[3], pending, **rollouts)


def _device(site, index, chance):
    level = chance.choices(("L3", "L2", "L1"), (7, 2, 1))[0]
    more = {"assurance": level, "assurance_expires": time.time() + chance.uniform(60, 800)} if level != "L1" else {}
    return site.add_device(_asset(index), group=SHOPS[index % len(SHOPS)], **more)


def _asset(index):
    return f"till-{SHOPS[index % len(SHOPS)].lower()}-{index // len(SHOPS) + 1:02}"


def _who(names, index):
    return names[index], _asset(index)


def _packages(site, names, chance):
    for index, name in enumerate(names):
        items = (
            ENGINES[index % 7 == 0],
            MODELS[index % 5 == 0],
            BOARDS[index % 9 == 0],
            *PYTHON[: chance.randint(6, 9)],
        )
        site.run(inventory.store(site.fleet, name, Inventory(items)))


def _trend(now, devices, days, chance):
    newest = int(now) // BUCKET * BUCKET
    steps = range(newest - days * 86400, newest + 1, BUCKET)
    return [_sample(at, devices, chance) for at in steps if not newest - 9 * 3600 < at < newest - 8 * 3600]


def _sample(at, devices, chance):
    hour = (at % 86400) / 3600
    asleep = 0.12 * (1 + math.cos((hour - 3) / 12 * math.pi)) / 2
    enrolled = devices
    online = round(enrolled * (1 - asleep) - 0.6 * (at // 7200 % 2))
    return {
        "bucket": at,
        "enrolled": enrolled,
        "online": online,
        "attested": round(online * 0.88),
        "degraded": int(9 <= hour < 11) + int(at // 86400 % 3 == 0 and 14 <= hour < 15),
        "quarantined": int(hour >= 6),
        "alerts": 1 + int(hour >= 6) + int(9 <= hour < 12),
        "keys_granted": chance.randint(0, 4) if 7 <= hour < 21 else chance.randint(0, 1),
        "keys_refused": int(chance.random() < 0.02),
        "integrity_failures": 0,
        "temperature_max": round(58 + 9 * math.sin((hour - 9) / 12 * math.pi) + chance.uniform(-0.6, 0.6), 1),
        "load_max": round(chance.uniform(0.4, 2.5), 2),
        "first_token_median": 212.0 + 4 * (at // 86400 % 2),
        "first_token_p95": 388.0 + 30 * (at // 86400 % 2),
    }


def _history(site, now, device):
    """Give one device a past."""
    asset = _asset(3)
    for actor, action, ago, reason in (
        ("Ada", "device.approve", 24 * 86400, ""),
        ("Sol", "device.quarantine", 6 * 86400 + 5000, "somebody had opened the case"),
        ("Ada", "device.release", 6 * 86400, "the fitter; seal renewed"),
    ):
        act = Act(actor, action, device, asset, {"reason": reason} if reason else {})
        site.write(lambda connection, act=act, ago=ago: site.fleet.audit.append(connection, act, now - ago))
    certificate = {"device_id": device, "not_before": now - 86400, "certificate": b""}
    rows = [
        {**certificate, "serial": "4c7f1a09e2d35b68", "state": "active", "not_after": now + 6 * 86400},
        {**certificate, "serial": "1b90ce4471fa0d26", "state": "superseded", "not_after": now + 2.5 * 86400},
    ]
    site.write(lambda connection: connection.execute(sa.insert(tables.device_cert), rows))
    journal = {
        "device_id": device,
        "origin": "o",
        "vkey": "v",
        "size": 48_211,
        "root": b"",
        "note": b"",
        "changed": now - 190,
    }
    site.write(lambda connection: connection.execute(sa.insert(tables.journal_checkpoint), [journal]))


TRUE_SHARES = {
    "in_use": (0.08, 0.92), "requests": (0.08, 0.1, 0.3, 0.42, 0.1), "tokens": (0.08, 0.07, 0.2, 0.35, 0.25, 0.05),
    "latency": (0.08, 0.3, 0.42, 0.15, 0.04, 0.01), "refused": (0.08, 0.6, 0.22, 0.07, 0.02, 0.01),
}  # fmt: skip


def _usage(site, now, chance):
    """Add up what some thousand devices reported: the noise is drawn as they draw it."""
    rows, newest = [], usage.period_of(now) - 1
    for period in (newest - 1, newest):
        for name, truths in TRUE_SHARES.items():
            question = usage.QUESTIONS[name]
            reports = 31 if name == "refused" and period == newest else 700
            p, q = question.chances
            for answer, share in enumerate(truths):
                mean = reports * (share * p + (1 - share) * q)
                ones = min(reports, max(0, round(chance.gauss(mean, (mean * (1 - mean / reports)) ** 0.5))))
                if question.yes_or_no and answer:
                    ones = reports - rows[-1]["ones"]
                rows.append({
                    "period": period, "version": usage.VERSION, "question": name, "group_name": "",
                    "answer": answer, "reports": reports, "ones": ones,
                })  # fmt: skip
    site.write(lambda connection: connection.execute(sa.insert(usage_tables.usage_sum), rows))


def _alerts(now, names, quarantined):
    rows = (
        ("quarantine", quarantined, "kiosk-station-hall-with-a-long-name-02", "it is cut off", now - 7900, None),
        ("offline", *_who(names, 11), "it has not been heard of", now - 2300, None),
        ("attestation", *_who(names, 5), "it has not proven what it runs", now - 1200, None),
        ("certificate", *_who(names, 9), "it was not renewed in time", now - 90_000, now - 3600),
        ("offline", *_who(names, 8), "it has not been heard of", now - 200_000, now - 180_000),
    )  # fmt: skip
    keys = ("kind", "device_id", "asset", "detail", "opened", "closed")
    return [{**dict(zip(keys, row, strict=True)), "sent": now} for row in rows]


def _grants(now, names, chance):
    rows = []
    for index in range(70):
        granted = index % 9 != 0
        reason = "fresh and affirming" if granted else "the result is too old: attest again"
        created = now - index * 310 - chance.uniform(0, 60)
        expires = created + 86400 if granted else None
        device = names[(index * 7) % len(names)]
        rows.append({
            "device_id": device, "model": "saffron", "granted": granted, "reason": reason, "created": created,
            "expires": expires,
        })  # fmt: skip
    return rows[::-1]


def _results(now, names):
    reasons = json.dumps(
        ["the TPM's maker is trusted", "measured boot is as in pi5-shop 4", "agent, policy and engine are known"]
    )
    return [
        {
            "device_id": name, "status": "affirming", "assurance": "L3", "reasons": reasons, "policy": "pi5-shop",
            "policy_version": 4, "evidence_digest": "ab" * 32, "created": now - 200, "expires": now + 700,
        }
        for name in names[:20]
    ]  # fmt: skip
