"""Reading the wake stream (server-sent events, WHATWG HTML section 9.2): bytes in, names of events out. Bounded, pure.

Only the event's name matters: it says that something waits, and the device then checks in. Data is dropped unread. Of
`retry` the newest is kept: within how many seconds to come back when the stream has ended.
"""

from __future__ import annotations

from typing import Final

from casemate.errors import UntrustedDataError

LINE_LIMIT: Final = 16 * 1024
RETRY_LIMIT: Final = 300.0


class EventReader:
    """Feed bytes; take names ("message" where the stream gave none)."""

    def __init__(self) -> None:
        """Start at the beginning of a stream."""
        self._line = bytearray()
        self._name = ""
        self._any = False
        self.retry: float | None = None

    def feed(self, data: bytes) -> list[str]:
        """Take *data*, return the name of each event it completes.

        Raises:
            UntrustedDataError: `sse-line` a line has no end.

        """
        names: list[str] = []
        self._line += data
        *lines, rest = self._line.split(b"\n")
        for line in lines:
            names += self._take(bytes(line.removesuffix(b"\r")))
        if len(rest) > LINE_LIMIT:
            raise UntrustedDataError("an event line without end", check="sse-line")
        self._line = rest
        return names

    def _take(self, line: bytes) -> list[str]:
        if not line:
            done = [self._name or "message"] if self._any else []
            self._name, self._any = "", False
            return done
        field, _, value = line.partition(b":")
        if field == b"event":
            self._name = value.removeprefix(b" ").decode("utf-8", "replace")[:64]
        digits = value.removeprefix(b" ")
        if field == b"retry" and digits.isdigit() and len(digits) < 10:  # noqa: PLR2004 - more is no wait, but a joke
            self.retry = min(int(digits) / 1000, RETRY_LIMIT)
        if field in {b"event", b"data"}:
            self._any = True
        return []
