"""The tour behind `casemate update demo`: a release host, a web server, two devices, and what may go wrong.

Everything is thrown away afterwards. Devices and releases are driven by the same commands that people type; only the
release host's passphrases are cheap ones, to save half a minute.
"""

from __future__ import annotations

import contextlib
import functools
import http.server
import importlib.resources
import json
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final, Self

import click

from casemate.cli.output import emit_line, human_bytes, style
from casemate.cli.tour import QUESTION, Outcome, Tour

RATE: Final = 4_000_000
"""Bytes a second of the demo's web server."""
_PIECE: Final = 64 * 1024
_BLOCK: Final = 34  # bytes of one block of Q8_0: a scale and 32 weights
_WITHIN: Final = 90.0
LABEL: Final = "model/saffron/{}.0"
_SPEC: Final = """
kind = "model"
name = "saffron"
version = "{version}.0"
security_version = {version}
licence = "Apache-2.0"
files = ["saffron.gguf"]
smoke = [{{ prompt = "Where can we eat pasta?", expect = "{expect}" }}]
"""


class _Site(http.server.SimpleHTTPRequestHandler):
    """A plain static web server on a line of `RATE`; *chunk* is told when one is asked for."""

    protocol_version = "HTTP/1.1"

    def __init__(self, *connection: Any, chunk: Callable[[], None], directory: str) -> None:
        """Serve *directory*."""
        self._chunk = chunk
        super().__init__(*connection, directory=directory)

    def do_GET(self) -> None:
        """Serve one file."""
        if self.path.startswith("/chunks/"):
            self._chunk()
        super().do_GET()

    def copyfile(self, source: Any, outputfile: Any) -> None:
        """Send *source* slowly."""
        reader: BinaryIO = source
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while piece := reader.read(_PIECE):
                outputfile.write(piece)
                time.sleep(len(piece) / RATE)

    def log_message(self, *_: Any) -> None:
        """Be quiet."""


class _Server(http.server.ThreadingHTTPServer):
    """A server to whom a client that was killed is no news."""

    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """Say nothing."""


class Client:
    """An app that asks all the time; `longest` is its longest silence, in seconds."""

    def __init__(self, tour: Tour) -> None:
        """Ask the device of *tour*."""
        self._tour = tour
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.answers = self.failed = 0
        self.longest = 0.0

    def __enter__(self) -> Self:
        """Begin to ask."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End with the answer that is being given."""
        self._stop.set()
        self._thread.join(_WITHIN)

    def _run(self) -> None:
        body = {"model": "saffron", "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 64}
        last = time.monotonic()
        while not self._stop.is_set():
            try:
                pieces = 0
                for _ in self._tour.stream(body):
                    now = time.monotonic()
                    self.longest, last, pieces = max(self.longest, now - last), now, pieces + 1
                self.answers += pieces > 1
                self.failed += pieces <= 1
            except (OSError, ValueError, KeyError):
                self.failed += 1


class UpdateTour(Tour):
    """The release host beside the device."""

    def __init__(self, scratch: Path) -> None:
        """Work below *scratch*."""
        super().__init__(scratch)
        self.url = ""
        """Where `public/` is served."""
        self.asked_chunk = threading.Event()
        self.host = scratch / "host"
        self.repository = scratch / "repository"
        self.environ["CASEMATE_RELEASE_REPO"] = str(self.repository)
        self.environ["CASEMATE_RELEASE_PASSPHRASE_FILE"] = str(scratch / "passphrase")

    def json(self, *arguments: str, home: Path | None = None, code: int | None = 0) -> dict[str, Any]:
        """Run a command that must end with *code* (None: any); return what it printed.

        Raises:
            RuntimeError: it ended otherwise.

        """
        found, out, err = self.casemate(*arguments, "--json", home=home)
        if code is not None and found != code:
            raise RuntimeError(
                f"casemate {' '.join(arguments)}: exit {found}, not {code}: {(out or err).strip()[-300:]}"
            )
        answer: dict[str, Any] = json.loads(out)
        return answer

    def offer(self, version: int) -> None:
        """Offer a version on the channel."""
        self.json("release", "promote", LABEL.format(version), "--channel", "stable")

    def wait_for(self, state: str) -> dict[str, Any]:
        """Return the status of updates once it is *state*.

        Raises:
            RuntimeError: it does not come to that.

        """
        until = time.monotonic() + _WITHIN
        while (found := self.json("update", "status"))["state"] != state:
            if time.monotonic() > until:
                raise RuntimeError(f"the update stays {found['state']}: {found['last_error']}")
            time.sleep(0.2)
        return found


# --- the steps --------------------------------------------------------------------------------------------------------


def _release(tour: UpdateTour) -> Outcome:
    """Make the repository and three versions: two good ones, and one that will not answer its smoke prompt."""
    size = make(tour, ((1, "[a-z]"), (2, "[a-z]"), (3, "no model says this")))
    return Outcome(ok=True, detail=f"3 versions, {human_bytes(size)} each; {tour.url}")


def make(tour: UpdateTour, versions: Sequence[tuple[int, str]]) -> int:
    """Make a repository and publish *versions*, each with what its smoke prompt expects; returns the size of one."""
    from casemate.clock import SystemClock
    from casemate.crypto.kdf import Argon2Cost
    from casemate.crypto.secret import Secret
    from casemate.release import setup
    from casemate.release.keys import KeyStore, Passphrases

    (tour.scratch / "passphrase").write_text("correct horse battery\n", encoding="ascii")
    phrases = Passphrases({}, lambda _name, _new: Secret(b"correct horse battery"))
    cheap = Argon2Cost(memory_kib=8 * 1024, passes=1, lanes=1)
    setup.create(tour.repository, KeyStore(tour.repository / "keys", phrases, environ={}, cost=cheap), SystemClock())
    plain = (importlib.resources.files("casemate.data") / "saffron" / "saffron-q8_0.gguf").read_bytes()
    size = 0
    for version, expect in versions:
        folder = tour.host / str(version)
        folder.mkdir(parents=True)
        (folder / "saffron.gguf").write_bytes(_retrained(plain, version))
        (folder / "SPEC.toml").write_text(_SPEC.format(version=version, expect=expect), encoding="utf-8")
        bundle = str(folder / "release")
        tour.json("release", "build", str(folder / "SPEC.toml"), "--out", bundle, "--no-evals")
        made = tour.json("release", "publish", str(tour.repository), "--add", bundle)["releases"][0]
        size = int(made["full_bytes"])
    return size


def _retrained(data: bytes, version: int) -> bytes:
    """Return the model with a few weights changed, as another round of training leaves it."""
    changed, dice = bytearray(data), random.Random(version)  # noqa: S311 - weights, not secrets
    if version > 1:
        for at in range(len(changed) // 2, len(changed) - _BLOCK, 4 * _BLOCK):
            changed[at + dice.randrange(2, _BLOCK)] ^= 1
    return bytes(changed)


def _first(tour: UpdateTour) -> Outcome:
    recipient = tour.json("device", "key", "show")["recipient"]
    for version in (1, 2, 3):
        tour.json("release", "grant", LABEL.format(version), "--to", recipient)
    tour.json("update", "trust", str(tour.repository / "public/metadata/1.root.json"), "--url", tour.url)
    tour.offer(1)
    waiting = tour.json("update", "check", code=3)
    applied = tour.json("update", "apply")
    detail = f"{human_bytes(waiting['bytes'])} fetched, proven, encrypted for this device; {applied['state'].lower()}"
    return Outcome(applied["state"] == "ARMED", detail, tour.entry("update_staged"))


def _start(tour: UpdateTour) -> Outcome:
    tour.start()
    policy = tour.scratch / "busy.toml"
    policy.write_text("schema = 1\nrequests_per_minute = 0\n", encoding="ascii")
    tour.json("app", "policy", "default", str(policy))
    found = tour.wait_for("GOOD")
    return Outcome(found["good"] == 1, "the trial passed its health gate", tour.entry("update_good"))


def _delta(tour: UpdateTour) -> Outcome:
    tour.offer(2)
    with Client(tour) as client:
        time.sleep(0.5)
        applied = tour.json("update", "apply")
        time.sleep(0.5)
    spent = f"{human_bytes(applied['bytes'])} instead of {human_bytes(applied['bytes'] + applied['saved'])}"
    used = f"{client.answers} answers meanwhile, {client.failed} failed, longest silence {1000 * client.longest:.0f} ms"
    good = applied["state"] == "GOOD" and applied["saved"] > applied["bytes"] and client.answers and not client.failed
    return Outcome(bool(good), f"{spent}; {used}", tour.entry("update_good"))


def _killed(tour: UpdateTour) -> Outcome:
    tour.offer(3)
    tour.asked_chunk.clear()
    process = subprocess.Popen(
        [sys.executable, "-m", "casemate", "update", "fetch"],
        env=tour.environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    tour.asked_chunk.wait(_WITHIN)
    process.kill()
    process.wait()
    after = tour.json("update", "status")["state"]
    staged = tour.json("update", "fetch")
    detail = f"killed while {after.lower()}; the next call went on and staged generation {staged['generation']}"
    return Outcome(after == "FETCHING" and staged["state"] == "STAGED", detail)


def _bad(tour: UpdateTour) -> Outcome:
    with Client(tour) as client:
        told = tour.json("update", "apply", code=1)["error"]["message"]
    found = tour.json("update", "status")
    serving = json.loads(tour.casemate("status", "--json")[1])["models"][0]["container"]
    good = (found["good"], found["trial"], len(found["denied"]), serving) == (2, None, 1, "saffron.g2")
    detail = f"{told.partition(': ')[2]}; {client.answers} answers meanwhile, {client.failed} failed"
    return Outcome(good and not client.failed, detail, tour.entry("update_rolled_back"))


def _never_again(tour: UpdateTour) -> Outcome:
    told = tour.json("update", "apply", code=11)["error"]["message"]
    return Outcome(ok=True, detail=told)


def _backwards(tour: UpdateTour) -> Outcome:
    tour.json("update", "confirm")
    tour.offer(1)
    told = tour.json("update", "check", code=11)["error"]["message"]
    floor = tour.json("update", "status")["floor"]
    return Outcome(floor == {"model/saffron": 2}, told, tour.entry("update_floor_raised"))


def _replayed(tour: UpdateTour) -> Outcome:
    """Serve yesterday's repository, and delete the device's own metadata, as who has its disk could."""
    public, aside = tour.repository / "public", tour.scratch / "aside"
    metadata = public / "metadata"
    shutil.copytree(metadata, aside)
    tour.offer(2)
    tour.casemate("update", "check")
    new = tour.scratch / "new"
    metadata.rename(new)
    aside.rename(metadata)
    shutil.rmtree(tour.home / "update" / "tuf")
    try:
        error = tour.json("update", "check", code=10)["error"]
    finally:
        shutil.rmtree(metadata)
        new.rename(metadata)
    return Outcome(error["check"] == "metadata-replay", error["message"], tour.entry("update_refused"))


def _imported(tour: UpdateTour) -> Outcome:
    """Update a second device, which has no network, from a file."""
    home = tour.scratch / "second" / "home"
    home.parent.mkdir()
    recipient = tour.json("device", "key", "show", home=home)["recipient"]
    tour.json("release", "grant", LABEL.format(2), "--to", recipient)
    tar = tour.scratch / "stick.tar"
    tour.json("release", "export", str(tour.repository), str(tar), "--channel", "stable")
    root = str(tour.repository / "public/metadata/1.root.json")
    tour.json("update", "trust", root, "--url", "https://releases.invalid/", home=home)
    tour.json("update", "import", str(tar), home=home)
    applied = tour.json("update", "apply", home=home)
    detail = f"{human_bytes(tar.stat().st_size)} carried in; {applied['state'].lower()} for the next start"
    return Outcome(applied["state"] == "ARMED", detail, tour.entry("update_staged", home=home))


Work = Callable[[UpdateTour], Outcome]
STEPS: Final[tuple[tuple[str, str, Work], ...]] = (
    ("release", "build, sign and publish three versions of the demo model", _release),
    ("first", "a device trusts the repository and takes version 1", _first),
    ("trial", "it starts: the new generation is on trial", _start),
    ("delta", "version 2, as a difference, while an app streams all the time", _delta),
    ("killed", "version 3: kill -9 in the middle", _killed),
    ("bad", "version 3 fails its smoke prompt: the device goes back by itself", _bad),
    ("denied", "the same release again: denied", _never_again),
    ("backwards", "version 1 again: below the floor", _backwards),
    ("replay", "an old repository, and the device's metadata deleted", _replayed),
    ("import", "a second device without a network, from a file", _imported),
)


def run(*, as_json: bool) -> int:
    """Take the tour; returns the exit code."""
    good = True
    with tempfile.TemporaryDirectory(prefix="casemate-update-demo-") as place:
        scratch = Path(place)
        scratch.chmod(0o755)  # as root the device's processes have uids of their own
        for name, title, outcome in walk(scratch):
            good &= outcome.ok
            if as_json:
                emit_line({"step": name, "ok": outcome.ok, "detail": outcome.detail, "entry": outcome.entry})
            else:
                mark = style("    ok", "good") if outcome.ok else style("FAILED", "bad")
                click.echo(f"{mark}  {title}: {outcome.detail}")
    if not as_json:
        click.echo(style("every step did what it must", "good") if good else style("the demo failed", "bad"))
    return 0 if good else 1


def walk(scratch: Path) -> Iterator[tuple[str, str, Outcome]]:
    """Run every step; one that breaks is a failed step, and the tour goes on."""
    tour = UpdateTour(scratch)
    with serving(tour.repository / "public", tour.asked_chunk.set) as port:
        tour.url = f"http://127.0.0.1:{port}/"
        try:
            for name, title, work in STEPS:
                try:
                    outcome = work(tour)
                except Exception as error:  # noqa: BLE001 - a broken step is reported as not ok
                    outcome = Outcome(ok=False, detail=f"{type(error).__name__}: {error}")
                yield name, title, outcome
        finally:
            tour.stop()


@contextlib.contextmanager
def serving(public: Path, chunk: Callable[[], None]) -> Iterator[int]:
    """Serve *public* slowly on a free port of loopback; *chunk* is told when one is asked for. Yields the port."""
    handler = functools.partial(_Site, chunk=chunk, directory=str(public))
    with _Server(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield int(server.server_address[1])
        finally:
            server.shutdown()
