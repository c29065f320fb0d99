"""One spelling for one text: NFKC without invisible characters, with a map back to the original's offsets.

Decides what later steps read, and reports the channels people cannot see (tag characters, selector runs, bidi
overrides, zero-width runs) as findings of their own. Does not decode (`views`) and does not judge words (`grammar`).

Plain ASCII is returned as it is, and so is any text that is already NFKC and holds nothing invisible.
"""

from __future__ import annotations

import re
import unicodedata
from array import array
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from casemate.guard.verdict import Span

MAX_SPANS: Final = 64
MARKS_KEPT: Final = 2
SELECTOR_RUN: Final = 2
ZERO_WIDTH_RUN: Final = 8
REPLACEMENT: Final = "\ufffd"

_CONTROLS: Final = "\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f"
_SELECTORS: Final = "\ufe00-\ufe0f\U000e0100-\U000e01ef\u180b-\u180d\u180f"
_TAGS: Final = "\U000e0000-\U000e007f"
_ZERO_WIDTH: Final = "\u200b-\u200d\u2060-\u2064\ufeff\u180e\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0"
_BIDI: Final = "\u061c\u200e\u200f\u202a-\u202e\u2066-\u206f"
_INVISIBLE: Final = f"\u00ad\ufff9-\ufffb\U0001d173-\U0001d17a{_SELECTORS}{_TAGS}{_ZERO_WIDTH}{_BIDI}"

# NFKC leaves these letter-like signs alone; each is a plain letter to a reader.
_UNCOMPOSED: Final = {
    **{chr(0x1F130 + i): chr(65 + i) for i in range(26)},  # squared
    **{chr(0x1F150 + i): chr(65 + i) for i in range(26)},  # negative circled
    **{chr(0x1F170 + i): chr(65 + i) for i in range(26)},  # negative squared
    **{chr(0x1F1E6 + i): chr(65 + i) for i in range(26)},  # regional indicators
    **{chr(0x2776 + i): str(i + 1) for i in range(9)},  # negative circled digits
    **dict(zip("ᴀʙᴄᴅᴇꜰɢʜɪᴊᴋʟᴍɴᴏᴘꞯʀꜱᴛᴜᴠᴡʏᴢ", "abcdefghijklmnopqrstuvwyz", strict=True)),  # small capitals
}

_DROPPED = re.compile(f"[{_INVISIBLE}{_CONTROLS}]")
_ASCII_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f]")
_COMBINING: Final = "\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff"
_BREAKS: Final = {9: " ", 10: " ", 13: " "}
_UNUSUAL = re.compile(
    f"[{_INVISIBLE}{_CONTROLS}{_COMBINING}{''.join(_UNCOMPOSED)}\u0085\u2028\u2029\u2800\ud800-\udfff]"
)
_NON_ASCII = re.compile("[^\x09-\x0d\x20-\x7e]+")
_FOLLOWS = re.compile(f"[{_COMBINING}\u3099\u309a\u1160-\u11ff]")

_FLAG_EMOJI = re.compile("\U0001f3f4[\U000e0030-\U000e0039\U000e0061-\U000e007a]{2,6}\U000e007f")
_TAG_RUN = re.compile(f"[{_TAGS}]+")
_SELECTOR_RUN = re.compile(f"[\ufe00-\ufe0f\U000e0100-\U000e01ef]{{{SELECTOR_RUN},}}")
_LONE_SUPPLEMENT = re.compile("(?<![\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff])[\U000e0100-\U000e01ef]")
_OVERRIDE = re.compile("[\u202d\u202e]")
_ZERO_RUN = re.compile(f"[{_ZERO_WIDTH}]{{{ZERO_WIDTH_RUN},}}")
_ZERO_IN_WORD = re.compile(f"(?<=[A-Za-z0-9])[{_ZERO_WIDTH}]+(?=[A-Za-z0-9])")
_ESCAPE = re.compile("[\x1b\x9b]|\x08{2,}")
_SURROGATE = re.compile("[\ud800-\udfff]")

BLOCKING: Final = frozenset({"hidden:tags", "hidden:selectors", "hidden:bidi-override", "hidden:zero-width-run"})
"""Channels that carry text no reader can see: a verdict by themselves. The others are only worth a flag."""


@dataclass(frozen=True, slots=True)
class Normal:
    """A normalised text. `starts[i]` is the original offset of character i (None: they are the same text)."""

    original: str
    text: str
    starts: array[int] | None
    hidden: tuple[Span, ...]

    def span(self, start: int, end: int) -> tuple[int, int]:
        """Return the original half-open range behind the normalised range *start*..*end*.

        A character that was expanded (a ligature) is covered whole; invisible characters inside are covered too,
        those around the range are not.
        """
        if self.starts is None:
            return start, end
        if start >= end:
            at = self.starts[start] if start < len(self.starts) else len(self.original)
            return at, at
        first, last = self.starts[start], self.starts[end - 1]
        after = end
        while after < len(self.starts) and self.starts[after] == last:
            after += 1
        stop = self.starts[after] if after < len(self.starts) else len(self.original)
        while stop > last + 1 and _DROPPED.match(self.original[stop - 1]):
            stop -= 1
        return first, stop


def normalize(text: str) -> Normal:
    """Return *text* in one spelling, with its offset map and what it tried to hide."""
    if text.isascii():
        if text.isprintable() or text.translate(_BREAKS).isprintable() or not _ASCII_CONTROL.search(text):
            return Normal(text, text, None, ())
    elif all(map(_is_plain, set(text))) or (not _UNUSUAL.search(text) and unicodedata.is_normalized("NFKC", text)):
        return Normal(text, text, None, ())
    rewritten, starts = _rewrite(text)
    return Normal(text, rewritten, starts, find_hidden(text))


def find_hidden(text: str) -> tuple[Span, ...]:
    """Return the hidden channels of *text*: what a model would read and a person cannot see."""
    spans: list[Span] = []
    flags = {match.start() + 1: match.end() for match in _FLAG_EMOJI.finditer(text)}
    for run in _TAG_RUN.finditer(text):
        start = flags.get(run.start(), run.start())  # a flag's tags are its own; what goes on behind them is not
        if start < run.end():
            spans.append(Span(start, run.end(), "hidden:tags"))
    for pattern, kind in (
        (_SELECTOR_RUN, "hidden:selectors"),
        (_LONE_SUPPLEMENT, "hidden:selectors"),
        (_OVERRIDE, "hidden:bidi-override"),
        (_ZERO_RUN, "hidden:zero-width-run"),
        (_ZERO_IN_WORD, "hidden:zero-width"),
        (_ESCAPE, "hidden:control"),
        (_SURROGATE, "malformed:surrogate"),
    ):
        spans += [Span(*m.span(), kind) for m in pattern.finditer(text)]
        if len(spans) > MAX_SPANS:
            break
    return tuple(sorted(spans[:MAX_SPANS], key=lambda span: (span.start, span.end, span.type)))


def _rewrite(text: str) -> tuple[str, array[int]]:
    """Normalise run by run: ASCII runs are copied, the others go through character by character."""
    parts: list[str] = []
    starts = array("I")
    at = 0
    for run in _NON_ASCII.finditer(text):
        begin, end = run.span()
        if at < begin:
            # A mark can join the ASCII letter before it, so that letter is part of the run.
            if _FOLLOWS.match(text[begin]):
                begin -= 1
            parts.append(text[at:begin])
            starts.extend(range(at, begin))
        _rewrite_run(text, begin, end, parts, starts)
        at = end
    parts.append(text[at:])
    starts.extend(range(at, len(text)))
    return "".join(parts), starts


def _rewrite_run(text: str, begin: int, end: int, parts: list[str], starts: array[int]) -> None:
    at = begin
    while at < end:
        after = at + 1
        if after < end and _FOLLOWS.match(text[after]):
            while after < end and (_FOLLOWS.match(text[after]) or _DROPPED.match(text[after])):
                after += 1
            spelled = _spell_cluster(text[at:after])
        else:
            spelled = _spell(text[at])
        parts.append(spelled)
        starts.extend([at] * len(spelled))
        at = after


def _spell_cluster(cluster: str) -> str:
    """Compose a letter with its marks. More marks than any language writes (zalgo) are decoration and go."""
    spelled = "".join(_spell(character) for character in cluster)
    composed = unicodedata.normalize("NFKC", spelled)
    marks = sum(1 for character in cluster if _FOLLOWS.match(character))
    if marks > MARKS_KEPT or len(composed) > 1:
        bare = "".join(c for c in composed if not unicodedata.combining(c))
        return unicodedata.normalize("NFKD", bare)[:1] if marks > MARKS_KEPT and bare else bare
    return composed


@lru_cache(maxsize=8192)
def _is_plain(character: str) -> bool:
    """Return whether *character* is spelt one way only, whatever stands beside it."""
    if character.isascii():
        return character.isprintable() or character in "\t\n\r"
    joins = unicodedata.combining(character) or unicodedata.category(character).startswith("M")
    return not joins and not _UNUSUAL.match(character) and unicodedata.is_normalized("NFKC", character)


@lru_cache(maxsize=8192)
def _spell(character: str) -> str:
    if _DROPPED.match(character):
        return ""
    if _SURROGATE.match(character):
        return REPLACEMENT
    if character in "\u0085\u2028\u2029":
        return "\n"
    if character == "\u2800":
        return " "
    return _UNCOMPOSED.get(character) or unicodedata.normalize("NFKC", character)
