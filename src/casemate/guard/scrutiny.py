"""The second look at an answer, after its values were taken out: abuse, the operator's own words, tolerated leaks.

A tolerated leak is one that a policy wants replaced or noted instead of stopped. What stops an answer at a leak is the
first look's (`output`, inside the redactor), which sees the text before anything leaves. Here a leak is dropped word by
word from where it is recognised, or told.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

from casemate.guard.output import Lookout, OutputWatch
from casemate.guard.phrases import Match, Phrases, find_phrases
from casemate.guard.stream import Emission, StreamRedactor
from casemate.guard.verdict import Action, GuardPolicy, Span

ABUSE: Final = "abuse:"
ABUSE_KINDS: Final = frozenset({"abuse:mild", "abuse:strong", "abuse:severe"})
TERM: Final = "term:listed"
NOTED_TERM: Final = "term:noted"
CANARY: Final = "canary"
OVERLAP: Final = "system-overlap"
_MARKS: Final = {CANARY: "[MARK]", OVERLAP: "[SYSTEM_PROMPT]", TERM: "[TERM]"}
_WORDS = re.compile(r"\S+\s*|\s+")


def watch_of(canaries: tuple[str, ...], system_prompt: str, policy: GuardPolicy, wanted: Action) -> OutputWatch:
    """Return what to watch for of what *policy* answers with the action *wanted*."""
    return OutputWatch(
        canaries if policy.canary_leak is wanted else (), system_prompt if policy.system_overlap is wanted else ""
    )


def abuse_phrases(listed: Mapping[str, Sequence[str]]) -> Phrases:
    """Return the phrases *listed* by severity, ready to be looked for."""
    return Phrases({ABUSE + severity: phrases for severity, phrases in listed.items()})


class Scrutiny:
    """One stream of an answer through both looks. After a `stop` nothing leaves any more."""

    def __init__(
        self,
        redactor: StreamRedactor,
        policy: GuardPolicy,
        abuse: Phrases,
        leaks: Sequence[tuple[OutputWatch, Action]] = (),
    ) -> None:
        """Look at what *redactor* lets out; *abuse* is by `abuse_phrases`; *leaks* are replaced or noted."""
        self._redactor = redactor
        self._actions = {
            **{ABUSE + severity: action for severity, action in policy.abuse.items()},
            **{_term_kind(action): action for action in policy.terms.values()},
            CANARY: policy.canary_leak,
            OVERLAP: policy.system_overlap,
        }
        kinds: dict[str, list[str]] = {}
        for term, action in policy.terms.items():
            kinds.setdefault(_term_kind(action), []).append(term)
        ignored = {kind for kind in ABUSE_KINDS if self.action(kind) is Action.ALLOW}
        wanted = {kind: terms for kind, terms in kinds.items() if self.action(kind) is not Action.ALLOW}
        self._phrases = (Phrases(wanted), abuse) if wanted else (abuse,)
        self._ignored = ignored
        self._idle = not wanted and len(ignored) == len(ABUSE_KINDS)
        self._lookouts: list[tuple[Lookout, Action]] = [
            (watch.begin(), action) for watch, action in leaks if watch.grams or watch.shingles
        ]
        self._held = ""
        self._last_mark = ""
        self._noted: set[str] = set()
        self._stopped: str | None = None

    @property
    def held(self) -> int:
        """Return how many characters are held back."""
        return self._redactor.held + len(self._held)

    def action(self, kind: str) -> Action:
        """Return what the policy does with a finding of *kind*."""
        return self._actions.get(kind, Action.ALLOW)

    def feed(self, text: str) -> Emission:
        """Take the next piece of the stream and return what may leave."""
        return self._second(self._redactor.feed(text), final=False)

    def flush(self) -> Emission:
        """Return the rest: the stream has ended."""
        return self._second(self._redactor.flush(), final=True)

    def _second(self, first: Emission, *, final: bool) -> Emission:
        if self._stopped is not None:
            return Emission(stop=self._stopped)
        if self._idle and not self._lookouts:
            self._stopped = first.stop
            return first
        try:
            emission = self._look(first, final=final or first.stop is not None)
        except Exception:  # noqa: BLE001 - whatever breaks inside, nothing more leaves
            emission = Emission(stop="guard-error")
        self._stopped = emission.stop
        return emission

    def _look(self, first: Emission, *, final: bool) -> Emission:
        text = self._held + first.text
        seen = find_phrases(text, self._phrases, final=final, without=self._ignored)
        self._held = text[seen.hold :]
        out: list[str] = []
        spans = list(first.spans)
        at = 0
        for match in seen.matches:
            out.append(text[at : match.start])
            action = self.action(match.kind)
            kind = _told(match.kind)
            if action is Action.BLOCK:
                return Emission(self._leaks("".join(out), spans), tuple(spans), f"block:{kind}")
            spans.append(Span(match.start, match.end, kind))
            out.append(_mark(match) if action is Action.REDACT else text[match.start : match.end])
            at = match.end
        out.append(text[at : seen.hold])
        return Emission(self._leaks("".join(out), spans), tuple(spans), first.stop)

    def _leaks(self, text: str, spans: list[Span]) -> str:
        """Return *text* without the words in which a leak was recognised."""
        if not self._lookouts:
            return text
        shown: list[str] = []
        for word in _WORDS.findall(text):
            leak = next(((found, action) for w, action in self._lookouts if (found := w.look(word))), None)
            if leak is None:
                shown.append(word)
                self._last_mark = "" if word.strip() else self._last_mark
                continue
            kind, action = leak
            if kind not in self._noted:
                self._noted.add(kind)
                spans.append(Span(0, 0, kind))
            if action is not Action.REDACT:
                shown.append(word)
            elif self._last_mark != kind:
                shown.append(_MARKS[kind] + word[len(word.rstrip()) :])
                self._last_mark = kind
        return "".join(shown)


def _term_kind(action: Action) -> str:
    return f"{TERM}:{action}"


def _told(kind: str) -> str:
    """Return how a finding is told: never which of the operator's words it was."""
    if not kind.startswith(TERM):
        return kind
    return NOTED_TERM if kind == _term_kind(Action.FLAG) else TERM


def _mark(match: Match) -> str:
    return _MARKS[TERM] if match.kind.startswith(TERM) else f"[{match.kind.partition(':')[0].upper()}]"
