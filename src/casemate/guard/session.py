"""What becomes of one segment: its values found, settled among each other and replaced.

A session remembers the folded end of what it has put out: the left context in which the next segment is read.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

from casemate.guard.entities import CONTEXT, QUIET, Found, Window, find_all, find_spaced, is_idle
from casemate.guard.links import IMAGE, LINK, REMOVED, find_links
from casemate.guard.placeholders import PLACEHOLDER, Placeholders
from casemate.guard.verdict import Action, Channel, GuardPolicy

MAX_ROUNDS: Final = 4
KEY_BLOCK: Final = "secret:private-key"
_ACTING: Final = frozenset({Action.REDACT, Action.BLOCK})


class Piece(NamedTuple):
    """A range of a segment's folded text and what replaces it (None: the text itself)."""

    start: int
    end: int
    kind: str
    mark: str | None

    @property
    def special(self) -> bool:
        """Return whether this is a value or a placeholder, which must stay whole."""
        return bool(self.kind) or self.mark is not None


@dataclass(frozen=True, slots=True)
class Settings:
    """What to do with which kind, for one channel."""

    policy: GuardPolicy
    channel: Channel

    def action(self, kind: str) -> Action:
        """Return the policy's action for *kind* on this channel."""
        if kind in QUIET:
            table = self.policy.output_entities if self.channel is Channel.OUTPUT else self.policy.input_entities
            return table.get(kind, Action.ALLOW)
        return self.policy.entity_action(self.channel, kind)


class Session:
    """Redacts the segments of one text in order; remembers only the folded end of what it has put out."""

    def __init__(self, settings: Settings, placeholders: Placeholders) -> None:
        self._settings = settings
        self._placeholders = placeholders
        self.tail = ""

    def blocks(self, kind: str) -> bool:
        """Return whether the policy wants a text with *kind* stopped."""
        return self._settings.action(kind) is Action.BLOCK

    def pieces(self, folded: str) -> list[Piece]:
        """Return the pieces of the segment *folded*: text, replaced values and flagged values, in order.

        What is left after a round is looked at again beside its placeholders, so a second redaction finds nothing new.
        """
        if is_idle(self.tail, folded):
            return [Piece(0, len(folded), "", None)]
        pieces = [*_split_placeholders(folded)]
        for number in range(MAX_ROUNDS):
            pieces, changed = self._round(folded, pieces, busy=number == 0 and len(pieces) == 1)
            if not changed:
                break
        return pieces

    def key_block(self, folded: str) -> Piece:
        """Return *folded*, a private key too long to be read through, as one piece."""
        acting = self._settings.action(KEY_BLOCK) in _ACTING
        return Piece(0, len(folded), KEY_BLOCK, self._mark(KEY_BLOCK, folded) if acting else None)

    def skip(self, folded: str, start: int, end: int) -> None:
        """Note that *folded* from *start* to *end*, which holds nothing, has become output as it is."""
        self.tail = (self.tail + folded[max(start, end - CONTEXT) : end])[-CONTEXT:]

    def put_out(self, folded: str, pieces: list[Piece]) -> None:
        """Note that *pieces* of *folded* have become output: they are the context of what follows."""
        if len(pieces) == 1 and pieces[0].mark is None:
            self.skip(folded, 0, len(folded))
            return
        shown = "".join(p.mark if p.mark is not None else folded[p.start : p.end] for p in pieces)
        self.tail = (self.tail + shown)[-CONTEXT:]

    def _round(self, folded: str, pieces: list[Piece], *, busy: bool) -> tuple[list[Piece], bool]:
        """Look at every piece once; *busy*: it is known that something may be found."""
        tail = self.tail
        after: list[Piece] = []
        changed = False
        for piece in pieces:
            text = folded[piece.start : piece.end]
            if not piece.special and (busy or not is_idle(tail, text)):
                found = self._find(tail, text)
                parts = self._cut(folded, piece, found)
                changed = changed or len(parts) > 1 or parts[0].special
                after.extend(parts)
            else:
                after.append(piece)
            tail = (tail + (piece.mark or text))[-CONTEXT:]
        return after, changed

    def _find(self, tail: str, text: str) -> list[Found]:
        window = Window(tail, text)
        base = window.base
        found = [*find_all(window), *find_spaced(window)]
        if self._settings.channel is Channel.OUTPUT:
            found.extend(find_links(window, self._settings.policy.link_hosts))
        if not found:
            return found
        kept = [
            Found(f.start - base, f.end - base, f.kind, f.rank)
            for f in found
            if self._settings.action(f.kind) is not Action.ALLOW and f.start >= base
        ]
        return _resolve(kept)

    def _cut(self, folded: str, piece: Piece, found: list[Found]) -> list[Piece]:
        parts: list[Piece] = []
        at = piece.start
        for f in found:
            start, end = piece.start + f.start, piece.start + f.end
            value = folded[start:end]
            if value in self._settings.policy.allow_values:
                continue
            acting = self._settings.action(f.kind) in _ACTING
            if start > at:
                parts.append(Piece(at, start, "", None))
            parts.append(Piece(start, end, f.kind, self._mark(f.kind, value) if acting else None))
            at = end
        if at < piece.end or not parts:
            parts.append(Piece(at, piece.end, "", None))
        return parts

    def _mark(self, kind: str, value: str) -> str:
        return REMOVED if kind in (IMAGE, LINK) else self._placeholders.for_value(kind, value)


def _split_placeholders(folded: str) -> Iterable[Piece]:
    if "[" not in folded:
        return (Piece(0, len(folded), "", None),)
    return _around_placeholders(folded)


def _around_placeholders(folded: str) -> Iterable[Piece]:
    at = 0
    for match in PLACEHOLDER.finditer(folded):
        if match.start() > at:
            yield Piece(at, match.start(), "", None)
        yield Piece(*match.span(), "", match[0])
        at = match.end()
    if at < len(folded) or at == 0:
        yield Piece(at, len(folded), "", None)


def _resolve(found: list[Found]) -> list[Found]:
    """Keep the longest of overlapping values, grown to cover what the losers covered: nothing shows through."""
    kept: list[Found] = []
    for f in sorted(found, key=lambda f: (f.start - f.end, f.rank, f.start, f.kind)):
        clash = [k for k in kept if k.start < f.end and f.start < k.end]
        if not clash:
            kept.append(f)
            continue
        start, end = min(f.start, *(k.start for k in clash)), max(f.end, *(k.end for k in clash))
        kept = [k for k in kept if k not in clash]
        kept.append(Found(start, end, clash[0].kind))
    return sorted(kept)
