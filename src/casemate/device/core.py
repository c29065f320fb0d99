"""How journal, vault and gateway are wired to each other and to the agent, also when one of them comes back."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import itertools
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Final

from casemate.device.channel import AsyncJournalClient, ChannelClosed
from casemate.device.children import ChildDied, link_pair
from casemate.device.processes import Processes
from casemate.errors import OperationError
from casemate.formats import ipc

QUARANTINED: Final = "quarantined"
_JOURNALED: Final = ("agent", "vault", "gateway")
_PROOF_WITHIN: Final = 10.0


class Core:
    """The three processes that every device has."""

    def __init__(
        self, processes: Processes, models: Callable[[], Iterable[str]], gateway_started: Callable[[], None]
    ) -> None:
        """Wire what *processes* starts; the gateway serves *models*, and *gateway_started* is called for each one."""
        self._processes = processes
        self._models = models
        self._gateway_started = gateway_started
        self._journal_links: dict[str, socket.socket] = {}
        self._vault_turn = asyncio.Lock()
        self._vault_asked: collections.deque[asyncio.Future[Any]] = collections.deque()
        """Whom the vault owes an answer, oldest first: it answers in order, also those who gave up waiting."""
        self._proofs: dict[int, asyncio.Future[ipc.LogProven]] = {}
        self._numbers = itertools.count(1)

    @property
    def endpoint(self) -> str:
        """Return the API's base URL."""
        plan = self._processes.plan
        return f"{'https' if plan.tls else 'http'}://{host_port(plan.listen)}"

    async def serve(self) -> None:
        """Start what is not running yet of vault and gateway; each is kept from the moment it runs."""
        starts = {"vault": self._start_vault, "gateway": self._start_gateway}
        missing = {role: start for role, start in starts.items() if role not in self._processes.children}

        async def bring(role: str, start: Callable[[], Awaitable[None]]) -> None:
            await start()
            self._processes.keep(role, start)

        await asyncio.gather(*(bring(role, start) for role, start in missing.items()))

    # -- the journal

    async def start_journal(self) -> None:
        """Start the journal; who has a process gets a new link."""
        processes = self._processes
        links = {role: link_pair() for role in _JOURNALED}
        fds = {f"client:{role}": theirs.fileno() for role, (_, theirs) in links.items()}
        settings = {"owner_public": processes.plan.owner_public, "origin_id": processes.plan.home.id}
        try:
            await processes.start("journal", settings, fds)
        finally:
            for _, theirs in links.values():
                theirs.close()
        if processes.journal:
            processes.journal.close()
        processes.journal = AsyncJournalClient(links.pop("agent")[0])
        for role, (ours, _) in links.items():
            self._journal_links[role] = ours
            if role in processes.children:  # the journal came back: its clients get new links, one that died its next
                processes.tell(role, ipc.Attach(role="journal"), (ours.fileno(),))

    async def _journal_link(self, role: str) -> socket.socket:
        """Return the client end for *role*: made with the journal, or attached later when *role* was restarted."""
        fresh = self._journal_links.pop(role, None)
        if fresh:
            return fresh
        ours, theirs = link_pair()
        with theirs, contextlib.suppress(KeyError, ChannelClosed):
            await self._processes.children["journal"].link.send(ipc.Attach(role=role), [theirs.fileno()])
        return ours

    async def prove_log(self, old: int) -> ipc.LogProven | None:
        """Return the journal's request to its witness, proven from *old* entries on; None when it does not answer."""
        number = next(self._numbers)
        proof = self._proofs[number] = asyncio.get_running_loop().create_future()
        try:
            await self._processes.children["journal"].link.send(ipc.ProveLog(id=number, old=old))
            return await asyncio.wait_for(proof, _PROOF_WITHIN)
        except (KeyError, ChannelClosed, TimeoutError):
            return None
        finally:
            self._proofs.pop(number, None)

    def log_proven(self, message: ipc.LogProven) -> None:
        """Take the journal's answer."""
        proof = self._proofs.pop(message.id, None)
        if proof and not proof.done():
            proof.set_result(message)

    # -- the vault

    async def _start_vault(self) -> None:
        processes = self._processes
        self._vault_asked.clear()  # a new one owes nothing
        with await self._journal_link("vault") as journal:
            settings = {name: processes.plan.settings[f"engine.{name}"] for name in ("context", "slots")}
            await processes.start("vault", settings, {**processes.plan.unlock, "journal": journal.fileno()})

    async def ask_vault(self, request: ipc.ToVaultProcess, fds: Sequence[int], deadline: float) -> Any:
        """Return the vault's answer to *request*, which comes within *deadline* seconds; one request at a time.

        Raises:
            ChildDied: the vault is gone or did not answer: worth another try.

        """
        children = self._processes.children
        if "vault" not in children:
            raise ChildDied(f"the vault does not run: this device is {QUARANTINED}", transient=False)
        async with self._vault_turn:
            answer = asyncio.get_running_loop().create_future()
            self._vault_asked.append(answer)
            try:
                await children["vault"].link.send(request, fds)
                async with asyncio.timeout(deadline):
                    reply = await answer
            except (ChannelClosed, OperationError) as error:  # it does not have the question: nothing is owed
                with contextlib.suppress(ValueError):
                    self._vault_asked.remove(answer)
                raise ChildDied("the vault did not answer") from error
            except TimeoutError as error:
                raise ChildDied("the vault did not answer") from error
        if isinstance(reply, ChildDied):
            raise ChildDied("the vault ended before it answered")
        return reply

    async def vault_said(self, reply: ipc.Message | ChildDied) -> None:
        """Take the vault's answer to who asked first, or its end: whoever waits for an answer then gets none."""
        ended = isinstance(reply, ChildDied)
        while self._vault_asked:
            answer = self._vault_asked.popleft()
            if not answer.done():
                answer.set_result(reply)
            if not ended:
                return

    # -- the gateway

    async def _start_gateway(self) -> None:
        processes, plan = self._processes, self._processes.plan
        settings = {
            "hosts": list(plan.settings["hosts"]),
            "queue": plan.settings["engine.queue"],
            "deadline": plan.settings["engine.deadline"],
            "models": list(self._models()),
            "listen": self.endpoint,
        }
        with await self._journal_link("gateway") as journal:
            fds = {
                "listen": plan.listen.fileno(),
                "metrics": plan.metrics.fileno(),
                "journal": journal.fileno(),
                **plan.tls,
            }
            await processes.start("gateway", settings, fds)
        self._gateway_started()

    def tell_gateway(self, message: ipc.Message, link: socket.socket | None = None) -> None:
        """Post *message* to the gateway; one that is gone is told when it is back."""
        with contextlib.suppress(KeyError, ChannelClosed):
            self._processes.children["gateway"].link.post(message, [link.fileno()] if link else [])


def host_port(sock: socket.socket) -> str:
    """Return where *sock* listens, as a URL has it."""
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
