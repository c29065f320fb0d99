"""What must hold of the redaction of any text at all, for hypothesis, atheris and the hostile texts."""

from __future__ import annotations

import itertools

from casemate.guard.engine_scan import PythonScanner, best_scanner
from casemate.guard.entities import QUIET
from casemate.guard.placeholders import Placeholders
from casemate.guard.redact import redact_text
from casemate.guard.stream import StreamRedactor
from casemate.guard.verdict import Action, Channel, GuardPolicy

NAMES = Placeholders(bytes(32))
EVERY_KIND = GuardPolicy(output_entities={"*": Action.REDACT, **dict.fromkeys(QUIET, Action.REDACT)})
SCANNERS = (best_scanner(), PythonScanner())


class Nothing:
    """Finds no place special: everything is read."""

    def survey(self, text, *, dates):
        return None


def redacted(text, scanner=None):
    return redact_text(text, EVERY_KIND, Channel.OUTPUT, NAMES, scanner)


def streamed(text, sizes):
    """Return output, spans and the reason to stop of *text* in chunks of *sizes*, over and over."""
    redactor, out, spans, at = StreamRedactor(EVERY_KIND, NAMES), "", (), 0
    for size in itertools.cycle(sizes):
        emission = redactor.feed(text[at : at + size]) if at < len(text) else redactor.flush()
        out, spans = out + emission.text, spans + emission.spans
        if emission.stop or at >= len(text):
            return out, spans, emission.stop
        at += size
    raise AssertionError("sizes are empty")


def assert_sound(text, sizes=(7,)):
    """Spans are in order and inside; streams and every way of scanning agree; nothing is found a second time."""
    whole = redacted(text)
    at = 0
    for span in whole.spans:
        assert at <= span.start < span.end <= len(text)
        at = span.end
    for scanner in (*SCANNERS, Nothing()):
        assert redacted(text, scanner) == whole
    out, spans, stop = streamed(text, sizes)
    assert stop in (None, "cap")
    assert (out, spans) == (whole.text, whole.spans)
