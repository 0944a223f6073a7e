"""The metrics: they add up, and no client can add a series."""

import re
import threading
from collections import Counter
from functools import partial

from prometheus_client.parser import text_string_to_metric_families

from cache import Cache
from calendar42.calls import CallRecord, Pause
from operations.metrics import Metrics
from standin import Gate, Standin
from tests.fixtures import PREFIX, ROOT, Service, Start, at_once, new_id, until

small_metrics = partial(Metrics, expiry=252.0)
SMALL = {
    "C42_THREADS": "20",
    "C42_TIMEOUT": "5",
}  # four requests may wait for the upstream
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples(service: Service) -> Samples:
    """Read /metrics as Prometheus does."""
    families = text_string_to_metric_families(service.get("/metrics").text)
    return {
        (one.name, frozenset(one.labels.items())): one.value
        for family in families
        for one in family.samples
    }


def value(found: Samples, name: str, **labels: str) -> float:
    """Return the sum of all samples of that name whose labels include those."""
    return sum(
        number
        for (one, its), number in found.items()
        if one == name and its >= labels.items()
    )


def test_numbers_add_up(start: Start, upstream: Standin) -> None:
    """Under load, each request is counted once, by its outcome, and each call as often
    as the upstream saw it.
    """
    service, gate = start(**SMALL), Gate()
    held, missing, broken = new_id(), new_id(), new_id()
    upstream.add_event(held, names=["Arthur"])
    upstream.add_event(broken)
    upstream.rule(event_id=held, gate=gate)
    upstream.rule(event_id=broken, status=503)
    statuses = Counter[int]()

    def ask(event_id: str, **headers: str) -> None:
        statuses[service.event(event_id, headers=headers).status_code] += 1

    waiting = [threading.Thread(target=ask, args=(held,)) for _ in range(4)]
    for thread in waiting:
        thread.start()
    until(
        lambda: service.get("/status.json").json()["cache"]["waiting"] == 4,
        "the waiting room to be full",
    )
    at_once(*[partial(ask, new_id()) for _ in range(30)])
    assert statuses == {503: 30}
    gate.open()
    for thread in waiting:
        thread.join()
    ask(missing)
    ask(broken)
    tag = service.event(held).headers["ETag"]
    statuses[200] += 1
    for _ in range(20):
        at_once(
            *[partial(ask, event_id) for event_id in (held, missing, broken)],
            partial(ask, held, **{"If-None-Match": tag}),
        )
    until(
        lambda: (
            value(samples(service), "c42_upstream_requests_total") == upstream.calls()
        ),
        "all calls to end",
    )

    found = samples(service)
    results = {
        one: value(found, "c42_cache_requests_total", result=one)
        for one in ("hit", "miss", "collapsed", "refused")
    }
    assert results == {"hit": 81, "miss": 3, "collapsed": 3, "refused": 30}
    assert sum(results.values()) == statuses.total()
    loads = {
        one: value(found, "c42_cache_loads_total", outcome=one)
        for one in ("ok", "negative", "fault", "failed")
    }
    assert loads == {"ok": 1, "negative": 1, "fault": 1, "failed": 0}
    entries = {
        one: value(found, "c42_cache_entries", kind=one)
        for one in ("ok", "negative", "fault")
    }
    assert entries == {"ok": 1, "negative": 1, "fault": 1}
    route = PREFIX + "<event_id>"
    for status, count in statuses.items():
        assert (
            value(found, "c42_http_requests_total", route=route, status=str(status))
            == count
        )
    assert value(found, "c42_http_requests_total", route=route) == statuses.total()
    for endpoint in ("events", "event-subscriptions"):
        assert value(
            found, "c42_upstream_requests_total", endpoint=endpoint
        ) == upstream.calls(endpoint)
        name = "c42_upstream_request_duration_seconds_count"
        assert value(found, name, endpoint=endpoint) == upstream.calls(endpoint)

    page = service.get("/status.json").json()
    hits = {
        kind: value(found, "c42_cache_hits_total", kind=kind)
        for kind in ("ok", "negative", "fault", "paused")
    }
    assert hits == {"ok": 41, "negative": 20, "fault": 20, "paused": 0}
    assert (page["requests"], page["hit_ratio"], page["saved_calls"]) == (
        117,
        61 / 117,
        2 * 61,
    )
    took = value(found, "c42_http_request_duration_seconds_count", route=route)
    assert took == 36, (
        "4 waited, 30 were refused, 2 were loaded later; hits don't count"
    )
    assert not any("_created" in name or name == "c42_process_id" for name, _ in found)
    assert page["upstream"]["requests"] == upstream.calls()
    faults = [
        (fault["endpoint"], fault["status"]) for fault in page["upstream"]["faults"]
    ]
    assert faults == [("events", 503)]


def test_labels_are_bounded(service: Service) -> None:
    """No client can add a series: unknown paths, odd methods and queries don't get
    labels of their own.
    """
    service.get("/no-such-path")
    service.request("BREW", "/livez")
    samples(service)  # the first counts itself only in the next
    before = samples(service).keys()
    paths = [f"/{new_id()}/{number}?{new_id()}" for number in range(20)]
    at_once(
        *[partial(service.get, path) for path in paths],
        partial(service.request, "M" + new_id(), "/livez"),
    )
    assert samples(service).keys() == before


def test_durations_of_the_last_calls() -> None:
    """The median and the 99th percentile are of the last 500 calls, and null before the
    first.
    """
    cache = Cache(max_entries=10, max_waiting=1)
    metrics = small_metrics(cache, Pause(1))
    cache.close()
    numbers = metrics.status()["upstream"]["endpoints"]["events"]
    assert numbers == {"requests": 0, "median_seconds": None, "p99_seconds": None}
    for milliseconds in [9000] * 3 + list(range(1, 501)):
        metrics.on_call(CallRecord("events", 200, milliseconds / 1000))
    numbers = metrics.status()["upstream"]["endpoints"]["events"]
    assert numbers == {"requests": 503, "median_seconds": 0.25, "p99_seconds": 0.495}


def test_alerts_are_about_what_is_there(service: Service) -> None:
    """The service has each metric that an alert uses, and docs/operating.md has each
    alert.
    """
    rules = (ROOT / "deploy/c42c.rules.yml").read_text()
    page = (ROOT / "docs/operating.md").read_text()
    service.event(new_id())  # so that there are figures of calls
    had = {name for name, _ in samples(service)} | {
        "up",
        "c42_shared_tier_up",
    }  # the latter with C42_CACHE_URL
    asked = set(re.findall(r"\b(?:c42|process)_[a-z_]+\b", rules))
    assert len(asked) > 8
    assert asked <= had
    alerts = re.findall(r"alert: (\w+)", rules)
    assert [alert for alert in alerts if f"### {alert}\n" not in page] == []
    assert [
        name for name in had if name.startswith("c42_") and not _mentioned(name, page)
    ] == []


def _mentioned(name: str, page: str) -> bool:
    return re.sub("_(bucket|count|sum)$", "", name) in page
