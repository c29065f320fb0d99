"""Where a text may be cut so that no value lies across the cut: the reason streams and whole texts agree.

Redaction works segment by segment. A segment is usually one word with the gap after it; it is longer where a value
may go on over a gap (digit groups, an IBAN in fours, `name [at] host`, a date in words, a name, a seed phrase, a PEM
block). `next_cut` decides from the text up to the cut and at most a few characters after it, so a stream reaches the
same cuts as a whole text, only later. Both then run the same rules on the same segments with the same left context:
equal output for any chunking needs no further argument.

A run without any gap is cut by force after `WINDOW` characters (`flow` overlaps such windows).
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from casemate.guard.entities import pem
from casemate.guard.entities.bip39_words import INDEX
from casemate.guard.entities.find import ANNOUNCING_ENDS, ANNOUNCING_WORDS, announces
from casemate.guard.entities.names import name_may_follow
from casemate.guard.entities.phrases import said
from casemate.guard.entities.words import DATE_LINKS, MARKER_PREFIXES, MARKERS, MONTH_STARTS, MONTHS, UNSPACED, is_month

WINDOW: Final = 2048
SLACK: Final = 64
GAP: Final = 3
UNDECIDED: Final = -1
CAPPED: Final = -2
GROWTH: Final = 8
"""An open key block is looked at again when it has grown by one part in this many."""

# Between any two characters of a script written without spaces a cut may fall.
_CANDIDATE = re.compile(
    rf"\s{{1,{GAP}}}(?=\S)|\s{{{GAP + 1}}}|\s{{1,{GAP}}}\Z|(?<=[{UNSPACED}])(?=[{UNSPACED}])"
    r'|(?<=",)(?=\S)|(?<=":)(?=[^\s:])'
)
_STRIPPED: Final = ",;.:)(\"'0123456789"
_SPACE = re.compile(r"\s")
_RIGHT: Final = 12
ANCHOR_REACHES: Final = (48, 160, 2000)
_LEFT: Final = 64
_HEADER_REACH: Final = 96
_DAY_REACH: Final = 16
_PHRASE_REACH: Final = 480
_QUOTE_REACH: Final = 96
_DECIMAL_REACH: Final = 20
_PREFIX: Final = 4
_MONTH_START: Final = 3
_LONGEST_WORD: Final = 10
_EXTENSION = re.compile(r"(?:x|ext\.?|#)\d")
_EXTENSION_STARTS: Final = frozenset({"x", "#", "e", "ex", "ext", "ext."})
_OPENING: Final = "\"'<([{"
_CLOSING: Final = "\"'>)]},;:!?"
_ENDS: Final = frozenset('!?;"')
_CJK_DATE: Final = frozenset("\u5e74\u6708\ub144\uc6d4")
_IBAN_SO_FAR = re.compile(r"(?<![A-Za-z0-9])[A-Za-z]{2}\d{2}(?:[ .\-_/]{1,3}[A-Za-z0-9]{4}){0,8}(?:[ .]?[\-_/])?\Z")
_DAY_BEFORE = re.compile(r"(?<!\d)\d{1,2}(?:st|nd|rd|th|\.)?(?: (?:of|de|del|di))?\Z")
_DECIMAL = re.compile(r"\.\d{3,12},\Z")
_QUOTED_PASSWORD = re.compile(
    r"(?:pass(?:word|wd|phrase|code)?|pwd|secret|kennwort|passwort|contrase\u00f1a|clave|senha|wachtwoord|mot de passe)"
    r"[\"']?\s{0,2}(?:[:=]|\bis)\s{0,2}\Z",
    re.IGNORECASE,
)
_MONTH_DAY = re.compile(r"([A-Za-z\u00c0-\u017f]{3,12})\.? \d{1,2}(?:st|nd|rd|th)?,?\Z")


# A gap that ends a segment wherever it began and whatever the context: a wide one, a line's end, or one after a plain
# word and before what no value begins with.
_ANCHOR = re.compile(
    r"(?<=\S)\s{4}|(?<=\s)(?P<last>\S{2,20})\n"
    r"|(?<=\s)(?P<word>[^\s\d]{1,19}[A-Za-z\u00df-\u00ff|)\]}])[,;!?]?\s{1,3}(?=[^\s\dA-Z(\[{<@.])"
)
_NOT_ANCHORS: Final = frozenset({*INDEX, *MARKERS, *DATE_LINKS})


_PLAIN_WORD = re.compile(r"(?:([A-Za-z]{2,14})[,;!?.]?|\|)\s{1,40}(?=\S)")
_NOT_PLAIN: Final = _NOT_ANCHORS | ANNOUNCING_WORDS | MONTHS
_MARKER_STARTS: Final = frozenset("aAdDpP.[({<@")


class Cut(NamedTuple):
    """Where the segment ends (or `UNDECIDED`, `CAPPED`) and where to look on from when more text has come."""

    end: int
    scan: int
    forced: bool = False
    more: int = 0
    """How many more characters must come before another look is worth it."""


def next_cut(text: str, start: int, scan: int, context: str, *, final: bool) -> Cut:
    """Return the end of the segment of *text* that begins at *start*; *scan* comes from the last undecided answer.

    *context* is the output before the segment; *final* says that the text ends here. A forced cut is `start + WINDOW`.
    """
    limit = start + WINDOW
    seen = max(start, scan)
    for candidate in _CANDIDATE.finditer(text, seen, limit + 2 * SLACK):
        end, right = candidate.span()
        if end == start:
            if end < right:
                return Cut(start + 1, start + 1)
            continue
        block = _key_block(text, start, seen, end, final=final)
        if block is not None:
            return block
        seen = end
        if end > limit:
            return Cut(limit, limit, forced=True)
        if end == right:
            return Cut(end, end)
        if _closed(text, start, end, context):
            return Cut(end + 1, end + 1)
        joined = _joined(text, start, end, right, context, final=final)
        if joined is None:
            return Cut(UNDECIDED, end)
        if not joined:
            return Cut(right, right)
    return _cut_without_gap(text, start, seen, final=final)


def _cut_without_gap(text: str, start: int, seen: int, *, final: bool) -> Cut:
    """Return the cut when no gap so far is one."""
    block = _key_block(text, start, seen, len(text), final=final)
    if block is not None:
        return block
    limit = start + WINDOW
    if len(text) > (limit if final else limit + SLACK):
        return Cut(limit, limit, forced=True)
    return Cut(len(text) if final else UNDECIDED, len(text))


def _key_block(text: str, start: int, seen: int, end: int, *, final: bool) -> Cut | None:
    """Return the cut after a private-key block that begins in this segment, if there is one.

    Up to *seen* an earlier call has looked; a header that was open there is at most `pem.LONGEST_HEADER` long.
    """
    header = pem.find_header(text, max(start, seen - pem.LONGEST_HEADER), min(end, start + WINDOW))
    if header is None:
        return None
    close = pem.block_end(text, header, final=final)
    if close == pem.NOT_A_KEY:
        return None
    if close == pem.OPEN:
        return Cut(UNDECIDED, start, more=(len(text) - start) // GROWTH)
    return Cut(CAPPED, header.end() + pem.PEM_CAP) if close == pem.CAPPED else Cut(close, close)


def _closed(text: str, start: int, end: int, context: str) -> bool:
    """Return whether nothing can go on over the gap at *end*, whatever stands after it."""
    before = text[end - 1]
    if text[end] != "\n" and before not in _ENDS and not (before == "," and text[end - 2 : end - 1].isalpha()):
        return False
    if _header_open(text, start, end) or _in_phrase(text, start, end, context):
        return False
    return text[end] == "\n" or not _in_quotes(text, start, end, context)


def _joined(text: str, start: int, end: int, right: int, context: str, *, final: bool) -> bool | None:
    """Return whether a value may go on over the gap *end*..*right*; None when more text is needed to tell."""
    if right - end > GAP:
        return False
    if right == len(text):
        return False if final else None
    broken = "\n" in text[end:right]
    before, after = text[end - 1], text[right]
    if not broken and before.isdigit() and after.isdigit():
        return True
    if _header_open(text, start, end) or _in_phrase(text, start, end, context) or _in_quotes(text, start, end, context):
        return True
    if broken:
        return False
    if _joins_sign(text, start, end, after, context):
        return True
    ahead = text[right : right + _RIGHT]
    complete = final or len(ahead) == _RIGHT or _SPACE.search(ahead) is not None
    word = ahead.split(None, 1)[0]
    if before.isdigit() and len(word) == 1 and word.isupper():
        return True if complete else None
    if before.isdigit() and after in "xeXE#":
        return _joins_extension(word.lower(), complete=complete)
    return _joins_word(text, start, end, word.lower(), complete=complete)


def _joins_sign(text: str, start: int, end: int, after: str, context: str) -> bool:
    """Decide by the first character on the right alone."""
    before = text[end - 1]
    if after.isdigit():
        return _joins_digit(text, start, end, before)
    if after.isupper() and name_may_follow(text, start, end, context):
        return True
    if before == "," and after == "-":
        return _DECIMAL.search(text, max(start, end - _DECIMAL_REACH), end) is not None
    if before.isdigit() and after in "(-/.":
        return True
    return (after.isalnum() or after == "-") and _in_iban(text, start, end)


def _in_iban(text: str, start: int, end: int) -> bool:
    """Return whether the text before the gap is an account number written in fours, so far."""
    gap = end - start
    near = text[end - _PREFIX - 1 : end] if gap > _PREFIX else " " + text[start:end]
    if not (near[1:].isalnum() or near[-1] in "-_/"):
        return False
    return _IBAN_SO_FAR.search(text, max(start, end - _LEFT), end) is not None


def _header_open(text: str, start: int, end: int) -> bool:
    near = max(start, end - _HEADER_REACH)
    return text.find("----", near, end) >= 0 and pem.header_open(text, near, end)


def _in_phrase(text: str, start: int, end: int, context: str) -> bool:
    """Return whether the word before the gap may be one of a recovery phrase, or a number in its list."""
    last = _last_word(text, start, end)
    if len(last) > _LONGEST_WORD:
        return False
    word = last.strip(_STRIPPED)
    if (word.lower() not in INDEX) if word else (last[-1] not in ".):" or not last[0].isdigit()):
        return False
    return said(context) or said(text[max(start, end - _PHRASE_REACH) : end])


def _in_quotes(text: str, start: int, end: int, context: str) -> bool:
    """Return whether the gap is inside the quotes of a password."""
    near = text[max(start, end - _QUOTE_REACH) : end]
    if len(near) < _QUOTE_REACH and context:
        near = context[len(near) - _QUOTE_REACH :] + near
    quote = max(near.rfind('"'), near.rfind("'"))
    return quote > 0 and _QUOTED_PASSWORD.search(near, 0, quote) is not None


def _joins_digit(text: str, start: int, end: int, before: str) -> bool:
    """Return whether a digit after the gap can belong to what stands before it."""
    if before.isdigit() or before == ")" or before in _CJK_DATE:
        return True
    if before in "-/.(+":
        return end - 2 >= start and (text[end - 2].isdigit() or text[end - 2].isspace())
    if before == ",":
        month = _MONTH_DAY.search(text, max(start, end - _LEFT), end)
        return (month is not None and is_month(month[1])) or bool(
            _DECIMAL.search(text, max(start, end - _DECIMAL_REACH), end)
        )
    last = _last_word(text, start, end)
    if (len(last) <= _PREFIX and last.isupper()) or _in_iban(text, start, end):
        return True
    return is_month(last) or last.lower() in DATE_LINKS or last.lower() in MARKERS


def _joins_word(text: str, start: int, end: int, word: str, *, complete: bool) -> bool | None:
    """Decide for a word on the right; the first way of going on that says yes, or asks for more text, wins."""
    last = _last_word(text, start, end).lower()
    for way in (_joins_letter, _joins_marker):
        answer = way(last, word, complete=complete)
        if answer is not False:
            return answer
    if last in MARKERS and end - len(last) > start:
        return True
    if _DAY_BEFORE.search(text, max(start, end - _DAY_REACH), end):
        return _joins_month(word, complete=complete)
    return _joins_link(word, complete=complete) if is_month(last) else False


def _joins_letter(last: str, word: str, *, complete: bool) -> bool | None:
    """Join letters standing alone: `b o b @ x . o r g`."""
    if not (_is_spelled(last.lstrip(_OPENING)) and _is_spelled(word.rstrip(_CLOSING))):
        return False
    return True if complete else None


def _is_spelled(word: str) -> bool:
    return len(word) == 1 and (word.isalnum() or word in "@.-_+")


def _joins_extension(word: str, *, complete: bool) -> bool | None:
    """Join the extension after a telephone number: `x23`, `ext.23`, `#23`."""
    if _EXTENSION.match(word):
        return True
    return None if not complete and word in _EXTENSION_STARTS else False


def _joins_marker(last: str, word: str, *, complete: bool) -> bool | None:
    """Join a written `@` or `.`: `bob [at] example dot org`."""
    if not last[-1].isalnum():
        return False
    if word in MARKERS:
        return True if complete else None
    return None if not complete and word in MARKER_PREFIXES else False


def _joins_month(word: str, *, complete: bool) -> bool | None:
    """Join a month after a day: `25 December`, `25 de diciembre`."""
    if word[:_MONTH_START] in MONTH_STARTS:
        return True
    if word in DATE_LINKS:
        return True if complete else None
    return None if not complete and len(word) < _MONTH_START else False


def _joins_link(word: str, *, complete: bool) -> bool | None:
    """Join a link after a month: `diciembre de 2004`."""
    if word in DATE_LINKS:
        return True if complete else None
    return None if not complete and any(link.startswith(word) for link in DATE_LINKS) else False


def anchor_before(text: str, start: int, end: int) -> int:
    """Return a place between *start* and *end*, near *end*, that is a cut for certain; *start* when none shows."""
    for reach in ANCHOR_REACHES:
        begin = max(start, end - reach)
        for gap in reversed([*_ANCHOR.finditer(text, begin, end)]):
            if _parts(text, gap):
                return gap.end()
        if begin == start:
            break
    return start


def plain_words(text: str, start: int, end: int, context: str, *, names: bool) -> int:
    """Return the end of the words from *start* on, before *end*, of which each is a segment that holds nothing.

    Only where *names* is false may a capital follow.
    """
    begun = False
    while True:
        plain = _PLAIN_WORD.match(text, start)
        if plain is None or plain.end() > end:
            return start
        if not begun and (announces(context) or _in_quotes(text, start, start, context)):
            return start
        begun = True
        word, after = plain[1], text[plain.end()]
        if word is not None:
            lower = word.lower()
            if lower in _NOT_PLAIN or lower.endswith(ANNOUNCING_ENDS) or (after.isdigit() and word.isupper()):
                return start
        if (names and after.isupper()) or after in _MARKER_STARTS:
            return start
        start = plain.end()


def _parts(text: str, gap: re.Match[str]) -> bool:
    """Return whether nothing goes on over *gap*."""
    last = gap["last"] or gap["word"]
    if last is None:
        return True
    bare = last.strip(_STRIPPED).lower()
    if not bare or bare in _NOT_ANCHORS or "----" in last or _is_spelled(last.lstrip(_OPENING)):
        return False
    if gap["last"]:
        return True
    if is_month(bare) or last.lower() in MARKERS:
        return False
    if len(last) == _PREFIX and _in_iban(text, max(0, gap.end() - _LEFT), gap.start() + len(last)):
        return False
    ahead = text[gap.end() : gap.end() + _RIGHT].split(None, 1)[0]
    return not (ahead[0].isupper() or ahead[0].isdigit() or ahead.lower() in MARKERS)


def _last_word(text: str, start: int, end: int) -> str:
    return text[max(start, end - _LEFT) : end].rsplit(None, 1)[-1]
