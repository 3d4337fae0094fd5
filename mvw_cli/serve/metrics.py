"""What `/metrics` tells, in Prometheus' form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from mvw_cli.serve.desk import Desk

_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500)


class Metrics:
    """Counts of one server, in a registry of its own."""

    def __init__(self, desk: Desk) -> None:
        registry = self._registry = CollectorRegistry()

        def counter(name: str, what: str, *labels: str) -> Any:
            return Counter(f"mvw_{name}", what, labels, registry=registry)

        self._requests = counter("requests", "Requests by the status of their answer.", "status")
        self._tokens = counter("tokens", "Tokens of answered requests, by kind.", "kind")
        self._withdrawals = counter("withdrawals", "Answers whose vision was withdrawn.")
        self._withdrawn = counter("withdrawn_tokens", "Vision tokens that were withdrawn.")
        self._freed = counter("kv_freed_bytes", "Bytes of the KV cache that withdrawals freed.")
        self._seconds = Histogram(
            "mvw_request_seconds",
            "From a request's arrival to the end of its answer.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._ttft = Histogram(
            "mvw_time_to_first_token_seconds",
            "From the start of the prefill to the first token.",
            buckets=_SECONDS,
            registry=registry,
        )
        gauges = {
            "requests_running": ("Requests that decode.", lambda: desk.state.slots),
            "requests_waiting": ("Requests that wait for a slot.", lambda: desk.waiting),
            "slots": ("Requests that may decode at the same time.", lambda: desk.state.max_slots),
            "kv_allocated_bytes_peak": (
                "Most bytes that the KV cache's storages have taken.",
                lambda: desk.state.kv_allocated_bytes_peak,
            ),
        }
        for name, (what, read) in gauges.items():
            Gauge(f"mvw_{name}", what, registry=registry).set_function(read)

    def answered(self, record: Mapping[str, Any]) -> None:
        """Count what one answer took."""
        for kind, key in (("prompt", "prompt"), ("vision", "vision"), ("completion", "generated")):
            self._tokens.labels(kind).inc(record[f"{key}_tokens"])
        self._ttft.observe(record["timings"]["ttft_ms"] / 1e3)
        withdrawal = record["withdrawal"]
        if withdrawal is not None:
            self._withdrawals.inc()
            self._withdrawn.inc(withdrawal["vision_tokens"])
            self._freed.inc(withdrawal["kv_bytes_before"] - withdrawal["kv_bytes_after"])

    def ended(self, status: int, seconds: float) -> None:
        """Count a request that has ended, however it did; 499: its client has gone."""
        self._requests.labels(str(status)).inc()
        self._seconds.observe(seconds)

    def text(self) -> bytes:
        """Write all of it."""
        return bytes(generate_latest(self._registry))
