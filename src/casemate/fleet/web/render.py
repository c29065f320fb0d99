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
    "draft": "quiet",
    "approved": "warn",
    "aborted": "bad",
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
    made.filters.update(
        ago=_ago,
        iso=iso,
        day=day,
        lasting=lasting,
        plural=plural,
        clock=clock,
        number=number,
        percent=percent,
        signed=signed,
    )
    made.globals.update(static=static, integrity=integrity, tone_of_state=tone_of_state)
    return made


def page(template: str, now: float, **values: Any) -> str:
    """Return *template* filled with *values*; relative times are against *now*."""
    return environment().get_template(template).render(now=now, **values)


@jinja2.pass_context
def _ago(context: jinja2.runtime.Context, seconds: float) -> str:
    return ago(seconds, context["now"])


def tone_of_state(value: str) -> str:
    """Return good, warn, bad or quiet."""
    return _TONES.get(value, "quiet")


def iso(seconds: float) -> str:
    """Return a moment as RFC 3339, UTC."""
    return dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def day(seconds: float) -> str:
    """Return a day as people write it: "3 Nov 2026"."""
    return dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%d %b %Y").lstrip("0")


def clock(seconds: float, span: str) -> str:
    """Return a moment of a table over *span*, UTC: the hour of a day, the day of a month."""
    form = {"6h": "%H:%M", "day": "%a %H:%M", "week": "%a %d %b %H:%M"}.get(span, "%a %d %b")
    return dt.datetime.fromtimestamp(seconds, dt.UTC).strftime(form)


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


def lasting(seconds: float) -> str:
    """Return a length of time: "8 hours", "400 days"."""
    size, word = next(
        ((size, word) for size, word in ((_DAY, "day"), (_HOUR, "hour")) if seconds >= size), (_MINUTE, "minute")
    )
    return plural(round(seconds / size), word)


def plural(count: int, word: str) -> str:
    """Return "1 device", "2 devices"."""
    return f"{number(count)} {word}{'' if count == 1 else 's'}"


def number(value: float) -> str:
    """Return 12345 as "12 345" (a narrow space that does not break), 0.25 as "0.25"."""
    text = f"{value:,.0f}" if value == int(value) else f"{value:,.2f}".rstrip("0")
    return text.replace(",", "\u202f")


def signed(value: float) -> str:
    """Return 1.5 as "+1.50", and a negative number with a minus that is as wide as the plus."""
    return f"{value:+.2f}".replace("-", "\u2212")


def percent(share: float) -> str:
    """Return a share as people read it: "0.5 %", "100 %"."""
    value = 100 * share
    text = f"{value:.0f}" if value >= 10 or value == int(value) else f"{value:.2g}"  # noqa: PLR2004 - two digits say enough
    return f"{text}\u202f%"


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
    "uplot-1.6.32.min.js": "text/javascript; charset=utf-8",
    "charts.js": "text/javascript; charset=utf-8",
    "casemate.svg": "image/svg+xml",
}
"""Every file a browser may have, with its type."""


VENDORED: Final = {
    "htmx-2.0.11.min.js": "sha384-2OatzQy1H+Zd/IIrjr1TcuDGqLXeHhbooAyJY1KdQMKnr4LZ22k31GBLdYKHmVjg",
    "htmx-sse-2.2.4.min.js": "sha384-A986SAtodyH8eg8x8irJnYUk7i9inVQqYigD6qZ9evobksGNIXfeFvDwLSHcp31N",
    "uplot-1.6.32.min.js": "sha384-Gx3t0zdBAuQOuvvmaLZj7HKEiSgWTAs+VdtNY7wt19QDPTDQjFIwAuXDj0zeN00c",
}
"""Files that others wrote, byte for byte as npm has them: a browser runs no other bytes under these names."""


def integrity(name: str) -> str:
    """Return the digest a browser checks a vendored file against."""
    return VENDORED[name]


@functools.cache
def static_bytes(name: str) -> bytes:
    """Return a file of `STATIC`."""
    return (importlib.resources.files("casemate.fleet.web") / "static" / name).read_bytes()
