"""Redaction of a text that comes in pieces: what leaves is what the whole text would have become."""

from __future__ import annotations

from dataclasses import dataclass

from casemate.guard.flow import Flow, Progress
from casemate.guard.fold import View, fold, join, open_escape
from casemate.guard.output import OutputWatch
from casemate.guard.placeholders import Placeholders
from casemate.guard.session import Session, Settings
from casemate.guard.verdict import Channel, GuardPolicy, Span


@dataclass(frozen=True, slots=True)
class Emission:
    """What may leave now. `spans` are in code points of the whole stream; `stop` says why the stream must end."""

    text: str = ""
    spans: tuple[Span, ...] = ()
    stop: str | None = None


class StreamRedactor:
    """Redacts one stream (one choice, or one tool call's arguments). After a `stop` nothing leaves any more."""

    def __init__(self, policy: GuardPolicy, placeholders: Placeholders, watch: OutputWatch | None = None) -> None:
        self._settings = Settings(policy, Channel.OUTPUT)
        self._session = Session(self._settings, placeholders)
        self._lookout = (watch or OutputWatch()).begin()
        self._progress = Progress()
        self._raw = ""
        self._view = View()
        self._escape = ""
        self._sent = 0
        self._stopped: str | None = None

    @property
    def held(self) -> int:
        """Return how many characters are held back."""
        return len(self._raw) + len(self._escape)

    def feed(self, text: str) -> Emission:
        """Take the next piece of the stream and return what may leave."""
        return self._guarded(text, final=False)

    def flush(self) -> Emission:
        """Return the rest: the stream has ended."""
        return self._guarded("", final=True)

    def _guarded(self, text: str, *, final: bool) -> Emission:
        if self._stopped is not None:
            return Emission(stop=self._stopped)
        try:
            emission = self._take(text, final=final)
        except Exception:  # noqa: BLE001 - whatever breaks inside, nothing more leaves
            emission = Emission(stop="guard-error")
        if emission.stop is not None:
            self._stopped = emission.stop
            self._raw, self._escape, self._view = "", "", View()
        return emission

    def _take(self, text: str, *, final: bool) -> Emission:
        chunk = self._escape + text
        open_length = 0 if final else open_escape(chunk)
        ready = chunk[: len(chunk) - open_length]
        self._escape = chunk[len(chunk) - open_length :]
        if ready:
            self._view = join(self._view, len(self._raw), fold(ready))
            self._raw += ready
        done = Flow(self._raw, self._view, self._session, self._progress, self._lookout).run(final=final)
        offset = self._sent
        self._sent += done.used
        self._raw = self._raw[done.used :]
        self._view = self._view.dropped(done.used_folded, done.used)
        spans = tuple(Span(s.start + offset, s.end + offset, s.type) for s in done.spans)
        return Emission(done.text, spans, done.stop)
