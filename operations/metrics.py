"""The numbers of the service, as Prometheus reads them.

The cache has counters of its own; responses and calls to Calendar42 are counted here.
No label is an id, or anything else that a client could make up. `Metrics._lock` guards
everything in it that changes.
"""

import math
import os
import platform
import secrets
import threading
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, Protocol

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from answers import EVENT_PATH
from cache import FAULT, NEGATIVE, OK, PAUSED, Cache, Loaded, Loader, Stats
from calendar42 import ENDPOINTS, Endpoint
from calendar42.calls import CallRecord, Pause
from calendar42.errors import C42Error
from calendar42.payload import Event
from operations import VERSION, logs
from operations.recent import History, Outcomes, Recent, Sample

# Seconds. 10.5 is just above the default of C42_TIMEOUT: calls that ran into it are
# between the two.
_FAST = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75)
_SLOW = (1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 10.5, 30.0, math.inf)
BUCKETS = _FAST + _SLOW
NO_ROUTE = "other"


class TierNumbers(Protocol):
    """What the metrics need of `sharing.tier.SharedTier`."""

    def snapshot(self) -> Mapping[str, int]:
        """Return `up`, which is 1 or 0, and how many events were loaded, by result."""


class _Call(NamedTuple):
    endpoint: Endpoint
    status: str


class _Response(NamedTuple):
    route: str
    status: str


class Histogram:
    """How often durations fell into each of the `BUCKETS`. Not thread-safe."""

    def __init__(self) -> None:
        self._counts = [0] * len(BUCKETS)
        self._sum = 0.0

    def observe(self, seconds: float) -> None:
        """Count one duration."""
        self._counts[bisect_left(BUCKETS, seconds)] += 1
        self._sum += seconds

    def add_to(self, family: HistogramMetricFamily, label: str) -> None:
        """Add it to a family of metrics that has one label."""
        buckets = []
        so_far = 0
        for bound, count in zip(BUCKETS, self._counts, strict=True):
            so_far += count
            buckets.append((_as_prometheus_writes(bound), so_far))
        family.add_metric([label], buckets, self._sum)


class Metrics(Collector):
    """All numbers of the process. Any thread may use it."""

    def __init__(
        self,
        cache: Cache,
        pause: Pause,
        expiry: float,
        *,
        stopping: Callable[[], bool] = lambda: False,
        tier: TierNumbers | None = None,
    ) -> None:
        """`stopping` says whether the service was told to stop."""
        self.cache = cache
        self.pause = pause
        self.expiry = expiry
        self.stopping = stopping
        self.tier = tier
        self.began = cache.clock()
        # Hits answered in the event loop, by status; only its thread writes. A Counter
        # would take three times as long.
        self.hits_by_status = defaultdict[bytes, int](int)
        self._lock = threading.Lock()
        self._responses = Counter[_Response]()  # all others
        self._response_seconds = defaultdict[str, Histogram](Histogram)  # by route
        self._calls = Counter[_Call]()
        # prometheus_client's own histograms write files if the environment has
        # PROMETHEUS_MULTIPROC_DIR, which may be meant for another program.
        self._call_seconds: dict[Endpoint, Histogram] = {}
        for endpoint in ENDPOINTS:
            self._call_seconds[endpoint] = Histogram()
        self.recent = Recent(cache.clock)
        self.history = History(self._sample)
        self._random = secrets.token_hex(4)
        # The registry collects all names now, so that `/metrics?name[]=…` finds them.
        self.registry = CollectorRegistry(auto_describe=True)
        self.registry.register(self)
        ProcessCollector(registry=self.registry)

    @property
    def instance(self) -> str:
        """An id of this process that no other has.

        A process id alone doesn't tell instances apart: in a container it is always 1.
        """
        return f"{self._random}-{os.getpid()}"

    def on_response(self, route: str, status: int, seconds: float) -> None:
        """Count a response of the app, which took so many seconds."""
        with self._lock:
            self._responses[_Response(route, str(status))] += 1
            self._response_seconds[route].observe(seconds)

    def on_rejection(self, status: int) -> None:
        """Count a request that the server rejected before the app saw it."""
        with self._lock:
            self._responses[_Response(NO_ROUTE, str(status))] += 1

    def on_full(self) -> None:
        """Remember that a request was refused because too many were waiting."""
        self.recent.on_full()

    def on_call(self, call: CallRecord) -> None:
        """Count a call to Calendar42."""
        with self._lock:
            self._calls[_Call(call.endpoint, str(call.status))] += 1
            self._call_seconds[call.endpoint].observe(call.seconds)
        self.recent.on_call(call)

    def on_outcome(self, outcome: Event | C42Error) -> None:
        """Remember what came of an event's load, if it is a fault of Calendar42."""
        if isinstance(outcome, C42Error) and outcome.kind == FAULT:
            self.recent.on_fault(outcome)

    def watch(self, load: Loader) -> Loader:
        """Return `load`, with each of its outcomes remembered."""

        def watched(
            event_ids: list[str], deadline: float
        ) -> Iterator[tuple[str, Loaded]]:
            began = self.cache.clock()
            with self.recent.loading():
                for event_id, loaded in load(event_ids, deadline):
                    self.recent.on_load(loaded.kind, self.cache.clock() - began)
                    yield event_id, loaded

        return watched

    def calls_by_endpoint(self) -> dict[Endpoint, int]:
        """Return how many calls to each endpoint have ended."""
        made = dict.fromkeys(ENDPOINTS, 0)
        with self._lock:
            calls = self._calls.copy()
        for call, count in calls.items():
            made[call.endpoint] += count
        return made

    def _sample(self) -> Sample:
        """Read what the history keeps."""
        stats = self.cache.snapshot()
        return Sample(
            at=self.cache.clock(),
            outcomes=outcomes(stats),
            failed=failed(stats),
            refreshes=sum(stats.refreshes.values()),
            latency=self.recent.latency(),
            slowest_load=self.recent.take_slowest_load(),
        )

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics."""
        yield from self._of_the_cache()
        yield from self._of_calendar42()
        yield from self._of_the_service()
        if self.tier is not None:
            yield from self._of_the_tier(self.tier)

    def _of_the_cache(self) -> Iterator[Metric]:
        stats = self.cache.snapshot()
        asked = {
            "hit": sum(stats.hits.values()),
            "miss": stats.misses,
            "collapsed": stats.collapsed,
            "refused": stats.refused,
        }
        yield counter(
            "cache_requests",
            "Events asked for, by what the cache made of them.",
            "result",
            asked,
        )
        yield counter("cache_hits", "Hits, by kind of answer.", "kind", stats.hits)
        yield counter(
            "cache_loads", "Loads that have ended, by outcome.", "outcome", stats.loads
        )
        yield counter(
            "cache_refreshes",
            "Refreshes that have ended, by outcome.",
            "outcome",
            stats.refreshes,
        )
        yield counter(
            "cache_evictions",
            "Cached answers deleted, by reason.",
            "reason",
            stats.evicted,
        )
        entries = GaugeMetricFamily(
            "c42_cache_entries", "Cached answers.", labels=["kind"]
        )
        for kind, held in stats.entries.items():
            entries.add_metric([kind], held)
        yield entries
        yield gauge(
            "cache_entries_limit", "Answers that may be cached.", self.cache.max_entries
        )
        yield gauge(
            "cache_bytes", "Memory that cached answers take, estimated.", stats.bytes
        )
        yield gauge(
            "cache_bytes_limit", "Memory that they may take.", self.cache.max_bytes
        )
        yield gauge("cache_loading", "Loads under way.", stats.loading)
        yield gauge("cache_refreshing", "Refreshes under way.", stats.refreshing)
        yield gauge(
            "waiting_requests", "Requests that wait for Calendar42.", stats.waiting
        )
        yield gauge(
            "waiting_requests_limit", "Requests that may wait.", self.cache.max_waiting
        )
        yield gauge(
            "reaper_alive",
            "1 while expired answers are deleted.",
            self.cache.reaper_alive,
        )

    def _of_calendar42(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "c42_upstream_requests",
            "Calls to Calendar42; status 0: no answer.",
            labels=["endpoint", "status"],
        )
        durations = HistogramMetricFamily(
            "c42_upstream_request_duration_seconds",
            "Calls to Calendar42.",
            labels=["endpoint"],
        )
        with self._lock:
            for call, count in self._calls.items():
                requests.add_metric(call, count)
            for endpoint, histogram in self._call_seconds.items():
                histogram.add_to(durations, endpoint)
        yield requests
        yield durations
        yield gauge(
            "upstream_requests_last_hour",
            "Calls to Calendar42 in the last 3,600 seconds.",
            self.recent.calls_in_the_last_hour(),
        )
        yield gauge(
            "upstream_pause_seconds", "Time left of a pause (429).", self.pause.left
        )

    def _of_the_service(self) -> Iterator[Metric]:
        versions = GaugeMetricFamily(
            "c42_build_info",
            "The versions of c42c and of Python.",
            labels=["version", "python"],
        )
        versions.add_metric([VERSION, platform.python_version()], 1)
        yield versions
        responses = CounterMetricFamily(
            "c42_http_requests",
            "Responses of the service.",
            labels=["route", "status"],
        )
        durations = HistogramMetricFamily(
            "c42_http_request_duration_seconds",
            "Requests to the app.",
            labels=["route"],
        )
        with self._lock:
            served = self._responses.copy()
            for route, histogram in self._response_seconds.items():
                histogram.add_to(durations, route)
        for status, count in self.hits_by_status.copy().items():
            served[_Response(EVENT_PATH, status.decode())] += count
        for response, count in served.items():
            responses.add_metric(response, count)
        yield responses
        yield durations
        yield CounterMetricFamily(
            "c42_log_dropped",
            "Log lines that were dropped because stderr is read too slowly.",
            value=logs.dropped(),
        )
        yield gauge("stopping", "1 once the service was told to stop.", self.stopping())

    def _of_the_tier(self, tier: TierNumbers) -> Iterator[Metric]:
        loads = dict(tier.snapshot())
        yield gauge(
            "shared_tier_up",
            "1 while answers are shared through Redis, 0 while Redis is lost.",
            loads.pop("up"),
        )
        yield counter(
            "shared_tier_loads",
            "Events that were not in this instance's cache, by result.",
            "result",
            loads,
        )


def outcomes(stats: Stats) -> Outcomes:
    """Return how many events were asked for, by outcome."""
    return Outcomes(
        hit=stats.hits[OK] + stats.hits[NEGATIVE],
        cached_error=stats.hits[FAULT] + stats.hits[PAUSED],
        miss=stats.misses,
        collapsed=stats.collapsed,
        refused=stats.refused,
    )


def failed(stats: Stats) -> int:
    """Return for how many events a caller got an error.

    It was cached, or just loaded, or the caller was refused. Callers that waited for
    another's load aren't counted.
    """
    cached = stats.hits[FAULT] + stats.hits[PAUSED]
    loaded = stats.loads[FAULT] + stats.loads[PAUSED] + stats.loads["failed"]
    return cached + loaded + stats.refused


def counter(
    name: str, text: str, label: str, counts: Mapping[str, int]
) -> CounterMetricFamily:
    """Make the counter `c42_NAME_total` with one label.

    The label's values are the keys of `counts`.
    """
    family = CounterMetricFamily(f"c42_{name}", text, labels=[label])
    for value, count in counts.items():
        family.add_metric([value], count)
    return family


def gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    """Make the gauge `c42_NAME`, without labels."""
    return GaugeMetricFamily(f"c42_{name}", text, value=value)


def _as_prometheus_writes(bound: float) -> str:
    if bound == math.inf:
        return "+Inf"
    return str(bound)
