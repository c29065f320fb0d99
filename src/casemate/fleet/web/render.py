"""Templates to bytes: Jinja2 with autoescape, undefined names are errors, and the few words pages share."""

from __future__ import annotations

import datetime as dt
import functools
import hashlib
import importlib.resources
from typing import Any, Final

import jinja2

_MINUTE, _HOUR, _DAY = 60.0, 3600.0, 86400.0
_TONES: Final = {
    "enrolled": "good",
    "active": "good",
    "done": "good",
    "affirming": "good",
    "running": "good",
    "open": "good",
    "pending": "warn",
    "waiting": "warn",
    "warning": "warn",
    "paused": "warn",
    "asked": "warn",
    "quarantined": "bad",
    "wiping": "bad",
    "failed": "bad",
    "contraindicated": "bad",
}
"""How a state looks; what is not here is neutral."""


@functools.cache
def environment() -> jinja2.Environment:
    """Return the templates, compiled once."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("casemate.fleet.web"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(iso=iso, plural=plural)
    made.globals.update(static=static, tone_of_state=tone_of_state)
    return made


def page(template: str, now: float, **values: Any) -> str:
    """Return *template* filled with *values*; relative times are against *now*."""
    made = environment().overlay()
    made.filters["ago"] = functools.partial(ago, now=now)
    return made.get_template(template).render(now=now, **values)


def tone_of_state(value: str) -> str:
    """Return good, warn, bad or quiet."""
    return _TONES.get(value, "quiet")


def iso(seconds: float) -> str:
    """Return a moment as RFC 3339, UTC."""
    return dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def ago(seconds: float, now: float) -> str:
    """Return a moment as people say it: "3 min ago", "in 2 days"."""
    distance = abs(now - seconds)
    if distance < _MINUTE:
        return "just now" if seconds <= now else "in a moment"
    size, word = next(
        (size, word)
        for size, word in ((_DAY, "day"), (_HOUR, "hour"), (_MINUTE, "min"))
        if distance >= size or word == "min"
    )
    count = int(distance // size)
    text = f"{count} {word}" if word == "min" else plural(count, word)
    return f"{text} ago" if seconds <= now else f"in {text}"


def plural(count: int, word: str) -> str:
    """Return "1 device", "2 devices"."""
    return f"{count:,} {word}{'' if count == 1 else 's'}".replace(",", "\u202f")


@functools.cache
def static(name: str) -> str:
    """Return the address of a static file, which changes with its bytes."""
    return f"/static/{name}?{hashlib.sha256(static_bytes(name)).hexdigest()[:12]}"


STATIC: Final = {
    "casemate.css": "text/css; charset=utf-8",
    "casemate.js": "text/javascript; charset=utf-8",
    "theme.js": "text/javascript; charset=utf-8",
    "htmx-2.0.11.min.js": "text/javascript; charset=utf-8",
    "htmx-sse-2.2.4.min.js": "text/javascript; charset=utf-8",
    "casemate.svg": "image/svg+xml",
}
"""Every file a browser may have, with its type."""


@functools.cache
def static_bytes(name: str) -> bytes:
    """Return a file of `STATIC`."""
    return (importlib.resources.files("casemate.fleet.web") / "static" / name).read_bytes()
