"""A program that brings a device to its next generation, to be killed or cut off: `ROOT SCENARIO [no-fsync|in-place]`.

The options break it on purpose, to see that the tests which kill it would notice.
It is run by `python -S` with PYTHONPATH: but for what it does to ROOT it makes no state-changing system call.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from casemate.device.update import state_file
from support.generations import Device


def confirm(device: Device) -> None:
    """From 1 to 2, for good."""
    device.update(2)
    device.store.confirm()
    device.collect()


def first(device: Device) -> None:
    """A device that never had a generation gets one."""
    confirm(device)


def fall_back(device: Device) -> None:
    """To 2, which is bad; to 3, which a person does not want; and what is left goes."""
    device.stage(2)
    device.store.arm()
    device.store.boot()
    device.store.fail("it does not answer")
    device.collect()
    device.update(3)
    device.store.rollback()
    device.collect()


def write_in_place(path: Path, data: bytes, **_: object) -> None:
    """Do what `write_atomic` must not do."""
    with path.open("wb", buffering=0) as file:
        file.write(data[: len(data) // 2])
        file.write(data[len(data) // 2 :])


SCENARIOS = {"first": first, "confirm": confirm, "fall_back": fall_back}

if __name__ == "__main__":
    root, scenario, *options = sys.argv[1:]
    if "no-fsync" in options:
        os.fsync = lambda _fd: None
    if "in-place" in options:
        state_file.write_atomic = write_in_place
    SCENARIOS[scenario](Device(Path(root)))
