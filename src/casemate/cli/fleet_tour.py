"""The tour behind `casemate fleet demo`: what a fleet is for, step by step.

A step counts only when its effect was seen, and the control that shows it was not so before.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import importlib.resources
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from casemate.cli import fleet_props, fleet_tour_proof, fleet_tour_rollout
from casemate.cli.fleet_props import SoftwareTpm
from casemate.cli.fleet_stage import MODEL, OK, WITHIN, FleetTour, Till, until
from casemate.cli.tour import Outcome

_PACKETS: Final = 5


def _serve(tour: FleetTour) -> Outcome:
    began = time.monotonic()
    tour.serve()
    host, port = tour.listening("devices")
    refused = not _served_without_a_certificate(tour, host, port)
    detail = f"a root, an intermediate and three listeners in {time.monotonic() - began:.1f} s; a stranger is"
    return Outcome(refused, f"{detail} {'refused' if refused else 'served'} by the devices' listener")


def _served_without_a_certificate(tour: FleetTour, host: str, port: int) -> bool:
    import ssl

    context = ssl.create_default_context(cafile=str(tour.directory / "ca" / "root.pem"))
    connection = http.client.HTTPSConnection(host, port, timeout=10, context=context)
    try:
        connection.request("POST", "/device/v1/checkin", b"{}")
        connection.getresponse()
    except (ssl.SSLError, ConnectionError, http.client.RemoteDisconnected):
        return False
    finally:
        connection.close()
    return True


def _enrol(tour: FleetTour) -> Outcome:
    """Give each device a one-time token; a token that was used lets nobody in."""
    if tour.has_tpms:
        _make_tpms(tour)
    tokens = {till.asset: tour.verb("token", "create", "--asset", till.asset)["token"] for till in tour.tills}

    def join(till: Till) -> str:
        (till.scratch / "token").write_text(tokens[till.asset])
        answer = till.json("device", "enrol", tour.enrol_url, "--token-file", str(till.scratch / "token"))
        till.id = str(answer["id"])
        return till.id

    names = tour.each(join)
    thief = Till(tour.scratch / "thief", "thief")  # has the paper, not the TPM
    thief.stand_in(tour.tills[0].network)
    used = str(tour.tills[0].scratch / "token")
    again = thief.json("device", "enrol", tour.enrol_url, "--token-file", used, code=4)
    listed = {device["id"] for device in tour.verb("device", "list")["devices"]}
    chips = "a software TPM each" if tour.has_tpms else "no TPM: swtpm is not installed"
    detail = f"3 devices, {chips}; a used token once more: {again['error']['message']}"
    return Outcome(listed == set(names), detail)


def _make_tpms(tour: FleetTour) -> None:
    maker = tour.scratch / "maker"
    for till in tour.tills:
        till.plug(SoftwareTpm(till.scratch / "tpm", maker))

    def switch_on(till: Till) -> None:
        assert till.tpm
        till.tpm.manufacture()
        till.tpm.power_on()

    switch_on(tour.tills[0])  # the first makes the maker
    with ThreadPoolExecutor() as pool:
        list(pool.map(switch_on, tour.tills[1:]))
    tour.verb("tpm", "maker", str(maker / "issuercert.pem"), "--software")


def _start(tour: FleetTour) -> Outcome:
    packaged = importlib.resources.files("casemate.data") / "saffron" / "saffron-q8_0.gguf"

    def start(till: Till) -> None:
        with importlib.resources.as_file(packaged) as path:
            till.json("model", "add", str(path), "--name", MODEL)
        till.start("--model", MODEL)

    tour.each(start)
    until(
        lambda: all(device["last_seen"] for device in tour.verb("device", "list")["devices"]),
        "not every device was seen by its fleet",
    )
    until(lambda: all(till.fleet.get("witnessed") for till in tour.tills), "not every journal was witnessed")
    return Outcome(ok=True, detail="vault, engine, gateway, journal and link run thrice; the fleet saw all three")


def _quarantine(tour: FleetTour) -> Outcome:
    """Order it, and count what still comes out of the device before and after."""
    till = tour.tills[2]
    if till.ask()[0] != OK:
        return Outcome(ok=False, detail="the device did not answer before")
    before = _sent(tour)
    began = time.monotonic()
    tour.verb("device", "quarantine", till.asset, "--reason", "seen in another town")
    until(lambda: till.json("device", "status", code=None)["quarantined"], "the device did not obey")
    took = time.monotonic() - began
    until(lambda: _answered(tour, till, "quarantine"), "the device's answer did not come")
    status, why = till.ask()
    after = _sent(tour)
    stopped = status == 503  # noqa: PLR2004 - unavailable
    detail = f"acted within {took:.1f} s; a prompt: HTTP {status}, {why}"
    if not tour.networks:
        return Outcome(stopped, f"{detail}; packets were not counted: that needs root, `ip` and `nft`")
    cut = before > 0 and after == 0
    return Outcome(stopped and cut, f"{detail}; packets to another machine: {before} before, {after} after")


def _sent(tour: FleetTour) -> int:
    """Return how many packets of the third device reached another machine of its network, of `_PACKETS` tries."""
    if not tour.networks:
        return 0
    wide, own = tour.networks
    before = wide.counted()["other"]

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
            for _ in range(_PACKETS):
                with contextlib.suppress(PermissionError):  # what a fence says to the sender
                    out.sendto(b"the journal of the shop", fleet_props.OTHER)

    own.inside(send)
    time.sleep(0.1)
    return wide.counted()["other"] - before


def _answered(tour: FleetTour, till: Till, verb: str) -> bool:
    return any(row["verb"] == verb and row["state"] == "done" for row in tour.record(till)["commands"])


def _rewritten(tour: FleetTour) -> Outcome:
    """Put an older journal back while the device is off: alone it believes that, its fleet does not."""
    till = tour.tills[1]
    till.stop()
    journal, kept = till.home / "journal", till.scratch / "kept"
    shutil.copytree(journal, kept, symlinks=True)
    owners = {path.relative_to(journal): path.stat() for path in (journal, *journal.rglob("*"))}
    till.begin("--model", MODEL)
    until(lambda: till.fleet.get("witnessed"), "the journal was not witnessed")
    till.stop()
    shutil.rmtree(journal)
    shutil.copytree(kept, journal, symlinks=True)
    _give_back(journal, owners)
    alone, _, _ = till.casemate("journal", "verify")
    till.begin("--model", MODEL)
    until(lambda: "refused" in str(till.fleet.get("witness")), "the witness said nothing")
    told = [alert for alert in tour.verb("alert", "list")["alerts"] if alert["kind"] == "journal"]
    detail = f"`journal verify` on the device: exit {alone}; the witness: {told[0]['detail'] if told else 'no alert'}"
    return Outcome(bool(told) and alone == 0, detail)


def _give_back(journal: Path, owners: dict[Path, Any]) -> None:
    for name, facts in owners.items():
        if (journal / name).exists():
            os.chown(journal / name, facts.st_uid, facts.st_gid)


def _wipe(tour: FleetTour) -> Outcome:
    """Wipe the lost device: its keys first, then the proof. Whoever copied its disk before has nothing to add."""
    till = tour.tills[2]
    assert till.device
    tour.verb("device", "wipe", till.asset, "--reason", "lost on the train", "--yes")
    code = till.device.wait(WITHIN)
    state = until(lambda: (found := tour.record(till)["state"]) == "wiped" and found, "no proof came")
    keys = [*(till.home / "keystore").glob("*"), *till.scratch.glob("keys/*")]
    again, _, error = till.casemate("up", "--model", MODEL, "--listen", "127.0.0.1:0")
    opened, _, _ = till.casemate("model", "verify", MODEL)
    container = (till.home / "models" / f"{MODEL}.cmodel").exists()
    detail = (
        f"the proof is signed and verified: {state}; `up`: exit {again}, {_reason(error)}; the model: exit {opened}"
    )
    gone = not keys and code == again == 11 and opened != 0 and container  # noqa: PLR2004 - denied
    return Outcome(gone, f"{detail}; keys destroyed: the encrypted model is still there, no key to it is")


def _reason(error: str) -> str:
    lines = [line for line in error.splitlines() if "error:" in line]
    return lines[0].partition("error:")[2].strip() if lines else error.strip()[-120:]


@dataclasses.dataclass(frozen=True)
class Step:
    """One stop of the tour. Without one that is *needed* nothing after it can be tried."""

    id: str
    title: str
    run: Callable[[FleetTour], Outcome]
    needed: bool = False


STEPS: Final = (
    Step("serve", "a fleet in an empty directory", _serve, needed=True),
    Step("enrol", "three devices join with one-time tokens", _enrol, needed=True),
    Step("start", "they start, and check in", _start, needed=True),
    Step("attest", "what a good device runs is learned, signed, and proven", fleet_tour_proof.attest),
    Step("key", "a gated model's key goes to a proven device", fleet_tour_proof.key),
    Step("tampered", "a device whose policy was changed gets no key", fleet_tour_proof.tampered),
    Step("quarantine", "a device is cut off", _quarantine),
    Step("journal", "somebody puts an older journal back", _rewritten),
    Step("wipe", "the lost device is wiped", _wipe),
    Step("crowd", "200 simulated devices join, and a real one", fleet_tour_rollout.join, needed=True),
    Step("release", "the server reads a release repository", fleet_tour_rollout.publish, needed=True),
    Step("rollout", "a good release is rolled out", fleet_tour_rollout.good),
    Step("canary", "a bad one stops at the canary", fleet_tour_rollout.bad),
)


def walk(tour: FleetTour) -> Iterator[tuple[Step, Outcome]]:
    """Run every step; one that breaks is a failed step, and the tour goes on with what does not need it."""
    missing = ""
    for step in STEPS:
        if missing:
            yield step, Outcome(ok=False, detail=f"not tried: {missing} failed")
            continue
        try:
            outcome = step.run(tour)
        except Exception as error:  # noqa: BLE001 - a broken step is reported as not ok
            hint = " ".join(str(getattr(error, "hint", "")).split())
            outcome = Outcome(ok=False, detail=f"{type(error).__name__}: {error}" + (f" ({hint})" if hint else ""))
        missing = step.id if step.needed and not outcome.ok else ""
        yield step, outcome
