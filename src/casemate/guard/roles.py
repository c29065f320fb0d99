"""Chat-template tokens where only text belongs: an engine would read them as a change of speaker.

Decides whether a text opens a role of its own (`role:open`, a verdict) or merely holds such tokens (`role:token`,
worth a flag), and defuses them so that a tokenizer cannot take them for control tokens.
"""

from __future__ import annotations

import re
from typing import Final

from casemate.guard.verdict import Span

MAX_SPANS: Final = 32

_NAMES: Final = (
    "im_start|im_end|im_sep|system|user|assistant|human|developer|tool|end|endoftext|begin_of_text|end_of_text|"
    "start_header_id|end_header_id|eot_id|eom_id|start_of_role|end_of_role|end_of_turn|start_of_turn|eos|bos|"
    "startoftext|channel|message|start|return|call|constrain|python_tag|fim_prefix|fim_suffix|fim_middle|"
    "begin▁of▁sentence|end▁of▁sentence|tool▁calls▁begin|observation|eot|sep|pad|endofprompt|eod"
)
_TOKEN = re.compile(
    rf"<\s?\|\s?(?:{_NAMES})\s?\|\s?>"
    r"|\[/?INST\]|<</?SYS>>|\[/?(?:SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_RESULTS|TOOL_CALLS)\]"
    r"|</?(?:start_of_turn|end_of_turn|bos|eos|unused\d{1,2})>"
    r"|<\|[A-Z_]{3,24}_TOKEN\|>",
    re.IGNORECASE,
)
_OPEN = re.compile(
    r"<\s?\|\s?(?:im_start|start_header_id|start_of_role|start)\s?\|\s?>\s{0,4}(?:system|developer|assistant|user|tool)\b"
    r"|<\s?\|\s?(?:system|developer|assistant)\s?\|\s?>\s{0,4}[^\s<]"
    r"|<start_of_turn>\s{0,4}(?:system|model|developer|user)\b"
    r"|<<SYS>>|\[SYSTEM_PROMPT\]"
    r"|\[/INST\][^\[]{0,400}\[INST\]"
    r"|<\|[A-Z_]{0,16}(?:SYSTEM|CHATBOT|USER)_TOKEN\|>",
    re.IGNORECASE,
)


def find_roles(text: str) -> tuple[Span, ...]:
    """Return the spans of control tokens in the normalised *text*: `role:open` or `role:token`.

    Of too many what opens a role stays: a crowd of tokens must not hide it.
    """
    if "<" not in text and "[" not in text:
        return ()
    spans = [Span(*match.span(), "role:open") for match in _limited(_OPEN, text)]
    opened = [(span.start, span.end) for span in spans]
    tokens = (match.span() for match in _limited(_TOKEN, text))
    spans += [Span(*token, "role:token") for token in tokens if not any(a <= token[0] < b for a, b in opened)]
    return tuple(sorted(spans[:MAX_SPANS], key=lambda span: span.start))


def defuse(text: str) -> str:
    """Return *text* with control tokens split, so that no tokenizer reads them as control and a person still can."""
    if "<" not in text and "[" not in text:
        return text
    return _TOKEN.sub(_split, text)


def _split(match: re.Match[str]) -> str:
    token = match.group()
    return token[0] + " " + token[1:]


def _limited(pattern: re.Pattern[str], text: str) -> list[re.Match[str]]:
    found: list[re.Match[str]] = []
    for match in pattern.finditer(text):
        found.append(match)
        if len(found) >= MAX_SPANS:
            break
    return found
