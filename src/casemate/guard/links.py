"""Links and images of an answer that lead to hosts nobody allowed: the quiet way out for what a model knows.

A picture is fetched without a click, and its address carries whatever the text told the model to put there. The address
is replaced, the rest of the markdown stays. Plain addresses in prose are left alone: nothing fetches them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from casemate.guard.entities.window import Found, Window

IMAGE: Final = "link:image"
LINK: Final = "link:other"
REMOVED: Final = "#link-removed"

_TARGET = re.compile(
    r"(?:[^\s()<>\"'/\\:,;=\[\]{}]{0,40}:)?[\\/]{2}[^\s)>\"'\]]{1,2000}|(?:data|javascript|vbscript|file|blob):[^\s)>\"']{1,2000}",
    re.IGNORECASE,
)
_REFERENCE = re.compile(r"(?:\n|\A)\s{0,3}\[[^\]\n]{1,100}\]:\s{0,4}<?\Z")
_ATTRIBUTE = re.compile(
    r"(?<![\w])(?:(src|srcset|poster|background|data)|href|action|formaction|cite|xlink:href)\s{0,3}=\s{0,3}[\"']?\s?\Z"
    r"|(url)\(\s?[\"']?\Z",
    re.IGNORECASE,
)
_HOST_ENDS = re.compile(r"[/\\?#]")
_ATTRIBUTE_ENDS: Final = frozenset("=\"'(")
_REACH: Final = 150


def find_links(window: Window, allowed: tuple[str, ...]) -> Iterator[Found]:
    """Find the addresses of markdown and HTML links and images whose host is not one of *allowed* or below it."""
    text = window.text
    for target in _TARGET.finditer(text, window.base):
        kind = _kind(text[max(0, target.start() - _REACH) : target.start()])
        if kind is not None and not _is_allowed(target[0], allowed):
            yield Found(*target.span(), kind, -1)


def _kind(before: str) -> str | None:
    """Return what the address after *before* belongs to."""
    bare = before.rstrip(" \n<")
    if bare.endswith("]("):
        opening = bare.rfind("[", 0, len(bare) - 2)
        return IMAGE if opening > 0 and bare[opening - 1] == "!" else LINK
    if bare.endswith("]:"):
        return IMAGE if _REFERENCE.search(before) else None
    if bare[-1:] not in _ATTRIBUTE_ENDS:
        return None
    attribute = _ATTRIBUTE.search(before)
    if attribute is None:
        return None
    return IMAGE if attribute[1] or attribute[2] else LINK


def _is_allowed(target: str, allowed: tuple[str, ...]) -> bool:
    scheme, _, rest = target.replace("\\", "/").partition("//")
    if scheme.lower() not in ("http:", "https:", ""):
        return False
    host = _HOST_ENDS.split(rest, maxsplit=1)[0].rpartition("@")[2].partition(":")[0].lower().rstrip(".")
    return any(host == name.lower() or host.endswith("." + name.lower()) for name in allowed)
