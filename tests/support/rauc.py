"""RAUC without hardware: a bus of its own, a boot loader made of files, and two slots that are files."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

COMPATIBLE = "casemate-test"
SLOT_BYTES = 1 << 20

_BUS = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path={socket}</listen>
  <policy context="default">
    <allow user="*"/><allow own="*"/><allow send_type="method_call"/><allow send_destination="*"/>
    <allow receive_sender="*"/>
  </policy>
</busconfig>
"""
_BACKEND = """#!/bin/sh
case "$1" in
    get-primary) cat {path}/primary ;;
    set-primary) echo "$2" > {path}/primary; echo good > "{path}/state-$2" ;;
    get-state) cat "{path}/state-$2" ;;
    set-state) echo "$3" > "{path}/state-$2" ;;
    *) exit 1 ;;
esac
"""
_SYSTEM = """[system]
compatible={compatible}
bootloader=custom
statusfile={path}/status.raucs
mountprefix={path}/mnt
[keyring]
path={path}/cert.pem
[handlers]
bootloader-custom-backend={path}/backend
[slot.rootfs.0]
device={path}/slot-a
type=raw
bootname=A
[slot.rootfs.1]
device={path}/slot-b
type=raw
bootname=B
"""
_MANIFEST = """[update]
compatible={compatible}
version={version}
[bundle]
format=plain
[image.rootfs]
filename=rootfs.img
"""


class Host:
    """A host with two slots, of which A runs."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.environ = {"DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={path}/bus"}
        self.command = ("rauc", "-c", str(path / "system.conf"))

    def create(self) -> Host:
        (self.path / "mnt").mkdir(parents=True)
        for name in ("slot-a", "slot-b"):
            (self.path / name).write_bytes(bytes(SLOT_BYTES))
        for name, text in (("primary", "A"), ("state-A", "good"), ("state-B", "good")):
            (self.path / name).write_text(f"{text}\n")
        (self.path / "backend").write_text(_BACKEND.format(path=self.path))
        (self.path / "backend").chmod(0o755)
        (self.path / "system.conf").write_text(_SYSTEM.format(path=self.path, compatible=COMPATIBLE))
        (self.path / "bus.conf").write_text(_BUS.format(socket=self.path / "bus"))
        self.key("")
        return self

    def key(self, prefix: str) -> tuple[Path, Path]:
        """Make a key and its certificate."""
        key, certificate = self.path / f"{prefix}key.pem", self.path / f"{prefix}cert.pem"
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30",
             "-subj", "/O=Test/CN=os", "-keyout", key, "-out", certificate],
            check=True, capture_output=True, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        return key, certificate

    def bundle(self, image: bytes, *, version: str = "2.0", compatible: str = COMPATIBLE, signer: str = "") -> Path:
        """Make a signed bundle of one image."""
        content = self.path / f"content-{version}{signer}{compatible}"
        content.mkdir()
        (content / "rootfs.img").write_bytes(image)
        (content / "manifest.raucm").write_text(_MANIFEST.format(compatible=compatible, version=version))
        target = content.with_suffix(".raucb")
        key, certificate = self.key(signer) if signer else (self.path / "key.pem", self.path / "cert.pem")
        subprocess.run(
            ["rauc", f"--cert={certificate}", f"--key={key}", "bundle", content, target],
            check=True, capture_output=True, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        return target

    @property
    def primary(self) -> str:
        return (self.path / "primary").read_text().strip()

    def state(self, slot: str) -> str:
        return (self.path / f"state-{slot}").read_text().strip()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Run the bus and RAUC's service on it."""
        with contextlib.ExitStack() as ended:
            bus = ["dbus-daemon", f"--config-file={self.path}/bus.conf", "--nofork", "--nopidfile"]
            ended.enter_context(_process(bus, {}))
            _wait((self.path / "bus").exists)
            service = [*self.command, "service", "--override-boot-slot=A"]
            ended.enter_context(_process(service, self.environ))
            _wait(lambda: not subprocess.run(
                [*self.command, "status"], env=self._full(), capture_output=True, stdin=subprocess.DEVNULL, check=False
            ).returncode)  # fmt: skip
            yield

    def _full(self) -> dict[str, str]:
        return {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"} | self.environ


@contextlib.contextmanager
def _process(command: list[str], environ: dict[str, str]) -> Iterator[None]:
    process = subprocess.Popen(
        command,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"} | environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait(20)


def _wait(ready) -> None:
    deadline = time.monotonic() + 30
    while not ready():
        assert time.monotonic() < deadline, "RAUC's service does not come up"
        time.sleep(0.02)
