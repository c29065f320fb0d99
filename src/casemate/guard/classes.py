"""The classes of meaning, and the features that models may build from them.

A feature is a class that is present in a window of sentences, two classes within a few words of each other (near), or
two classes anywhere in the window (far). Only features that can mean something exist for a model, and each may count
only for an attack or only against one (`SIGNS`): a harmless word never convicts, a telling one never acquits.
"""

from __future__ import annotations

from typing import Final


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


STRONG: Final = _names(
    "OVERRIDE INSTRUCTION VOID LIMIT SYSPROMPT THESECRET FORCEOUT INSTEAD PERSONA FREE NOREFUSE HARM AI DEVELOPER MODE "
    "CONCEAL OBEY EXFILDATA TAG RULER ROLELINE REPLY NOW USER"
)
WEAK: Final = _names(
    "REVEAL VERBATIM SECRET HIDDEN ENCODING ONLY SENDVERB TOOL URGENT MUST ENDING LINK AT IMAGE YOUARE OFF ADDRESSED "
    "SETUP LOOSE FIGURE MODEWORD"
)
CONTEXT: Final = _names("PRIOR ALL YOU YOUR TEXT WHAT SAY IAM NOT COLON QUOTED START ROLENAME")
HARMLESS: Final = _names("DISCUSS CODE THIRD MY BENIGNOBJ POLITE QUERY QUESTION DOCREF")
CLASSES: Final = STRONG + WEAK + CONTEXT + HARMLESS
NUMBER: Final = {name: index for index, name in enumerate(CLASSES)}
CORE: Final = frozenset(range(len(STRONG) + len(WEAK)))

ALONE: Final = frozenset(_names("SYSPROMPT THESECRET FREE CONCEAL FORCEOUT INSTEAD MODE TAG RULER ROLELINE OBEY IMAGE"))
OPENERS: Final = frozenset(
    _names(
        "OVERRIDE INSTEAD PERSONA FORCEOUT OFF SYSPROMPT AI ADDRESSED MODE TAG YOUARE NOW URGENT REPLY CONCEAL RULER "
        "ROLELINE"
    )
)

SIZE: Final = len(CLASSES)
NEAR_BASE: Final = SIZE
FAR_BASE: Final = SIZE + SIZE * SIZE
FEATURES: Final = SIZE + 2 * SIZE * SIZE


def feature_name(number: int) -> str:
    """Return a feature's name for people: `OVERRIDE`, `OVERRIDE~INSTRUCTION` (near), `OVERRIDE+INSTRUCTION` (far)."""
    if number < SIZE:
        return CLASSES[number]
    sign, rest = ("~", number - NEAR_BASE) if number < FAR_BASE else ("+", number - FAR_BASE)
    return f"{CLASSES[rest // SIZE]}{sign}{CLASSES[rest % SIZE]}"


def feature_classes(number: int) -> tuple[str, ...]:
    """Return the names of the one or two classes a feature is about."""
    return tuple(feature_name(number).replace("~", "+").split("+"))


def _sign(number: int) -> int:
    names = feature_classes(number)
    harmless = any(name in HARMLESS for name in names)
    if number < SIZE:
        return 1 if names[0] in ALONE else -int(harmless)
    near = number < FAR_BASE
    strong = [name in STRONG for name in names]
    core = any(strong) or any(name in WEAK for name in names)
    if names[0] == names[1] or "ROLENAME" in names:
        return 0
    if "START" in names:
        return int(near and any(name in OPENERS for name in names))
    if harmless:
        return -int(core)
    return int(all(strong) or (core and near))


def allowed_signs() -> list[int]:
    """Return for every feature +1 (may only count for an attack), -1 (only against one) or 0 (never used)."""
    return [_sign(number) for number in range(FEATURES)]
