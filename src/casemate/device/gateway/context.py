"""What every endpoint shares: one `Gateway` per process."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Final

from casemate.clock import Clock
from casemate.device.apps import App, AppSet
from casemate.device.gateway.audit import Audit
from casemate.device.gateway.auth import Authenticator
from casemate.device.gateway.engines import Engines
from casemate.device.gateway.exchange import BodyBudget
from casemate.device.gateway.limits import Limits
from casemate.device.gateway.metrics import Metrics
from casemate.device.gateway.screening import Screening
from casemate.device.gateway.shield import Shield
from casemate.device.gateway.tally import Tally

LOOPBACK_NAMES: Final = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclasses.dataclass
class Gateway:
    """The shared state; built by `assemble`."""

    clock: Clock
    engines: Engines
    audit: Audit
    limits: Limits
    screening: Screening
    metrics: Metrics
    authenticator: Authenticator
    hosts: frozenset[str]
    seconds: float
    """How long one request may take in an engine."""
    apps: AppSet
    apps_readable: bool = True
    secret: bytes = b""
    """Keys the placeholders of this process's lifetime."""
    budget: BodyBudget = dataclasses.field(default_factory=BodyBudget)
    tally: Tally = dataclasses.field(default_factory=Tally)

    def accepts_host(self, name: str, local: str) -> bool:
        """Whether a request may name this *name* (without port) in its Host header.

        *local* is the address it came in on: a browser that was lured here by DNS sends a name, never that address.
        """
        return self._is_own(name, local) or any(name in hosts for hosts in self._app_hosts())

    def _is_own(self, name: str, local: str) -> bool:
        return name in LOOPBACK_NAMES or name in self.hosts or (name == local != "")

    def _app_hosts(self) -> list[tuple[str, ...]]:
        return [app.policy.hosts for app in self.apps.by_key_id.values() if app.policy]

    def app_accepts_host(self, app: App, name: str, local: str) -> bool:
        """Whether *app* may be called under *name*: a name of another app's policy is not enough."""
        return self._is_own(name, local) or bool(app.policy and name in app.policy.hosts)

    @property
    def ready(self) -> bool:
        """Whether a good request would be answered now."""
        return self.engines.ready and self.apps_readable

    def take_apps(self, fresh: AppSet) -> None:
        """Serve the apps of *fresh* from now on, and journal what is different."""
        before = {app.name: app for app in self.apps.by_key_id.values()}
        after = {app.name: app for app in fresh.by_key_id.values()}
        self.apps, self.apps_readable = fresh, True
        self.limits.keep(set(after))
        changes = [f"added {name}" for name in sorted(after.keys() - before.keys())]
        changes += [f"removed {name}" for name in sorted(before.keys() - after.keys())]
        for name in sorted(after.keys() & before.keys()):
            if after[name].key_id != before[name].key_id:
                changes.append(f"new key for {name}")
            if after[name].policy != before[name].policy:
                changes.append(f"new policy for {name}")
        changes += [f"refused: {fault}" for fault in fresh.faults]
        if changes:
            self.audit.apps_changed("; ".join(changes))

    def wrong_key(self, client: str, code: str) -> None:
        """Count a request without a valid key; the first of an address is journaled at once."""
        self.metrics.auth_failures.labels(code).inc()
        if count := self.authenticator.throttle.report(client, self.clock.monotonic()):
            self.audit.wrong_keys(client, count)

    def report_wrong_keys(self) -> None:
        """Journal what came since the last event of each address, at most once a minute."""
        for client, count in self.authenticator.throttle.reports(self.clock.monotonic()):
            self.audit.wrong_keys(client, count)

    def close(self) -> None:
        """Let go of links and threads."""
        self.engines.close()
        self.audit.close()
        self.screening.close()


def assemble(
    *,
    clock: Clock,
    shield: Shield,
    apps: AppSet,
    models: tuple[str, ...],
    hosts: frozenset[str],
    queue: int,
    seconds: float,
    secret: bytes,
    on_stuck: Callable[[str], None],
) -> Gateway:
    """Build a gateway: *queue* requests may wait per model, one may take *seconds*; *on_stuck* hears of hangs."""
    engines = Engines(models, queue=queue, on_stuck=on_stuck)
    gateway = Gateway(
        clock=clock,
        engines=engines,
        audit=Audit(clock),
        limits=Limits(clock.monotonic),
        screening=Screening(shield, clock.monotonic),
        metrics=Metrics(engines),
        authenticator=Authenticator(lambda: gateway.apps, clock.monotonic),
        hosts=hosts,
        seconds=seconds,
        apps=apps,
        secret=secret,
    )
    return gateway
