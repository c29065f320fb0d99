"""A journal and a vault for an update of a device that does not run, and the one door to them.

The update process gets the same door as on a running device: a link over which it can ask the vault for what belongs to
a release, and record events. It never gets the vault's own link, over which an engine's weights could be asked for.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from casemate.config import Settings
from casemate.device import channel
from casemate.device.admin import described
from casemate.device.channel import Channel, ChannelClosed, JournalClient
from casemate.device.children import HELLO_TIMEOUT, rebuild, start_python
from casemate.device.home import Home, owner_of
from casemate.device.upkeep import own_events
from casemate.errors import CasemateError, HostError, OperationError, UntrustedDataError
from casemate.formats import ipc

READY_TIMEOUT: Final = 60.0
_STOP_WITHIN: Final = 5.0


class Workshop:
    """Answers one update process until it goes away."""

    def __init__(self, link: socket.socket, vault: Channel, journal: JournalClient) -> None:
        """Serve *link* with *vault* and *journal*."""
        self._link = Channel(link, ipc.UpdateToAgent)
        self._vault = vault
        self._journal = journal

    def serve(self) -> None:
        """Answer until the other end closes, or says what does not belong there."""
        with contextlib.suppress(ChannelClosed, UntrustedDataError):
            while True:
                question, fds = self._link.recv()
                self._link.send(self._reply(question, fds))
        self._link.close()

    def abandon(self) -> None:
        """Close every link, in a fork that is not to have them."""
        for link in (self._link, self._vault, self._journal):
            link.close()

    def _reply(self, question: ipc.Ask | ipc.ToVault, fds: Sequence[int]) -> ipc.Answer | ipc.FromVault:
        try:
            if isinstance(question, ipc.Ask):
                return ipc.Answer(ok=True, data=self._answer(question))
            return self._ask_vault(question, fds)
        except CasemateError as error:
            return ipc.Answer(ok=False, data=described(error))
        except (KeyError, TypeError):
            return ipc.Answer(ok=False, data={"message": "wrong arguments"})
        finally:
            for fd in fds:
                os.close(fd)

    def _answer(self, ask: ipc.Ask) -> dict[str, Any]:
        if ask.verb == "record":
            return {"index": self._journal.append(*own_events(ask.args["events"]))}
        raise OperationError("no device is running on this home", hint="start it with `casemate up`")

    def _ask_vault(self, request: ipc.ToVault, fds: Sequence[int]) -> ipc.FromVault:
        if isinstance(request, ipc.OpenRelease | ipc.Transcode) and (request.gate or request.keyed):
            raise HostError(
                "the release is gated: the running device proves itself to its fleet for it",
                hint="start it (`casemate up`), then try again",
            )
        try:
            self._vault.send(request, fds)
            reply: Any = self._vault.recv()[0]
        except (ChannelClosed, UntrustedDataError) as error:
            raise OperationError("the vault ended before it answered", hint="try again") from error
        if isinstance(reply, ipc.Fatal):
            raise rebuild(reply)
        if not isinstance(reply, ipc.FromVault):
            raise OperationError("the vault answered another question", hint="this is a bug")
        return reply


@contextlib.contextmanager
def opened(
    home: Home, settings: Settings, owner_public: str, unlock: Mapping[str, int]
) -> Iterator[Callable[[socket.socket], Workshop]]:
    """Run a journal and a vault until the block ends; yields what makes a workshop of a link.

    The caller holds the home's lock. *owner_public* is base64, *unlock* what opens the keystore.

    Raises:
        CasemateError: as the vault said it: the keystore does not open.
        OperationError: a process did not come up.

    """
    with contextlib.ExitStack() as held:
        ends = {role: channel.pair() for role in ("agent", "vault")}
        for ours, theirs in ends.values():
            held.enter_context(ours)
            held.enter_context(theirs)
        clients = {f"client:{role}": theirs.fileno() for role, (_, theirs) in ends.items()}
        identity = {"owner_public": owner_public, "origin_id": home.id}
        _start(held, "journal", home, identity, clients)
        sizes = {name: settings[f"engine.{name}"] for name in ("context", "slots")}
        vault = _start(held, "vault", home, sizes, {**unlock, "journal": ends["vault"][0].fileno()})
        journal = JournalClient(ends["agent"][0])
        yield lambda link: Workshop(link, vault, journal)


def _start(
    held: contextlib.ExitStack, role: str, home: Home, settings: Mapping[str, Any], fds: Mapping[str, int]
) -> Channel:
    """Start the process of *role* and wait until it is ready; *held* ends it."""
    ours, theirs = channel.pair()
    with theirs:
        process = start_python(role, owner_of(role), theirs.fileno())
    link = Channel(ours, ipc.ChildToAgent)
    held.callback(_end, process, link)
    try:
        link.recv(HELLO_TIMEOUT)
        link.send(ipc.Start(home=str(home.path), fds=tuple(fds), settings=dict(settings)), list(fds.values()))
        reply: Any = link.recv(READY_TIMEOUT)[0]
    except (ChannelClosed, TimeoutError, UntrustedDataError) as error:
        raise OperationError(f"the {role} did not start", hint="run `casemate doctor`") from error
    if isinstance(reply, ipc.Fatal):
        raise rebuild(reply)
    return link


def _end(process: subprocess.Popen[bytes], link: Channel) -> None:
    link.close()
    try:
        process.wait(_STOP_WITHIN)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
