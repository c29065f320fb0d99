"""The kinds of values the guard finds: one row per kind, a pattern to propose and a check to decide."""

from __future__ import annotations

from typing import Final

from casemate.guard.entities.find import find_all, is_idle
from casemate.guard.entities.spaced import find_spaced
from casemate.guard.entities.window import CONTEXT, Found, Window

QUIET: Final = frozenset({"pii:DATE_TIME", "pii:URL", "pii:DOMAIN_NAME"})
"""Kinds that say little by themselves: acted on only where a policy names them."""

__all__ = ["CONTEXT", "QUIET", "Found", "Window", "find_all", "find_spaced", "is_idle"]
