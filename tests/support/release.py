"""A release machine on disk, with cheap passphrases and a clock that the test moves."""

from __future__ import annotations

from pathlib import Path

from casemate.crypto.kdf import Argon2Cost
from casemate.crypto.secret import Secret
from casemate.release.keys import KeyStore, Passphrases

CHEAP = Argon2Cost(memory_kib=8 * 1024, passes=1, lanes=1)


class FixedClock:
    """Stands at `now` until the test moves it."""

    def __init__(self, now: float) -> None:
        self.now = now

    def wall(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now


def passphrases(text: str = "correct horse battery") -> Passphrases:
    return Passphrases({}, lambda _name, _new: Secret(text.encode()))


def keystore(directory: Path, text: str = "correct horse battery", more: str = "") -> KeyStore:
    return KeyStore(
        directory / "keys", passphrases(text), environ={"CASEMATE_RELEASE_KEYS": more} if more else {}, cost=CHEAP
    )
