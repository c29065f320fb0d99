"""The guard on the way out: engine text in, safe text out, for one choice of an answer."""

from __future__ import annotations

import collections
from typing import Final, Protocol

from casemate.guard import Action, GuardPolicy, Span
from casemate.guard.conformity import Form

SCHEMA: Final = "schema"


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

    def __init__(self, guard: OutputGuard, policy: GuardPolicy, form: Form | None = None) -> None:
        """Send every character through *guard*; *policy* tells a replaced finding from one that was only noted.

        An answer that was asked to have a *form* is checked at its end, on what the client would get. Where the policy
        blocks what does not fit, nothing leaves before.
        """
        self._guard = guard
        self._policy = policy
        self._form = form if policy.schema is not Action.ALLOW else None
        self._whole: list[str] = []
        self.redacted: collections.Counter[str] = collections.Counter()
        self.noted: collections.Counter[str] = collections.Counter()
        self.stopped: str | None = None

    def feed(self, text: str) -> str:
        """Return what may be sent after *text* came."""
        return "" if self.stopped else self._shape(self._take(self._guard.feed(text)))

    def flush(self) -> str:
        """Return what was held back, at the end."""
        if self.stopped:
            return ""
        last = self._shape(self._take(self._guard.flush()))
        return last if self._form is None or self.stopped else self._judge_form(last)

    def _shape(self, text: str) -> str:
        """Keep *text* for the check at the end; return what of it may leave now."""
        if self._form is None:
            return text
        self._whole.append(text)
        return "" if self._policy.schema is Action.BLOCK else text

    def _judge_form(self, last: str) -> str:
        whole = "".join(self._whole)
        held = self._policy.schema is Action.BLOCK
        if self._form and not self._form.fits(whole):
            if held:
                self.stopped = SCHEMA
                return ""
            self.noted[SCHEMA] += 1
        return whole if held else last

    def _take(self, emission: Emission) -> str:
        for span in emission.spans:
            replaced = self._policy.answer_action(span.type) is not Action.FLAG
            (self.redacted if replaced else self.noted)[span.type] += 1
        self.stopped = emission.stop
        return emission.text
