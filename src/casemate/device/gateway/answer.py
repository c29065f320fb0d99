"""The guard on the way out: engine text in, safe text out, for one choice of an answer."""

from __future__ import annotations

import collections
from typing import Protocol

from casemate.guard import Action, Channel, GuardPolicy, Span


class Emission(Protocol):
    """What the output guard lets out for one piece of text."""

    @property
    def text(self) -> str:
        """Return what may be sent now."""
        ...

    @property
    def spans(self) -> tuple[Span, ...]:
        """Return the findings that were replaced."""
        ...

    @property
    def stop(self) -> str | None:
        """Return why the answer must end now, or None."""
        ...


class OutputGuard(Protocol):
    """One stream through the guard: it may hold text back until it knows what it is."""

    def feed(self, text: str) -> Emission:
        """Take more text."""
        ...

    def flush(self) -> Emission:
        """End of text: let out what was held."""
        ...


class Answer:
    """Collects one choice. After `stopped` is set nothing more comes out."""

    def __init__(self, guard: OutputGuard, policy: GuardPolicy) -> None:
        """Send every character through *guard*; *policy* tells a replaced finding from one that was only noted."""
        self._guard = guard
        self._policy = policy
        self.redacted: collections.Counter[str] = collections.Counter()
        self.noted: collections.Counter[str] = collections.Counter()
        self.stopped: str | None = None

    def feed(self, text: str) -> str:
        """Return what may be sent after *text* came."""
        return "" if self.stopped else self._take(self._guard.feed(text))

    def flush(self) -> str:
        """Return what was held back, at the end."""
        return "" if self.stopped else self._take(self._guard.flush())

    def _take(self, emission: Emission) -> str:
        for span in emission.spans:
            replaced = self._policy.entity_action(Channel.OUTPUT, span.type) is not Action.FLAG
            (self.redacted if replaced else self.noted)[span.type] += 1
        self.stopped = emission.stop
        return emission.text
