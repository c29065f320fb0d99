"""Names where the words around them say so: after a title, an introduction, a greeting, a label.

Capitalised words after such a beginning are a name. Nothing here knows names: one that merely stands in a sentence is
not found, and the documentation says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from casemate.guard.entities.window import Found, Window
from casemate.guard.entities.words import word_set

_UPPER: Final = (
    "A-Z\u00c0-\u00d6\u00d8-\u00de\u0100\u0102\u0104\u0106\u010c\u010e\u0118\u011a\u0141\u0143\u0147\u0150\u0158"
    "\u015a\u0160\u0164\u016e\u0170\u0179\u017b\u017d\u0386-\u03ab\u0400-\u042f"
)
_LOWER: Final = "a-z\u00df-\u00f6\u00f8-\u00ff\u0101-\u017f\u03ac-\u03ce\u0430-\u045f"
_PART: Final = rf"(?:[{_UPPER}](?:[{_LOWER}\u2019'\-]|[{_UPPER}](?=[{_LOWER}])){{1,24}}|[{_UPPER}]\.?)"
_LINK: Final = "(?:van|von|der|den|de|del|della|di|da|dos|du|la|le|bin|ibn|al|el|y|ten|ter|zu|zur|d'|O')"
_NAME: Final = rf"{_PART}(?:[ \-](?:{_LINK}[ ]){{0,2}}{_PART}){{0,3}}"
_WORD: Final = rf"[{_UPPER}][{_LOWER}{_UPPER}\u2019'.\-]{{0,24}}"
_TITLES: Final = word_set(
    """
    mr mrs ms miss mx dr prof sir madam herr frau monsieur madame mme mlle se\u00f1or se\u00f1ora sra sr srta signor
    signora sig dott do\u00f1a pan pani rev capt sgt lt col
    """
)
_LINKS: Final = word_set(
    """
    van von der den de del della di da dos du la le bin ibn al el y ten ter zu zur
    """
)
_SAYS = re.compile(
    r"(?<![\w])(?:my name is|my name's|i am called|i'm called|call me|(?:hello|hi|hey),? this is|"
    r"(?:best |kind |warm )?regards,|sincerely,|yours truly,|cheers,|signed(?: by)?[,:]?|mein name ist|ich hei\u00dfe|"
    r"je m'appelle|mon nom est|me llamo|mi nombre es|mi chiamo|meu nome \u00e9|chamo-me|mijn naam is|ik heet|jag heter|"
    r"mitt namn \u00e4r|nazywam si\u0119|nimeni on|(?:card|account )?holder:?|patient:|dear|attn:?|c/o|contact|"
    r"(?:full |first |last |sur|given |family |user)?name ?[:=]|vorname ?:|nachname ?:|nombre ?:|nom ?:|pr\u00e9nom ?:|"
    r"nome ?:|naam ?:|namn ?:|nimi ?:)\s{1,2}\Z",
    re.IGNORECASE,
)
_SAYS_ENDS: Final = word_set(
    """
    is name's called me regards, sincerely, truly, cheers, signed signed, signed: by ist hei\u00dfe m'appelle est
    llamo es chiamo \u00e9 chamo-me heet heter \u00e4r si\u0119 on holder holder: cardholder cardholder: patient:
    dear attn attn: c/o contact : = name: name= surname: username: vorname: nachname: nombre: nom: pr\u00e9nom:
    nome: naam: namn: nimi: by: by,
    """
)
_WEAK: Final = frozenset({"contact", "dear"})
_CAPITALISED = re.compile(_WORD)
_FOUND = re.compile(rf"(?<![\w.@/\-]){_NAME}(?![{_LOWER}{_UPPER}@/_\d])")
_REACH: Final = 64
_SAYS_REACH: Final = 28
_MOST: Final = 4
_COMMON: Final = word_set(
    """
    The This That There Here What When Where Who Why How If It Is In On At To From For And But Or Not No Yes You
    Your We Our They He She I A An My Please Thanks Thank Hello Hi Dear All Sir Madam Team Customer Support Service
    Sales Us Me As By With Of Be Help Monday Tuesday Wednesday Thursday Friday Saturday Sunday January February
    March April May June July August September October November December User Admin Name Friends Friend Colleagues
    Diary Everyone Applicant Candidate Hiring Manager Guest Member
    """
)


def name_may_follow(text: str, start: int, end: int, context: str) -> bool:
    """Return whether a capitalised word after *end* can belong to a name that has begun."""
    near = text[max(start, end - _REACH) : end]
    if len(near) < _REACH and context:
        near = context[len(near) - _REACH :] + near
    for _ in range(_MOST + 1):
        near = near.rstrip()
        word = near.rsplit(None, 1)[-1] if near else ""
        lower = word.lower()
        if lower.rstrip(".") in _TITLES:
            return True
        if lower in _SAYS_ENDS:
            return _SAYS.search(near + " ") is not None
        if not (lower in _LINKS or _CAPITALISED.fullmatch(word)):
            return False
        near = near[: len(near) - len(word)]
    return False


def find_names(window: Window) -> Iterator[Found]:
    """Find names after the words that announce them."""
    text = window.text
    for match in _FOUND.finditer(text, window.base):
        before = text[max(0, match.start() - _SAYS_REACH) : match.start()]
        words = before.split()
        if not words or before[-1:] not in " \n" or match[0].split(" ", 1)[0] in _COMMON:
            continue
        last = words[-1].lower()
        if last.rstrip(".") in _TITLES or (
            last in _SAYS_ENDS and _SAYS.search(before) and (last not in _WEAK or " " in match[0])
        ):
            yield Found(*match.span(), "pii:PERSON", 900)


__all__ = ["find_names", "name_may_follow"]
