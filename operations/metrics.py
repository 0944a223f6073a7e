"""What the service counts, as Prometheus reads it and as the status page shows it.

The cache counts for itself; here is what it can't know: requests by route and status, and calls to the upstream. Labels
are route templates, endpoints and status codes: never an id, and nothing that a client could make up.

`Metrics._lock` guards every underscored attribute that is not set once and for all.
"""

import math
import os
import platform
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from prometheus_client import CollectorRegistry, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from answers import EVENT
from cache import Cache
from calendar42.calls import Call
from calendar42.errors import C42Error
from calendar42.pause import Pause
from operations import VERSION

ENDPOINTS = ("events", "event-subscriptions")
CALLS_KEPT = 500  # of each endpoint, for the median and the 99th percentile
FAULTS_KEPT = 20
CALLS_PER_LOAD = 2  # at least
BUCKETS = (0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 30)  # seconds
NO_ROUTE = "other"


class Metrics(Collector):
    """All numbers of one serving process. Any thread may use it; `stopping` says whether the service is told to end."""

    def __init__(
        self,
        cache: Cache,
        pause: Pause,
        *,
        expiry: float,
        max_entries: int,
        max_waiting: int,
        stopping: Callable[[], bool] = lambda: False,
        tier: Callable[[], Any] | None = None,
    ) -> None:
        self._expiry = expiry
        self._limits = {"max_entries": max_entries, "max_waiting": max_waiting}
        self._cache = cache
        self._pause = pause
        self._tier = tier
        self.stopping = stopping
        self._began = time.monotonic()
        self.served: Counter[bytes] = Counter()  # hits answered in the event loop, by status; only its thread writes
        self._lock = threading.Lock()
        self._responses: Counter[tuple[str, str]] = Counter()  # route and status
        self._calls: Counter[tuple[str, int]] = Counter()  # endpoint and status
        self._seconds = {endpoint: deque[float](maxlen=CALLS_KEPT) for endpoint in ENDPOINTS}
        self._faults = deque[dict[str, Any]](maxlen=FAULTS_KEPT)
        self.registry = CollectorRegistry()
        self._duration = Histogram(
            "c42_upstream_request_duration_seconds",
            "Time that calls to the upstream took.",
            ["endpoint"],
            buckets=BUCKETS,
            registry=self.registry,
        )
        for endpoint in ENDPOINTS:
            self._duration.labels(endpoint)
        self.registry.register(self)
        ProcessCollector(registry=self.registry)

    @property
    def reaper_alive(self) -> bool:
        """Whether expired entries are deleted."""
        return self._cache.reaper_alive

    def responded(self, route: str, status: str) -> None:
        """Count one response that Flask gave; `status` is its status line."""
        with self._lock:
            self._responses[route, status[:3]] += 1

    def called(self, call: Call) -> None:
        """Count one call to the upstream."""
        self._duration.labels(call.endpoint).observe(call.seconds)
        with self._lock:
            self._calls[call.endpoint, call.status] += 1
            self._seconds[call.endpoint].append(call.seconds)

    def faulted(self, error: C42Error) -> None:
        """Remember a fault; equal ones of one second are one."""
        fault = {"time": _iso(datetime.now(UTC)), "endpoint": error.endpoint, "status": error.upstream_status}
        with self._lock:
            if fault not in self._faults:
                self._faults.appendleft(fault)

    def status(self) -> dict[str, Any]:
        """Return what the status page shows, as JSON has it."""
        stats = self._cache.snapshot()
        hits = sum(stats.hits.values())
        with self._lock:
            calls = Counter[str]()
            for (endpoint, _), made in self._calls.items():
                calls[endpoint] += made
            seconds = {endpoint: sorted(recent) for endpoint, recent in self._seconds.items()}
            faults = list(self._faults)
        return {
            "version": VERSION,
            "pid": os.getpid(),
            "uptime_seconds": round(time.monotonic() - self._began, 1),
            "now": _iso(datetime.now(UTC)),
            "cache": _flat(stats._asdict()) | {"hits": hits} | self._limits,
            "expiry_seconds": self._expiry,
            "upstream": {
                "pause_seconds": round(self._pause.left, 1),
                "requests": calls.total(),
                "endpoints": {
                    endpoint: {
                        "requests": calls[endpoint],
                        "median_seconds": _quantile(seconds[endpoint], 0.5),
                        "p99_seconds": _quantile(seconds[endpoint], 0.99),
                    }
                    for endpoint in ENDPOINTS
                },
                "faults": faults,
            },
            "shared_tier": self._tier()._asdict() if self._tier else None,
            "saved_calls": CALLS_PER_LOAD * (hits + stats.collapsed),
            "stopping": self.stopping(),
            "reaper_alive": self.reaper_alive,
        }

    def collect(self) -> Iterator[Metric]:
        """Yield the families that are read off the cache's one snapshot, and those that are counted here."""
        stats = self._cache.snapshot()
        with self._lock:
            calls = dict(self._calls)
            responses = self._responses.copy()
        for code, served in self.served.copy().items():
            responses[EVENT, code.decode()] += served
        yield _counter(
            "c42_cache_requests",
            "Keys asked for, by what the cache made of them.",
            "result",
            {
                "hit": sum(stats.hits.values()),
                "miss": stats.misses,
                "collapsed": stats.collapsed,
                "refused": stats.refused,
            },
        )
        yield _counter("c42_cache_loads", "Loads that have ended, by outcome.", "outcome", stats.loads)
        yield _counter("c42_cache_evictions", "Entries that were deleted, by reason.", "reason", stats.evicted)
        entries = GaugeMetricFamily("c42_cache_entries", "Entries held.", labels=["kind"])
        for kind, held in stats.entries.items():
            entries.add_metric([kind], held)
        yield entries
        upstream = CounterMetricFamily(
            "c42_upstream_requests",
            "Calls to the upstream that have ended, by status; 0: no whole answer.",
            labels=["endpoint", "status"],
        )
        for (endpoint, status), made in sorted(calls.items()):
            upstream.add_metric([endpoint, str(status)], made)
        yield upstream
        http = CounterMetricFamily("c42_http_requests", "Responses of the service.", labels=["route", "status"])
        for labels, sent in sorted(responses.items()):
            http.add_metric(labels, sent)
        yield http
        if self._tier:
            asked = self._tier()._asdict()
            up = asked.pop("up")
            yield _counter("c42_shared_tier_loads", "Events to be loaded, by what Redis made of them.", "result", asked)
            yield GaugeMetricFamily("c42_shared_tier_up", "1 where answers are shared through Redis.", up)
        yield from (GaugeMetricFamily(name, text, value) for name, text, value in self._gauges(stats))
        build = GaugeMetricFamily("c42_build_info", "Always 1.", labels=["version", "python"])
        build.add_metric([VERSION, platform.python_version()], 1)
        yield build

    def _gauges(self, stats: Any) -> Sequence[tuple[str, str, float]]:
        return (
            ("c42_cache_entries_limit", "C42_MAX_ENTRIES: entries that may be held.", self._limits["max_entries"]),
            ("c42_waiting_requests", "Requests that wait for the upstream.", stats.waiting),
            ("c42_waiting_requests_limit", "Requests that may wait; more are refused.", self._limits["max_waiting"]),
            ("c42_cache_loading", "Loads under way.", stats.loading),
            ("c42_upstream_pause_seconds", "Time until the upstream may be asked again (429).", self._pause.left),
            ("c42_reaper_alive", "1 where expired entries are deleted.", self.reaper_alive),
            ("c42_process_id", "The process that answered.", os.getpid()),
            ("c42_stopping", "1 from the signal to end until the end.", self.stopping()),
        )


def _counter(name: str, text: str, label: str, values: dict[str, int]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=[label])
    for value, counted in values.items():
        family.add_metric([value], counted)
    return family


def _flat(numbers: dict[str, Any]) -> dict[str, int]:
    """Return the numbers by name: {"loads": {"ok": 1}} is {"loads_ok": 1}."""
    flat: dict[str, int] = {}
    for name, value in numbers.items():
        flat |= {f"{name}_{kind}": count for kind, count in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def _quantile(ordered: Sequence[float], share: float) -> float | None:
    """Return the smallest value that `share` of all do not exceed; None where there is none."""
    if not ordered:
        return None
    return round(ordered[math.ceil(share * len(ordered)) - 1], 4)


def _iso(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")
