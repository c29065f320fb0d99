"""The licence gate: which licences may be released, and that the model's own header does not say another."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Final

import msgspec

from casemate.errors import ConfigError, PolicyDeniedError
from casemate.release import files

DEFAULT: Final = (
    "0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC-BY-4.0", "CC0-1.0", "ISC", "MIT", "MPL-2.0",
    "Unlicense", "Zlib",
)  # fmt: skip


class LicencePolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file `allow = ["Apache-2.0", "LicenseRef-ours"]`; what is not allowed is refused."""

    allow: tuple[str, ...] = DEFAULT


def load(path: Path | None) -> LicencePolicy:
    """Read a licence policy, or take the default: permissive licences only.

    Raises:
        ConfigError: it does not parse.

    """
    if path is None:
        return LicencePolicy()
    try:
        text = files.read(path, "licence policy", 1 << 16).decode("utf-8")
        return msgspec.convert(tomllib.loads(text), LicencePolicy)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise ConfigError(f"{path}: {error}", hint='write allow = ["Apache-2.0", ...]') from error


def check(policy: LicencePolicy, licence: str, claimed: str) -> None:
    """Check the release's *licence*, and what the model's header *claimed* ("" when it says nothing).

    Raises:
        PolicyDeniedError: it is not allowed, or the header says another.

    """
    if licence not in policy.allow:
        raise PolicyDeniedError(
            f"the licence {licence!r} may not be released",
            hint="give a policy that allows it: `casemate release build --licences FILE.toml`",
        )
    if claimed and claimed.casefold() != licence.casefold():
        raise PolicyDeniedError(
            f"the model says its licence is {claimed!r}, the specification says {licence!r}",
            hint="find out which is true, and correct the other",
        )
