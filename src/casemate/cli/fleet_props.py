"""What the fleet's tour plays with: network namespaces joined by a cable, and software TPMs with a maker.

Namespaces need root, software TPMs need Debian's swtpm; who has neither sees a tour that says so. Nothing of the host's
own network is touched: what leaves a namespace is carried by this process, byte for byte, to the server's loopback.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import http.client
import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, TypeVar

from casemate.errors import HostError, OperationError

Result = TypeVar("Result")

FLEET: Final = ("10.77.0.1", 8444)
"""Where devices reach the fleet inside the namespaces: ports there are nobody else's."""
ENROL: Final = ("10.77.0.1", 8445)
RELEASES: Final = ("10.77.0.1", 8446)
OTHER: Final = ("10.77.0.9", 8080)
"""Another machine of the shop's network."""
_TOOLS: Final = ("unshare", "nsenter", "ip", "nft")
_CLONE_NEWNET: Final = 0x40000000
_WITHIN: Final = 10.0
_COUNTERS: Final = f"""
table inet seen {{
  counter fleet {{ }}
  counter other {{ }}
  chain in {{
    type filter hook input priority 0;
    iifname eth0 ip daddr {FLEET[0]} counter name fleet
    iifname eth0 ip daddr {OTHER[0]} counter name other
  }}
}}
"""


def has_networks() -> bool:
    """Whether network namespaces can be made here."""
    return os.geteuid() == 0 and all(shutil.which(tool) for tool in _TOOLS)


def has_tpms() -> bool:
    """Whether software TPMs can be made here."""
    from importlib.util import find_spec

    return bool(shutil.which("swtpm") and shutil.which("swtpm_localca") and find_spec("tpm2_pytss"))


class Network:
    """A network namespace, held open by a process that sleeps."""

    def __init__(self, pid: int) -> None:
        """Use the namespace of process *pid*."""
        self._pid = pid

    @property
    def enter(self) -> list[str]:
        """Return what a command begins with to run inside."""
        return ["nsenter", "-t", str(self._pid), "-n", "--"]

    @property
    def holder(self) -> str:
        """Return the process that `ip` knows the namespace by."""
        return str(self._pid)

    def run(self, *command: str, text: str = "") -> str:
        """Run *command* inside and return what it printed.

        Raises:
            HostError: it failed.

        """
        done = subprocess.run(
            [*self.enter, *command], input=text, capture_output=True, text=True, timeout=30, check=False
        )
        if done.returncode:
            raise HostError(f"{command[0]}: {done.stderr.strip()[:200]}")
        return done.stdout

    def inside(self, work: Callable[[], Result]) -> Result:
        """Return what *work* does in a thread of the namespace: sockets it makes belong there, wherever they go.

        Raises:
            OSError: *work* did, or the namespace is gone.

        """
        outcome: list[Result | OSError] = []

        def move() -> None:
            fd = os.open(f"/proc/{self._pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            try:
                if ctypes.CDLL(None, use_errno=True).setns(fd, _CLONE_NEWNET):
                    outcome.append(OSError(ctypes.get_errno(), "cannot enter the network namespace"))
                    return
                outcome.append(work())
            except OSError as error:
                outcome.append(error)
            finally:
                os.close(fd)

        thread = threading.Thread(target=move)
        thread.start()
        thread.join()
        if isinstance(outcome[0], OSError):
            raise outcome[0]
        return outcome[0]

    def dial(self, place: tuple[str, int], timeout: float) -> socket.socket:
        """Connect from inside.

        Raises:
            OSError: it cannot be reached.

        """
        return self.inside(lambda: socket.create_connection(place, timeout))

    def counted(self) -> dict[str, int]:
        """Return how many packets came in for the fleet and for the other machine."""
        rows = json.loads(self.run("nft", "-j", "list", "counters"))["nftables"]
        return {row["counter"]["name"]: row["counter"]["packets"] for row in rows if "counter" in row}


class Inside(http.client.HTTPConnection):
    """HTTP to a server inside a namespace."""

    def __init__(self, network: Network, address: str) -> None:
        """Speak to *address* of *network*."""
        super().__init__(address, timeout=60)
        self._network = network

    def connect(self) -> None:
        """Connect from inside."""
        self.sock = self._network.dial((self.host, self.port), 60)


@contextlib.contextmanager
def network() -> Iterator[Network]:
    """Make a namespace with nothing but loopback in it."""
    holder = subprocess.Popen(
        ["unshare", "-n", "--", "sh", "-c", "ip link set lo up && echo up && exec sleep infinity"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert holder.stdout
    try:
        if holder.stdout.readline() != b"up\n":
            raise HostError("no network namespace can be made here")
        yield Network(holder.pid)
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()


@contextlib.contextmanager
def shop(server: dict[tuple[str, int], tuple[str, int]]) -> Iterator[tuple[Network, Network]]:
    """Make a shop's network and a till's own, joined by a cable; *server* says which doors lead where outside."""
    with contextlib.ExitStack() as held:
        wide, till = (held.enter_context(network()) for _ in range(2))
        cable = ("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", till.holder)
        wide.run(*cable)
        for place, address in ((wide, FLEET[0]), (wide, OTHER[0]), (till, "10.77.0.2")):
            place.run("ip", "address", "add", f"{address}/24", "dev", "eth0")
        for place in (wide, till):
            place.run("ip", "link", "set", "eth0", "up")
        wide.run("nft", "-f", "-", text=_COUNTERS)
        held.enter_context(_door(wide, OTHER, _echo))
        for inner, outer in server.items():
            held.enter_context(_door(wide, inner, functools.partial(_carry, outer=outer)))
        yield wide, till


@contextlib.contextmanager
def _door(place: Network, address: tuple[str, int], serve: Callable[[socket.socket], None]) -> Iterator[None]:
    """Accept connections to *address* inside *place*; each is served by a thread."""
    listener = place.inside(lambda: socket.create_server(address))

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(_WITHIN)


def _echo(client: socket.socket) -> None:
    with client, contextlib.suppress(OSError):
        while data := client.recv(4096):
            client.sendall(data)


def _carry(client: socket.socket, outer: tuple[str, int]) -> None:
    """Carry bytes both ways; TLS is between the ends and not ours to see."""
    with client, contextlib.suppress(OSError), socket.create_connection(outer, _WITHIN) as server:
        server.settimeout(None)
        back = threading.Thread(target=_pump, args=(server, client), daemon=True)
        back.start()
        _pump(client, server)
        back.join()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


# --- software TPMs ----------------------------------------------------------------------------------------------------


class SoftwareTpm:
    """One swtpm with a state of its own, made by the tour's maker of TPMs."""

    def __init__(self, root: Path, maker: Path) -> None:
        """Keep the TPM in *root* (short: socket paths are); *maker* is the certificate authority's directory."""
        self._root, self._maker = root, maker
        self._socket = root / "s"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def tcti(self) -> str:
        """Return how the TSS reaches it."""
        return f"swtpm:path={self._socket}"

    def manufacture(self) -> None:
        """Make the TPM, with an endorsement certificate.

        Raises:
            OperationError: swtpm_setup failed.

        """
        state = self._root / "state"
        state.mkdir(parents=True)
        self._maker.mkdir(exist_ok=True)
        files: dict[str, dict[str, Path | str | None]] = {
            "ca.conf": {
                "statedir": self._maker,
                "signingkey": self._maker / "signkey.pem",
                "issuercert": self._maker / "issuercert.pem",
                "certserial": self._maker / "serial",
            },
            "setup.conf": {
                "create_certs_tool": shutil.which("swtpm_localca"),
                "create_certs_tool_config": self._root / "ca.conf",
                "create_certs_tool_options": self._root / "ca.options",
            },
        }
        for name, rows in files.items():
            (self._root / name).write_text("".join(f"{key} = {value}\n" for key, value in rows.items()))
        kind = "--platform-manufacturer Demo\n--platform-version 1\n--platform-model Demo\n"
        (self._root / "ca.options").write_text(kind)
        setup = "swtpm_setup --tpm2 --create-ek-cert --create-platform-cert --overwrite --pcr-banks sha256"
        done = subprocess.run(
            [*setup.split(), "--config", str(self._root / "setup.conf"), "--tpmstate", str(state)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if done.returncode:
            raise OperationError(f"swtpm_setup failed: {(done.stdout + done.stderr).strip()[-200:]}")

    def power_on(self) -> None:
        """Switch it on; its PCRs are new.

        Raises:
            OperationError: it does not answer.

        """
        from casemate.keystores import tss

        control = Path(f"{self._socket}.ctrl")  # where the TSS looks for it
        parts = {
            "--tpmstate": f"dir={self._root / 'state'}",
            "--server": f"type=unixio,path={self._socket},mode=0666",
            "--ctrl": f"type=unixio,path={control},mode=0666",
            "--flags": "not-need-init,startup-clear",
        }
        self._process = subprocess.Popen(
            ["swtpm", "socket", "--tpm2", *(word for part in parts.items() for word in part)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + _WITHIN
        while True:
            try:
                with tss.open_tpm(self.tcti):
                    return
            except HostError as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise OperationError("swtpm does not answer") from error
                time.sleep(0.02)

    def power_off(self) -> None:
        """Switch it off."""
        if self._process:
            self._process.terminate()
            self._process.wait(_WITHIN)
            self._process = None
        for path in (self._socket, Path(f"{self._socket}.ctrl")):
            path.unlink(missing_ok=True)
