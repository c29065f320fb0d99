"""Network namespaces of our own, joined by a cable: real packets, and nothing of the host's network. Needs root."""

from __future__ import annotations

import contextlib
import ctypes
import os
import queue
import socket
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass
class Network:
    """A namespace, held open by a process that sleeps."""

    holder: subprocess.Popen[bytes]

    @property
    def enter(self) -> list[str]:
        """Return what a command begins with to run inside."""
        return ["nsenter", "-t", str(self.holder.pid), "-n", "--"]

    def run(self, *command: str, check: bool = True, text: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.enter, *command], capture_output=True, text=True, check=check, timeout=30, input=text
        )

    def move_thread(self) -> None:
        """Move the calling thread inside: sockets it makes are of this namespace."""
        fd = os.open(f"/proc/{self.holder.pid}/ns/net", os.O_RDONLY)
        try:
            assert _libc.setns(fd, _CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        finally:
            os.close(fd)


@contextlib.contextmanager
def network() -> Iterator[Network]:
    holder = subprocess.Popen(
        ["unshare", "-n", "--", "sh", "-c", "ip link set lo up && echo up && exec sleep infinity"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout
        assert holder.stdout.readline() == b"up\n"
        yield Network(holder)
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()


def join(one: Network, other: Network, first: str, second: str) -> None:
    """Lay a cable: *one* gets the address *first*, *other* gets *second* (both with their prefix length)."""
    ends = [("eth0", one, first), ("eth0", other, second)]
    command = ["ip", "link", "add", "eth0", "netns", str(one.holder.pid), "type", "veth"]
    subprocess.run([*command, "peer", "name", "eth0", "netns", str(other.holder.pid)], check=True)
    for name, place, address in ends:
        place.run("ip", "address", "add", address, "dev", name, *(["nodad"] if ":" in address else []))
        place.run("ip", "link", "set", name, "up")


@contextlib.contextmanager
def answering(net: Network, address: str) -> Iterator[tuple[str, int]]:
    """Answer every connection to *address* inside *net* with what it sends; yields the address and the port."""
    ready: queue.Queue[socket.socket] = queue.Queue()

    def serve() -> None:
        net.move_thread()
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as listener:
            listener.bind((address, 0))
            listener.listen()
            ready.put(listener)
            with contextlib.suppress(OSError):
                while True:
                    threading.Thread(target=_echo, args=(listener.accept()[0],), daemon=True).start()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    listener = ready.get(timeout=10)
    try:
        yield address, listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(10)


def _echo(connection: socket.socket) -> None:
    with connection, contextlib.suppress(OSError):
        while data := connection.recv(4096):
            connection.sendall(data)


def dial(net: Network, place: tuple[str, int], timeout: float = 5.0) -> socket.socket:
    """Connect from inside *net*; the socket then works from any thread.

    Raises:
        OSError: it cannot be reached.

    """
    found: queue.Queue[socket.socket | OSError] = queue.Queue()

    def connect() -> None:
        net.move_thread()
        try:
            found.put(socket.create_connection(place, timeout))
        except OSError as error:
            found.put(error)

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join()
    outcome = found.get()
    if isinstance(outcome, OSError):
        raise outcome
    return outcome


def says(connection: socket.socket, timeout: float = 5.0) -> bool:
    """Whether a word goes there and comes back."""
    connection.settimeout(timeout)
    try:
        connection.sendall(b"word")
        return connection.recv(16) == b"word"
    except OSError:
        return False
