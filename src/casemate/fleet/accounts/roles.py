"""What each role may do, as a table. Nothing else decides it: the console, the API and the command line ask here."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final

from casemate.errors import NotAuthorisedError


class Permission(enum.StrEnum):
    """One thing a person may do."""

    READ = "read"
    AUDIT = "audit"
    ENROL = "enrol"
    """Tokens, approvals, replacing a device."""
    QUARANTINE = "quarantine"
    """Quarantine and revoke: they never wait for a second person."""
    RELEASE = "release"
    """Let a device out of quarantine."""
    WIPE = "wipe"
    """Ask for a wipe, or agree to one that somebody else asked for."""
    POLICY = "policy"
    ALERT = "alert"
    ROLLOUT = "rollout"
    APPROVE_ROLLOUT = "approve-rollout"
    """Never one's own."""
    PEOPLE = "people"
    PUBLISH = "publish"


class Role(enum.StrEnum):
    """Who somebody is to the fleet."""

    OWNER = "owner"
    SECURITY_OFFICER = "security-officer"
    RELEASE_MANAGER = "release-manager"
    OPERATOR = "operator"
    AUDITOR = "auditor"
    VIEWER = "viewer"
    CI_PUBLISHER = "ci-publisher"


_P = Permission
PERMISSIONS: Final[Mapping[Role, frozenset[Permission]]] = {
    Role.OWNER: frozenset(Permission),
    Role.SECURITY_OFFICER: frozenset(
        {_P.READ, _P.AUDIT, _P.QUARANTINE, _P.RELEASE, _P.WIPE, _P.POLICY, _P.ALERT, _P.APPROVE_ROLLOUT}
    ),
    Role.RELEASE_MANAGER: frozenset({_P.READ, _P.ROLLOUT, _P.APPROVE_ROLLOUT, _P.ALERT}),
    Role.OPERATOR: frozenset({_P.READ, _P.ENROL, _P.QUARANTINE, _P.ALERT}),
    Role.AUDITOR: frozenset({_P.READ, _P.AUDIT}),
    Role.VIEWER: frozenset({_P.READ}),
    Role.CI_PUBLISHER: frozenset({_P.PUBLISH}),
}

DESCRIPTIONS: Final[Mapping[Role, str]] = {
    Role.OWNER: "everything, and the people",
    Role.SECURITY_OFFICER: "quarantine, wipe, policies, audit",
    Role.RELEASE_MANAGER: "rollouts, never approving their own",
    Role.OPERATOR: "enrols and quarantines devices",
    Role.AUDITOR: "reads everything, the audit log too",
    Role.VIEWER: "reads",
    Role.CI_PUBLISHER: "a machine that publishes releases",
}

NEEDS_PROOF: Final = frozenset({_P.WIPE, _P.POLICY, _P.RELEASE, _P.PEOPLE})
"""What needs the passkey again, not longer than `sessions.PROOF` ago."""


def allowed(role: str, permission: Permission) -> bool:
    """Say whether *role* has *permission*; an unknown role has none."""
    known = next((one for one in Role if one.value == role), None)
    return known is not None and permission in PERMISSIONS[known]


def require(role: str, permission: Permission) -> None:
    """Refuse what *role* may not do.

    Raises:
        NotAuthorisedError: it may not.

    """
    if not allowed(role, permission):
        may = ", ".join(known.value for known in Role if permission in PERMISSIONS[known])
        raise NotAuthorisedError(f"the role {role} may not do this", hint=f"ask somebody who is: {may}")
