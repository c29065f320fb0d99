"""Where a device gets a repository's files from: a server, or a tar on local media. Nothing from it is trusted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

METADATA: Final = "metadata/"
TARGETS: Final = "targets/"
CHUNKS: Final = "chunks/"

Taken = Callable[[int], None]
"""Told of every piece that came over a line, with its size in bytes; it may wait, or raise to end the transfer."""


def ignore(_size: int) -> None:
    """Be told and do nothing."""


class Source(Protocol):
    """Reads files of a repository by their published path."""

    @property
    def offline(self) -> bool:
        """Whether this is local media: then a little staleness is allowed, as far as the offline keys allow it."""
        ...

    def get(self, path: str, limit: int, taken: Taken = ignore) -> bytes:
        """Return the file at *path*, of at most *limit* bytes.

        Raises:
            NotFoundError: there is none.
            UntrustedDataError: `transfer-size`: it is larger.
            OperationError: it cannot be read now.

        """
        ...
