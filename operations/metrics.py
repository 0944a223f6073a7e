"""The numbers of the service, for Prometheus and for the status page.

The cache has counters of its own; responses and calls to the upstream are counted here.
No label is an id, or anything else that a client could make up. `Metrics._lock` guards
everything in it that changes.
"""

import math
import os
import platform
import threading
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from answers import EVENT_PATH
from cache import NEGATIVE, OK, Cache, Stats
from calendar42 import EVENTS_ENDPOINT, SUBSCRIPTIONS_ENDPOINT
from calendar42.calls import CallRecord, Pause
from calendar42.errors import C42Error
from operations import VERSION

CALLS_KEPT = 500  # of each endpoint, for the median and the 99th percentile
FAULTS_KEPT = 20
RECENT = 60.0  # seconds for which a fault or a refusal counts as trouble
BUCKETS = (
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.2,
    0.3,
    0.5,
    0.75,
    1,
    1.5,
    2,
    3,
    5,
    10,
    30,
)  # seconds
NO_ROUTE = "other"
_VERSIONS = (VERSION, platform.python_version())
TIME = "%Y-%m-%dT%H:%M:%SZ"

disable_created_metrics()  # type: ignore[no-untyped-call]  # they are half of all series, and no query uses them


@dataclass(eq=False)
class Metrics(Collector):
    """All numbers of the process. Any thread may use it."""

    cache: Cache
    pause: Pause
    expiry: float
    stopping: Callable[[], bool] = lambda: (
        False
    )  # says whether the service was told to stop
    tier: Any = None  # a `SharedTier`, or None

    def __post_init__(self) -> None:
        self._began = self.cache.clock()
        self._lock = threading.Lock()
        # Hits answered in the event loop, by status; only its thread writes. A Counter
        # would take three times as long.
        self.hits_by_status = defaultdict[bytes, int](int)
        self._responses = Counter[tuple[str, str]]()  # all others, by route and status
        self._calls = Counter[tuple[str, str]]()  # by endpoint and status
        self._seconds = {
            endpoint: deque[float](maxlen=CALLS_KEPT)
            for endpoint in (EVENTS_ENDPOINT, SUBSCRIPTIONS_ENDPOINT)
        }
        self._faults = deque[dict[str, Any]](maxlen=FAULTS_KEPT)
        self._fault_at = self._refused_at = -math.inf  # times of the latest ones
        self.registry = CollectorRegistry()
        histogram = partial(Histogram, registry=self.registry, buckets=BUCKETS)
        self._call_seconds = histogram(
            "c42_upstream_request_duration_seconds",
            "Calls to Calendar42.",
            ["endpoint"],
        )
        self._response_seconds = histogram(
            "c42_http_request_duration_seconds", "Requests to the app.", ["route"]
        )
        self.registry.register(self)
        ProcessCollector(registry=self.registry)

    def on_response(
        self, route: str, status: int, seconds: float | None = None
    ) -> None:
        """Count a response of the app; or, without `seconds`, of the server, which
        rejected the request.
        """
        with self._lock:
            self._responses[route, str(status)] += 1
        if seconds is not None:
            self._response_seconds.labels(route).observe(seconds)

    def on_full(self) -> None:
        """Remember that a request was refused because too many were waiting."""
        with self._lock:
            self._refused_at = self.cache.clock()

    def on_call(self, call: CallRecord) -> None:
        """Count a call to the upstream."""
        self._call_seconds.labels(call.endpoint).observe(call.seconds)
        with self._lock:
            self._calls[call.endpoint, str(call.status)] += 1
            self._seconds[call.endpoint].append(call.seconds)

    def on_fault(self, error: C42Error) -> None:
        """Remember a fault. Equal ones within one second count once."""
        fault = {
            "time": datetime.now(UTC).strftime(TIME),
            "endpoint": error.endpoint,
            "status": error.upstream_status,
        }
        with self._lock:
            self._fault_at = self.cache.clock()
            if fault not in self._faults:
                self._faults.appendleft(fault)

    def status(self) -> dict[str, Any]:
        """Return the content of `/status.json`."""
        stats = self.cache.snapshot()
        tier = self.tier.snapshot() if self.tier else None
        hits = sum(stats.hits.values())
        asked = hits + stats.misses + stats.collapsed + stats.refused
        useful = stats.hits[OK] + stats.hits[NEGATIVE]
        totals = {"hits": hits, "entries": sum(stats.entries.values())}
        kinds = {"hits_by_kind": stats.hits, "entries_by_kind": stats.entries}
        limits = {
            "max_entries": self.cache.max_entries,
            "max_waiting": self.cache.max_waiting,
        }
        return {
            "version": VERSION,
            "pid": os.getpid(),
            "uptime_seconds": round(self.cache.clock() - self._began, 1),
            "now": datetime.now(UTC).strftime(TIME),
            "troubles": self._troubles(stats, tier),
            "stopping": self.stopping(),
            "reaper_alive": self.cache.reaper.is_alive(),
            "expiry_seconds": self.expiry,
            "requests": asked,
            "hit_ratio": useful / asked if asked else None,
            "saved_calls": 2
            # If each had been asked for alone; an event with many pages takes more.
            * useful,
            "cache": stats._asdict() | totals | kinds | limits,
            "upstream": self._upstream(),
            "shared_tier": tier,
        }

    def _troubles(self, stats: Stats, tier: Mapping[str, Any] | None) -> list[str]:
        """Return the names of what is wrong now."""
        recent = self.cache.clock() - RECENT
        troubles = {
            "stopping": self.stopping(),
            "reaper": not self.cache.reaper.is_alive(),
            "full": stats.waiting >= self.cache.max_waiting,
            "refusing": self._refused_at > recent,
            "pause": self.pause.left > 0,
            "faults": self._fault_at > recent,
            "redis": tier and not tier["up"],
        }
        return [name for name, is_so in troubles.items() if is_so]

    def _upstream(self) -> dict[str, Any]:
        with self._lock:
            calls, faults = self._calls.copy(), list(self._faults)
            seconds = {
                endpoint: sorted(latest) for endpoint, latest in self._seconds.items()
            }
        endpoints = {}
        for endpoint, ordered in seconds.items():
            made = sum(count for (its, _), count in calls.items() if its == endpoint)
            median, p99 = _quantile(ordered, 0.5), _quantile(ordered, 0.99)
            endpoints[endpoint] = {
                "requests": made,
                "median_seconds": median,
                "p99_seconds": p99,
            }
        pause = round(self.pause.left, 1)
        return {
            "pause_seconds": pause,
            "requests": calls.total(),
            "endpoints": endpoints,
            "faults": faults,
        }

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics but the histograms."""
        stats = self.cache.snapshot()
        with self._lock:
            calls, responses = self._calls.copy(), self._responses.copy()
        responses.update(
            {
                (EVENT_PATH, status.decode()): served
                for status, served in self.hits_by_status.copy().items()
            }
        )  # adds
        asked = {"hit": sum(stats.hits.values()), "miss": stats.misses}
        asked |= {"collapsed": stats.collapsed, "refused": stats.refused}
        counter, gauge = CounterMetricFamily, GaugeMetricFamily
        families: list[tuple[type[Any], str, str, list[str], Mapping[Any, float]]] = [
            (
                gauge,
                "build_info",
                "The versions of c42c and of Python.",
                ["version", "python"],
                {_VERSIONS: 1},
            ),
            (
                counter,
                "cache_requests",
                "Events asked for, by what the cache made of them.",
                ["result"],
                asked,
            ),
            (counter, "cache_hits", "Hits, by kind of answer.", ["kind"], stats.hits),
            (
                counter,
                "cache_loads",
                "Loads that have ended, by outcome.",
                ["outcome"],
                stats.loads,
            ),
            (
                counter,
                "cache_evictions",
                "Answers deleted, by reason.",
                ["reason"],
                stats.evicted,
            ),
            (
                counter,
                "upstream_requests",
                "Calls to Calendar42; status 0: no answer.",
                ["endpoint", "status"],
                calls,
            ),
            (
                counter,
                "http_requests",
                "Responses of the service.",
                ["route", "status"],
                responses,
            ),
            (gauge, "cache_entries", "Answers held.", ["kind"], stats.entries),
            (
                gauge,
                "cache_entries_limit",
                "Answers that may be held.",
                [],
                {(): self.cache.max_entries},
            ),
            (gauge, "cache_loading", "Loads under way.", [], {(): stats.loading}),
            (
                gauge,
                "waiting_requests",
                "Requests that wait for Calendar42.",
                [],
                {(): stats.waiting},
            ),
            (
                gauge,
                "waiting_requests_limit",
                "Requests that may wait.",
                [],
                {(): self.cache.max_waiting},
            ),
            (
                gauge,
                "upstream_pause_seconds",
                "Time left of a pause (429).",
                [],
                {(): self.pause.left},
            ),
            (
                gauge,
                "reaper_alive",
                "1 while expired answers are deleted.",
                [],
                {(): self.cache.reaper.is_alive()},
            ),
            (
                gauge,
                "stopping",
                "1 once the service was told to stop.",
                [],
                {(): self.stopping()},
            ),
        ]
        if self.tier:
            loads = self.tier.snapshot()
            families.append(
                (
                    gauge,
                    "shared_tier_up",
                    "1 while Redis answers.",
                    [],
                    {(): loads.pop("up")},
                )
            )
            families.append(
                (
                    counter,
                    "shared_tier_loads",
                    "Events to be loaded, by result.",
                    ["result"],
                    loads,
                )
            )
        for kind, name, text, labels, values in families:
            family = kind(f"c42_{name}", text, labels=labels)
            for key, value in sorted(values.items()):
                family.add_metric([key] if isinstance(key, str) else key, value)
            yield family


def _quantile(ordered: Sequence[float], share: float) -> float | None:
    """Return the smallest value that is at least as large as `share` of all values;
    None if there are none.
    """
    return round(ordered[math.ceil(share * len(ordered)) - 1], 4) if ordered else None
