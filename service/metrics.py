"""Prometheus metrics, one registry for each app. The log has errors and changes of state, but no counts and times."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)


class Metrics:
    """All metrics of the service, with the prefix `deepretrieval_`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "deepretrieval_requests", "Requests answered", ["route", "code"], registry=self.registry
        )
        self.duration = Histogram(
            "deepretrieval_request_duration_seconds",
            "From the request's head to the end of its answer",
            ["route"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.batch_size = Histogram(
            "deepretrieval_batch_size",
            "Requests searched together",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128),
            registry=self.registry,
        )
        self.items_read = Histogram(
            "deepretrieval_items_read",
            "Items read by a request, of all paths it searched",
            buckets=(10, 30, 100, 300, 1000, 3000, 10_000, 30_000),
            registry=self.registry,
        )
        self.short = Counter(
            "deepretrieval_short_answers", "Answers with fewer than k candidates", registry=self.registry
        )
        self.narrowed = Counter(
            "deepretrieval_narrowed_answers",
            "Answers for which fewer paths were searched than asked for, to meet the deadline",
            registry=self.registry,
        )
        self.store_faults = Counter(
            "deepretrieval_store_faults",
            "Requests refused because the store failed, or did not answer within the request's timeout_ms",
            registry=self.registry,
        )
        self.swaps = Counter(
            "deepretrieval_index_swaps", "Versions loaded or refused", ["result"], registry=self.registry
        )
        self.folds = Counter(
            "deepretrieval_folds",
            "Folds of the version and the log by this replica",
            ["result"],
            registry=self.registry,
        )
        self.info = Gauge("deepretrieval_index_info", "1 for the version served", ["version"], registry=self.registry)
        self.items = Gauge("deepretrieval_index_items", "Items of the version served", registry=self.registry)
        self.paths = Gauge("deepretrieval_index_paths", "Paths in use in the version served", registry=self.registry)

        self.log_seq = Gauge("deepretrieval_log_seq", "Last record of the log that is applied", registry=self.registry)
        self.log_fullness = Gauge(
            "deepretrieval_overlay_fullness", "Share of the room for new items that is in use", registry=self.registry
        )

    def log(self, seq: int, fullness: float) -> None:
        """Record how far the log was followed."""
        self.log_seq.set(seq)
        self.log_fullness.set(fullness)

    def serving(self, version: str, items: int, paths: int) -> None:
        """Record that a version was swapped in."""
        self.info.clear()
        self.info.labels(version).set(1)
        self.items.set(items)
        self.paths.set(paths)
        self.swaps.labels("loaded").inc()

    def answered(self, read: int, *, short: bool, narrowed: bool) -> None:
        """Record an answered retrieve request. read: items read from paths. short, narrowed: as in the answer."""
        self.items_read.observe(read)
        if short:
            self.short.inc()
        if narrowed:
            self.narrowed.inc()

    def text(self) -> bytes:
        """The Prometheus text format."""
        return generate_latest(self.registry)
