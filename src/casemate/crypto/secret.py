"""Key bytes that do not leak by accident.

`Secret` keeps key material in its own anonymous pages: locked against swap where the limit allows, left out of
core dumps, zeroised on `wipe()`. Its repr is `***`, it cannot be pickled or copied. CPython may still hold
temporary copies made by callers (bytes are immutable): pass `view()` to functions that take buffers.
"""

from __future__ import annotations

import ctypes
import hmac
import mmap
import secrets
from typing import Self

_libc = ctypes.CDLL(None, use_errno=True)
_MADV_DONTDUMP = 16


class Secret:
    """A fixed-length key in locked, non-dumpable, zeroised memory."""

    __slots__ = ("_length", "_map", "locked")

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        """Copy *data* in; the caller wipes its own copy if it can."""
        self._length = len(data)
        if not self._length:
            raise ValueError("an empty secret is a bug")
        self._map: mmap.mmap | None = mmap.mmap(-1, self._length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._map.madvise(_MADV_DONTDUMP)
        self.locked = self._lock()
        self._map[:] = data  # no copy as bytes on the way: it would outlive the wipe

    def _lock(self) -> bool:
        if self._map is None:
            return False
        anchor = ctypes.c_char.from_buffer(self._map)
        address = ctypes.c_void_p(ctypes.addressof(anchor))
        done: int = _libc.mlock(address, ctypes.c_size_t(self._length))
        del anchor  # an exported buffer would keep the map from closing
        return done == 0

    @classmethod
    def random(cls, length: int = 32) -> Self:
        """Make a fresh key from the kernel's generator."""
        return cls(secrets.token_bytes(length))

    def view(self) -> memoryview:
        """Return the live bytes; do not keep them beyond `wipe()`."""
        if self._map is None:
            raise ValueError("the secret was wiped")
        return memoryview(self._map)

    def reveal(self) -> bytes:
        """Copy the bytes out, for an API that insists on `bytes`. Grep for this name in reviews."""
        if self._map is None:
            raise ValueError("the secret was wiped")
        return self._map[:]

    def wipe(self) -> None:
        """Zeroise and release; safe to call twice."""
        if self._map is None:
            return
        self._map[:] = bytes(self._length)
        held, self._map = self._map, None
        try:
            held.close()
        except BufferError:
            pass  # a view is still out there: the bytes are already zero

    def matches(self, other: Secret) -> bool:
        """Compare in constant time."""
        return hmac.compare_digest(self.reveal(), other.reveal())

    def __len__(self) -> int:
        """Return the length in bytes."""
        return self._length

    def __enter__(self) -> Self:
        """Use as a context: wiped at the end."""
        return self

    def __exit__(self, *_: object) -> None:
        """Wipe."""
        self.wipe()

    def __del__(self) -> None:
        """Wipe what nobody wiped."""
        if getattr(self, "_map", None) is not None:
            self.wipe()

    def __repr__(self) -> str:
        """Never show a byte."""
        return "***"

    def __reduce__(self) -> str:
        """Refuse pickling."""
        raise TypeError("a Secret does not serialise")
