"""What `/status.json` says: what is wrong now, and the numbers of the status page.

Nothing here names an event, a person or the token.
"""

import socket
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from operator import sub
from typing import Any

from cache import Cache, Stats
from calendar42 import ENDPOINTS
from operations import VERSION
from operations.metrics import Metrics, failed, outcomes
from operations.recent import TIME, Fault, LastMinute, Latency, Outcomes, Sample

HOURLY_LIMIT = 10_000  # calls an hour and token (docs/calendar42.md)
NEARLY = 0.8  # of the limit
# In an outage, most loads of the last minute have failed. A single fault is none.
OUTAGE_FAULTS = 3
OUTAGE_SHARE = 0.5


def read_status(metrics: Metrics, port: int | None = None) -> dict[str, Any]:
    """Return the content of `/status.json`, of a service that listens on `port`."""
    cache = metrics.cache
    tier = None
    if metrics.tier is not None:
        tier = metrics.tier.snapshot()
    stats = cache.snapshot()
    asked = outcomes(stats)
    requests = sum(asked)
    return {
        "instance": metrics.instance,
        "host": socket.gethostname(),
        "port": port,
        "version": VERSION,
        "uptime_seconds": round(cache.clock() - metrics.began, 1),
        "now": datetime.now(UTC).strftime(TIME),
        "troubles": _troubles(metrics, stats, tier),
        "expiry_seconds": metrics.expiry,
        "requests": requests,
        "hit_ratio": _ratio(asked.hit, requests),
        # If each had been asked for alone; an event with many pages takes more.
        "saved_calls": 2 * asked.hit,
        "outcomes": asked._asdict(),
        "failed": failed(stats),
        "refreshes": sum(stats.refreshes.values()),
        "last_minute": metrics.recent.last_minute()._asdict(),
        "history": _history(metrics, stats),
        "cache": _cache(cache, stats),
        "upstream": _upstream(metrics),
        "shared_tier": tier,
    }


def _troubles(
    metrics: Metrics, stats: Stats, tier: Mapping[str, Any] | None
) -> list[str]:
    """Return the names of what is wrong now."""
    minute = metrics.recent.last_minute()
    found = []
    if metrics.stopping():
        found.append("stopping")
    if not metrics.cache.reaper_alive:
        found.append("reaper")
    if stats.waiting >= metrics.cache.max_waiting:
        found.append("full")
    if minute.refused > 0:
        found.append("refusing")
    if metrics.pause.left > 0:
        found.append("pause")
    if minute.token_refused > 0:
        found.append("token")
    found += _faults(minute)
    if metrics.recent.calls_in_the_last_hour() > NEARLY * HOURLY_LIMIT:
        found.append("limit")
    if tier is not None and not tier["up"]:
        found.append("redis")
    return found


def _faults(minute: LastMinute) -> list[str]:
    """Tell an outage from single faults. A refused token is a trouble of its own."""
    faults = minute.failed - minute.token_refused
    if faults <= 0:
        return []
    if faults >= OUTAGE_FAULTS and faults > OUTAGE_SHARE * minute.loads:
        return ["outage"]
    return ["faults"]


def _cache(cache: Cache, stats: Stats) -> dict[str, Any]:
    """Return what is held and under way now, and the limits."""
    return {
        "entries": sum(stats.entries.values()),
        "entries_by_kind": stats.entries,
        "max_entries": cache.max_entries,
        "bytes": stats.bytes,
        "max_bytes": cache.max_bytes,
        "waiting": stats.waiting,
        "max_waiting": cache.max_waiting,
        "loading": stats.loading,
    }


def _upstream(metrics: Metrics) -> dict[str, Any]:
    made = metrics.calls_by_endpoint()
    latencies = metrics.recent.latency()
    endpoints = {}
    for endpoint in ENDPOINTS:
        endpoints[endpoint] = {
            "requests": made[endpoint],
            "median_seconds": latencies[endpoint].median,
            "p99_seconds": latencies[endpoint].p99,
        }
    oldest_load = metrics.recent.oldest_load()
    if oldest_load is not None:
        oldest_load = round(oldest_load, 1)
    return {
        "oldest_load_seconds": oldest_load,
        "pause_seconds": round(metrics.pause.left, 1),
        "requests": sum(made.values()),
        "requests_last_hour": metrics.recent.calls_in_the_last_hour(),
        "hourly_limit": HOURLY_LIMIT,
        "endpoints": endpoints,
        "faults": faults(metrics),
    }


def faults(metrics: Metrics) -> list[dict[str, Any]]:
    """Return the latest faults, newest first."""
    return [_describe(fault) for fault in metrics.recent.faults()]


def _describe(fault: Fault) -> dict[str, Any]:
    return {
        "time": fault.time,
        "endpoint": fault.endpoint,
        "status": fault.status,
        "cause": fault.cause,
        "request_id": fault.request_id,
        "count": fault.count,
    }


def _history(metrics: Metrics, stats: Stats) -> dict[str, Any]:
    """Return the last ten minutes: a point for each sample, and sums of them all."""
    samples = metrics.history.samples()
    now = metrics.cache.clock()
    oldest = samples[0]
    since = Outcomes(*map(sub, outcomes(stats), oldest.outcomes))
    slowest = metrics.recent.slowest_load()
    for sample in samples[1:]:
        slowest = max(slowest, sample.slowest_load)
    moments = [sample.at for sample in samples]
    rates = {}
    for outcome in Outcomes._fields:
        counts = [getattr(sample.outcomes, outcome) for sample in samples]
        rates[outcome] = _per_second(moments, counts)
    failures = [sample.failed for sample in samples]
    refreshes = [sample.refreshes for sample in samples]
    return {
        "seconds": round(now - oldest.at, 1),
        "outcomes": since._asdict(),
        "failed": failed(stats) - oldest.failed,
        "refreshes": sum(stats.refreshes.values()) - oldest.refreshes,
        "hit_ratio": _ratio(since.hit, sum(since)),
        "slowest_load_seconds": round(slowest, 4) or None,
        "seconds_ago": [round(now - moment, 1) for moment in moments],
        "requests_per_second": rates,
        "failed_per_second": _per_second(moments, failures),
        "refreshes_per_second": _per_second(moments, refreshes),
        "latency_seconds": _latencies(samples),
    }


def _per_second(moments: Sequence[float], counts: Sequence[int]) -> list[float | None]:
    """Return by how much a count rose each second, from each moment to the next.

    The first moment has None.
    """
    rates: list[float | None] = [None]
    for (earlier, later), (before, after) in zip(
        pairwise(moments), pairwise(counts), strict=True
    ):
        rate = None
        if later > earlier:
            rate = round((after - before) / (later - earlier), 3)
        rates.append(rate)
    return rates


def _latencies(samples: Sequence[Sample]) -> dict[str, dict[str, list[float | None]]]:
    series: dict[str, dict[str, list[float | None]]] = {}
    for endpoint in ENDPOINTS:
        latencies: list[Latency] = [sample.latency[endpoint] for sample in samples]
        series[endpoint] = {
            "median": [latency.median for latency in latencies],
            "p99": [latency.p99 for latency in latencies],
        }
    return series


def _ratio(part: int, whole: int) -> float | None:
    if whole <= 0:
        return None
    return part / whole
