"""Epoch keys: made fresh whenever the journal opens, sealed to the owner, gone from this device when it closes.

The device can write its log and cannot read it: only the owner's private key opens an epoch. Between two openings the
key moves forward by itself (`EpochKey.next`), so an epoch number without a record is reached from the record before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from casemate.crypto import hpke
from casemate.crypto.aead import TagMismatch
from casemate.crypto.record import EpochKey
from casemate.crypto.secret import Secret
from casemate.device.journal.entry import MAX_EPOCH
from casemate.device.journal.files import LogFiles
from casemate.errors import NotAuthorisedError, OperationError, UntrustedDataError

FOLDER: Final = "epochs"
_INFO: Final = b"casemate/journal/epoch/1"
_MAX_RATCHET: Final = 1_000_000


class EpochRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The key of *epoch*, HPKE-sealed to *owner* (both base64 in JSON). *first_index* is the entry that holds this."""

    schema: int
    origin: str
    epoch: int
    first_index: int
    owner: bytes
    sealed: bytes


def file_name(epoch: int) -> str:
    """Return the file of *epoch*'s record."""
    return f"{FOLDER}/{epoch:08d}.json"


def open_epoch(origin: str, epoch: int, first_index: int, owner_public: bytes) -> tuple[EpochKey, bytes]:
    """Make a fresh key for *epoch* and its record, sealed to *owner_public* (X25519, 32 bytes).

    Raises:
        OperationError: epoch numbers are used up, or the owner key is unusable.

    """
    if epoch > MAX_EPOCH:
        raise OperationError("the journal has used up its epoch numbers", hint="run `casemate journal archive`")
    key = EpochKey.generate(epoch)
    try:
        sealed = hpke.seal(owner_public, _INFO, _context(origin, epoch, first_index), key.root())
    except ValueError as error:
        raise OperationError("the owner key is not usable", hint="run `casemate keystore status`") from error
    record = EpochRecord(1, origin, epoch, first_index, owner_public, sealed)
    return key, msgspec.json.encode(record)


def parse_record(data: bytes) -> EpochRecord:
    """Read an epoch record.

    Raises:
        UntrustedDataError: `epoch-record`.

    """
    try:
        record = msgspec.json.decode(data, type=EpochRecord)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UntrustedDataError(f"not an epoch record: {error}", check="epoch-record") from error
    if record.schema != 1 or not 0 <= record.epoch <= MAX_EPOCH:
        raise UntrustedDataError("not an epoch record of this version", check="epoch-record")
    return record


def unseal(record: EpochRecord, owner_private: Secret) -> EpochKey:
    """Return the key that *record* holds.

    Raises:
        NotAuthorisedError: it was sealed to another owner key, or altered.

    """
    context = _context(record.origin, record.epoch, record.first_index)
    try:
        return EpochKey(record.epoch, Secret(hpke.open(owner_private, _INFO, context, record.sealed)))
    except TagMismatch as error:
        raise NotAuthorisedError(
            f"the owner key does not open journal epoch {record.epoch}",
            hint="entries written before the keystore was replaced need the old keystore",
        ) from error


def _context(origin: str, epoch: int, first_index: int) -> bytes:
    return f"{origin}\n{epoch}\n{first_index}\n".encode()


def last_epoch(files: LogFiles) -> int:
    """Return the highest epoch number that has a record file, -1 for none."""
    numbers = [int(name[:-5]) for name in files.names(FOLDER) if name.endswith(".json") and name[:-5].isdigit()]
    return max(numbers, default=-1)


class EpochKeys:
    """The reader's side: the key of any epoch, from records and the owner's private key."""

    def __init__(self, owner_private: Secret, records: Mapping[int, EpochRecord]) -> None:
        """Open records with *owner_private*; *records* maps epoch numbers to what is known so far."""
        self._private = owner_private
        self._records = dict(records)
        self._key: EpochKey | None = None

    def learn(self, record: EpochRecord) -> None:
        """Take a record found in the log; what stands in the log wins over a file."""
        self._records[record.epoch] = record

    def key_for(self, epoch: int) -> EpochKey:
        """Return the key of *epoch*.

        Raises:
            NotAuthorisedError: the owner key does not open it.
            UntrustedDataError: `epoch-record` no record leads to this epoch.

        """
        start = max((number for number in self._records if number <= epoch), default=None)
        if start is None or epoch - start > _MAX_RATCHET:
            raise UntrustedDataError(f"no key record leads to journal epoch {epoch}", check="epoch-record")
        key = self._key
        if key is None or not start <= key.epoch <= epoch:
            key = unseal(self._records[start], self._private)
        while key.epoch < epoch:
            key = key.next()
        self._key = key
        return key
