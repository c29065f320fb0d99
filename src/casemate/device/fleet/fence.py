"""The network of a quarantined device, cut down to its fleet: one nftables table of our own. Rules are pure text.

The table hangs before every other filter (priority -200) and drops by default, so flows that live are cut too, whatever
other tables accept: a packet must pass them all. It keeps no state: what may pass is decided by address and port alone.

    out    TCP to the fleet's address and ports; what IPv6 needs to find a neighbour; loopback
    in     TCP from there that does not open a connection; the same; loopback
    through    nothing

Names are not looked up (the link remembers the address) and DHCP renewals are cut; a lease that ends is asked for again
below the filter, as clients do that have no address.
"""

from __future__ import annotations

import ipaddress
import subprocess
from typing import Annotated, Final

import msgspec

from casemate.errors import HostError, OperationError, UntrustedDataError

TABLE: Final = "casemate_quarantine"
PRIORITY: Final = -200
_WITHIN: Final = 10.0
_FINDING: Final = "nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit, nd-router-advert"
_NEIGHBOURS: Final = f"ip6 hoplimit 255 icmpv6 type {{ {_FINDING} }} accept"


class Gate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The one machine that may still be reached. No address: nothing may.

    *port* is the devices' listener; *enrol* the enrolment listener, where a device whose certificate ended in
    quarantine gets the next one (0: not to be reached).
    """

    address: Annotated[str, msgspec.Meta(max_length=64)] = ""
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0
    enrol: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0


def parse_gate(data: bytes) -> Gate | None:
    """Read what the agent wants: a gate, or null for an open network.

    Raises:
        UntrustedDataError: `fence-gate`.

    """
    try:
        gate = msgspec.json.decode(data, type=Gate | None)
        if gate and gate.address:
            ipaddress.ip_address(gate.address)
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
        raise UntrustedDataError(f"not a fence: {error}", check="fence-gate") from error
    return gate


def rules(gate: Gate) -> str:
    """Return the nft script that puts the table up, replacing one that is there, in one transaction.

    Raises:
        ValueError: *gate* names no IP address.

    """
    outward = inward = ""
    if gate.address:
        place = ipaddress.ip_address(gate.address)
        family = "ip6" if place.version == 6 else "ip"  # noqa: PLR2004 - IPv6
        ports = f"{{ {', '.join(str(port) for port in sorted({gate.port, gate.enrol} - {0}))} }}"
        ports = str(gate.port) if gate.enrol in {0, gate.port} else ports
        outward = f"{family} daddr {place} tcp dport {ports} accept"
        inward = f"{family} saddr {place} tcp sport {ports} tcp flags & (syn | ack) != syn accept"
    return "\n".join(
        [
            f"table inet {TABLE}",
            f"delete table inet {TABLE}",
            f"table inet {TABLE} {{",
            *_chain("out", "output", ["oifname lo accept", outward, _NEIGHBOURS]),
            *_chain("in", "input", ["iifname lo accept", inward, _NEIGHBOURS]),
            *_chain("through", "forward", []),
            "}",
            "",
        ]
    )


def _chain(name: str, hook: str, body: list[str]) -> list[str]:
    return [
        f"  chain {name} {{",
        f"    type filter hook {hook} priority {PRIORITY}; policy drop;",
        *(f"    {line}" for line in body if line),
        "  }",
    ]


def put_up(gate: Gate) -> None:
    """Fence the network of this namespace; needs CAP_NET_ADMIN.

    Raises:
        HostError: nft is missing or the kernel refused.
        OperationError: it did not end.

    """
    _nft(rules(gate))


def take_down() -> None:
    """Open the network again; a fence that is not there is no fault.

    Raises:
        HostError: nft is missing or the kernel refused.
        OperationError: it did not end.

    """
    _nft(f"table inet {TABLE}\ndelete table inet {TABLE}\n")


def _nft(script: str) -> None:
    try:
        done = subprocess.run(
            ["nft", "-f", "-"],
            input=script.encode("ascii"),
            capture_output=True,
            timeout=_WITHIN,
            check=False,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        )
    except FileNotFoundError as error:
        raise HostError("nft is not installed", hint="apt install nftables") from error
    except subprocess.TimeoutExpired as error:
        raise OperationError("nft did not end") from error
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise HostError(f"nft refused: {said[0][:120] if said else 'no reason given'}", hint="needs root")
