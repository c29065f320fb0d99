"""Who is asked first: an order of devices that is random for each rollout and the same on every replica.

The order is HMAC-SHA256 keyed with the rollout's random id, so nobody can arrange beforehand to be in, or to be spared,
the first batch, and two rollouts do not hit the same devices first.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from typing import Final

_ORDER: Final = b"casemate/1/rollout-order\0"
_CONTROL: Final = b"casemate/1/rollout-control\0"
_WHOLE: Final = 1 << 64


def position(rollout: str, device: str) -> int:
    """Return where *device* stands in *rollout*: 0 to 2^64 - 1, smaller is earlier."""
    return _draw(rollout, _ORDER, device)


def order(rollout: str, devices: Iterable[str]) -> list[str]:
    """Return *devices* in the order in which *rollout* reaches them."""
    return sorted(devices, key=lambda device: (position(rollout, device), device))


def in_control(rollout: str, device: str, share: float) -> bool:
    """Say whether *device* is held back as one of the control group, which is *share* (0 to 1) of the fleet."""
    return _draw(rollout, _CONTROL, device) < int(share * _WHOLE)


def _draw(rollout: str, label: bytes, device: str) -> int:
    digest = hmac.digest(rollout.encode(), label + device.encode(), hashlib.sha256)
    return int.from_bytes(digest[:8], "big")
