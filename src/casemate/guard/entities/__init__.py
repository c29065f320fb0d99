"""The kinds of values the guard finds: one row per kind, a pattern to propose and a check to decide."""

from __future__ import annotations

from typing import Final

from casemate.guard.entities.net import find_email, find_network, find_url_password
from casemate.guard.entities.numbers import find_cards, find_ibans, find_phones
from casemate.guard.entities.secrets import find_key_blocks, find_tokens
from casemate.guard.entities.window import CONTEXT, Detector, Found, Window

DETECTORS: Final[tuple[Detector, ...]] = (
    find_key_blocks,
    find_tokens,
    find_url_password,
    find_email,
    find_network,
    find_cards,
    find_ibans,
    find_phones,
)

__all__ = ["CONTEXT", "DETECTORS", "Detector", "Found", "Window"]
