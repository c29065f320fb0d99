"""The key file: random keys in a small text file that lies elsewhere and belongs to somebody else.

One line per key: `casemate-key-1 <home> <key id> <base32>`. A home has one line, or two while it is
rotated; several homes may share one file. The file is made 0600, its directory 0700.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from pathlib import Path
from typing import Final

from casemate.crypto.keystore import Assurance
from casemate.crypto.secret import Secret
from casemate.errors import NotAuthorisedError, NotFoundError, OperationError, UntrustedDataError
from casemate.formats.keystore import KeyfileSlot, key_id
from casemate.keystores.document import HomePlace
from casemate.keystores.evidence import judge_stored_secret, path_of
from casemate.keystores.files import locked_directory, read_small, replace_small

FILE_LIMIT: Final = 8192
LINE_LIMIT: Final = 32
_Line = tuple[str, str]  # home, key id
_LINE: Final = re.compile(r"casemate-key-1 ([0-9a-f]{16}) ([0-9a-f]{16}) ([A-Z2-7]{52})\Z")


class KeyfileKeystore:
    """The key file at a path, or one that was handed over as an open descriptor."""

    kind: Final = "keyfile"

    def __init__(self, home: HomePlace, *, path: Path | None = None, descriptor: int | None = None) -> None:
        """Use the file at *path*, or the open *descriptor* (which wins), for *home*."""
        self._home = home
        self._path = path
        self._descriptor = descriptor

    def enrol(self) -> tuple[KeyfileSlot, Secret]:
        """Add a fresh key to the file, making the file when there is none."""
        path = self._place()
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise OperationError(
                f"cannot make {path.parent}: {error.strerror}", hint="set CASEMATE_KEYFILE to a place you can write"
            ) from error
        secret = Secret.random()
        name = key_id(secret)
        with locked_directory(path.parent):
            lines = _parse(self._read()) if path.exists() else {}
            if len(lines) >= LINE_LIMIT:
                raise OperationError(
                    f"{path} holds {len(lines)} keys", hint="use another CASEMATE_KEYFILE for this home"
                )
            self._write({**lines, (self._home.id, name): secret})
        return KeyfileSlot(key=name), secret

    def recall(self, slot: KeyfileSlot) -> Secret:
        """Return the key that *slot* names."""
        lines = _parse(self._read())
        secret = lines.pop((self._home.id, slot.key), None)
        for other in lines.values():
            other.wipe()
        if secret is None:
            raise NotAuthorisedError(
                "the key file does not open this keystore",
                hint="set CASEMATE_KEYFILE to the file that belongs to this home, or use the recovery code",
            )
        return secret

    def keep_only(self, slot: KeyfileSlot | None) -> None:
        """Remove this home's keys but that of *slot* (None: all): nothing needs them any more."""
        path = self._place()
        if not path.exists():
            return
        wanted = slot.key if slot else ""
        with locked_directory(path.parent):
            lines = _parse(self._read())
            kept = {line: key for line, key in lines.items() if line[0] != self._home.id or line[1] == wanted}
            if not kept:
                path.unlink()
            elif len(kept) != len(lines):
                self._write(kept)

    def assurance(self) -> Assurance:
        """Judge the file's owner, mode and place."""
        if self._descriptor is not None:
            return judge_stored_secret(
                "key file", os.fstat(self._descriptor), path_of(self._descriptor), self._home.path
            )
        path = self._place()
        return judge_stored_secret("key file", path.stat(), path, self._home.path)

    def _place(self) -> Path:
        if self._path is None:
            raise OperationError("a key file handed over as a descriptor is read-only")
        return self._path

    def _read(self) -> bytes:
        if self._descriptor is not None:
            return os.pread(self._descriptor, FILE_LIMIT, 0)
        try:
            return read_small(self._place(), FILE_LIMIT, "key file")
        except NotFoundError as error:
            raise NotAuthorisedError(
                error.message, hint="set CASEMATE_KEYFILE to where it is, or use the recovery code"
            ) from error

    def _write(self, lines: dict[_Line, Secret]) -> None:
        text = "".join(
            f"casemate-key-1 {home} {name} {base64.b32encode(key.view()).decode().rstrip('=')}\n"
            for (home, name), key in lines.items()
        )
        replace_small(self._place(), text.encode("ascii"), "key file")


def _parse(data: bytes) -> dict[_Line, Secret]:
    keys: dict[_Line, Secret] = {}
    for line in data.decode("ascii", "replace").splitlines():
        match = _LINE.match(line.strip())
        if match is None or len(keys) >= LINE_LIMIT:
            raise UntrustedDataError(
                "the key file has a line that is not a key", check="keyfile-format", hint="restore it from a backup"
            )
        try:
            keys[match[1], match[2]] = Secret(base64.b32decode(match[3] + "===="))
        except binascii.Error as error:
            raise UntrustedDataError(
                "the key file has a damaged key", check="keyfile-format", hint="restore it from a backup"
            ) from error
    return keys
