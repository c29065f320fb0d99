"""Two hundred devices that are only their wire: they enrol, check in over mTLS, follow picks and sign words.

Nothing is installed by them; the time in which they would is drawn, and short. What the server does with them is what
it does with any device.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from casemate.crypto import client_certificate
from casemate.crypto.client_certificate import Certificate
from casemate.crypto.ecdsa import EcKey
from casemate.errors import CasemateError
from casemate.formats import director, fleet_api
from casemate.formats.director import Pick, Word
from casemate.formats.enrolment import parse_token
from casemate.link import enrol
from casemate.link.client import FleetClient, Identity, tls_context

INTERVAL: Final = 2.0
"""Seconds between two check-ins of a device: a real one waits a minute, and is woken."""
THREADS: Final = 4
_TRYING: Final = 2.0
_HARDWARE: Final = ("Raspberry Pi 5 Model B", "Raspberry Pi 5 Model B", "Jetson Orin Nano")


class SimulatedDevice:
    """One device's identity and what it says it runs."""

    def __init__(self, name: str, place: Path, root: Certificate, draw: random.Random) -> None:
        """Keep its key and certificate at *place*."""
        self.name = name
        self._key = EcKey.generate()
        self._identity = Identity(place / f"{name}.crt", place / f"{name}.key")
        self._root = root
        self._draw = draw
        self._hardware = draw.choice(_HARDWARE)
        self._client: FleetClient | None = None
        self._id = self._fleet = self._generation = ""
        self._director = b""
        self._pick: Pick | None = None
        self._word: tuple[float, str, str] | None = None
        self.dead = False

    def join(self, url: str, token: str, devices: str) -> None:
        """Enrol with *token* at *url*; check in at *devices* from then on."""
        found = enrol.join(url, parse_token(token), self._key, self._root)
        self._identity.key.write_bytes(self._key.pem())
        self._identity.certificate.write_bytes(client_certificate.to_pem(found.chain))
        self._id, self._fleet = found.chain[0].device, found.charter.charter.fleet
        self._director = found.charter.charter.director or b""
        self._client = FleetClient(devices, tls_context(self._root.der, self._identity))

    def call(self, fates: dict[str, float]) -> None:
        """Check in; follow what the director says; say what came of it. *fates*: chance to fail, by content."""
        if self._client is None or self.dead:
            return
        held = self._pick.sequence if self._pick else 0
        message = fleet_api.CheckIn("ok", "simulated", time.time(), generation=self._generation, pick=held)
        reply = self._client.request("POST", "/device/v1/checkin", fleet_api.encode(message))
        answer = fleet_api.parse(reply.body, fleet_api.CheckInAnswer)
        if answer.pick:
            self._follow(answer.pick, held, fates)
        if self._word and self._word[0] <= time.monotonic():
            self._say(*self._word[1:])

    def close(self) -> None:
        """Hang up."""
        if self._client:
            self._client.close()

    def _follow(self, raw: bytes, held: int, fates: dict[str, float]) -> None:
        pick = director.verify_pick(
            raw, public=self._director, fleet=self._fleet, device=self._id, after=held, earliest=time.time()
        ).pick
        self._pick = pick
        if pick.action != "take" or pick.choice is None or pick.choice.content == self._generation:
            self._word = None
            return
        failed = self._draw.random() < fates.get(pick.choice.content, 0.0)
        if failed and self._draw.random() < 0.2:  # noqa: PLR2004 - one brick in five
            self.dead = True
            return
        outcome = "failed" if failed else "good"
        self._word = (time.monotonic() + self._draw.uniform(0, _TRYING), pick.choice.content, outcome)

    def _say(self, content: str, outcome: str) -> None:
        assert self._client
        word = Word(
            schema=1,
            fleet=self._fleet,
            device=self._id,
            content=content,
            outcome=outcome,  # type: ignore[arg-type]  # one of two, as `_follow` made it
            time=int(time.time()),
            why="" if outcome == "good" else "the smoke prompt was not answered as expected",
            tries=1,
            hardware=self._hardware,
            first_token_ms=round(self._draw.gauss(80, 5), 1),
            memory_mib=round(self._draw.gauss(700, 20), 1),
        )
        signed = director.sign_word(director.encode_word(word), self._key)
        self._client.request("POST", "/device/v1/generation", fleet_api.encode(fleet_api.GenerationWord(signed)))
        self._word = None
        if outcome == "good":
            self._generation = content


class Crowd:
    """All of them; a few threads carry their calls."""

    def __init__(self, scratch: Path, count: int, root: bytes) -> None:
        """Make *count* devices that trust the fleet whose root certificate is *root* (PEM)."""
        scratch.mkdir()
        (pinned,) = client_certificate.from_pem(root)
        self.devices = [
            SimulatedDevice(f"sim-{number:03}", scratch, pinned, random.Random(number))  # noqa: S311 - a simulation
            for number in range(count)
        ]
        self.fates: dict[str, float] = {}
        self.failed_calls = 0
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def join(self, enrol_url: str, devices_url: str, tokens: list[str]) -> None:
        """Enrol everybody, each with a token of its own."""
        count = len(self.devices)
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(SimulatedDevice.join, self.devices, [enrol_url] * count, tokens, [devices_url] * count))

    def start(self) -> None:
        """Have everybody check in from now on."""
        for number in range(THREADS):
            thread = threading.Thread(target=self._carry, args=(self.devices[number::THREADS],), daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        """Hang up."""
        self._stop.set()
        for thread in self._threads:
            thread.join(10)
        for device in self.devices:
            device.close()

    def _carry(self, devices: list[SimulatedDevice]) -> None:
        while not self._stop.is_set():
            begin = time.monotonic()
            for device in devices:
                if self._stop.is_set():
                    return
                with contextlib.suppress(CasemateError):
                    device.call(self.fates)
                    continue
                self.failed_calls += 1
            self._stop.wait(max(0.1, INTERVAL - (time.monotonic() - begin)))
