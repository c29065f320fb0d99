"""What a device never goes below: versions of metadata it has seen, security versions it has run, the time it knew.

A plain TUF client keeps its rollback protection in its metadata cache: whoever deletes the cache may replay any old
repository that has not expired. These floors lie beside the cache, under a MAC, and are raised before anything that
new metadata names is used. Without hardware they are "software only": the key lies on the same disk, so they stop who
edits, deletes or replays files, not who restores a whole older disk. With a TPM its counter knows how often they were
raised by a good update, and an older copy of them is refused (`device.update.counted`).

A floor is never lowered, with one exception that TUF (5.3.11) needs to recover from a fast-forward attack: when a newer
root names other online keys, the versions those keys had vouched for count no more.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Final, Protocol

import msgspec

from casemate.crypto import kdf
from casemate.crypto.secret import Secret
from casemate.device.home import write_atomic
from casemate.device.update import sealed_file
from casemate.errors import OperationError, UntrustedDataError

LIMIT: Final = 512 * 1024
ROLE_LIMIT: Final = 1024
ARTEFACT_LIMIT: Final = 256
SOFTWARE: Final = "software only"
COUNTED: Final = "counted by the TPM"
_LABEL: Final = "floors"
_WAY_OUT: Final = (
    "somebody changed the device's files: find out who; then give first trust again with "
    "`casemate update trust ROOT.json --url U --forget-floors`"
)

Role = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
Artefact = Annotated[str, msgspec.Meta(pattern=r"\A[a-z]{1,16}/[a-z0-9._-]{1,63}\Z")]
Number = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]
Digest = Annotated[str, msgspec.Meta(pattern=r"\A([0-9a-f]{64})?\Z")]


class Floors(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The floors. Every default means "nothing known yet", which is lower than anything.

    `versions` maps metadata roles to the newest version seen, `security` maps `kind/name` to the least security version
    that may run, `clock` is the latest second known to have passed. `trust` is the digest of the first root they belong
    to, `online` that of the timestamp and snapshot keys which vouched for `versions`. `commits` counts how often
    `security` rose; where a TPM holds them, its counter is to be `base` and as many more.
    """

    trust: Digest = ""
    online: Digest = ""
    versions: Annotated[dict[Role, Number], msgspec.Meta(max_length=ROLE_LIMIT)] = {}
    security: Annotated[dict[Artefact, Number], msgspec.Meta(max_length=ARTEFACT_LIMIT)] = {}
    clock: Number = 0
    commits: Number = 0
    base: Number | None = None

    @property
    def counter(self) -> int | None:
        """What the TPM's counter is to show; None: no TPM holds these."""
        return None if self.base is None else self.base + self.commits

    def security_of(self, kind: str, name: str) -> int:
        """Return the least security version that may run of an artefact."""
        return self.security.get(artefact(kind, name), 0)


class FloorStore(Protocol):
    """Keeps floors."""

    @property
    def kind(self) -> str:
        """What holds them, as `status` shows it."""
        ...

    def read(self) -> Floors:
        """Return the floors.

        Raises:
            UntrustedDataError: `floors-missing`, `floors-form`, `floors-mac`: they were deleted or forged.

        """
        ...

    def raise_to(self, wanted: Floors) -> Floors:
        """Raise to *wanted* where that is higher; durable before it returns. Returns what is true then.

        Raises:
            UntrustedDataError: as `read`; `floors-trust` they belong to another first trust.
            OperationError: they cannot be written: nothing that needed them may go on.

        """
        ...

    def accept_clock(self, now: int) -> None:
        """Take *now* for the time, although it was later before: a person said that the clock had been wrong.

        Raises:
            UntrustedDataError: as `read`.
            OperationError: they cannot be written.

        """
        ...


def artefact(kind: str, name: str) -> str:
    """Return the name under which an artefact's security version is kept."""
    return f"{kind}/{name}"


def raised(old: Floors, wanted: Floors) -> Floors:
    """Return *old*, raised to *wanted* where that is higher.

    Raises:
        UntrustedDataError: `floors-trust`: they are about different first trusts.

    """
    if wanted.trust and old.trust and wanted.trust != old.trust:
        raise UntrustedDataError("the floors belong to another first trust", check="floors-trust", hint=_WAY_OUT)
    kept = {} if _is_recovery(old, wanted) else dict(old.versions)
    if "root" in old.versions:
        kept["root"] = old.versions["root"]
    security = _highest(old.security, wanted.security)
    return Floors(
        trust=wanted.trust or old.trust,
        online=wanted.online or old.online,
        versions=_highest(kept, wanted.versions),
        security=security,
        clock=max(old.clock, wanted.clock),
        commits=old.commits + (security != old.security),
        base=old.base,
    )


def require_not_below(floors: Floors, found: Floors) -> None:
    """Refuse metadata versions below the floors, or metadata of a role that has gone.

    Raises:
        UntrustedDataError: `metadata-replay`.

    """
    roles = ["root"] if _is_recovery(floors, found) else list(floors.versions)
    low = [role for role in roles if found.versions.get(role, -1) < floors.versions.get(role, 0)]
    if low:
        raise UntrustedDataError(
            f"the repository is older than what this device has seen ({', '.join(sorted(low))})",
            check="metadata-replay",
            hint="somebody replays an old state, or the server was restored from a backup: "
            "publish again with `casemate release refresh`",
        )


def _is_recovery(old: Floors, new: Floors) -> bool:
    """Say whether a newer root replaced the online keys (TUF 5.3.11)."""
    other = bool(new.online and old.online and new.online != old.online)
    return other and new.versions.get("root", 0) > old.versions.get("root", 0)


def _highest(one: dict[str, int], two: dict[str, int]) -> dict[str, int]:
    return {key: max(one.get(key, 0), two.get(key, 0)) for key in sorted({*one, *two})}


class FileFloorStore:
    """Floors in a file, under a key in another: `floors` and `floors.key` in *directory*."""

    def __init__(self, directory: Path, *, rose: Callable[[int], None] = lambda _count: None) -> None:
        """Keep them in *directory*; files belong to whoever writes them.

        *rose* is told what the TPM's counter is to show, whenever a good update raised them.
        """
        self.path = directory / "floors"
        self.key_path = directory / "floors.key"
        self._rose = rose

    @property
    def kind(self) -> str:
        """What holds them, as `status` shows it."""
        return SOFTWARE if self.read().counter is None else COUNTED

    def begin(self, floors: Floors) -> None:
        """Begin with *floors*, whatever was there before. Only first trust does this.

        Raises:
            OperationError: they cannot be written.

        """
        try:
            with self._locked() as key:
                self._write(key, floors)
        except UntrustedDataError:  # no key, or half of one
            with Secret.random() as key:
                write_atomic(self.key_path, key.reveal())
                self._write(key, floors)

    @property
    def exists(self) -> bool:
        """Whether any part of them is there: then they have to be whole."""
        return self.path.exists() or self.key_path.exists()

    def read(self) -> Floors:
        """Return the floors; see `FloorStore`."""
        with self._locked() as key:
            return self._read(key)

    def raise_to(self, wanted: Floors) -> Floors:
        """Raise them; see `FloorStore`."""
        with self._locked() as key:
            old = self._read(key)
            new = raised(old, wanted)
            if new != old:
                self._write(key, new)
        if new.commits != old.commits and new.counter is not None:
            self._rose(new.counter)  # durable first: a counter that is behind catches up at the next start
        return new

    def rebase(self, base: int) -> None:
        """Have a TPM's counter, which shows *base* now, hold them from here on.

        Raises:
            UntrustedDataError: as `read`.
            OperationError: they cannot be written.

        """
        with self._locked() as key:
            floors = self._read(key)
            self._write(key, msgspec.structs.replace(floors, base=base, commits=0))

    def accept_clock(self, now: int) -> None:
        """Set the clock's floor; see `FloorStore`."""
        with self._locked() as key:
            self._write(key, msgspec.structs.replace(self._read(key), clock=now))

    @contextlib.contextmanager
    def _locked(self) -> Iterator[Secret]:
        """Hold the lock and the key."""
        try:
            fd = os.open(self.key_path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            raise _missing() from None
        except OSError as error:
            raise OperationError(f"cannot read {self.key_path}: {error.strerror}", hint="run as its owner") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)  # whoever has it holds it for one write
            raw = os.read(fd, kdf.KEY_BYTES + 1)
            if len(raw) != kdf.KEY_BYTES:
                raise UntrustedDataError("the key of the floors is damaged", check="floors-form", hint=_WAY_OUT)
            with Secret(raw) as key:
                yield key
        finally:
            os.close(fd)

    def _read(self, key: Secret) -> Floors:
        try:
            with self.path.open("rb") as file:
                raw = file.read(LIMIT + 1)
        except FileNotFoundError:
            raise _missing() from None
        except OSError as error:
            raise OperationError(f"cannot read {self.path}: {error.strerror}", hint="run as its owner") from error
        try:
            return msgspec.json.decode(sealed_file.unseal(key, _LABEL, raw), type=Floors)
        except UntrustedDataError as error:
            check = "floors-mac" if error.check == "update-file-mac" else "floors-form"
            raise UntrustedDataError("the floors were changed", check=check, hint=_WAY_OUT) from error
        except (msgspec.DecodeError, UnicodeError) as error:
            raise UntrustedDataError("the floors do not parse", check="floors-form", hint=_WAY_OUT) from error

    def _write(self, key: Secret, floors: Floors) -> None:
        write_atomic(self.path, sealed_file.seal(key, _LABEL, msgspec.json.encode(floors)))


def _missing() -> UntrustedDataError:
    return UntrustedDataError(
        "this device has trust and no floors: they were deleted", check="floors-missing", hint=_WAY_OUT
    )
