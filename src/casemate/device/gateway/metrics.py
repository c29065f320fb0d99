"""Prometheus metrics in OpenTelemetry's gen_ai words, in a registry of their own.

Labels are bounded: known apps, known models, fixed codes. Nothing of a prompt or an answer is ever a label.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from casemate.device.gateway.engines import Engines

CONTENT_TYPE: Final = b"text/plain; version=0.0.4; charset=utf-8"
_DURATION: Final = tuple(0.01 * 2**power for power in range(14))
_FIRST_TOKEN: Final = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
_PER_TOKEN: Final = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5)
_TOKENS: Final = tuple(4**power for power in range(14))
_OPERATION: Final = ("gen_ai_operation_name", "gen_ai_request_model", "app")


class _EngineGauges(Collector):
    """Reads the engines when scraped."""

    def __init__(self, engines: Engines) -> None:
        self._engines = engines

    def collect(self) -> Iterator[GaugeMetricFamily]:
        serving = GaugeMetricFamily("casemate_engine_up", "1 when the model can answer", labels=["model"])
        running = GaugeMetricFamily("casemate_engine_running", "requests in a slot", labels=["model"])
        waiting = GaugeMetricFamily("casemate_engine_waiting", "requests waiting for a slot", labels=["model"])
        for model, link in self._engines.states():
            serving.add_metric([model], 1.0 if link and link.serving else 0.0)
            running.add_metric([model], link.running if link else 0)
            waiting.add_metric([model], link.waiting if link else 0)
        yield from (serving, running, waiting)


class Metrics:
    """Everything the gateway counts."""

    def __init__(self, engines: Engines) -> None:
        """Make the registry; the state of *engines* is read when scraped."""
        self.registry = CollectorRegistry()
        self.registry.register(_EngineGauges(engines))
        self.requests = self._counter("casemate_http_requests", "HTTP answers", "route", "status")
        self.auth_failures = self._counter("casemate_auth_failures", "requests without a valid key", "code")
        self.limited = self._counter("casemate_rate_limited", "requests over a limit of their app", "app", "limit")
        self.verdicts = self._counter("casemate_guard_verdicts", "texts judged", "app", "channel", "action")
        self.redactions = self._counter("casemate_guard_redactions", "values taken out of answers", "app", "type")
        self.cut = self._counter("casemate_answers_cut", "answers the guard stopped", "app", "reason")
        self.duration = self._histogram(
            "gen_ai_server_request_duration_seconds", "whole request", _DURATION, *_OPERATION, "error_type"
        )
        self.first_token = self._histogram(
            "gen_ai_server_time_to_first_token_seconds", "until the first text", _FIRST_TOKEN, *_OPERATION
        )
        self.per_token = self._histogram(
            "gen_ai_server_time_per_output_token_seconds", "between tokens after the first", _PER_TOKEN, *_OPERATION
        )
        self.tokens = self._histogram(
            "gen_ai_client_token_usage_tokens", "tokens of a request", _TOKENS, *_OPERATION, "gen_ai_token_type"
        )

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: Iterable[float], *labels: str) -> Histogram:
        return Histogram(name, text, labels, buckets=tuple(buckets), registry=self.registry)

    def scrape(self) -> bytes:
        """Return the exposition text."""
        return generate_latest(self.registry)
