"""What the setup step tells the agent: the models to serve and the public half of the owner key, no secret."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from casemate.errors import ConfigError
from casemate.formats.decoding import MALFORMED

FILE_NAME: Final = "service.json"  # in the home's run directory
SCHEMA: Final = 1
_HINT: Final = "systemctl restart casemate-setup"


class Facts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`run/service.json`."""

    schema: int
    models: Annotated[dict[str, str], msgspec.Meta(min_length=1)]
    """Container path by model name."""
    owner_public: bytes
    recovery: bool
    on_trial: bool = False
    """The models are those of a generation on trial."""
    gates: dict[str, str] = {}
    """What the fleet calls a gated model, by model name."""
    digests: dict[str, str] = {}
    """SHA-256 (hex) of the policy file of each app, for a TPM to measure."""
    claims: dict[str, str] = {}
    """SHA-256 of a model's plain file as its container claims it, by model name."""
    generation: str = ""
    """The content digest of the generation that is served; empty: none."""
    policies: dict[str, str] = {}
    guard: bytes = b""
    """What the generation says about apps, and the guard's data."""


def encode(facts: Facts) -> bytes:
    """Return the file's bytes."""
    return msgspec.json.encode(facts) + b"\n"


def parse(data: bytes) -> Facts:
    """Read the file.

    Raises:
        ConfigError: it is not what setup of this version writes.

    """
    try:
        facts = msgspec.json.decode(data, type=Facts)
    except MALFORMED as error:
        raise ConfigError(f"{FILE_NAME} is damaged: {error}", hint=_HINT) from error
    if facts.schema != SCHEMA:
        raise ConfigError(f"{FILE_NAME} has schema {facts.schema}", hint=_HINT)
    return facts
