"""What Prometheus reads. No label holds a device, a person or anything else without bound."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from casemate.errors import CasemateError

_SECONDS: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5)


class Metrics:
    """A registry of its own: two servers in one process (tests) do not meet."""

    def __init__(self) -> None:
        """Make every family, so that it is there before the first event."""
        self.registry: Final = CollectorRegistry()
        self._answers: dict[tuple[str, int], Counter] = {}  # finding a label costs as much as decoding a check-in
        self.answers = self._counter("answers", "Requests answered", "listener", "status")
        self.refusals = self._counter("refusals", "Requests refused, by reason", "listener", "reason")
        self.checkins = self._counter("checkins", "Check-ins taken")
        self.lost_samples = self._counter(
            "lost_samples", "Check-ins whose health could not be kept: the database was away"
        )
        self.flushes = self._counter("flushes", "Batches written behind check-ins", "outcome")
        self.batches = self._counter("batches", "Batches of check-ins over the bus, by what became of them", "outcome")
        self.issued = self._counter("certificates_issued", "Device certificates issued", "way")
        self.commands = self._counter("commands", "Commands by what became of them", "verb", "outcome")
        self.usage_reports = self._counter("usage_reports", "Usage reports by what became of them", "outcome")
        self.alerts = self._counter("alerts", "Alerts opened", "kind")
        self.deliveries = self._counter("alert_deliveries", "Alerts sent out", "outcome")
        self.devices = Gauge("casemate_fleet_devices", "Devices by state", ["state"], registry=self.registry)
        self.leads = Gauge(
            "casemate_fleet_leads", "Duties of all servers that this one does now", ["duty"], registry=self.registry
        )
        self.unattended = Gauge(
            "casemate_fleet_rollouts_unattended_seconds",
            "How long no server has looked at a rollout that is under way",
            registry=self.registry,
        )
        self.streams = Gauge("casemate_fleet_streams", "Open wake streams", registry=self.registry)
        self.flush_seconds = Histogram(
            "casemate_fleet_flush_seconds", "Time one batch takes", registry=self.registry, buckets=_SECONDS
        )

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"casemate_fleet_{name}", text, labels, registry=self.registry)

    def refused(self, listener: str, error: CasemateError) -> None:
        """Count a refusal: by the check that failed, else by the kind of the error."""
        self.refusals.labels(listener, getattr(error, "check", error.code)).inc()

    def answered(self, listener: str, status: int) -> None:
        """Count an answer."""
        key = (listener, status)
        counter = self._answers.get(key)
        if counter is None:
            counter = self._answers[key] = self.answers.labels(listener, str(status))
        counter.inc()

    def page(self) -> bytes:
        """Return the exposition."""
        return generate_latest(self.registry)
