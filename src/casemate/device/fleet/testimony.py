"""Having the fleet witness the journal: at each contact it is shown that the log only grew, and cosigns it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol

from casemate.errors import UntrustedDataError
from casemate.formats import fleet_api, ipc, tlog
from casemate.formats.tlog import VerifierKey

PATH: Final = "journal/checkpoint"
_OK: Final = 200
_CONFLICT: Final = 409
_MOST_DIGITS: Final = 19


class Journal(Protocol):
    """What is asked of the agent."""

    async def prove_log(self, old: int) -> ipc.LogProven | None:
        """Return the journal's request to its witness; None when there is none."""
        ...

    def keep_witnessed(self, note: bytes) -> None:
        """Keep a cosigned checkpoint beside the log."""
        ...


class Testimony:
    """What the witness was shown last. `facts` are for `casemate status`."""

    def __init__(
        self, agent: Journal, post: Callable[[str, bytes], Awaitable[ipc.Posted]], witness: VerifierKey
    ) -> None:
        """Ask *agent* for proofs, send them with *post*, believe *witness*."""
        self._agent = agent
        self._post = post
        self._witness = witness
        self._shown = 0
        self._busy = False
        self.facts: dict[str, Any] = {}

    async def give(self) -> None:
        """Show the journal's newest checkpoint, unless that was done or is being done."""
        if self._busy:
            return
        self._busy = True
        try:
            await self._give()
        finally:
            self._busy = False

    async def _give(self) -> None:
        for _ in range(2):  # the witness says what it remembers; asked from there it must answer
            proven = await self._agent.prove_log(self._shown)
            if proven is None or not proven.request or ("witnessed" in self.facts and proven.size == self._shown):
                return
            body = fleet_api.encode(fleet_api.JournalCheckpoint(proven.vkey, proven.request))
            reply = await self._post(PATH, body)
            if reply.status == _OK:
                self._accept(proven, reply.body)
                return
            if reply.status != _CONFLICT or not reply.body.strip().isdigit() or len(reply.body) > _MOST_DIGITS:
                break
            self._shown = int(reply.body)
        if reply.status:
            self.facts = {"witness": f"refused this journal ({reply.status})"}

    def _accept(self, proven: ipc.LogProven, line: bytes) -> None:
        note = tlog.parse_add_checkpoint(proven.request).checkpoint + line
        try:
            moment = tlog.cosigned_at(note, self._witness)
        except UntrustedDataError as error:
            self.facts = {"witness": f"did not sign: {error.message}"}
            return
        self._shown = proven.size
        self.facts = {"witnessed": proven.size, "witnessed_at": moment}
        self._agent.keep_witnessed(note)
