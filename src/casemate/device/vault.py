"""The vault process: holds the home key, verifies and decrypts containers, hands the weights to an engine.

It has no network and parses nothing but containers. For each `Load` it proves the container, checks that the weights
fit, decrypts into a sealed memory file, journals that, and sends the descriptor down the link that came along. What it
refuses is journaled too. The plaintext is never in a file, and never mapped here.
"""

from __future__ import annotations

import collections
import os
import select
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from casemate import keystores
from casemate.clock import Clock, SystemClock
from casemate.device import store
from casemate.device.channel import Channel, ChannelClosed, JournalClient
from casemate.device.home import Home
from casemate.device.process import Child, boot
from casemate.device.releases import Releases
from casemate.device.sealed import available_memory, require_memory, unseal_into_memory
from casemate.errors import CasemateError, OperationError, UntrustedDataError
from casemate.formats import event, ipc
from casemate.keystores import UnlockedKeystore

_SEND_TIMEOUT: Final = 10.0


class Vault:
    """What the process knows: the open keystore, the home, and whom to tell."""

    def __init__(
        self,
        home: Home,
        keystore: UnlockedKeystore,
        journal: Callable[..., Any],
        clock: Clock,
        settings: dict[str, Any],
    ) -> None:
        """Serve models of *home* with *keystore*; *journal* makes events durable before it returns."""
        self._home = home
        self._keystore = keystore
        self._journal = journal
        self._clock = clock
        self._context = int(settings.get("context", 0))
        self._slots = int(settings.get("slots", 1))
        self._releases = Releases(home, keystore, self._record, clock)

    def _record(self, *events: event.Event) -> None:
        self._journal(*events)

    def journal_again(self, journal: Callable[..., Any]) -> None:
        """Record through a new link: the journal process was restarted."""
        self._journal = journal

    def load(self, request: ipc.Load, supply: socket.socket, tick: Callable[[], None]) -> ipc.Loaded | ipc.LoadFailed:
        """Carry out one `Load`: the engine at the other end of *supply* gets the weights, or nobody does."""
        started = self._clock.monotonic()
        try:
            digest, size, version = self._hand_over(request, supply, tick)
        except CasemateError as error:
            return self._refused(request.model, error)
        seconds = self._clock.monotonic() - started
        return ipc.Loaded(request.model, digest, size, round(seconds, 3), version)

    def release(self, request: ipc.ToVault, fds: list[int], tick: Callable[[], None]) -> ipc.FromVault:
        """Carry out what an update asks for; *fds* stay open."""
        return self._releases.answer(request, fds, tick)

    def _hand_over(self, request: ipc.Load, supply: socket.socket, tick: Callable[[], None]) -> tuple[str, int, int]:
        """Do it in this order: 1 prove, 2 room, 3 decrypt, 4 journal, 5 send."""
        self._check_path(request)
        with store.opened_model(self._home, self._keystore, request.model) as (opened, verified):  # 1
            require_memory(verified, self._context, self._slots, available_memory())  # 2
            memory = unseal_into_memory(opened.fd, verified, tick)  # 3
        try:
            labels, now = verified.labels, self._clock.wall()
            self._journal(  # 4
                event.key_used(key=self._keystore.key_id, purpose=f"open {labels.name}", now=now),
                event.model_loaded(model=labels.name, digest=labels.digest, now=now),
            )
            size = verified.header.plain_size
            supply.settimeout(_SEND_TIMEOUT)
            Channel(supply, ipc.VaultToEngine).send(ipc.Weights(request.model, size), [memory])  # 5
        except (ChannelClosed, TimeoutError, OSError) as error:
            raise OperationError("the engine went away before it had its model") from error
        finally:
            os.close(memory)
        return labels.digest, size, verified.header.security_version

    def _check_path(self, request: ipc.Load) -> None:
        """Refuse to be pointed anywhere else: the name alone says which file."""
        if request.path and Path(request.path) != store.path_of(self._home, request.model):
            raise UntrustedDataError("the path is not that of the model", check="load-path", hint="this is a bug")

    def _refused(self, model: str, error: CasemateError) -> ipc.LoadFailed:
        check = error.check if isinstance(error, UntrustedDataError) else ""
        if check:
            self._journal(event.model_refused(model=model, check=check, reason=error.message, now=self._clock.wall()))
        return ipc.LoadFailed(model, error.code, error.message, error.hint, error.exit_code, check)


def serve(child: Child, vault: Vault) -> None:
    """Answer the agent, one request at a time, until it closes the link. Pings are answered between chunks too."""
    waiting: collections.deque[tuple[ipc.Load | ipc.ToVault, list[int]]] = collections.deque()

    def receive() -> None:
        message, fds = child.control.recv()
        if isinstance(message, ipc.Ping):
            child.control.send(ipc.Pong(message.n))
        elif isinstance(message, ipc.Load | ipc.ToVault):
            waiting.append((message, fds))
        elif isinstance(message, ipc.Attach):
            vault.journal_again(JournalClient(socket.socket(fileno=fds[0])).append)

    def tick() -> None:
        while child.control.buffered or select.select([child.control], [], [], 0)[0]:
            receive()

    while True:
        if not waiting:
            receive()
            continue
        request, fds = waiting.popleft()
        child.control.send(_answer(vault, request, fds, tick))


def _answer(
    vault: Vault, request: ipc.Load | ipc.ToVault, fds: list[int], tick: Callable[[], None]
) -> ipc.Loaded | ipc.LoadFailed | ipc.FromVault:
    """Carry out one request; its descriptors are closed."""
    if isinstance(request, ipc.Load):
        with socket.socket(fileno=fds[0]) as supply:
            return vault.load(request, supply, tick)
    try:
        return vault.release(request, fds, tick)
    finally:
        for fd in fds:
            os.close(fd)


def main() -> None:
    """Unlock with what the agent handed over, then serve."""
    child = boot("vault")
    if child.settings.get("task") == "destroy":
        _destroy(child)
    journal = JournalClient(socket.socket(fileno=child.fds.pop("journal"))).append
    clock = SystemClock()
    try:
        home = Home(child.home).open()
        keystore = _unlock(home, child.fds, journal, clock)
        child.ready(
            assurance=keystore.assurance.level, reasons=list(keystore.assurance.reasons), locked=keystore.kek.locked
        )
        serve(child, Vault(home, keystore, journal, clock, child.settings))
    except ChannelClosed:
        os._exit(0)
    except CasemateError as error:
        child.fatal(error)


def _destroy(child: Child) -> None:
    """Destroy the home's keys instead of using them, say what is gone, and wait for the end."""
    from casemate.device.fleet.destroy import destroy_keys  # noqa: PLC0415 - almost never

    keyfile = str(child.settings.get("keyfile", ""))
    gone = destroy_keys(Home(child.home), Path(keyfile) if keyfile else None)
    child.ready(**msgspec.structs.asdict(gone))
    try:
        child.control.recv()
    finally:
        os._exit(0)


def _unlock(home: Home, fds: dict[str, int], journal: Callable[..., Any], clock: Clock) -> UnlockedKeystore:
    kind = next((name for name in ("tpm", "passphrase") if name in fds), "keyfile")
    try:
        keystore = keystores.unlock(home, keystores.from_handover(home, fds))
    except CasemateError as error:
        journal(event.unlock_refused(key=kind, reason=error.message, now=clock.wall()))
        raise
    finally:
        for fd in fds.values():
            os.close(fd)
    journal(event.key_used(key=keystore.key_id, purpose=f"unlock by {kind}", now=clock.wall()))
    return keystore


if __name__ == "__main__":
    main()
