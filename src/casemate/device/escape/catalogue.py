"""Every probe there is."""

from __future__ import annotations

from typing import Final

from casemate.device.escape import files, kernel, memory, network, processes
from casemate.device.escape.probe import Probe

PROBES: Final[tuple[Probe, ...]] = (
    *network.PROBES,
    *files.PROBES,
    *processes.PROBES,
    *kernel.PROBES,
    *memory.PROBES,
)
BY_ID: Final = {probe.id: probe for probe in PROBES}
