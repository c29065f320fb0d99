"""A quarantined device sends data out, or lets somebody in: real packets between network namespaces.

Each attack is tried without the fence first (the control), then with it, over flows that were open before.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from casemate.device.fleet import fence
from casemate.device.fleet.fence import Gate
from support import netns

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces and nftables need root"),
]

OTHER_TABLE = """
table inet accept_all {
  chain in { type filter hook input priority -300; policy accept; accept; }
  chain out { type filter hook output priority 0; policy accept; ct state established,related accept; accept; }
}
"""


@dataclass
class Wire:
    device: netns.Network
    outside: netns.Network
    fleet: tuple[str, int]
    other: tuple[str, int]
    same_host: tuple[str, int]
    own: tuple[str, int]

    def put_up(self, gate: Gate) -> None:
        self.device.run("nft", "-f", "-", text=fence.rules(gate))

    def connects(self, place: tuple[str, int], origin: netns.Network | None = None) -> bool:
        try:
            with netns.dial(origin or self.device, place, 1.0) as connection:
                return netns.says(connection, 1.0)
        except OSError:
            return False


@pytest.fixture(params=["ipv4", "ipv6"])
def wire(request) -> Iterator[Wire]:
    four = request.param == "ipv4"
    names = ["10.78.0.1", "10.78.0.9", "10.78.0.2"] if four else ["fd78::1", "fd78::9", "fd78::2"]
    width = "/24" if four else "/64"
    with contextlib.ExitStack() as held:
        device, outside = (held.enter_context(netns.network()) for _ in range(2))
        netns.join(outside, device, names[0] + width, names[2] + width)
        outside.run("ip", "address", "add", names[1] + width, "dev", "eth0", *([] if four else ["nodad"]))
        device.run("nft", "-f", "-", text=OTHER_TABLE)  # another table that lets everything pass must not matter
        places = [held.enter_context(netns.answering(outside, name)) for name in (names[0], names[1], names[0])]
        own = held.enter_context(netns.answering(device, names[2]))
        yield Wire(device, outside, *places, own)


def test_live_flows_are_cut_and_only_the_fleets_own_port_is_reached(wire):
    before = [netns.dial(wire.device, place) for place in (wire.fleet, wire.other, wire.same_host)]
    inward = netns.dial(wire.outside, wire.own)
    try:
        assert all(netns.says(flow) for flow in (*before, inward))  # control: every flow lives
        wire.put_up(Gate(*wire.fleet))
        assert [netns.says(flow, 1.0) for flow in (*before, inward)] == [True, False, False, False]
    finally:
        for flow in (*before, inward):
            flow.close()
    assert wire.connects(wire.fleet)
    assert not wire.connects(wire.other)
    assert not wire.connects(wire.same_host)
    assert not wire.connects(wire.own, wire.outside)


def test_without_the_fence_every_one_of_these_goes_through(wire):
    assert wire.connects(wire.fleet)
    assert wire.connects(wire.other)
    assert wire.connects(wire.same_host)
    assert wire.connects(wire.own, wire.outside)


def test_the_fleets_host_itself_cannot_open_a_connection_to_the_device(wire):
    """From the gate's own address and port: the packet that opens a connection is dropped."""
    family = socket.AF_INET6 if ":" in wire.fleet[0] else socket.AF_INET
    code = (
        "import socket,sys\n"
        f"s=socket.socket({int(family)});s.setsockopt(socket.SOL_SOCKET,socket.SO_REUSEPORT,1)\n"
        f"s.bind({(wire.same_host[0], 4444)!r});s.settimeout(float(sys.argv[1]))\n"
        f"s.connect({wire.own!r});s.sendall(b'in');sys.exit(s.recv(2)!=b'in')\n"
    )
    command = [sys.executable, "-c", code]
    assert wire.outside.run(*command, "10", check=False).returncode == 0  # control
    wire.put_up(Gate(wire.same_host[0], 4444))
    assert wire.outside.run(*command, "1", check=False).returncode != 0


def test_the_enrolment_listener_of_the_same_machine_stays_open_when_it_is_named(wire):
    """A device whose certificate ends in quarantine must be able to come back, and to be released."""
    wire.put_up(Gate(*wire.fleet))
    assert not wire.connects(wire.same_host)  # the control
    wire.put_up(Gate(*wire.fleet, wire.same_host[1]))
    assert wire.connects(wire.fleet)
    assert wire.connects(wire.same_host)
    assert not wire.connects(wire.other)


def test_datagrams_and_names_do_not_leave(wire):
    family = socket.AF_INET6 if ":" in wire.other[0] else socket.AF_INET
    send = f"import socket;s=socket.socket({int(family)},socket.SOCK_DGRAM);s.sendto(b'x',({wire.other[0]!r},53))"
    count = ["nft", "-j", "list", "counters"]
    chain = "chain incoming {\ntype filter hook input priority 0;\nudp dport 53 counter name dns\n}"
    wire.outside.run("nft", "-f", "-", text=f"table inet seen {{\ncounter dns {{\n}}\n{chain}\n}}\n")
    wire.device.run(sys.executable, "-c", send)
    assert '"packets": 1' in wire.outside.run(*count).stdout  # control: it left
    wire.put_up(Gate(*wire.fleet))
    wire.device.run(sys.executable, "-c", send, check=False)
    assert '"packets": 1' in wire.outside.run(*count).stdout  # and no second one


def test_nothing_is_forwarded_and_no_gate_means_nobody(wire):
    wire.put_up(Gate())
    assert not wire.connects(wire.fleet)
    listed = wire.device.run("nft", "list", "table", "inet", fence.TABLE).stdout
    assert "hook forward priority -200; policy drop" in listed.replace("raw + 100", "-200")


def test_the_fence_comes_down_whole_and_putting_it_up_twice_is_once(wire):
    for _ in range(2):
        wire.put_up(Gate(*wire.fleet))
    assert not wire.connects(wire.other)
    wire.device.run("nft", "-f", "-", text=f"table inet {fence.TABLE}\ndelete table inet {fence.TABLE}\n")
    assert wire.connects(wire.other)
    tables = wire.device.run("nft", "list", "tables").stdout
    assert "accept_all" in tables
    assert fence.TABLE not in tables


@pytest.mark.parametrize("data", [b"", b"[]", b'{"address":"10.0.0.1; accept"}', b'{"address":"x"}', b'{"port":70000}'])
def test_a_gate_that_is_no_address_never_reaches_a_rule(data):
    with pytest.raises(Exception, match="not a fence"):
        fence.parse_gate(data)
