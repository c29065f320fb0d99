"""Making a release repository, and changing its keys: every way a key can be added, replaced or taken away."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from casemate.clock import Clock
from casemate.crypto import x509
from casemate.errors import NotFoundError, UsageError
from casemate.formats import signature_log, tlog
from casemate.release import roles
from casemate.release.keys import KeyStore
from casemate.release.repository import Repository, tuf_key, write_description

CONTENT: Final = "content-1"
OFFLINE_DAYS: Final = 30
_SKEW_SECONDS: Final = 3600
"""An authority is valid from a little before it was made: the first leaf, and other hosts' clocks, begin earlier."""


def create(directory: Path, keys: KeyStore, clock: Clock) -> Repository:
    """Make a repository in *directory*: TUF keys and metadata, the release authority, the log, the content key.

    Raises:
        OperationError: there is something already.
        NotAuthorisedError: a passphrase is missing or too short.

    """
    repository = Repository.create(directory, keys, clock, secrets.token_hex(8))
    keys.make_secret(CONTENT)
    _trust(repository, _new_authority(repository, "authority-1"), _new_log(repository, "log-1"))
    return repository


def rotate(repository: Repository, name: str) -> str:
    """Replace the key *name* by a new one, whose name is returned. The old one is trusted for what it signed.

    That difference to `revoke` exists for the authority and the log; a TUF key counts no more once it is replaced.

    Raises:
        NotFoundError: no such key counts.
        NotAuthorisedError: too few offline keys are here.

    """
    return _replace(repository, name, keep=True)


def revoke(repository: Repository, name: str) -> str:
    """Replace the key *name* and trust nothing it signed: for a key that was, or may have been, stolen.

    Raises:
        NotFoundError: no such key counts.
        NotAuthorisedError: too few other offline keys are here.

    """
    return _replace(repository, name, keep=False)


def list_keys(repository: Repository) -> list[tuple[str, str, bool]]:
    """Return every key that counts: its name, the role, whether its file is here."""
    rows = [(name, role, repository.keys.has(name)) for role in roles.BY_NAME for name in repository.key_names(role)]
    for role, named in (("authority", repository.description.authorities), ("log", repository.description.logs)):
        rows += [(name, role, repository.keys.has(name)) for name in named]
    return rows


def _replace(repository: Repository, name: str, *, keep: bool) -> str:
    role = roles.role_of_key(name)
    if role in {"authority", "log"}:
        return _replace_signer(repository, role, name, keep=keep)
    if name not in repository.key_names(role):
        raise NotFoundError(f"no key {name} counts", hint="`casemate release key list` names them")
    old = repository.description.keys[name]
    new_name = _next_name(role, [*repository.description.keys])
    new = tuf_key(repository.keys.make_signing(new_name, online=roles.BY_NAME[role].online))
    _describe(repository, keys={**repository.description.keys, new_name: new.keyid})

    def change(signed: Any) -> None:
        signed.revoke_key(old, role)
        signed.add_key(new, role)

    if roles.BY_NAME[role] in roles.TOP:
        repository.edit_root(change, without="" if keep else name)
        repository.edit({"targets": lambda _targets: None} if role == "targets" else {})
    else:
        repository.edit_delegation(role, change)
    repository.keys.retire(name)
    return new_name


def _replace_signer(repository: Repository, role: str, name: str, *, keep: bool) -> str:
    held = repository.description.authorities if role == "authority" else repository.description.logs
    if name not in held:
        raise NotFoundError(f"no key {name} counts", hint="`casemate release key list` names them")
    new_name = _next_name(role, list(held))
    kept = {key: value for key, value in held.items() if keep or key != name}
    if role == "authority":
        _trust(repository, kept | _new_authority(repository, new_name), repository.description.logs)
    else:
        _trust(repository, repository.description.authorities, kept | _new_log(repository, new_name))
    repository.keys.retire(name)
    return new_name


def _new_authority(repository: Repository, name: str) -> dict[str, str]:
    """Make an authority's key and its certificate; nobody trusts it yet."""
    key = repository.keys.make_authority(name)
    subject = f"casemate release authority {repository.description.id}"
    return {name: x509.to_pem(x509.make_root(key, subject, repository.now() - _SKEW_SECONDS))}


def _new_log(repository: Repository, name: str) -> dict[str, str]:
    """Make a log's key; nobody trusts it yet."""
    public = repository.keys.make_signing(name, online=True)
    origin = f"casemate.release/{repository.description.id}/{name}"
    return {name: str(tlog.VerifierKey(origin, public))}


def _trust(repository: Repository, authorities: Mapping[str, str], logs: Mapping[str, str]) -> None:
    """Publish whom devices trust to sign releases (a target of the offline targets role), then sign with them.

    In this order, because a release signed under what nobody trusts is refused everywhere.
    """
    trust = signature_log.SigningTrust(
        signature_log.SCHEMA, tuple(authorities.values()), tuple(logs.values()), OFFLINE_DAYS
    )
    info = repository.add_target(signature_log.TRUST_PATH, msgspec.json.encode(trust))
    repository.edit({"targets": lambda targets: targets.targets.update({signature_log.TRUST_PATH: info})})
    _describe(repository, authorities=authorities, logs=logs)


def _describe(
    repository: Repository,
    *,
    keys: Mapping[str, str] | None = None,
    authorities: Mapping[str, str] | None = None,
    logs: Mapping[str, str] | None = None,
) -> None:
    old = repository.description
    repository.description = msgspec.structs.replace(
        old,
        keys=dict(old.keys if keys is None else keys),
        authorities=dict(old.authorities if authorities is None else authorities),
        logs=dict(old.logs if logs is None else logs),
    )
    write_description(repository.directory, repository.description)


def _next_name(role: str, names: list[str]) -> str:
    used = [int(name.rpartition("-")[2]) for name in names if name.rpartition("-")[0] == role]
    if not used:
        raise UsageError(f"no key of {role} was ever made")
    return f"{role}-{max(used) + 1}"
