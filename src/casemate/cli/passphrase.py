"""Asking a person for the keystore's passphrase, on the terminal itself and nowhere else."""

from __future__ import annotations

import getpass
import os

from casemate import config, keystores
from casemate.cli.output import say
from casemate.crypto.secret import Secret
from casemate.errors import NotAuthorisedError
from casemate.keystores.sources import PASSPHRASE_MINIMUM, Sources

_TRIES = 3


def sources(home: keystores.HomePlace, *, recovery: Secret | None = None) -> Sources:
    """Return where *home*'s secrets come from: the environment, then this terminal when there is one."""
    first = not keystores.exists(home.keystore)

    def ask(new: bool) -> Secret | None:  # noqa: FBT001 - the signature is keystores.sources.Ask
        return _ask_new(first=first) if new else _secret(getpass.getpass("keystore passphrase: "))

    return keystores.from_environment(
        home, ask=ask if has_terminal() else None, recovery=recovery, tpm=config.load()["keystore.tpm"]
    )


def has_terminal() -> bool:
    """Whether a person can be asked: getpass speaks to /dev/tty, whatever stdin is; scripts without one never hang."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return os.isatty(2)


def _ask_new(*, first: bool) -> Secret | None:
    if first:
        say("choose a passphrase that will open the models here; press enter to use a key file instead (weaker)")
    for _ in range(_TRIES):
        typed = _secret(getpass.getpass("new passphrase: "))
        if typed is None:
            return None
        if len(typed) < PASSPHRASE_MINIMUM:
            say(f"that is too short: use at least {PASSPHRASE_MINIMUM} characters")
            continue
        again = _secret(getpass.getpass("once more: "))
        if again is not None and again.matches(typed):
            return typed
        say("the two differ")
    return None


def ask_recovery_code() -> str:
    """Return the recovery code as the person types it.

    Raises:
        NotAuthorisedError: nobody can be asked.

    """
    if not has_terminal():
        raise NotAuthorisedError(
            "nobody is here to type the recovery code", hint="run it on a terminal, or use --recovery-file"
        )
    return getpass.getpass("recovery code: ")


def _secret(text: str) -> Secret | None:
    return Secret(text.encode("utf-8")) if text else None
