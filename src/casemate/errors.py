"""One exception tree: who is at fault, the exit code, and the hint that fixes it.

    CasemateError
     +- OperationError       1   it could not be done (disk full, process died, i/o)
     +- UsageError           2   the caller asked for something that makes no sense
     |   +- ConfigError      2   a settings or policy file is wrong
     +- NotAuthorisedError   4   wrong passphrase, key or owner
     +- NotFoundError        5   no such model, app, entry
     +- BusyError            6   somebody else holds it
     |   +- ConflictError    6   somebody else changed it meanwhile
     +- UntrustedDataError  10   signature, digest, format, rollback: data lied
     +- PolicyDeniedError   11   a policy or quarantine says no
     +- HostError           12   the host lacks a feature

Low-level code raises; only the CLI and HTTP edges render. Messages are lower case and carry no secret.
"""

from __future__ import annotations

from typing import ClassVar


class CasemateError(Exception):
    """Base of every expected failure: a message for a person, a hint that says what to do next."""

    exit_code: ClassVar[int] = 1
    code: ClassVar[str] = "failed"

    def __init__(self, message: str, *, hint: str = "") -> None:
        """Keep *message* (what and why) and *hint* (the command or step that fixes it)."""
        super().__init__(message)
        self.message = message
        self.hint = hint


class OperationError(CasemateError):
    """The request made sense but could not be carried out."""

    exit_code = 1
    code = "failed"


class UsageError(CasemateError):
    """The caller asked for something that makes no sense."""

    exit_code = 2
    code = "usage"


class ConfigError(UsageError):
    """A settings or policy file is wrong."""

    code = "config"


class NotAuthorisedError(CasemateError):
    """The caller did not prove the right to do this."""

    exit_code = 4
    code = "not_authorised"


class NotFoundError(CasemateError):
    """Nothing has that name."""

    exit_code = 5
    code = "not_found"


class BusyError(CasemateError):
    """Another process holds the resource."""

    exit_code = 6
    code = "busy"


class ConflictError(BusyError):
    """Somebody else changed it since the caller looked."""

    code = "conflict"


class UntrustedDataError(CasemateError):
    """Data failed a check; nothing of it was used.

    `check` names the check that failed, in kebab case, for logs and scripts.
    """

    exit_code = 10
    code = "untrusted_data"

    def __init__(self, message: str, *, check: str, hint: str = "") -> None:
        """Keep the name of the failed *check* beside the message."""
        super().__init__(message, hint=hint)
        self.check = check


class PolicyDeniedError(CasemateError):
    """A policy, quarantine or licence says no."""

    exit_code = 11
    code = "policy_denied"


class HostError(CasemateError):
    """The host lacks a feature that the defence needs: refuse, never run without it."""

    exit_code = 12
    code = "host_lacks_feature"
