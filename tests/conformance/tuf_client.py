"""Our client behind the command line of the public suite tuf-conformance: init, refresh, download.

What a device does is not made easier here: the same `Client`, `Transport` and floors, in a process per command. Only
what the suite sets differs: its own trust anchor instead of a first trust that `casemate update trust` checks (the
suite has repositories we would not begin with), and no floor of the clock, because it runs commands in the future, then
in the present, and on repositories of years ago. Exit code 0: done; 1: refused.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from urllib.parse import quote

import msgspec
from tuf.api.exceptions import LengthOrHashMismatchError
from tuf.api.metadata import TargetFile

from casemate.clock import SystemClock
from casemate.device.update import trust
from casemate.device.update.client import Client
from casemate.device.update.floors import FileFloorStore, Floors
from casemate.device.update.source import METADATA, TARGETS, ignore
from casemate.device.update.transport import Bounds, Endpoint, Transport
from casemate.errors import CasemateError

TARGET_LIMIT = 64 << 20
BOUNDS = Bounds(connect=5.0, gap=10.0, grace=10.0, tries=1)


class Site:
    """Metadata from one address, targets from another."""

    offline = False

    def __init__(self, metadata: str, targets: str) -> None:
        self._parts = {
            METADATA: Transport(Endpoint(metadata.rstrip("/") + "/"), bounds=BOUNDS),
            TARGETS: Transport(Endpoint(targets.rstrip("/") + "/"), bounds=BOUNDS),
        }

    def get(self, path, limit, taken=ignore):
        for prefix, transport in self._parts.items():
            if path.startswith(prefix):
                return transport.get(path.removeprefix(prefix), limit, taken)
        raise AssertionError(path)


class Floor(FileFloorStore):
    """Floors without a clock: the suite travels in time."""

    def read(self) -> Floors:
        return msgspec.structs.replace(super().read(), clock=0)


def anchor(directory: Path) -> trust.FirstTrust:
    """The root that `init` was given, as a first trust."""
    root = (directory / "casemate" / "first-root.json").read_text(encoding="utf-8")
    return trust.FirstTrust(1, "https://suite.example/", "stable", "", root)


def init(directory: Path, root: Path) -> None:
    home = directory / "casemate"
    home.mkdir(parents=True, exist_ok=True)
    (home / "first-root.json").write_bytes(root.read_bytes())
    cache = trust.cache_of(home)
    if not cache.is_symlink():
        cache.symlink_to("..")  # the suite looks into the cache
    FileFloorStore(home).begin(Floors(trust=anchor(directory).digest))
    (directory / "root.json").write_bytes(root.read_bytes())


def refreshed(options: argparse.Namespace) -> Client:
    home = options.metadata_dir / "casemate"
    source = Site(options.metadata_url, options.target_base_url or options.metadata_url)
    client = Client(home, anchor(options.metadata_dir), source, Floor(home), SystemClock(), earliest=0)
    client.refresh()
    return client


def download(options: argparse.Namespace) -> None:
    client = refreshed(options)
    for name in options.target_name:
        place = options.target_dir / quote(name, "")
        info = client.find(name, TARGET_LIMIT)
        if not place.is_file() or not is_same(info, place.read_bytes()):
            place.write_bytes(client.read(name, TARGET_LIMIT).data)


def is_same(info: TargetFile, data: bytes) -> bool:
    try:
        info.verify_length_and_hashes(data)
    except LengthOrHashMismatchError:
        return False
    return True


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--metadata-dir", type=Path, required=True)
    parser.add_argument("--metadata-url")
    parser.add_argument("--target-name", action="append", default=[])
    parser.add_argument("--target-dir", type=Path)
    parser.add_argument("--target-base-url")
    parser.add_argument("--days-in-future", help="set by the suite for its reports")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("init").add_argument("root", type=Path)
    commands.add_parser("refresh")
    commands.add_parser("download")
    options = parser.parse_args()
    try:
        if options.command == "init":
            init(options.metadata_dir, options.root)
        elif options.command == "refresh":
            refreshed(options)
        else:
            download(options)
    except (CasemateError, OSError) as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
