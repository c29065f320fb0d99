"""Every process of a device and the work around them: started, attended, started again as `device.supervisor` says.

What a process says is for a `Listener` to judge; here is only that it lives.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, Final, Protocol

from casemate.clock import Clock
from casemate.device.channel import AsyncJournalClient, ChannelClosed
from casemate.device.children import ChildDied, ChildProcess, start_child, wait_ready
from casemate.device.launch import Launchers
from casemate.device.plan import DevicePlan
from casemate.device.supervisor import RestartPolicy, State
from casemate.errors import CasemateError, OperationError
from casemate.formats import event, ipc

READY_TIMEOUT: Final = 60.0
CORE: Final = ("journal", "vault", "gateway")


class Listener(Protocol):
    """Who is told what processes say."""

    async def heard(self, child: ChildProcess, message: Any) -> None:
        """Take *message* of *child*."""
        ...

    async def lost(self, child: ChildProcess, died: ChildDied) -> None:
        """Learn that *child* is gone, before it is started again."""
        ...


class Processes:
    """The children of one device, by role, and the tasks that live as long as it does."""

    def __init__(self, plan: DevicePlan, clock: Clock, launchers: Launchers, listener: Listener) -> None:
        """Start processes of *plan* from *launchers*; *listener* hears them."""
        self.plan = plan
        self.clock = clock
        self.launchers = launchers
        self.children: dict[str, ChildProcess] = {}
        self.policies = {role: RestartPolicy() for role in CORE}
        self.kept: dict[str, asyncio.Task[None]] = {}
        self.journal: AsyncJournalClient | None = None
        self.stopping = asyncio.Event()
        self.changed = asyncio.Event()
        self.fatal: CasemateError | None = None
        self._listener = listener
        self._tasks: set[asyncio.Task[None]] = set()

    # -- work that lasts

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run *work* for as long as the device runs; when it fails the device stops."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) and not self.stopping.is_set():
            self.end(error if isinstance(error, CasemateError) else OperationError(f"agent fault: {error!r}"))

    async def cancel_tasks(self) -> None:
        """End everything that `spawn` began."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def end(self, error: CasemateError) -> None:
        """Stop the device because of *error*."""
        self.fatal = error
        self.stopping.set()

    # -- processes

    async def start(self, role: str, settings: Mapping[str, Any], fds: Mapping[str, int]) -> ChildProcess:
        """Start the process of *role* and wait until it is ready.

        Raises:
            ChildDied: it did not come up; nothing of it is left.

        """
        child = await start_child(
            role,
            self.launchers.core(role),
            home=str(self.plan.home.path),
            settings=settings,
            fds=fds,
        )
        try:
            await wait_ready(child, READY_TIMEOUT)
        except (ChildDied, asyncio.CancelledError):  # cancelled, nobody else knows of it: it may hold keys
            child.kill()
            child.link.close()
            raise
        self.children[role] = child
        return child

    def keep(self, role: str, start: Callable[[], Awaitable[None]]) -> None:
        """Serve *role*'s messages; when it dies start it again, as its policy allows."""
        self.kept[role] = self.spawn(self._keep(role, start))

    async def _keep(self, role: str, start: Callable[[], Awaitable[None]]) -> None:
        policy = self.policies[role]
        while True:
            child = self.children[role]
            policy.started(self.clock.monotonic())
            self.changed.set()
            died = await self.attend(child)
            while True:
                delay = policy.died(self.clock.monotonic(), died.reason, transient=died.transient)
                if delay is None:
                    raise died.error or OperationError(
                        f"{role} needs triage: {died.reason}", hint="see `casemate journal show`, then start again"
                    )
                self.report_death(f"the {role}", died, "is started again")
                await asyncio.sleep(delay)
                try:
                    await start()
                    self.record(event.process_restarted(role=role, cause=died.reason, now=self.clock.wall()))
                    break
                except ChildDied as again:
                    died = again

    async def attend(self, child: ChildProcess) -> ChildDied:
        """Hand on *child*'s messages until it dies; returns why."""
        pinging = asyncio.ensure_future(child.keep_pinging())
        try:
            while True:
                message, _ = await child.recv(timeout=1e9)
                if isinstance(message, ipc.Pong):
                    child.ponged(message)
                else:
                    await self._listener.heard(child, message)
        except ChildDied as died:
            child.kill()
            child.link.close()
            await self._listener.lost(child, died)
            return died
        finally:
            pinging.cancel()  # when cancelled, the device stops: it lets the child finish its work

    @property
    def all_running(self) -> bool:
        """Whether every process that is to run does."""
        return all(policy.state is State.RUNNING for policy in self.policies.values())

    def report_death(self, who: str, died: ChildDied, after: str) -> None:
        """Tell the person at the terminal, if there is one."""
        reason = died.error.message if died.error else died.reason
        self.plan.report(f"{who} stopped ({reason}) and {after}")

    # -- words

    def record(self, *events: dict[str, Any]) -> None:
        """Journal *events* without waiting; a dead journal is being restarted and says so itself."""
        with contextlib.suppress(OperationError):
            if self.journal:
                self.journal.post(*events)

    def tell(self, role: str, message: ipc.Message, fds: tuple[int, ...] = ()) -> None:
        """Post *message* to the process of *role*; one that is gone asks again, or is told, when it is back."""
        with contextlib.suppress(KeyError, ChannelClosed, OperationError):
            self.children[role].link.post(message, list(fds))
