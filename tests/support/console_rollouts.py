"""Rollouts of the seeded fleet: one is done, one under way, one was stopped by the numbers, one waits for a yes."""

from __future__ import annotations

import dataclasses
import hashlib
import time

import msgspec
import sqlalchemy as sa

from casemate.fleet.audit import Act
from casemate.fleet.rollout import releases, terms
from casemate.fleet.rollout.plan import Progress
from casemate.fleet.rollout.terms import Terms
from casemate.fleet.store import rollout_tables
from casemate.formats.channel_set import Member

TERMS = Terms()
WHY = {"failed": "the health gate: no answer in 30 s", "silent": "it took it and said nothing"}
HARDWARE = ("Raspberry Pi 5", "Intel NUC 13")


@dataclasses.dataclass(frozen=True)
class Told:
    """One rollout, *ago* seconds back: what became of whom."""

    state: str
    ago: float
    devices: dict[str, str]
    why: str = ""
    group: str | None = None


def seed(site, names, chance):
    """Fill releases and rollouts; returns the ids of three of them."""
    now = time.time()
    made = [_release(site, number, now) for number in (6, 7, 8, 9)]
    source = {"id": 1, "place": "https://releases.example.org/shops", "root": b"{}", "metadata": b"{}"}
    _insert(site, rollout_tables.release_source, [source | {"expires": now + 6 * 86400, "checked": now - 240}])
    control = names[-max(2, len(names) // 12) :]
    able = names[: -len(control)]
    _words(site, able, control, made[3], chance)
    first, rest = able[:20], able[20:]
    half = len(rest) // 2
    done = dict.fromkeys(able, "good")
    stopped = dict(zip(first, ["failed"] * 4 + ["silent"] + ["good"] * 12 + ["installed"] * 3, strict=False))
    running = dict.fromkeys(first, "good") | dict.fromkeys(rest[:half], "good")
    if rest:
        running |= dict.fromkeys(rest[half : half + half // 2], "installed") | {rest[0]: "failed"}
        running |= dict.fromkeys(rest[half + half // 2 : half + half // 2 + 6], "taken")
        running |= dict.fromkeys(rest[half + half // 2 + 6 :], "offered")
    why = "5 of 20 devices failed, 1 of them silently; 0.5% is normal here"
    end = f"all {len(done)} devices have it, 0 failed"
    _rollout(site, made[1], control, Told("done", 20 * 86400, done, end), chance)
    soaking = f"{sum(state == 'installed' for state in running.values())} devices are still soaking"
    return {
        "stopped": _rollout(site, made[2], control, Told("paused", 3 * 86400, stopped, why, "Aachen"), chance),
        "running": _rollout(site, made[3], control, Told("running", 9 * 3600, running, soaking, "Bremen"), chance),
        "draft": _rollout(site, made[3], [], Told("draft", 1500, {}, group="Detmold"), chance),
    }


def _release(site, number, now):
    members = (
        Member("model", "saffron", f"3.{number}.0", number, "7a" * 16, "7a" * 32),
        Member("policy", "default", f"{number}.1.0", number, "5c" * 16, "5c" * 32),
    )
    content = hashlib.sha256(msgspec.json.encode(members)).hexdigest()
    name = releases.identity("stable", content)
    row = {"id": name, "channel": "stable", "generation": number, "content": content, "created_by": "server"}
    row |= {"target_sha256": "0" * 64, "target_length": 900, "members": msgspec.json.encode(members)}
    created = now - (9 - number) * 7 * 86400 - 40_000
    row |= {"expires": now + 6 * 86400, "created": created, "changed": created}
    row |= {"state": "offered" if number == 9 else "stopped" if number == 8 else "superseded"}
    _insert(site, rollout_tables.release, [row])
    return row


def _rollout(site, release, control, told, chance):
    begun, state, devices, why = time.time() - told.ago, told.state, told.devices, told.why
    name = hashlib.sha256(f"{release['id']}{state}".encode()).hexdigest()[:16]
    counts = {kind: sum(one == kind for one in devices.values()) for kind in ("good", "failed", "silent")}
    offered = sum(one != "offered" for one in devices.values())
    first = list(devices)[:20]
    rows = [
        {
            "rollout_id": name, "device_id": device, "state": one, "batch": int(device not in first),
            "changed": begun + (0 if device in first else 16_000) + chance.uniform(600, 15_000),
            "installed": begun + 600, "why": WHY.get(one, ""),
        }
        for device, one in devices.items()
    ]  # fmt: skip
    rows += [
        {"rollout_id": name, "device_id": device, "state": "control", "changed": begun} | _NONE for device in control
    ]
    limit = max(20, len(devices))
    fleet = 0 if state == "draft" else max(limit, 240)
    row = {
        "id": name, "release_id": release["id"], "channel": release["channel"], "content": release["content"],
        "group_name": told.group, "state": state, "version": 4, "terms": terms.encode(TERMS), "why": why,
        "progress": terms.encode_progress(Progress(limit=limit, batch=int(limit > 20))), "batch": int(limit > 20),
        "ceiling": limit, "devices": fleet, "offered": offered, "control": len(control), **counts,
        "verdict": {"paused": "stop", "done": "finish"}.get(state, "wait"), "created": begun - 4000,
        "created_by": "Grace", "changed": min(begun + 30_000, time.time() - 90),
        "looked": min(begun + 30_000, time.time() - 9),
    }  # fmt: skip
    if state != "draft":
        row |= {"approved": begun - 900, "approved_by": "Ada", "started": begun}
    if state == "done":
        row |= {"ended": begun + 2 * 86400}
    _insert(site, rollout_tables.rollout, [row])
    if rows:
        _insert(site, rollout_tables.rollout_device, rows)
    steps = [("Grace", "create", begun - 4000), ("Ada", "approve", begun - 900), ("Grace", "start", begun)]
    steps += [("steward", "stop", begun + 16_000)] if state == "paused" else []
    steps += [("steward", "finish", begun + 2 * 86400)] if state == "done" else []
    for actor, action, when in steps[: 1 if state == "draft" else None]:
        detail = {"rollout": name} | ({"why": why} if action in {"stop", "finish"} else {})
        act = Act(actor, f"rollout.{action}", detail=detail)
        site.write(lambda connection, act=act, when=when: site.fleet.audit.append(connection, act, when))
    return name


_NONE = {"batch": 0, "installed": None, "why": ""}


def _words(site, able, control, release, chance):
    rows = []
    for index, device in enumerate([*able, *control]):
        board = int(index % 4 == 0)
        slow = 1.05 if device in able and board else 1.0
        rows.append({
            "device_id": device, "content": release["content"], "outcome": "good", "tries": 1,
            "hardware": HARDWARE[board], "first_token_ms": chance.gauss(410 - 150 * board, 22) * slow,
            "memory_mib": chance.gauss(1480, 30), "envelope": b"", "changed": time.time() - 900,
        })  # fmt: skip
    _insert(site, rollout_tables.device_generation, rows)


def _insert(site, table, rows):
    site.write(lambda connection: connection.execute(sa.insert(table), rows))
