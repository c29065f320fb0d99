"""Walks a text segment by segment and writes what becomes of it: the one loop behind whole texts and streams."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final, NamedTuple, cast

from casemate.guard.engine_scan import Survey
from casemate.guard.entities import pem
from casemate.guard.fold import View
from casemate.guard.json_text import JsonState
from casemate.guard.output import Lookout
from casemate.guard.segments import CAPPED, UNDECIDED, anchor_before, next_cut, plain_words
from casemate.guard.session import Piece, Session
from casemate.guard.verdict import Span

SWALLOW_CAP: Final = 65536
SKIP: Final = 24
_BLANKS = re.compile(r"\s+")


@dataclass(slots=True)
class Progress:
    """The state between two calls: where to look for a cut, from what length on, and what value is being dropped."""

    scan: int = 0
    wait: int = 0
    swallowing: str = ""
    swallowed: int = 0
    json: JsonState = field(default_factory=JsonState)


class Done(NamedTuple):
    """What a stretch of text became: output and spans (offsets in the stretch), how much was used, why to stop."""

    text: str
    spans: list[Span]
    used: int
    used_folded: int
    stop: str | None


class Flow:
    """Redacts the complete segments of a stretch. With a lookout (streams), it stops before what must not leave."""

    def __init__(self, raw: str, view: View, session: Session, progress: Progress, lookout: Lookout | None) -> None:
        self._raw = raw
        self._view = view
        self._session = session
        self._progress = progress
        self._lookout = lookout
        self._spans: list[Span] = []
        self._out: list[str] = []
        self._sent = 0
        self._read = 0
        self._stop: str | None = None
        self._capped = False

    def run(self, *, final: bool) -> Done:
        """Redact what is complete; *final* says that the text ends with the stretch."""
        if not final and len(self._view.text) < self._progress.wait:
            return Done("", [], 0, 0, None)
        self._progress.wait = 0
        start = self._walk(0, len(self._view.text), final=final)
        if self._capped:
            return self._done(len(self._raw), len(self._view.text))
        used = self._view.starting(start) if self._stop or not final else len(self._raw)
        self._progress.scan -= start
        return self._done(used, start)

    def run_near(self, survey: Survey) -> Done:
        """Redact a whole text of which only the segments near the survey's places can hold a value."""
        text, session = self._view.text, self._session
        start = 0
        for place, until in survey.places:
            if until < start:
                continue
            if place - start > SKIP:
                anchor = anchor_before(text, start, place)
                session.skip(text, start, anchor)
                start = self._progress.scan = anchor
            while start <= until and self._stop is None and start < len(text):
                plain = plain_words(text, start, place, session.tail, names=survey.names)
                session.skip(text, start, plain)
                start = self._progress.scan = plain
                start = self._walk(start, start, final=True)
            if self._stop is not None:
                break
        return self._done(len(self._raw), len(text))

    def _walk(self, start: int, until: int, *, final: bool) -> int:
        """Redact segment by segment from *start* until one ends after *until*; return where the next one begins."""
        text, progress = self._view.text, self._progress
        while start < len(text) and start <= until and self._stop is None:
            if text[start].isspace() and not progress.swallowing:
                start = progress.scan = self._blanks(start)
                continue
            cut = next_cut(text, start, progress.scan, self._session.tail, final=final)
            progress.scan = cut.scan
            if cut.end == UNDECIDED:
                progress.wait = len(text) - start + cut.more
                break
            if cut.end == CAPPED:
                self._cap(start, cut.scan)
                break
            if progress.swallowing:
                start = self._swallow(start, cut.end, forced=cut.forced)
            else:
                start = self._segment(start, cut.end, forced=cut.forced)
            progress.scan = start
        return start

    def _blanks(self, start: int) -> int:
        """Let a run of blanks out, of which each would be a segment that holds nothing; return where it ends."""
        end = cast("re.Match[str]", _BLANKS.match(self._view.text, start)).end()
        if self._lookout is not None:
            self._stop = self._lookout.look(self._view.text[start:end])
            if self._stop is not None:
                return start
        self._session.skip(self._view.text, start, end)
        return end

    def _segment(self, start: int, end: int, *, forced: bool) -> int:
        """Write one segment and return where the next one begins.

        A forced segment is a window in a run without gaps: only its first half goes out, or less, so that a value
        across that line is seen whole in the next window. A value as long as the window is dropped up to the end of
        the run.
        """
        folded = self._view.text[start:end]
        pieces = self._session.pieces(folded)
        if forced:
            line = self._line(pieces, len(folded))
            pieces = [p._replace(end=min(p.end, line)) for p in pieces if p.start < line]
            folded = folded[:line]
        if self._lookout is not None:
            self._stop = self._lookout.look(folded)
            if self._stop is not None:
                return start
        self._session.put_out(folded, pieces)
        return self._write(start, start + len(folded), pieces)

    def _line(self, pieces: list[Piece], size: int) -> int:
        line = size // 2
        for piece in pieces:
            if piece.start < line < piece.end and piece.special:
                if piece.start == 0 and piece.end == size and piece.kind:
                    self._progress.swallowing, self._progress.swallowed = piece.kind, 0
                return piece.start or piece.end
        return line

    def _swallow(self, start: int, end: int, *, forced: bool) -> int:
        """Drop the rest of a value that was longer than a window; one that never ends is a reason to stop."""
        progress = self._progress
        kind = progress.swallowing
        if not forced:
            progress.swallowing = ""
        if self._view.text[start].isspace():
            return self._segment(start, end, forced=forced)
        progress.swallowed += end - start
        if progress.swallowed > SWALLOW_CAP:
            self._stop = "cap"
        return self._write(start, end, [Piece(0, end - start, kind, "")])

    def _cap(self, start: int, end: int) -> None:
        """Replace a block that is too long to be waited for, and let nothing after it out."""
        self._stop, self._capped = "cap", True
        text = self._view.text
        header = cast("re.Match[str]", pem.find_header(text, start, end))
        before = self._session.pieces(text[start : header.start()])
        self._write(start, header.start(), before)
        if self._stop == "cap":  # nothing before the key asked for a stop of its own
            self._write(header.start(), end, [self._session.key_block(text[header.start() : end])])
            last = self._spans.pop()
            self._spans.append(Span(last.start, len(self._raw), last.type))
        self._sent = len(self._raw)

    def _write(self, start: int, end: int, pieces: list[Piece]) -> int:
        """Put *pieces* (relative to the folded offset *start*) over the original text; return where they end."""
        for piece in pieces:
            if not piece.kind:
                continue
            first, last = self._view.original(start + piece.start, start + piece.end)
            self._spans.append(Span(first, last, piece.kind))
            if self._lookout is not None and self._session.blocks(piece.kind):
                self._stop = f"block:{piece.kind}"
                return start + piece.start
            if piece.mark is not None:
                self._replace(first, last, end, piece.mark)
        return end

    def _replace(self, first: int, last: int, end: int, mark: str) -> None:
        """Put *mark* in the place of the original's *first*..*last*, which belong to a segment that ends at *end*."""
        json = self._progress.json
        json.pass_over(self._raw, self._read, first)
        first, self._read, quoted = json.cover(self._raw, first, last, self._sent, self._view.starting(end))
        if first < self._sent:
            return
        self._out += (self._raw[self._sent : first], f'"{mark}"' if quoted and mark else mark)
        self._sent = self._read

    def _done(self, used: int, used_folded: int) -> Done:
        self._progress.json.pass_over(self._raw, self._read, used)
        self._out.append(self._raw[self._sent : used])
        return Done("".join(self._out), self._spans, used, used_folded, self._stop)
