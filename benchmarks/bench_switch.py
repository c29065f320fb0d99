"""What an update's switch costs who is using the device: the longest time without an answer, and failed requests.

A client streams one answer after the other from a real device (`casemate up`) on the demo model, and the longest
silence between two pieces is measured, over several switches between two containers of it. The peer is the same client
on the same device for as long without a switch, in turns with it; and what a switch would cost without the hand-over:
stopping the engine and starting the next one.
"""

from __future__ import annotations

import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

from report import Row, options, publish

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from casemate.device import admin
from casemate.device.channel import Channel
from casemate.formats import ipc
from support.device import Device, cli, environment, running
from support.streaming import Streamer, streaming
from support.updates import MODEL

GOAL = 0.300
ROUNDS = 5
QUICK_ROUNDS = 2
SECONDS = 2.0


def serve(device: Device, container: str) -> None:
    channel = Channel(admin.connect(device.home / "run", admin.UPDATE_SOCKET), ipc.FromAgent)
    try:
        admin.ask_over(channel, "serve", {"model": {"name": "saffron", "container": container}}, 120)
    finally:
        channel.close()


def silence(device: Device, act) -> tuple[float, int, int]:
    """Return the longest silence while *act* happens, answers and failures."""
    client = Streamer(device.endpoint, device.key)
    with streaming(client):
        time.sleep(SECONDS / 2)
        act()
        time.sleep(SECONDS / 2)
    return client.longest, len(client.answers), len(client.failures)


def restart(device: Device) -> None:
    """Switch as without a hand-over: the engine ends, the next one starts."""
    before = device.refresh()["models"][0]["pid"]
    device.kill("engine", signal.SIGKILL)
    while (row := device.refresh()["models"][0])["state"] != "ready" or row["pid"] == before:
        time.sleep(0.05)


def measure(rounds: int) -> dict[str, list[tuple[float, int, int]]]:
    found: dict[str, list[tuple[float, int, int]]] = {"switch": [], "nothing": [], "restart": []}
    with tempfile.TemporaryDirectory(prefix="casemate-bench-") as scratch:
        root = Path(scratch)
        root.chmod(0o755)
        home = root / "home"
        for name in ("saffron", "saffron.g1", "saffron.g2"):
            cli(environment(home), "model", "add", str(MODEL), "--name", name)
        with running(home, "--model", "saffron") as device:
            policy = root / "busy.toml"
            policy.write_text("schema = 1\nrequests_per_minute = 0\n")
            device.cli("app", "policy", "default", str(policy))
            time.sleep(1)
            for number in range(rounds):
                container = f"saffron.g{1 + number % 2}"
                found["nothing"].append(silence(device, lambda: time.sleep(SECONDS)))
                found["switch"].append(silence(device, lambda container=container: serve(device, container)))
            found["restart"].append(silence(device, lambda: restart(device)))
    return found


def main() -> None:
    wanted = options(__doc__ or "")
    found = measure(QUICK_ROUNDS if wanted.quick else ROUNDS)
    worst = {name: max(row[0] for row in rows) for name, rows in found.items()}
    middle = statistics.median(row[0] for row in found["switch"])
    failed = sum(row[2] for row in found["switch"])
    rows = [
        Row(
            "longest time without an answer, switch of the demo model",
            1000 * worst["switch"], "ms", peer="no switch", peer_value=1000 * worst["nothing"],
            goal="<= 300 ms", met=worst["switch"] <= GOAL,
        ),
        Row("... median switch", 1000 * middle, "ms"),
        Row("... by ending the engine and starting the next", 1000 * worst["restart"], "ms"),
        Row("requests that failed in a switch", failed, "", goal="0", met=failed == 0),
    ]  # fmt: skip
    publish("switch", rows, wanted)


if __name__ == "__main__":
    main()
