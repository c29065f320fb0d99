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
from casemate.fleet.seen import BUCKET
from casemate.fleet.states import State
from casemate.fleet.store import tables
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
    pending = site.add_device("till-coburg-09", State.PENDING, certificate_expires=None)
    quarantined = site.add_device("kiosk-station-hall-with-a-long-name-02", State.QUARANTINED, group="stations")
    site.add_device("till-bremen-99", State.REVOKED)
    _packages(site, [*names, quarantined], chance)
    now = time.time()
    site.write(
        lambda connection: connection.execute(sa.insert(tables.fleet_sample), _trend(now, devices, days, chance))
    )
    site.write(lambda connection: connection.execute(sa.insert(tables.alert), _alerts(now, names, quarantined)))
    site.write(lambda connection: connection.execute(sa.insert(tables.key_grant), _grants(now, names, chance)))
    site.write(lambda connection: connection.execute(sa.insert(tables.attest_result), _results(now, names)))
    policy = {"name": "pi5-shop", "version": 4, "document": b"{}", "created": now - 9 * 86400, "created_by": "Ada"}
    site.write(lambda connection: connection.execute(sa.insert(tables.attest_policy), [policy]))
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
    }


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
