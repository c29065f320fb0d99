"""What is counted in a period, and the true answer to a question that follows from it. Never leaves the device."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from casemate.device.usage.randomize import bucket_of
from casemate.formats import ipc
from casemate.formats.usage import LATENCY, SHARE_OF, Question

MOST: Final = 1 << 53
_SLOTS: Final = len(LATENCY) + 1
Number = Annotated[int, msgspec.Meta(ge=0, le=MOST)]


class Counts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Requests that reached the guard, the tokens of those that were answered, and how long these took.

    `latency` has the answered requests by the edges of `formats.usage.LATENCY`, the slower ones last.
    """

    requests: Number = 0
    refused: Number = 0
    tokens: Number = 0
    latency: Annotated[tuple[Number, ...], msgspec.Meta(min_length=_SLOTS, max_length=_SLOTS)] = (0,) * _SLOTS

    def plus(self, more: ipc.Used) -> Counts:
        """Return the counts with *more*; a gateway that lies about shape or size adds nothing to what it lied about."""
        latency = self.latency
        if len(more.latency) == _SLOTS:
            latency = tuple(_sum(old, new) for old, new in zip(latency, more.latency, strict=True))
        return Counts(
            _sum(self.requests, more.requests),
            _sum(self.refused, more.refused),
            _sum(self.tokens, more.tokens),
            latency,
        )

    def true_answer(self, question: Question) -> int:
        """Return the number of the true answer to *question*."""
        return bucket_of(self._value(question.name), question.edges)

    def _value(self, name: str) -> int:
        if name == "latency":
            return self._median()
        if name == "refused":
            return -1 if not self.requests else -(-self.refused * SHARE_OF // self.requests)  # rounded up: one is some
        return {"in_use": self.requests, "requests": self.requests, "tokens": self.tokens}[name]

    def _median(self) -> int:
        """Return 0 without answers, else one more than the slot that half of them are not above."""
        answered, passed = sum(self.latency), 0
        for slot, count in enumerate(self.latency):
            passed += count
            if answered and passed * 2 >= answered:
                return slot + 1
        return 0


def _sum(old: int, new: int) -> int:
    return min(old + new, MOST)
