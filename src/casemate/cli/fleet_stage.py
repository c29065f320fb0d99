"""The stage of `casemate fleet demo`: a fleet in an empty directory, and three devices.

Everything runs as people run it: `casemate` commands as processes, `casemate up` for each device on a home of its own,
the API over HTTP.

    till-1    a good device: proves itself, gets the key of the gated model, answers with it
    till-2    somebody changes its policy, later its journal
    till-3    quarantined, and lost; in a network namespace of its own where root can make one
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from casemate.cli import fleet_props, update_tour
from casemate.cli.fleet_props import Network, SoftwareTpm
from casemate.cli.tour import QUESTION, Tour
from casemate.errors import OperationError

if TYPE_CHECKING:
    from casemate.link.client import Reply

MODEL: Final = "saffron"
GATED: Final = "saffron-gated"
ASSETS: Final = ("till-1", "till-2", "till-3")
_START: Final = 90.0
WITHIN: Final = 60.0
OK: Final = 200
DENIED: Final = 403


class Till(Tour):
    """One device: its home, its TPM where there is one, and the network it stands in."""

    def __init__(self, scratch: Path, asset: str) -> None:
        """Live below *scratch* as *asset*."""
        scratch.mkdir()
        super().__init__(scratch)
        self.asset = asset
        self.id = ""
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

    def ask(self, model: str = MODEL) -> tuple[int, str]:
        """Ask *model* one question; return the status and the answer, or why there is none."""
        body = {"model": model, "messages": [{"role": "user", "content": QUESTION}], "temperature": 0, "max_tokens": 40}
        status, reply = self.post(body)
        if "error" in reply:
            return status, str(reply["error"]["message"])
        return status, str(reply["choices"][0]["message"]["content"])

    @property
    def status(self) -> dict[str, Any]:
        """Return what the running device says of itself."""
        _, out, _ = self.casemate("status", "--json")
        found: dict[str, Any] = json.loads(out) if out.strip() else {}
        return found

    @property
    def fleet(self) -> dict[str, Any]:
        """Return what the running device says of its fleet."""
        return self.status.get("fleet") or {}

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
        self.rollouts: Any = None
        """What the steps about rollouts share (`fleet_tour_rollout.Stage`)."""
        self._releases = 0
        self._server: subprocess.Popen[str] | None = None
        self._held = contextlib.ExitStack()

    # -- the server

    def serve(self) -> None:
        """Start the server on the empty directory and wait for its word that it is ready.

        Raises:
            OperationError: it did not start.

        """
        public = self.scratch / "kiosk" / "repository" / "public"
        self._releases = self._held.enter_context(update_tour.serving(public, lambda: None))
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
            doors[fleet_props.RELEASES] = ("127.0.0.1", self._releases)
            self.networks = self._held.enter_context(fleet_props.shop(doors))
            wide, own = self.networks
            for till in self.tills:
                till.stand_in(own if till is self.tills[2] else wide)

    def listening(self, name: str) -> tuple[str, int]:
        """Return where the listener *name* is on this host."""
        return _place(self.said[name])

    @property
    def releases_url(self) -> str:
        """Return where releases are served, as devices see it."""
        address, port = fleet_props.RELEASES if self.networks else ("127.0.0.1", self._releases)
        return f"http://{address}:{port}/"

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

    def record(self, till: Till) -> dict[str, Any]:
        """Return the fleet's record of *till*, by its id: a device that is out carries its asset tag no more."""
        found: dict[str, Any] = self.verb("device", "show", till.id)["device"]
        return found

    def ask_key(self, till: Till) -> Reply:
        """Ask the broker for the model's key, as *till* by its own certificate."""
        from casemate.device.fleet import membership
        from casemate.formats import fleet_api
        from casemate.link.client import FleetClient, Identity, tls_context

        link = till.home / "link"
        identity = Identity(link / membership.CERTIFICATE, link / membership.KEY)
        context = tls_context(membership.read_place(link).root, identity)
        client = FleetClient(str(self.said["devices"]), context)
        try:
            question = fleet_api.encode(fleet_api.KeyQuestion(os.urandom(32)))
            return client.request("POST", f"/device/v1/keys/{GATED}/release", question)
        finally:
            client.close()

    # -- all at once

    def each(self, work: Callable[[Till], Any]) -> list[Any]:
        """Do *work* with every device at the same time."""
        with ThreadPoolExecutor(len(self.tills)) as pool:
            return list(pool.map(work, self.tills))

    def close(self) -> None:
        """Stop everything that was started."""
        if self.rollouts:
            self.rollouts.close()
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


def until(what: Callable[[], Any], told: str, within: float = WITHIN) -> Any:
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
