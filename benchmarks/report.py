"""The one form every benchmark reports in: rows with their peer, ratio and goal, the machine named once.

    {"name", "machine": {...}, "rows": [{"what", "value", "unit", "peer", "peer_value", "ratio", "goal", "met"}]}

`peer` was measured in the same run on the same machine; `ratio` is ours over the peer's. A row without a goal is for
information. Run one benchmark with `python benchmarks/bench_NAME.py [--json FILE] [--quick]`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Row:
    what: str
    value: float
    unit: str
    peer: str = ""
    peer_value: float | None = None
    goal: str = ""
    met: bool | None = None

    @property
    def ratio(self) -> float | None:
        return self.value / self.peer_value if self.peer_value else None


def machine() -> dict[str, object]:
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith(("model name", "Model")):
            model = line.partition(":")[2].strip()
            break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 30
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_gib": memory,
        "kernel": platform.release(),
        "arch": platform.machine(),
        "python": platform.python_version(),
    }


def options(description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", type=Path, help="also write the rows here")
    parser.add_argument("--quick", action="store_true", help="smaller sizes, for a smoke test of the benchmark itself")
    return parser.parse_args()


def publish(name: str, rows: list[Row], args: argparse.Namespace) -> None:
    """Print the table; write the JSON when asked."""
    for row in rows:
        peer = f"  {row.peer} {row.peer_value:.4g}  ratio {row.ratio:.2f}" if row.ratio is not None else ""
        verdict = "" if row.met is None else ("  ok" if row.met else "  MISSED")
        goal = f"  goal {row.goal}" if row.goal else ""
        print(f"{row.what:<64} {row.value:>10.4g} {row.unit:<10}{peer}{goal}{verdict}")
    if args.json:
        body = {"name": name, "machine": machine(), "rows": [{**asdict(row), "ratio": row.ratio} for row in rows]}
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    sys.stdout.flush()
