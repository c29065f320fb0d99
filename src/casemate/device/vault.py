"""The vault process: holds the home key, verifies and decrypts containers, hands the weights to an engine.

It has no network and parses nothing but containers. For each `Load` it proves the container, checks that the weights
fit, decrypts into a sealed memory file, journals that, and sends the descriptor down the link that came along. What it
refuses is journaled too. The plaintext is never in a file, and never mapped here.
"""

from __future__ import annotations

import collections
import contextlib
import os
import select
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, cast

import msgspec

from casemate import keystores
from casemate.clock import Clock, SystemClock
from casemate.crypto import kdf
from casemate.crypto.secret import Secret
from casemate.device import containers, store
from casemate.device.channel import Channel, ChannelClosed, JournalClient
from casemate.device.home import Home
from casemate.device.process import Child, boot
from casemate.device.releases import Releases
from casemate.device.sealed import available_memory, require_memory, unseal_into_memory
from casemate.errors import CasemateError, OperationError, PolicyDeniedError, UntrustedDataError
from casemate.formats import container, event, gate, ipc, lease
from casemate.formats.lease import LeasedKey, Level
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

    def load(
        self, request: ipc.Load, supply: socket.socket, tick: Callable[[], None], key: int | None = None
    ) -> ipc.Loaded | ipc.LoadFailed:
        """Carry out one `Load`: the engine at the other end of *supply* gets the weights, or nobody does.

        The leased key of a gated model comes through *key*; it is used for this load and forgotten.
        """
        started = self._clock.monotonic()
        try:
            with _leased(key) as leased:
                digest, size, version = self._hand_over(request, supply, leased, tick)
        except CasemateError as error:
            return self._refused(request.model, error)
        seconds = self._clock.monotonic() - started
        return ipc.Loaded(request.model, digest, size, round(seconds, 3), version)

    def release(self, request: ipc.ToVault, fds: list[int], tick: Callable[[], None]) -> ipc.FromVault:
        """Carry out what an update asks for; *fds* stay open. The last is a leased key, where one came along."""
        keyed = isinstance(request, ipc.OpenRelease | ipc.Transcode) and request.keyed
        try:
            with _leased(fds[-1] if keyed else None) as leased:
                return self._releases.answer(request, fds, tick, leased)
        except UntrustedDataError as error:
            return self._releases.refused(request, error)

    def wrap(self, request: ipc.WrapKey, fds: list[int]) -> ipc.KeyWrapped | ipc.ReleaseRefused:
        """Wrap the data key of a container that is being made (first descriptor) under a leased key (second)."""
        if not request.keyed:
            return ipc.ReleaseRefused(request.id, "failed", "there is no key to wrap with", exit_code=1)
        try:
            with _leased(fds[1]) as leased, _data_key(fds[0]) as data_key:
                assert leased
                if not gate.reaches(leased.min_assurance, request.min_assurance):
                    raise PolicyDeniedError(
                        f"the fleet gives this model's key to {leased.min_assurance} already",
                        hint=f"on the fleet: `casemate fleet model gate {leased.model} --min-assurance "
                        f"{request.min_assurance}`",
                    )
                header = container.parse_header(request.header)
                slot = containers.broker_slot(header, data_key, leased, cast("Level", request.min_assurance))
        except CasemateError as error:
            check = error.check if isinstance(error, UntrustedDataError) else ""
            return ipc.ReleaseRefused(request.id, error.code, error.message, error.hint, error.exit_code, check)
        self._journal(event.key_used(key=leased.key, purpose=f"gate {leased.model}", now=self._clock.wall()))
        return ipc.KeyWrapped(request.id, msgspec.json.encode(slot))

    def _hand_over(
        self, request: ipc.Load, supply: socket.socket, leased: LeasedKey | None, tick: Callable[[], None]
    ) -> tuple[str, int, int]:
        """Do it in this order: 1 prove, 2 room, 3 decrypt, 4 journal, 5 send."""
        self._check_path(request)
        with store.opened_model(self._home, self._keystore, request.model, leased=leased) as (opened, verified):  # 1
            require_memory(verified, self._context, self._slots, available_memory())  # 2
            memory = unseal_into_memory(opened.fd, verified, tick)  # 3
        try:
            labels, now = verified.labels, self._clock.wall()
            self._journal(  # 4
                event.key_used(
                    key=leased.key if leased else self._keystore.key_id, purpose=f"open {labels.name}", now=now
                ),
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


@contextlib.contextmanager
def _leased(fd: int | None) -> Iterator[LeasedKey | None]:
    """Read a leased key from the pipe *fd*; None: the model needs none."""
    if fd is None:
        yield None
        return
    os.set_blocking(fd, False)  # whoever wrote it is done: a pipe that stays open must not hold the vault
    with lease.handed(_read(fd)) as leased:
        yield leased


def _read(fd: int) -> bytes:
    pieces = bytearray()
    with contextlib.suppress(BlockingIOError):
        while len(pieces) <= lease.LIMIT and (piece := os.read(fd, lease.LIMIT)):
            pieces += piece
    return bytes(pieces)


def _data_key(fd: int) -> Secret:
    """Read the data key of a container that is being made.

    Raises:
        UntrustedDataError: `lease-form`.

    """
    raw = os.pread(fd, kdf.KEY_BYTES + 1, 0)
    if len(raw) != kdf.KEY_BYTES:
        raise UntrustedDataError("the container's key did not arrive", check="lease-form", hint="try again")
    return Secret(raw)


def serve(child: Child, vault: Vault) -> None:
    """Answer the agent, one request at a time, until it closes the link. Pings are answered between chunks too."""
    waiting: collections.deque[tuple[ipc.ToVaultProcess, list[int]]] = collections.deque()

    def receive() -> None:
        message, fds = child.control.recv()
        if isinstance(message, ipc.Ping):
            child.control.send(ipc.Pong(message.n))
        elif isinstance(message, ipc.ToVaultProcess):
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
    vault: Vault, request: ipc.ToVaultProcess, fds: list[int], tick: Callable[[], None]
) -> ipc.Loaded | ipc.LoadFailed | ipc.FromVault:
    """Carry out one request; its descriptors are closed."""
    try:
        if isinstance(request, ipc.Load):
            with socket.socket(fileno=os.dup(fds[0])) as supply:
                return vault.load(request, supply, tick, fds[1] if request.leased else None)
        if isinstance(request, ipc.WrapKey):
            return vault.wrap(request, fds)
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
