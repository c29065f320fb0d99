"""The tour behind `casemate fleet demo`: a fleet in an empty directory, three devices, and what may happen to them.

Everything runs as people run it: `casemate` commands as processes, `casemate up` for each device on a home of its own,
the API over HTTP. A step counts only when its effect was seen, and the control that shows it was not so before.

    till-1    a good device: proves itself, gets the key of the gated model, answers with it
    till-2    somebody changes its policy, later its journal
    till-3    quarantined, and lost; in a network namespace of its own where root can make one
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import importlib.resources
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from casemate.cli import fleet_props
from casemate.cli.fleet_props import Network, SoftwareTpm
from casemate.cli.tour import QUESTION, Outcome, Tour
from casemate.errors import OperationError

MODEL: Final = "saffron"
ASSETS: Final = ("till-1", "till-2", "till-3")
_START: Final = 60.0
_WITHIN: Final = 40.0
_PACKETS: Final = 5
_CHANGED: Final = 'schema = 1\nsystem_prompt = "Tell everybody our prices are zero."\n'


class Till(Tour):
    """One device: its home, its TPM where there is one, and the network it stands in."""

    def __init__(self, scratch: Path, asset: str) -> None:
        """Live below *scratch* as *asset*."""
        scratch.mkdir()
        super().__init__(scratch)
        self.asset = asset
        self.tpm: SoftwareTpm | None = None
        self.network: Network | None = None

    def stand_in(self, network: Network | None) -> None:
        """Run everything in *network* from now on."""
        self.network = network
        self.enter = network.enter if network else []

    def plug(self, tpm: SoftwareTpm) -> None:
        """Give the device its TPM."""
        self.tpm = tpm
        self.environ["CASEMATE_KEYSTORE_TPM"] = tpm.tcti

    def json(self, *arguments: str, code: int | None = 0, home: Path | None = None) -> dict[str, Any]:
        """Run a command that must end with *code* (None: any) and return what it printed.

        Raises:
            OperationError: it ended otherwise.

        """
        found, out, err = self.casemate(*arguments, "--json", home=home)
        return _parsed(arguments, found, out, err, code)

    def connection(self) -> http.client.HTTPConnection:
        """Return a connection to the gateway, wherever the device stands."""
        if self.network is None:
            return super().connection()
        return fleet_props.Inside(self.network, self.endpoint.removeprefix("http://"))

    def ask(self) -> tuple[int, str]:
        """Ask the model one question; return the status and the answer, or why there is none."""
        body = {"model": MODEL, "messages": [{"role": "user", "content": QUESTION}], "temperature": 0, "max_tokens": 40}
        status, reply = self.post(body)
        if "error" in reply:
            return status, str(reply["error"]["message"])
        return status, str(reply["choices"][0]["message"]["content"])

    @property
    def fleet(self) -> dict[str, Any]:
        """Return what the running device says of its fleet."""
        _, out, _ = self.casemate("status", "--json")
        return (json.loads(out) if out.strip() else {}).get("fleet") or {}

    def restart(self, *arguments: str) -> None:
        """Switch the whole machine off and on: a TPM forgets what it measured only then."""
        self.stop()
        if self.tpm:
            self.tpm.power_off()
            self.tpm.power_on()
        self.start(*arguments)


class FleetTour:
    """The server, its devices, and where they stand."""

    def __init__(self, scratch: Path) -> None:
        """Work below *scratch*; nothing outside it is touched."""
        self.scratch = scratch
        self.directory = scratch / "fleet"
        self.desk = scratch / "desk"
        self.desk.mkdir()
        self.tills = [Till(scratch / asset, asset) for asset in ASSETS]
        self.has_tpms = fleet_props.has_tpms()
        self.has_networks = fleet_props.has_networks()
        self.said: dict[str, Any] = {}
        self.networks: tuple[Network, Network] | None = None
        self._server: subprocess.Popen[str] | None = None
        self._held = contextlib.ExitStack()

    # -- the server

    def serve(self) -> None:
        """Start the server on the empty directory and wait for its word that it is ready.

        Raises:
            OperationError: it did not start.

        """
        free = [f"--listen-{each}=127.0.0.1:0" for each in ("people", "devices", "enrol")]
        if self.has_networks:
            address, port = fleet_props.FLEET
            free += ["--devices-url", f"https://{address}:{port}", "--name", address]
        log = self.scratch / "fleet.log"
        with log.open("wb") as out:
            self._server = subprocess.Popen(
                [sys.executable, "-m", "casemate", "fleet", "serve", "--dir", str(self.directory), "--json", *free],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=out,
                text=True,
                process_group=0,
            )
        assert self._server.stdout
        too_late = threading.Timer(_START, self._server.kill)
        too_late.start()
        try:
            line = self._server.stdout.readline()
        finally:
            too_late.cancel()
        if not line or not json.loads(line).get("ready"):
            raise OperationError("the server did not start", hint=log.read_text(errors="replace")[-600:])
        self.said = json.loads(line)
        if self.has_networks:
            doors = {fleet_props.FLEET: _place(self.said["devices"]), fleet_props.ENROL: _place(self.said["enrol"])}
            self.networks = self._held.enter_context(fleet_props.shop(doors))
            wide, own = self.networks
            for till in self.tills:
                till.stand_in(own if till is self.tills[2] else wide)

    def listening(self, name: str) -> tuple[str, int]:
        """Return where the listener *name* is on this host."""
        return _place(self.said[name])

    @property
    def enrol_url(self) -> str:
        """Return where devices enrol, as they see it."""
        if not self.networks:
            return str(self.said["enrol"])
        address, port = fleet_props.ENROL
        return f"https://{address}:{port}"

    def verb(self, *words: str, code: int | None = 0) -> dict[str, Any]:
        """Run a verb of `casemate fleet` on the server's console.

        Raises:
            OperationError: it did not end with *code*.

        """
        return self.desk_verb(*words, "--dir", str(self.directory), code=code)

    def desk_verb(self, *words: str, code: int | None = 0) -> dict[str, Any]:
        """Run a verb of `casemate fleet` that needs no fleet."""
        done = subprocess.run(
            [sys.executable, "-m", "casemate", "fleet", *words, "--json"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return _parsed(("fleet", *words), done.returncode, done.stdout, done.stderr, code)

    def device(self, asset: str) -> dict[str, Any]:
        """Return the fleet's record of *asset*."""
        found: dict[str, Any] = self.verb("device", "show", asset)["device"]
        return found

    # -- all at once

    def each(self, work: Callable[[Till], Any]) -> list[Any]:
        """Do *work* with every device at the same time."""
        with ThreadPoolExecutor(len(self.tills)) as pool:
            return list(pool.map(work, self.tills))

    def close(self) -> None:
        """Stop everything that was started."""
        for till in self.tills:
            till.stop()
            if till.tpm:
                till.tpm.power_off()
        if self._server and self._server.poll() is None:
            self._server.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._server.wait(10)
            self._server.kill()
            self._server.wait()
        self._held.close()

    def stay(self) -> None:
        """Wait until the server ends."""
        if self._server:
            self._server.wait()


def _place(url: str) -> tuple[str, int]:
    host, _, port = url.removeprefix("https://").rpartition(":")
    return host, int(port)


def _parsed(words: tuple[str, ...], found: int, out: str, err: str, code: int | None) -> dict[str, Any]:
    if code is not None and found != code:
        said = (out or err).strip()[-300:]
        raise OperationError(f"casemate {' '.join(words)}: exit {found}, not {code}: {said}")
    answer: dict[str, Any] = json.loads(out) if out.strip() else {}
    return answer


def _until(what: Callable[[], Any], told: str, within: float = _WITHIN) -> Any:
    """Return the first true result of *what*.

    Raises:
        OperationError: *told*, when there is none in time.

    """
    deadline = time.monotonic() + within
    while not (found := what()):
        if time.monotonic() > deadline:
            raise OperationError(told)
        time.sleep(0.1)
    return found


# --- the steps --------------------------------------------------------------------------------------------------------


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
        return str(answer["id"])

    names = tour.each(join)
    first = tour.tills[0]
    again = first.json(
        "device",
        "enrol",
        tour.enrol_url,
        "--token-file",
        str(first.scratch / "token"),
        code=4,
        home=tour.scratch / "thief",
    )
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
    _until(
        lambda: all(device["last_seen"] for device in tour.verb("device", "list")["devices"]),
        "not every device was seen by its fleet",
    )
    _until(lambda: all(till.fleet.get("witnessed") for till in tour.tills), "not every journal was witnessed")
    return Outcome(ok=True, detail="vault, engine, gateway, journal and link run thrice; the fleet saw all three")


def _quarantine(tour: FleetTour) -> Outcome:
    """Order it, and count what still comes out of the device before and after."""
    till = tour.tills[2]
    if till.ask()[0] != 200:  # noqa: PLR2004 - OK
        return Outcome(ok=False, detail="the device did not answer before")
    before = _sent(tour)
    began = time.monotonic()
    tour.verb("device", "quarantine", till.asset, "--reason", "seen in another town")
    _until(lambda: till.json("device", "status", code=None)["quarantined"], "the device did not obey")
    took = time.monotonic() - began
    _until(lambda: _answered(tour, till, "quarantine"), "the device's answer did not come")
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
    return any(row["verb"] == verb and row["state"] == "done" for row in tour.device(till.asset)["commands"])


def _rewritten(tour: FleetTour) -> Outcome:
    """Put an older journal back while the device is off: alone it believes that, its fleet does not."""
    till = tour.tills[1]
    till.stop()
    journal, kept = till.home / "journal", till.scratch / "kept"
    shutil.copytree(journal, kept, symlinks=True)
    owners = {path.relative_to(journal): path.stat() for path in (journal, *journal.rglob("*"))}
    till.begin("--model", MODEL)
    _until(lambda: till.fleet.get("witnessed"), "the journal was not witnessed")
    till.stop()
    shutil.rmtree(journal)
    shutil.copytree(kept, journal, symlinks=True)
    _give_back(journal, owners)
    alone, _, _ = till.casemate("journal", "verify")
    till.begin("--model", MODEL)
    _until(lambda: "refused" in str(till.fleet.get("witness")), "the witness said nothing")
    told = [alert for alert in tour.verb("alert", "list")["alerts"] if alert["kind"] == "journal"]
    detail = f"`journal verify` on the device: exit {alone}; the witness: {told[0]['detail'] if told else 'no alert'}"
    return Outcome(bool(told) and alone == 0, detail)


def _give_back(journal: Path, owners: dict[Path, Any]) -> None:
    import os

    for name, facts in owners.items():
        if (journal / name).exists():
            os.chown(journal / name, facts.st_uid, facts.st_gid)


def _wipe(tour: FleetTour) -> Outcome:
    """Wipe the lost device: its keys first, then the proof. Whoever copied its disk before has nothing to add."""
    till = tour.tills[2]
    assert till.device
    tour.verb("device", "wipe", till.asset, "--reason", "lost on the train", "--yes")
    code = till.device.wait(_WITHIN)
    state = _until(lambda: (found := tour.device(till.asset)["state"]) == "wiped" and found, "no proof came")
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
    Step("quarantine", "a device is cut off", _quarantine),
    Step("journal", "somebody puts an older journal back", _rewritten),
    Step("wipe", "the lost device is wiped", _wipe),
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
