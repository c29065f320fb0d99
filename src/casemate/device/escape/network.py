"""Probes that try to talk to something outside."""

from __future__ import annotations

import socket
import struct
from typing import Final

from casemate.device.escape.probe import Probe, Targets

_SECONDS: Final = 2.0
_RTM_GETLINK: Final = 18
_NLM_F_REQUEST_DUMP: Final = 0x301
_VSOCK_HOST: Final = 2


def _tcp(targets: Targets) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as link:
        link.settimeout(_SECONDS)
        link.connect(("127.0.0.1", targets.tcp_port))
        link.sendall(f"tcp_connect_host {targets.token}".encode())


def _udp(targets: Targets) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
        link.sendto(f"udp_socket_send {targets.token}".encode(), ("127.0.0.1", targets.udp_port))


def _raw(_: Targets) -> None:
    socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).close()


def _netlink(_: Targets) -> None:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as link:
        link.settimeout(_SECONDS)
        link.sendto(struct.pack("=IHHIIBxHiII", 32, _RTM_GETLINK, _NLM_F_REQUEST_DUMP, 1, 0, 0, 0, 0, 0, 0), (0, 0))
        link.recv(4096)


def _abstract(targets: Targets) -> None:
    _unix(b"\0" + targets.abstract_name.encode(), f"unix_abstract_host {targets.token}")


def _path(targets: Targets) -> None:
    _unix(targets.socket_path.encode(), f"unix_path_host {targets.token}")


def _unix(address: bytes, message: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
        link.settimeout(_SECONDS)
        link.connect(address)
        link.sendall(message.encode())


def _vsock(_: Targets) -> None:
    socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM).close()


PROBES: Final = (
    Probe("tcp_connect_host", "connect to a listener on the host's loopback", "B L S", _tcp, proof="outside"),
    Probe("udp_socket_send", "send a datagram to the host's loopback", "B S", _udp, proof="outside"),
    Probe("raw_socket", "open a raw ICMP socket", "U B S", _raw, needs=("CAP_NET_RAW",)),
    Probe("netlink", "read the network devices over netlink", "S", _netlink),
    Probe("unix_abstract_host", "connect to an abstract socket of the host", "B L S", _abstract, proof="outside"),
    Probe("unix_path_host", "connect to a socket file of the host", "B S", _path, proof="outside"),
    Probe("vsock", "open a socket to the hypervisor", "S", _vsock),
)
