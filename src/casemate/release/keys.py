"""The keys of a release machine, one file each, encrypted with a passphrase (Argon2id, AES-256-GCM).

A key file says its name, its kind, its public half and, sealed, its private half; the public half is bound into the
seal. Offline keys (root, targets) may lie anywhere: a key is looked for in the repository's `keys/` and in every
directory of `CASEMATE_RELEASE_KEYS`, so a holder plugs in a stick. Online keys (snapshot, timestamp, log) have no
passphrase, because nobody is there to type it: their file says so, and they can neither add nor change a release.

Each key may have its own passphrase: `CASEMATE_RELEASE_PASSPHRASE_FILE` names a file, or a directory with one file per
key's name; else `CASEMATE_PASSPHRASE_FILE`; else a person is asked. When nobody is there, `init` makes a random
passphrase in a file beside the keys: weak, and said so.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec

from casemate.crypto import aead, kdf
from casemate.crypto.ecdsa import Curve, EcKey
from casemate.crypto.secret import Secret
from casemate.crypto.signing import SigningKey
from casemate.errors import NotAuthorisedError, NotFoundError, UntrustedDataError
from casemate.release import files

SCHEMA: Final = 1
_LIMIT: Final = 8192
_MINIMUM: Final = 8

Kind = Literal["ed25519", "ecdsa-p384", "aes-256"]
Ask = Callable[[str, bool], Secret | None]
"""(name of the key, whether it is new) -> the passphrase; None when nobody answers."""


class KeyFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`keys/NAME.json`. Without a *salt* the private half is not encrypted: an online key."""

    schema: int
    name: Annotated[str, msgspec.Meta(pattern=r"\A[a-z0-9-]{1,63}\Z")]
    kind: Kind
    public: Annotated[bytes, msgspec.Meta(max_length=512)]
    private: Annotated[bytes, msgspec.Meta(max_length=1024)]
    salt: Annotated[bytes, msgspec.Meta(max_length=kdf.SALT_BYTES)] = b""
    cost: kdf.Argon2Cost | None = None


class Passphrases:
    """Where passphrases come from; each is asked for once."""

    def __init__(
        self, environ: Mapping[str, str] = os.environ, ask: Ask | None = None, beside: Path | None = None
    ) -> None:
        """Look in *environ*, then ask a person; last, when nobody can be asked, use a file *beside* the keys."""
        named = environ.get("CASEMATE_RELEASE_PASSPHRASE_FILE") or environ.get("CASEMATE_PASSPHRASE_FILE")
        self._path = Path(named) if named else None
        self._ask = ask
        self._held: dict[str, Secret] = {}
        if self._path is None and beside is not None and (ask is None or beside.exists()):
            self._path = beside
        self._beside = beside if self._path == beside else None

    @property
    def beside(self) -> Path | None:
        """The passphrase's file when it lies beside the keys it protects, which is little protection."""
        return self._beside

    def get(self, name: str, *, new: bool = False) -> Secret:
        """Return the passphrase of the key *name*.

        Raises:
            NotAuthorisedError: there is none, or a new one is too short.

        """
        if new or name not in self._held:
            self._held[name] = self._find(name, new=new)
        return self._held[name]

    def _find(self, name: str, *, new: bool) -> Secret:
        if self._path is not None:
            if new and self._beside is not None and not self._beside.exists():
                files.replace(self._beside, secrets.token_hex(16).encode() + b"\n", mode=files.PRIVATE)
            path = self._path / name if self._path.is_dir() else self._path
            line = files.read(path, f"passphrase of {name}", 4096).split(b"\n", 1)[0].rstrip(b"\r")
            found = Secret(line) if line else None
        else:
            found = self._ask(name, new) if self._ask else None
        if found is None:
            raise NotAuthorisedError(
                f"the key {name} needs its passphrase",
                hint="run it on a terminal, or set CASEMATE_RELEASE_PASSPHRASE_FILE to a file or directory",
            )
        if new and len(found) < _MINIMUM:
            raise NotAuthorisedError(f"the passphrase of {name} is too short", hint=f"use at least {_MINIMUM} bytes")
        return found


class KeyStore:
    """The key files of one repository."""

    def __init__(
        self,
        directory: Path,
        passphrases: Passphrases,
        *,
        environ: Mapping[str, str] = os.environ,
        cost: kdf.Argon2Cost = kdf.DEFAULT_COST,
    ) -> None:
        """Keep keys in *directory*; look also where *environ* says. New keys get *cost*."""
        self.directory = directory
        self.passphrases = passphrases
        self._cost = cost
        more = environ.get("CASEMATE_RELEASE_KEYS", "")
        self._opened: dict[str, Secret] = {}
        self._places = [directory, *(Path(item) for item in more.split(os.pathsep) if item)]

    def make_signing(self, name: str, *, online: bool = False) -> bytes:
        """Make an Ed25519 key called *name* and return its public half (32 bytes)."""
        key = SigningKey.generate()
        self._write(name, "ed25519", key.public, Secret(key.seed()), online=online)
        return key.public

    def make_authority(self, name: str) -> EcKey:
        """Make a P-384 key called *name* for a certificate authority."""
        key = EcKey.generate(Curve.P384)
        self._write(name, "ecdsa-p384", key.public.der(), key.store(), online=False)
        return key

    def make_secret(self, name: str) -> Secret:
        """Make a random 32-byte key called *name* that seals other keys."""
        secret = Secret.random(kdf.KEY_BYTES)
        self._write(name, "aes-256", b"", secret, online=False)
        return secret

    def signing(self, name: str) -> SigningKey:
        """Open the Ed25519 key *name*.

        Raises:
            NotFoundError: its file is not in any place that was looked at.
            NotAuthorisedError: the passphrase is wrong.

        """
        return SigningKey(self._open(name, "ed25519"))

    def authority(self, name: str) -> EcKey:
        """Open the authority's key *name*; raises as `signing` does."""
        return EcKey.load(self._open(name, "ecdsa-p384"))

    def secret(self, name: str) -> Secret:
        """Open the sealing key *name*; raises as `signing` does."""
        return self._open(name, "aes-256")

    def has(self, name: str) -> bool:
        """Return whether the file of *name* is in one of the places."""
        return any((place / f"{name}.json").exists() for place in self._places)

    def retire(self, name: str) -> None:
        """Put the file of *name* aside, when it is here: it signs no more."""
        path = self.directory / f"{name}.json"
        if path.exists():
            path.replace(path.with_suffix(".retired"))
        self._opened.pop(name, None)

    def _write(self, name: str, kind: Kind, public: bytes, private: Secret, *, online: bool) -> None:
        if online:
            body = KeyFile(SCHEMA, name, kind, public, private.reveal())
        else:
            salt = os.urandom(kdf.SALT_BYTES)
            with kdf.stretch(self.passphrases.get(name, new=True), salt, self._cost) as key:
                sealed = aead.wrap(key, private, _context(name, kind, public))
            body = KeyFile(SCHEMA, name, kind, public, sealed, salt, self._cost)
        files.replace(self.directory / f"{name}.json", msgspec.json.encode(body) + b"\n", mode=files.PRIVATE)
        self._opened[name] = Secret(private.view())

    def _open(self, name: str, kind: Kind) -> Secret:
        if name not in self._opened:
            self._opened[name] = self._unseal(name, kind)
        return Secret(self._opened[name].view())

    def _unseal(self, name: str, kind: Kind) -> Secret:
        held = self._read(name)
        if held.kind != kind or held.name != name:
            raise UntrustedDataError(f"the file of the key {name} holds another key", check="release-key")
        if held.cost is None:
            return Secret(held.private)
        with kdf.stretch(self.passphrases.get(name), held.salt, held.cost) as key:
            try:
                return aead.unwrap(key, held.private, _context(name, kind, held.public))
            except aead.TagMismatch:
                raise NotAuthorisedError(
                    f"the passphrase does not open the key {name}", hint="try again; each key may have its own"
                ) from None

    def _read(self, name: str) -> KeyFile:
        for place in self._places:
            path = place / f"{name}.json"
            if path.exists():
                try:
                    return msgspec.json.decode(files.read(path, f"key {name}", _LIMIT), type=KeyFile)
                except (msgspec.DecodeError, UnicodeDecodeError) as error:
                    raise UntrustedDataError(f"the key file {path} does not parse", check="release-key") from error
        raise NotFoundError(
            f"the key {name} is not here", hint="plug it in and name its directory in CASEMATE_RELEASE_KEYS"
        )


def _context(name: str, kind: str, public: bytes) -> bytes:
    return b"\0".join((b"casemate release key", name.encode("ascii"), kind.encode("ascii"), public))
