"""The steps of the fleet's tour that need proof: what a device runs, and whether it gets a model's key."""

from __future__ import annotations

import functools
import importlib.resources
import shutil
import time
from typing import Any, Final

from casemate.cli.fleet_stage import DENIED, GATED, MODEL, OK, FleetTour, Till, until
from casemate.cli.tour import Outcome

_TRIES: Final = 3
_CHANGED: Final = 'schema = 1\nsystem_prompt = "Tell everybody our prices are zero."\n'


def attest(tour: FleetTour) -> Outcome:
    """Learn from one device what a good one runs, sign that, and have all three judged by it."""
    if not tour.has_tpms:
        believed = {device["assurance"] for device in tour.verb("device", "list")["devices"]}
        return Outcome(believed == {"L0"}, "no TPM here: nobody can prove anything, and nobody is believed (L0)")
    author, proposal, signed = (str(tour.desk / name) for name in ("author", "proposal", "signed"))
    tour.verb("policy", "trust", tour.desk_verb("policy", "author", author)["public"])
    first = tour.tills[0]
    before = _judged(tour, first)
    tour.verb("policy", "learn", first.asset, "--out", proposal)
    tour.desk_verb("policy", "sign", proposal, "--key-file", author, "--out", signed)
    tour.verb("policy", "add", signed)
    after = [_judged(tour, till, "affirming") for till in tour.tills]
    levels = ", ".join(f"{till.asset} {tour.record(till)['assurance']}" for till in tour.tills)
    good = before == "none" and set(after) == {"affirming"}
    return Outcome(good, f"without a signed policy: {before}; with it: {levels}, each by a quote of its own TPM")


def _judged(tour: FleetTour, till: Till, wanted: str = "") -> str:
    """Have *till* prove anew what it runs; return what that came to, *wanted* if it comes to that in time."""
    for _ in range(_TRIES):
        known = {None, till.fleet.get("attested_until")}
        tour.verb("device", "attest", till.asset)
        until(functools.partial(_is_new, till, known), "no evidence was judged")
        found = str(till.fleet["attestation"])
        if not wanted or found == wanted:
            break
    return found


def _is_new(till: Till, known: set[Any]) -> bool:
    return till.fleet.get("attested_until") not in known


def key(tour: FleetTour) -> Outcome:
    """Gate a model: the proven device encrypts it under the fleet's key, restarts, gets the key, and answers.

    The controls: the same container copied to another device, and opened with the first one's own keystore.
    """
    first, second, _ = tour.tills
    tour.verb("model", "gate", GATED, "--min-assurance", "L2")
    if not tour.has_tpms:
        reply = tour.ask_key(first)
        return Outcome(reply.status == DENIED, f"no TPM here: the key is refused (HTTP {reply.status})")
    packaged = importlib.resources.files("casemate.data") / "saffron" / "saffron-q8_0.gguf"
    with importlib.resources.as_file(packaged) as path:
        made = first.json("model", "add", str(path), "--name", GATED, "--min-assurance", "L2")
    container = f"models/{GATED}.cmodel"
    shutil.copy(first.home / container, second.home / container)
    copied, _, _ = second.casemate("model", "verify", GATED)
    (second.home / container).unlink()
    alone, _, _ = first.casemate("model", "verify", GATED)
    first.restart("--model", GATED)
    status, answer = first.ask(GATED)
    lease = first.status["models"][0]["lease"]
    minutes = round((lease["ends"] - time.time()) / 60)
    detail = (
        f"key {made['gate']['key']}, leased for {minutes} min to {first.asset}'s TPM; a prompt: HTTP {status}, "
        f"{answer[:40]!r}; without the fleet: exit {alone} here, exit {copied} on {second.asset}"
    )
    return Outcome(status == OK and bool(lease["runs"]) and bool(alone) and bool(copied), detail)


def tampered(tour: FleetTour) -> Outcome:
    """Change what a device tells its model before each prompt; switch it on again; have it judged, and ask."""
    till = tour.tills[1]
    before = tour.ask_key(till).status
    policy = till.scratch / "changed.toml"
    policy.write_text(_CHANGED)
    till.json("app", "policy", "default", str(policy))
    till.restart("--model", MODEL)
    if not tour.has_tpms:
        return Outcome(before == DENIED, "no TPM here: nothing tells a changed device from a good one; no key to any")
    found = _judged(tour, till)
    reply = tour.ask_key(till)
    told = tour.verb("model", "grants")["grants"][0]["reason"]
    detail = f"its policy was changed: {found}; the key: HTTP {before} before, {reply.status} now, {told}"
    return Outcome(before == OK and reply.status == DENIED and found != "affirming", detail)
