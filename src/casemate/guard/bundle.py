"""The guard's updatable data: word lists and weights in one file, checked before anything uses them."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from typing import Final, NamedTuple

import msgspec

from casemate.errors import UntrustedDataError
from casemate.formats.decoding import MALFORMED
from casemate.guard.classes import CLASSES
from casemate.guard.grammar import Lexicon, parse_entries
from casemate.guard.injection import InjectionJudge
from casemate.guard.model import LinearModel, read_model_file

FILE: Final = "guard.json"
"""What a bundle is called in a policy release."""
SCHEMA: Final = 1
BYTE_LIMIT: Final = 8 * 1024 * 1024
LANGUAGE_LIMIT: Final = 100
SEVERITIES: Final = ("severe", "strong", "mild")


class Bundle(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A bundle as it is stored: lexicon text by language, the list of abuse, and the model file."""

    schema: int
    lexicons: dict[str, str]
    abuse: str
    model: msgspec.Raw


class GuardData(NamedTuple):
    """What a bundle holds, ready for use: the judge of intent, and abusive phrases by severity."""

    judge: InjectionJudge
    abuse: Mapping[str, tuple[str, ...]]


def read_bundle(data: bytes) -> GuardData:
    """Return what *data* describes.

    Raises:
        UntrustedDataError: too large, not a bundle of this version, or a lexicon or weight that cannot be.

    """
    if len(data) > BYTE_LIMIT:
        raise UntrustedDataError("guard bundle is too large", check="guard-bundle-size")
    try:
        bundle = msgspec.json.decode(data, type=Bundle)
    except MALFORMED as error:
        raise UntrustedDataError(f"guard bundle: {error}", check="guard-bundle") from None
    if bundle.schema != SCHEMA or len(bundle.lexicons) > LANGUAGE_LIMIT:
        raise UntrustedDataError("guard bundle is of another version", check="guard-bundle")
    model = read_model_file(bytes(bundle.model))
    lexicon = Lexicon(bundle.lexicons, CLASSES, model.english.split())
    models = {name: LinearModel(weights) for name, weights in model.sets.items()}
    return GuardData(InjectionJudge(lexicon, models, frozenset(model.ordinary.split())), _read_abuse(bundle.abuse))


def _read_abuse(text: str) -> Mapping[str, tuple[str, ...]]:
    found: dict[str, list[str]] = {severity: [] for severity in SEVERITIES}
    for severity, phrase in parse_entries(text):
        if severity not in found:
            raise UntrustedDataError(f"abuse list: unknown severity {severity!r}", check="guard-abuse")
        found[severity].append(phrase)
    return {severity: tuple(phrases) for severity, phrases in found.items()}


def shipped_bundle() -> bytes:
    """Return the bundle of the files that ship with this version."""
    data = resources.files("casemate.guard") / "data"
    lexicons = {
        entry.name.removesuffix(".txt"): entry.read_text(encoding="utf-8")
        for entry in sorted((data / "lexicon").iterdir(), key=lambda entry: entry.name)
        if entry.name.endswith(".txt")
    }
    abuse = (data / "abuse.txt").read_text(encoding="utf-8")
    return msgspec.json.encode(Bundle(SCHEMA, lexicons, abuse, msgspec.Raw((data / "injection.json").read_bytes())))
