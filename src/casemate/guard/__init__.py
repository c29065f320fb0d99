"""The guard: text and channel in, a verdict or a redaction out. Pure: no I/O, no clock."""

from casemate.guard.documents import Document
from casemate.guard.pipeline import Guard
from casemate.guard.verdict import (
    Action,
    Channel,
    GuardPolicy,
    Judged,
    OverBudget,
    Redaction,
    Span,
    Verdict,
    never_over,
)

__all__ = [
    "Action",
    "Channel",
    "Document",
    "Guard",
    "GuardPolicy",
    "Judged",
    "OverBudget",
    "Redaction",
    "Span",
    "Verdict",
    "never_over",
]
