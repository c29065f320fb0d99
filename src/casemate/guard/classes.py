"""The classes of meaning, and the intent grammar: which of them mean something together.

A feature is a class that is present in a window of sentences, two classes within a few words of each other (near), or
two classes anywhere in the window (far). Only the pairs of the grammar below exist for a model, and each may count only
for an attack or only against one: a harmless word never convicts, a telling one never acquits.
"""

from __future__ import annotations

from typing import Final


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


STRONG: Final = _names(
    "OVERRIDE INSTRUCTION VOID LIMIT SYSPROMPT THESECRET FORCEOUT INSTEAD PERSONA FREE NOREFUSE HARM AI MODE CONCEAL "
    "OBEY TAG RULER ROLELINE REPLY"
)
WEAK: Final = _names(
    "REVEAL VERBATIM SECRET HIDDEN ENCODING ONLY SENDVERB TOOL URGENT MUST ENDING LINK AT IMAGE YOUARE OFF ADDRESSED "
    "SETUP LOOSE FIGURE MODEWORD DISCARD FLOUT SWAP ACT PLACE AIWORD HUSH REFUSEWORD BOUND EXFILDATA DEVELOPER NOW USER"
)
CONTEXT: Final = _names("PRIOR ALL YOU YOUR TEXT WHAT SAY IAM NOT COLON QUOTED START ROLENAME TOWARD")
HARMLESS: Final = _names("DISCUSS CODE THIRD MY BENIGNOBJ POLITE QUERY QUESTION DOCREF")
CLASSES: Final = STRONG + WEAK + CONTEXT + HARMLESS
NUMBER: Final = {name: index for index, name in enumerate(CLASSES)}
CORE: Final = frozenset(range(len(STRONG) + len(WEAK)))

# What makes the rest of its sentences a question or a discussion, however far away; the other harmless classes only
# count close by.
FRAMES: Final = frozenset(_names("DISCUSS QUERY CODE QUESTION"))
# What a class says by itself.
ALONE: Final = frozenset(_names("THESECRET FREE CONCEAL FORCEOUT INSTEAD MODE TAG RULER ROLELINE OBEY IMAGE"))
# What says more when a sentence begins with it.
OPENERS: Final = frozenset(
    _names(
        "OVERRIDE INSTEAD PERSONA FORCEOUT OFF SYSPROMPT AI ADDRESSED MODE TAG NOW URGENT REPLY CONCEAL RULER "
        "DISCARD ROLELINE VOID"
    )
)
# Verb, object, addressee: what means something within a few words. Strong classes also go with each other.
NEAR_GRAMMAR: Final = {
    "OVERRIDE": "PRIOR ALL YOU YOUR TEXT SETUP BOUND USER AIWORD DEVELOPER NOW DISCARD TOOL",
    "FLOUT": "INSTRUCTION SYSPROMPT LIMIT PRIOR",
    "DISCARD": "INSTRUCTION SETUP BOUND LIMIT SYSPROMPT PRIOR PERSONA FIGURE YOUR",
    "INSTRUCTION": "PRIOR YOUR YOU ALL WHAT HIDDEN REVEAL VERBATIM NOW DEVELOPER AIWORD ENDING NOT COLON OFF FIGURE",
    "SETUP": "PRIOR YOUR YOU HIDDEN REVEAL VERBATIM NOW ENDING OFF VOID INSTEAD SYSPROMPT DEVELOPER",
    "VOID": "PRIOR YOUR ALL BOUND NOW SETUP",
    "LIMIT": "YOUR OFF NOT YOU ALL DEVELOPER NOW",
    "BOUND": "YOUR OFF YOU PERSONA FIGURE AI AIWORD VOID FREE LOOSE NOREFUSE",
    "SYSPROMPT": "REVEAL WHAT VERBATIM ENCODING TEXT YOUR ALL HIDDEN SAY DEVELOPER",
    "REVEAL": "SECRET THESECRET HIDDEN ENCODING VERBATIM",
    "THESECRET": "REVEAL WHAT ENCODING VERBATIM YOU HIDDEN DEVELOPER SAY FIGURE SENDVERB",
    "SECRET": "ENCODING HIDDEN YOUR YOU WHAT SENDVERB DEVELOPER EXFILDATA",
    "HIDDEN": "YOUR YOU TEXT WHAT ENCODING",
    "FORCEOUT": "QUOTED ONLY ALL SAY URGENT NOW",
    "ONLY": "SAY QUOTED REPLY",
    "REPLY": "SAY ONLY QUOTED MUST ALL ENDING SENDVERB REVEAL LINK",
    "SWAP": "REVEAL SAY TOOL YOUR INSTRUCTION SETUP MUST FORCEOUT OVERRIDE DISCARD",
    "INSTEAD": "COLON SAY REVEAL YOUR URGENT PRIOR MUST TOOL USER",
    "PERSONA": "YOU FIGURE LOOSE AIWORD NOW YOUARE REFUSEWORD NOT",
    "FIGURE": "LOOSE AI YOU YOUARE REFUSEWORD NOREFUSE FREE",
    "YOUARE": "LOOSE FREE NOREFUSE AI AIWORD NOW REFUSEWORD HARM MODE",
    "FREE": "YOU AIWORD REVEAL SAY NOW REFUSEWORD",
    "LOOSE": "AI AIWORD YOU HARM LIMIT NOREFUSE REFUSEWORD",
    "NOREFUSE": "YOU ALL REVEAL SAY AIWORD",
    "REFUSEWORD": "YOU HARM AI ALL",
    "HARM": "ALL YOU SAY NOT",
    "AI": "ADDRESSED TOWARD MUST COLON YOU URGENT USER REVEAL SENDVERB NOW NOT TOOL SAY",
    "AIWORD": "ADDRESSED TOWARD MUST URGENT NOW",
    "ADDRESSED": "YOU MUST INSTRUCTION OVERRIDE SAY",
    "PLACE": "REVEAL WHAT VERBATIM TEXT ENCODING SAY OVERRIDE DISCARD INSTRUCTION SETUP SYSPROMPT ALL YOU VOID HIDDEN",
    "ACT": "AI AIWORD ADDRESSED INSTEAD",
    "MODE": "MODEWORD YOU NOW OFF YOUR",
    "MODEWORD": "OFF LIMIT FREE",
    "OFF": "ALL YOUR",
    "DEVELOPER": "IAM YOUR OBEY MODE OFF",
    "OBEY": "YOU NOW ALL ONLY",
    "CONCEAL": "USER REVEAL TEXT SENDVERB TOOL MUST",
    "HUSH": "USER SENDVERB REVEAL EXFILDATA TOOL",
    "SENDVERB": "EXFILDATA LINK AT SECRET USER IMAGE HUSH",
    "EXFILDATA": "USER LINK AT IMAGE ENCODING",
    "TOOL": "AT USER LINK MUST YOUR SECRET NOW URGENT HUSH",
    "USER": "SWAP DISCARD OVERRIDE",
    "IMAGE": "LINK",
    "TAG": "YOU SAY SETUP ROLENAME",
    "ROLELINE": "YOU REVEAL SAY MUST SETUP AIWORD",
    "RULER": "ENDING SETUP REVEAL NOW USER",
    "ENDING": "TEXT USER TAG",
    "NOW": "YOU TEXT",
}

# What means something anywhere in a window: a character without limits is described over several sentences.
FAR_GRAMMAR: Final = {
    "PERSONA": "FIGURE YOUARE LOOSE REFUSEWORD",
    "NOREFUSE": "FIGURE YOUARE LOOSE REFUSEWORD",
    "FREE": "FIGURE YOUARE LOOSE REFUSEWORD",
    "HARM": "FIGURE YOUARE LOOSE REFUSEWORD",
    "CONCEAL": "SENDVERB TOOL EXFILDATA",
}

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


def allowed_signs() -> list[int]:
    """Return for every feature +1 (may only count for an attack), -1 (only against one) or 0 (never used)."""
    return [_sign(number) for number in range(FEATURES)]


def _pairs(grammar: dict[str, str]) -> frozenset[frozenset[str]]:
    return frozenset(frozenset((name, partner)) for name, partners in grammar.items() for partner in partners.split())


_NEAR_PAIRS: Final = _pairs(NEAR_GRAMMAR)
_FAR_PAIRS: Final = _pairs(FAR_GRAMMAR)


def _sign(number: int) -> int:
    names = feature_classes(number)
    harmless = any(name in HARMLESS for name in names)
    if number < SIZE:
        return int(names[0] in ALONE)
    if names[0] == names[1]:
        return 0
    if harmless:
        if number < FAR_BASE:
            return -int(any(name in STRONG or name in WEAK for name in names))
        return -int(any(name in STRONG for name in names) and any(name in FRAMES for name in names))
    if all(name in STRONG for name in names):
        return 1
    if number >= FAR_BASE:
        return int(frozenset(names) in _FAR_PAIRS)
    return int(frozenset(names) in _NEAR_PAIRS or ("START" in names and any(name in OPENERS for name in names)))
