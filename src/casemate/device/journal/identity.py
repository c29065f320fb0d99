"""Who the log is: its Ed25519 key and the origin under which it signs.

The origin is `casemate/<home id>`, and `casemate/<home id>/<n>` for the n-th log after an archived one: a log that
starts again at size 0 must never sign under an old log's name.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
from typing import Final

from casemate.crypto.secret import Secret
from casemate.crypto.signing import SigningKey
from casemate.device.journal.files import PRIVATE, LogFiles
from casemate.errors import UntrustedDataError
from casemate.formats.tlog import VerifierKey

KEY: Final = "log.key"
VKEY: Final = "log.vkey"
ARCHIVE: Final = "archive"
_TAG: Final = "casemate-log-key-1 "


@dataclasses.dataclass(frozen=True)
class LogIdentity:
    """The log's private key and public name."""

    key: SigningKey
    verifier: VerifierKey

    @property
    def origin(self) -> str:
        """Return the name in every checkpoint."""
        return self.verifier.name

    def tail_key(self) -> Secret:
        """Return the key that authenticates the tail."""
        return self.key.derive("journal/tail")


def origin_for(home_id: str, archived: int) -> str:
    """Return the origin of the log that follows *archived* earlier ones of this home."""
    return f"casemate/{home_id}" + (f"/{archived + 1}" if archived else "")


def create(files: LogFiles, home_id: str) -> LogIdentity:
    """Make the identity of a new log, or finish one that a crash left without its public half.

    Raises:
        OperationError: it cannot be written.

    """
    key = _load_key(files) if files.exists(KEY) else SigningKey.generate()
    verifier = VerifierKey(origin_for(home_id, len(files.names(ARCHIVE))), key.public)
    files.write(KEY, (_TAG + base64.b64encode(key.seed()).decode() + "\n").encode(), sync=True, mode=PRIVATE)
    files.write(VKEY, f"{verifier}\n".encode(), sync=True)
    return LogIdentity(key, verifier)


def load(files: LogFiles) -> LogIdentity:
    """Return the identity of the log that is here.

    Raises:
        UntrustedDataError: `log-key` missing, malformed, or the two halves do not belong together.

    """
    key, verifier = _load_key(files), load_verifier(files)
    if key.public != verifier.public:
        raise UntrustedDataError(f"{KEY} and {VKEY} do not belong together", check="log-key")
    return LogIdentity(key, verifier)


def load_verifier(files: LogFiles) -> VerifierKey:
    """Return the log's public key.

    Raises:
        UntrustedDataError: `log-key` missing; `vkey` malformed.

    """
    try:
        return VerifierKey.parse(files.read(VKEY).decode("utf-8", "replace"))
    except FileNotFoundError as error:
        raise UntrustedDataError(f"the journal's {VKEY} is missing", check="log-key") from error


def _load_key(files: LogFiles) -> SigningKey:
    try:
        text = files.read(KEY).decode("ascii", "replace").strip()
        seed = base64.b64decode(text.removeprefix(_TAG), validate=True)
        return SigningKey(Secret(seed))
    except FileNotFoundError as error:
        raise UntrustedDataError(f"the journal's {KEY} is missing", check="log-key") from error
    except (binascii.Error, ValueError) as error:
        raise UntrustedDataError(f"the journal's {KEY} is damaged", check="log-key") from error
