"""A software TPM for a test: its own maker (certificate authority), its own state, a unix socket, real power cycles."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from casemate.errors import HostError
from casemate.keystores import tss

needs_swtpm = pytest.mark.skipif(shutil.which("swtpm") is None, reason="needs Debian's swtpm")

_MANUFACTURE = "swtpm_setup --tpm2 --create-ek-cert --create-platform-cert --overwrite --pcr-banks sha256"


class SoftwareTpm:
    """One TPM. `tcti` reaches it, `maker` is the certificate (PEM) of whoever made it."""

    def __init__(self, root: Path, ca: Path) -> None:
        self._state, self._ca = root / "state", ca
        self._socket = root / "s"
        self._process: subprocess.Popen[bytes] | None = None
        self._state.mkdir(parents=True)
        self._manufacture(root)

    @property
    def tcti(self) -> str:
        return f"swtpm:path={self._socket}"

    @property
    def maker(self) -> bytes:
        return (self._ca / "issuercert.pem").read_bytes()

    def _manufacture(self, root: Path) -> None:
        self._ca.mkdir(parents=True, exist_ok=True)
        names = {"statedir": "", "signingkey": "/signkey.pem", "issuercert": "/issuercert.pem", "certserial": "/serial"}
        (root / "ca.conf").write_text("".join(f"{key} = {self._ca}{name}\n" for key, name in names.items()))
        (root / "ca.options").write_text("--platform-manufacturer Test\n--platform-version 1\n--platform-model Test\n")
        (root / "setup.conf").write_text(
            f"create_certs_tool = {shutil.which('swtpm_localca')}\n"
            f"create_certs_tool_config = {root / 'ca.conf'}\n"
            f"create_certs_tool_options = {root / 'ca.options'}\n"
        )
        log = root / "setup.log"
        with log.open("wb") as out:
            done = subprocess.run(
                [*_MANUFACTURE.split(), "--config", str(root / "setup.conf"), "--tpmstate", str(self._state)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                timeout=60,
                check=False,
            )
        assert done.returncode == 0, log.read_text()

    def power_on(self) -> None:
        control = Path(f"{self._socket}.ctrl")  # where the TSS looks for it
        parts = {
            "--tpmstate": f"dir={self._state}",
            "--server": f"type=unixio,path={self._socket},mode=0666",
            "--ctrl": f"type=unixio,path={control},mode=0666",
            "--flags": "not-need-init,startup-clear",
        }
        self._process = subprocess.Popen(
            ["swtpm", "socket", "--tpm2", *(word for part in parts.items() for word in part)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 10
        while not (self._socket.exists() and control.exists()):
            assert self._process.poll() is None, "swtpm ended"
            assert time.monotonic() < deadline, "swtpm did not start"
            time.sleep(0.01)
        while not self._answers():  # the sockets are there a moment before anybody listens
            assert time.monotonic() < deadline, "swtpm does not answer"
            time.sleep(0.01)

    def _answers(self) -> bool:
        try:
            with tss.open_tpm(self.tcti):
                return True
        except HostError:
            return False

    def power_off(self) -> None:
        if self._process:
            self._process.terminate()
            self._process.wait(10)
            self._process = None
        for path in (self._socket, Path(f"{self._socket}.ctrl")):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()

    def copy_state(self, to: Path) -> None:
        """Copy all the TPM keeps, as somebody with its chip on the table would; it is off meanwhile."""
        self.power_off()
        shutil.copytree(self._state, to)
        self.power_on()

    def put_back(self, copy: Path) -> None:
        """Let it go on from *copy*."""
        self.power_off()
        shutil.rmtree(self._state)
        shutil.copytree(copy, self._state)
        self.power_on()

    def power_cycle(self) -> None:
        self.power_off()
        self.power_on()


@contextlib.contextmanager
def software_tpm(root: Path, ca: Path | None = None) -> Iterator[SoftwareTpm]:
    """Make a TPM below *root* (short: socket paths are) and keep it powered. *ca*: a maker that several TPMs share."""
    tpm = SoftwareTpm(root, ca or root / "ca")
    os.chmod(root, 0o755)
    tpm.power_on()
    try:
        yield tpm
    finally:
        tpm.power_off()


@contextlib.contextmanager
def measured_tpm(root: Path) -> Iterator[SoftwareTpm]:
    """Give a TPM whose firmware measured something, as every board's does."""
    with software_tpm(root) as made:
        with tss.open_tpm(made.tcti) as opened:
            opened.extend(0, b"f" * 32)
        yield made
