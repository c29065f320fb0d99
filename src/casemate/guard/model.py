"""The sparse linear model over the intent grammar: whole numbers in, one number out, the same on every machine.

Weights are signed bytes, one per feature of `classes`; a score is their sum times a scale plus a bias. Two sets exist:
`user` for what a person writes, `document` for retrieved text and tool results, where nobody has orders to give.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from casemate.errors import UntrustedDataError
from casemate.formats.decoding import MALFORMED
from casemate.guard.classes import CLASSES, FEATURES, allowed_signs, feature_classes
from casemate.guard.features import Facts, Window, mask_features, windows_of

SCHEMA: Final = 1
MEMORY_LIMIT: Final = 50_000
TELLING: Final = 12


class Weights(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One trained set as it is stored: `weights` is base64 of FEATURES signed bytes; thresholds are scores."""

    weights: str
    scale: float
    bias: float
    flag: float
    block: float


class ModelFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The model file.

    `ordinary` are words (separated by blanks) that resemble telling ones and are harmless, `english` those that are
    telling in another language only; `provenance` names the data, seeds and command that made it.
    """

    schema: int
    classes: tuple[str, ...]
    sets: dict[str, Weights]
    ordinary: str
    english: str
    provenance: dict[str, Any]


class Scored(NamedTuple):
    """The most telling window of a text: its score before the threshold, and where it is (None: nothing found)."""

    value: float
    window: Window | None


class LinearModel:
    """One set of weights, ready to score."""

    def __init__(self, stored: Weights) -> None:
        """Decode *stored*.

        Raises:
            UntrustedDataError: the weights are not FEATURES bytes, or break the sign a feature must have.

        """
        try:
            raw = base64.b64decode(stored.weights, validate=True)
        except ValueError:  # not the alphabet's letters, or not even ASCII
            raise UntrustedDataError("guard weights are not base64", check="guard-weights") from None
        if len(raw) != FEATURES:
            raise UntrustedDataError("guard weights have the wrong size", check="guard-weights")
        self._weights = [byte - 256 if byte > 127 else byte for byte in raw]  # noqa: PLR2004 - two's complement
        if any(
            weight * sign < 0 or (weight and not sign)
            for weight, sign in zip(self._weights, allowed_signs(), strict=True)
        ):
            raise UntrustedDataError("guard weights break the sign of a feature", check="guard-weights")
        self.wanted = bytes(map(bool, self._weights))
        self.flag, self.block = stored.flag, stored.block
        self._scale, self._bias = stored.scale, stored.bias
        self._masks: dict[int, int] = {}

    def score(self, facts: Sequence[Facts]) -> Scored:
        """Return the best window of *facts*; the first one when several are equal."""
        best, where = 0, None
        for window in windows_of(facts):
            total = self._total(window)
            if where is None or total > best:
                best, where = total, window
        return Scored(self._bias + self._scale * best, where)

    def contributions(self, window: Window) -> list[tuple[int, float]]:
        """Return (feature, share of the score) of everything that counts in *window*, the heaviest first."""
        found = [(n, self._weights[n] * self._scale) for n in (*mask_features(window.mask), *window.near)]
        return sorted((pair for pair in found if pair[1]), key=lambda pair: (-pair[1], pair[0]))

    def _total(self, window: Window) -> int:
        weights = self._weights
        return self._mask_total(window.mask) + sum([weights[number] for number in window.near])

    def _mask_total(self, mask: int) -> int:
        try:
            return self._masks[mask]
        except KeyError:
            if len(self._masks) >= MEMORY_LIMIT:
                self._masks.clear()
            total = self._masks[mask] = sum(self._weights[number] for number in mask_features(mask))
            return total


def read_model_file(data: bytes) -> ModelFile:
    """Return the checked model file in *data*.

    Raises:
        UntrustedDataError: not a model file of this version.

    """
    try:
        stored = msgspec.json.decode(data, type=ModelFile)
    except MALFORMED as error:
        raise UntrustedDataError(f"guard model: {error}", check="guard-model") from None
    if stored.schema != SCHEMA or stored.classes != CLASSES or set(stored.sets) != {"user", "document"}:
        raise UntrustedDataError("guard model is of another version", check="guard-model")
    return stored


_FAMILY_OF_CLASS: Final[Mapping[str, str]] = {
    **dict.fromkeys(("OVERRIDE", "FLOUT", "DISCARD", "VOID", "INSTRUCTION", "SETUP", "PRIOR"), "override"),
    **dict.fromkeys(("SYSPROMPT", "PLACE", "REVEAL", "VERBATIM"), "prompt-leak"),
    **dict.fromkeys(("SECRET", "THESECRET", "HIDDEN", "ENCODING"), "secret-request"),
    **dict.fromkeys(("PERSONA", "FIGURE", "YOUARE"), "persona"),
    **dict.fromkeys(("FREE", "LOOSE", "NOREFUSE", "REFUSEWORD", "HARM"), "unrestricted"),
    **dict.fromkeys(("LIMIT", "BOUND", "OFF", "MODE", "MODEWORD"), "unlock"),
    **dict.fromkeys(("FORCEOUT", "ONLY", "SAY", "REPLY"), "forced-output"),
    **dict.fromkeys(("SENDVERB", "EXFILDATA", "LINK", "AT", "IMAGE", "TOOL"), "exfiltration"),
    **dict.fromkeys(("TAG", "RULER", "ROLELINE", "ENDING"), "fake-structure"),
    **dict.fromkeys(("AI", "AIWORD", "ADDRESSED", "USER"), "addresses-assistant"),
    **dict.fromkeys(("DEVELOPER", "IAM"), "authority"),
    **dict.fromkeys(("INSTEAD", "SWAP", "ACT", "NOW", "URGENT"), "new-task"),
    **dict.fromkeys(("CONCEAL", "HUSH"), "concealment"),
    "OBEY": "obedience",
}


def families(contributions: Sequence[tuple[int, float]]) -> list[tuple[str, float]]:
    """Return the families of intent behind *contributions* with their part of the positive score, largest first."""
    shares: dict[str, float] = {}
    for number, share in contributions[:TELLING]:
        if share > 0:
            names = [_FAMILY_OF_CLASS[name] for name in feature_classes(number) if name in _FAMILY_OF_CLASS]
            for name in names:
                shares[name] = shares.get(name, 0.0) + share / len(names)
    whole = sum(shares.values()) or 1.0
    return sorted(((name, share / whole) for name, share in shares.items()), key=lambda pair: (-pair[1], pair[0]))
