"""RAUC (1.8 and newer) as the host's slot updater, by its command line; the work is done by its D-Bus service.

RAUC checks its own signature and the device's `compatible`, and knows no floor: ours comes first. `rauc install` makes
the new slot the next to start, so it is put back until `activate`; a cut in between starts the new slot one step early
(`activate-installed=false` in RAUC's system.conf closes that gap).
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NoReturn, TypeVar

import msgspec

from casemate.device.update.floors import FloorStore
from casemate.device.update.generation import Item
from casemate.device.update.os_updater import OsStatus, Slot, SlotChoice, require_installable
from casemate.errors import HostError, OperationError, UntrustedDataError

_T = TypeVar("_T")
_ANSWER_SECONDS: Final = 30.0
_INSTALL_SECONDS: Final = 30 * 60.0
_OUTPUT_LIMIT: Final = 1 << 20
_NO_SERVICE: Final = ("creating proxy", "Could not connect", "ServiceUnknown", "was not provided by any .service")


class _SlotReport(msgspec.Struct):
    """One slot of `rauc status`; more fields may come."""

    bootname: str | None
    state: str
    boot_status: str | None = None


class _Report(msgspec.Struct):
    """`rauc status --output-format=json`."""

    compatible: str
    booted: str | None
    boot_primary: str | None
    slots: list[dict[str, _SlotReport]]


class _Info(msgspec.Struct):
    """`rauc info --output-format=json`."""

    compatible: str
    version: str | None


class RaucUpdater:
    """An `OsUpdater` over `rauc`."""

    kind = "rauc"

    def __init__(
        self,
        floors: FloorStore,
        *,
        command: tuple[str, ...] = ("rauc",),
        environ: Mapping[str, str] | None = None,
        answer_seconds: float = _ANSWER_SECONDS,
        install_seconds: float = _INSTALL_SECONDS,
    ) -> None:
        """Call *command*; of *environ* (None: this process's) only the address of the system bus counts."""
        self._floors = floors
        self._command = command
        given = os.environ if environ is None else environ
        self._environ = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"} | {
            name: given[name] for name in ("DBUS_SYSTEM_BUS_ADDRESS",) if name in given
        }
        self._answer_seconds = answer_seconds
        self._install_seconds = install_seconds

    def status(self) -> OsStatus:
        """Return the slots; see `OsUpdater`."""
        report = _parse(self._ask("status", "--output-format=json"), _Report)
        slots = {name: slot for entry in report.slots for name, slot in entry.items() if slot.bootname}
        return OsStatus(
            compatible=report.compatible,
            booted=next((name for name, slot in slots.items() if slot.state == "booted"), ""),
            primary=report.boot_primary or "",
            slots=tuple(
                Slot(name, slot.bootname or "", slot.state == "booted", slot.boot_status == "good")
                for name, slot in sorted(slots.items())
            ),
        )

    def install(self, bundle: Path, release: Item) -> None:
        """Write the other slot; see `OsUpdater`."""
        require_installable(bundle, release, self._floors.read())
        host = self.status()
        self._require_bundle(bundle, release, host)
        done = self._run(self._install_seconds, "install", str(bundle))
        if done.returncode:
            self._refuse(done, "RAUC did not install the bundle", untrusted="signature verification failed")
        if self.status().primary != host.primary:
            self._mark("active", "booted")

    def activate(self) -> None:
        """Start the other slot next; see `OsUpdater`."""
        self._mark("active", "other")

    def mark_good(self) -> None:
        """Keep the running slot; see `OsUpdater`."""
        self._mark("good", "booted")

    def mark_bad(self) -> None:
        """Give up the running slot; see `OsUpdater`."""
        self._mark("bad", "booted")

    def _require_bundle(self, bundle: Path, release: Item, host: OsStatus) -> None:
        """Let RAUC verify the bundle, and hold what it says against the release and this host."""
        done = self._run(self._answer_seconds, "info", "--output-format=json", str(bundle))
        if done.returncode:
            self._refuse(done, "RAUC refused the bundle", untrusted="")
        info = _parse(done.stdout, _Info)
        if info.compatible != host.compatible:
            raise _untrusted(f"the bundle is for {info.compatible!r}, this device is {host.compatible!r}")
        if info.version != release.version:
            raise _untrusted(f"the bundle says it is version {info.version}, the release says {release.version}")

    def _mark(self, what: str, slot: SlotChoice) -> None:
        self._ask("status", f"mark-{what}", slot)

    def _ask(self, *words: str) -> str:
        done = self._run(self._answer_seconds, *words)
        if done.returncode:
            self._refuse(done, f"RAUC failed: {' '.join(words[:2])}", untrusted=None)
        return done.stdout

    def _run(self, seconds: float, *words: str) -> subprocess.CompletedProcess[str]:
        """Run `rauc`, in a session of its own, so that one that hangs ends with all it started."""
        try:
            process = subprocess.Popen(
                [*self._command, *words],
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                start_new_session=True,
            )
        except OSError as error:
            raise HostError(
                f"this host has no RAUC: {error.strerror}", hint="OS releases need it: apt-get install rauc"
            ) from error
        with process:
            try:
                out, err = process.communicate(timeout=seconds)
            except BaseException as error:
                os.killpg(process.pid, signal.SIGKILL)
                if not isinstance(error, subprocess.TimeoutExpired):
                    raise
                raise OperationError(
                    f"RAUC did not answer within {seconds:.0f} s", hint="look at `journalctl -u rauc`; then try again"
                ) from None
        return subprocess.CompletedProcess(process.args, process.returncode, out[:_OUTPUT_LIMIT], err[-_OUTPUT_LIMIT:])

    def _refuse(self, done: subprocess.CompletedProcess[str], what: str, *, untrusted: str | None) -> NoReturn:
        """Raise what RAUC's words mean. *untrusted*: when its reason holds this text, the bundle is to blame."""
        said = f"{done.stderr}\n{done.stdout}"
        if any(words in said for words in _NO_SERVICE):
            raise HostError("RAUC's service does not run", hint="start it: systemctl start rauc")
        lines = [line.strip() for line in said.splitlines() if line.strip() and "rauc-Message" not in line]
        reason = next((line for line in lines if line.startswith("LastError:")), lines[0] if lines else "no reason")
        message = f"{what}: {' '.join(reason.removeprefix('LastError:').split())[:300]}"
        if untrusted is not None and untrusted in reason:
            raise _untrusted(message)
        raise OperationError(message, hint="look at `journalctl -u rauc`")


def _parse(text: str, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise OperationError(
            f"RAUC's answer was not understood: {error}", hint="version 1.8 or newer is needed"
        ) from error


def _untrusted(message: str) -> UntrustedDataError:
    return UntrustedDataError(
        message, check="os-bundle", hint="publish a bundle for this device; nothing was installed"
    )
