"""Where secrets come from: a file, the service manager, an inherited descriptor, a terminal; and the key file's place.

Order for a passphrase: a descriptor, `CASEMATE_PASSPHRASE_FILE`, the systemd credential `casemate-passphrase`, then
whatever the caller asks a person. `Sources.descriptors` gives descriptors to another process (the vault), which judges
the evidence for itself: an open file tells its owner and place, a sealed memory file says that nothing is stored.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from casemate.crypto.keystore import Assurance
from casemate.crypto.secret import Secret
from casemate.errors import NotAuthorisedError
from casemate.formats.keystore import TpmSlot
from casemate.keystores.document import HomePlace, main_kind, read_document
from casemate.keystores.evidence import judge_stored_secret, path_of
from casemate.keystores.files import memory_file
from casemate.keystores.keyfile import KeyfileKeystore
from casemate.keystores.passphrase import PassphraseKeystore
from casemate.keystores.tpm import HandedTpmKeystore, TpmKeystore, hand_over

PASSPHRASE_LIMIT: Final = 1024
CREDENTIAL: Final = "casemate-passphrase"
PASSPHRASE_MINIMUM: Final = 8  # a floor against accidents, not a measure of strength
KEYFILE_HINT: Final = "set CASEMATE_KEYFILE to where it is, or use the recovery code"
_TYPED: Final = Assurance("L1", ("the passphrase is typed, not stored",))


Ask = Callable[[bool], Secret | None]
"""Ask a person for a passphrase; True when it is for a new keystore. None: the person gave none."""


class Sources:
    """Every secret that can be had, none read or asked for before it is needed, and none asked for twice."""

    def __init__(
        self,
        home: HomePlace,
        *,
        environ: Mapping[str, str] | None = None,
        keyfile_descriptor: int | None = None,
        passphrase_descriptor: int | None = None,
        recovery: Secret | None = None,
        ask: Ask | None = None,
        tpm: str = "",
        tpm_descriptor: int | None = None,
    ) -> None:
        """Look in *environ*, or at descriptors that were handed over; *ask* reaches a person; *tpm* names a TPM."""
        self.home = home
        self.recovery = recovery
        self._environ = environ or {}
        self._keyfile_descriptor = keyfile_descriptor
        self._passphrase_descriptor = passphrase_descriptor
        self._ask = ask
        self._tpm = tpm
        self._tpm_descriptor = tpm_descriptor
        self._held: tuple[Secret, Assurance] | None = None  # typed, or read from something that can be read once

    def keyfile_keystore(self) -> KeyfileKeystore:
        """Return the key file's keystore."""
        if self._keyfile_descriptor is not None:
            return KeyfileKeystore(self.home, descriptor=self._keyfile_descriptor)
        return KeyfileKeystore(self.home, path=default_keyfile(self.home.id, self._environ))

    def tpm_keystore(self) -> TpmKeystore | HandedTpmKeystore | None:
        """Return the TPM's keystore; None when no TPM is named."""
        if self._tpm_descriptor is not None:
            return HandedTpmKeystore(self._tpm_descriptor)
        return TpmKeystore(self.home, self._tpm) if self._tpm else None

    def passphrase_keystore(self, *, new: bool = False) -> PassphraseKeystore | None:
        """Read or ask for the passphrase; None when there is none to be had.

        Raises:
            NotAuthorisedError: a source was named but cannot be read, or a new passphrase is too short.

        """
        found = self._held or self._find_passphrase(new=new)
        if found is None:
            return None
        passphrase, evidence = found
        if new and len(passphrase) < PASSPHRASE_MINIMUM:
            raise NotAuthorisedError(
                "the passphrase is too short", hint=f"use at least {PASSPHRASE_MINIMUM} characters"
            )
        return PassphraseKeystore(Secret(passphrase.view()), evidence)

    def _find_passphrase(self, *, new: bool) -> tuple[Secret, Assurance] | None:
        """Read the passphrase, or ask for it. What cannot be had twice is kept for the next question."""
        descriptor = self._open_passphrase()
        if descriptor is None:
            typed = self._ask(new) if self._ask else None
            self._held = (typed, _TYPED) if typed else None
            return self._held
        try:
            found = _read_passphrase(descriptor), self._judge(descriptor)
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                self._held = found
            return found
        finally:
            os.close(descriptor)

    def passphrase_evidence(self) -> Assurance:
        """Judge where the passphrase comes from, without reading it."""
        if self._held:
            return self._held[1]
        descriptor = self._open_passphrase()
        if descriptor is None:
            return _TYPED
        try:
            return self._judge(descriptor)
        finally:
            os.close(descriptor)

    def descriptors(self) -> dict[str, int]:
        """Open what another process needs to unlock the home's keystore: by name; the caller closes them.

        Raises:
            NotAuthorisedError: the secret is not here.
            NotFoundError: there is no keystore.

        """
        kind = main_kind(read_document(self.home))
        if kind == "recovery":
            raise only_recovery()
        if kind == "keyfile":
            return {"keyfile": self._open_keyfile()}
        if kind == "tpm":
            return {"tpm": self._open_tpm()}
        descriptor = None if self._held else self._open_passphrase()
        if descriptor is not None and stat.S_ISREG(os.fstat(descriptor).st_mode):
            return {"passphrase": descriptor}
        if descriptor is not None:
            os.close(descriptor)
        found = self._held or self._find_passphrase(new=False)
        if found is None:
            raise no_passphrase()
        return {"passphrase": memory_file("passphrase", found[0].view())}

    def forget(self) -> None:
        """Wipe what was typed."""
        if self._held:
            self._held[0].wipe()
        self._held = None

    def _open_keyfile(self) -> int:
        if self._keyfile_descriptor is not None:
            return os.dup(self._keyfile_descriptor)
        path = default_keyfile(self.home.id, self._environ)
        try:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise NotAuthorisedError(f"cannot read the key file {path}: {error.strerror}", hint=KEYFILE_HINT) from error

    def _open_tpm(self) -> int:
        """Have the TPM release the key here and now: the process that gets it has no way to a TPM."""
        way = self.tpm_keystore()
        if way is None:
            raise no_tpm()
        slot = next(slot for slot in read_document(self.home).slots if isinstance(slot, TpmSlot))
        with way.recall(slot) as secret:
            return hand_over(secret, way.assurance())

    def _open_passphrase(self) -> int | None:
        inherited = self._environ.get("CASEMATE_PASSPHRASE_FD", "")
        if self._passphrase_descriptor is not None or inherited.isdecimal():
            return os.dup(int(inherited) if self._passphrase_descriptor is None else self._passphrase_descriptor)
        path = self._passphrase_path()
        if path is None:
            return None
        return _open_passphrase_file(path)

    def _passphrase_path(self) -> Path | None:
        named = self._environ.get("CASEMATE_PASSPHRASE_FILE")
        return Path(named) if named else self._credential()

    def _credential(self) -> Path | None:
        directory = self._environ.get("CREDENTIALS_DIRECTORY")
        path = Path(directory) / CREDENTIAL if directory else None
        return path if path and path.exists() else None

    def _judge(self, descriptor: int) -> Assurance:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode) or facts.st_nlink == 0:
            return Assurance("L1", ("the passphrase is handed over, not stored",))
        where = path_of(descriptor)
        credential = self._credential()
        if credential and where == credential.resolve():
            return Assurance("L1", ("the passphrase is a credential of the service manager",))
        return judge_stored_secret("passphrase file", facts, where, self.home.path)


def from_environment(
    home: HomePlace,
    environ: Mapping[str, str] = os.environ,
    *,
    ask: Ask | None = None,
    recovery: Secret | None = None,
    tpm: str | None = None,
) -> Sources:
    """Find the sources that the environment names; *tpm* is the setting `keystore.tpm` when its files were read."""
    named = environ.get("CASEMATE_KEYSTORE_TPM", "") if tpm is None else tpm
    return Sources(home, environ=environ, ask=ask, recovery=recovery, tpm=named)


def from_handover(home: HomePlace, descriptors: Mapping[str, int]) -> Sources:
    """Take the descriptors that `Sources.descriptors` made in another process."""
    return Sources(
        home,
        keyfile_descriptor=descriptors.get("keyfile"),
        passphrase_descriptor=descriptors.get("passphrase"),
        tpm_descriptor=descriptors.get("tpm"),
    )


def default_keyfile(home_id: str, environ: Mapping[str, str] = os.environ) -> Path:
    """Return the key file's place: $CASEMATE_KEYFILE, else outside the home, in the configuration of its user."""
    if environ.get("CASEMATE_KEYFILE"):
        return Path(environ["CASEMATE_KEYFILE"]).expanduser().absolute()
    if os.geteuid() == 0:
        return Path("/etc/casemate/keys") / f"{home_id}.key"
    base = environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(base) / "casemate" / "keys" / f"{home_id}.key"


def only_recovery() -> NotAuthorisedError:
    """Return the refusal of a keystore that came from a backup."""
    return NotAuthorisedError(
        "this keystore came from a backup: only the recovery code opens it",
        hint="give it a new way in: `casemate keystore rotate --recovery --to passphrase`",
    )


def no_tpm() -> NotAuthorisedError:
    """Return the refusal for a TPM that nobody named."""
    return NotAuthorisedError(
        "this keystore is opened by a TPM",
        hint="set keystore.tpm to it, as in device:/dev/tpmrm0; or use the recovery code",
    )


def no_passphrase() -> NotAuthorisedError:
    """Return the refusal for a missing passphrase."""
    return NotAuthorisedError(
        "this keystore needs its passphrase",
        hint="run it on a terminal, or set CASEMATE_PASSPHRASE_FILE, or use the systemd credential casemate-passphrase",
    )


def read_passphrase_file(path: Path) -> Secret:
    """Read the passphrase of an export from a file or FIFO.

    Raises:
        NotAuthorisedError: it cannot be read, or is empty.

    """
    descriptor = _open_passphrase_file(path)
    try:
        return _read_passphrase(descriptor)
    finally:
        os.close(descriptor)


def _open_passphrase_file(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise NotAuthorisedError(
            f"cannot read the passphrase file {path}: {error.strerror}", hint="check the path and its owner"
        ) from error


def _read_passphrase(descriptor: int) -> Secret:
    """Read one line. A passphrase is the bytes before the first line end, so `echo` and editors do no harm."""
    data = bytearray(PASSPHRASE_LIMIT + 2)  # read in place and wiped: no copy stays behind
    with memoryview(data) as view:
        size = 0
        while size < len(view) and (count := _read(descriptor, view[size:], size)):
            size += count
        end = data.find(b"\n", 0, size)
        length = size if end < 0 else end
        while length and data[length - 1] == ord("\r"):
            length -= 1
        try:
            if not length or length > PASSPHRASE_LIMIT:
                raise NotAuthorisedError(
                    "the passphrase is empty or too long", hint=f"use {PASSPHRASE_MINIMUM} to {PASSPHRASE_LIMIT} bytes"
                )
            return Secret(view[:length])
        finally:
            view[:] = bytes(len(view))


def _read(descriptor: int, into: memoryview, offset: int) -> int:
    """Read a file from its start whoever read it before; a pipe as it comes."""
    try:
        return os.preadv(descriptor, [into], offset)
    except OSError:  # ESPIPE
        return os.readv(descriptor, [into])
