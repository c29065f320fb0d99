"""What a check-in says about how the machine is doing: numbers of the machine, nothing of what was said on it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

_ZONES: Final = Path("/sys/class/thermal")
_MEMORY: Final = Path("/proc/meminfo")
_KIB: Final = 1024


def gather(zones: Path = _ZONES, memory: Path = _MEMORY) -> dict[str, Any]:
    """Return facts that fit `fleet_api.Health`; what cannot be read is left out."""
    facts: dict[str, Any] = {"load": round(os.getloadavg()[0], 2)}
    used = _memory_used(memory)
    if used is not None:
        facts["memory_used"] = used
    readings = [value for zone in zones.glob("thermal_zone*/temp") if (value := _number(zone)) is not None]
    if readings:
        facts["temperature_c"] = round(min(max(max(readings) / 1000, -100.0), 300.0), 1)
    return facts


def _memory_used(path: Path) -> int | None:
    try:
        rows = dict(line.split(":", 1) for line in path.read_text(encoding="ascii").splitlines() if ":" in line)
        kib = {name: int(rows[name].split()[0]) for name in ("MemTotal", "MemAvailable")}
    except (OSError, ValueError, KeyError, IndexError):
        return None
    return max(0, kib["MemTotal"] - kib["MemAvailable"]) * _KIB


def _number(path: Path) -> float | None:
    try:
        return float(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
