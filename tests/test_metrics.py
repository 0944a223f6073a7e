"""The metrics: that they add up, and in which forms Prometheus gets them."""

import gzip
import re
import threading
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import pytest
import requests
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as read_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families

from calendar42 import ENDPOINTS
from standin import Gate, Standin
from tests.fixtures import (
    PREFIX,
    ROOT,
    TOKEN,
    MakeInside,
    Service,
    Start,
    at_once,
    new_id,
    started,
    until,
)

ROUTE = PREFIX + "<event_id>"
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples(service: Service) -> Samples:
    """Read /metrics as Prometheus does."""
    found = {}
    for family in text_string_to_metric_families(service.get("/metrics").text):
        for one in family.samples:
            found[one.name, frozenset(one.labels.items())] = one.value
    return found


def value(found: Samples, name: str, **labels: str) -> float:
    """Return the sum of all samples of that name whose labels include those.

    There must be samples of that name.
    """
    total = 0.0
    assert name in {its_name for its_name, _ in found}
    for (its_name, its_labels), number in found.items():
        if its_name == name and its_labels >= labels.items():
            total += number
    return total


def values(found: Samples, name: str, label: str) -> dict[str, float]:
    """Return the samples of that name by the value of their only label."""
    by_label = {}
    for (its_name, its_labels), number in found.items():
        if its_name == name:
            by_label[dict(its_labels)[label]] = number
    return by_label


class Traffic(NamedTuple):
    """What a service was asked, and what it says of that."""

    statuses: Counter[int]  # of the answers
    calls: dict[str, int]  # that the upstream got, by endpoint
    samples: Samples
    page: dict[str, object]  # /status.json


# Four requests may wait. Nothing ends while the traffic lasts.
SETTINGS = {"C42_THREADS": "20", "C42_TIMEOUT": "60", "C42_FAULT_EXPIRY": "4.2"}


@pytest.fixture(scope="module")
def traffic() -> Iterator[Traffic]:
    """Give a service traffic of every kind.

    Four requests may wait in it. 4 wait for one load, 30 are refused meanwhile, 2 find
    an unknown event and a fault, and 81 are hits.
    """
    with (
        Standin(token=TOKEN) as upstream,
        started(Service(upstream, (), **SETTINGS)) as service,
    ):
        statuses = make_traffic(service, upstream)
        until(
            lambda: value(samples(service), "c42_upstream_requests_total") == 6,
            "all calls to end",
        )
        yield Traffic(
            statuses=statuses,
            calls={
                "events": upstream.calls("events"),
                "event-subscriptions": upstream.calls("event-subscriptions"),
            },
            samples=samples(service),
            page=service.get("/status.json").json(),
        )


def make_traffic(service: Service, upstream: Standin) -> Counter[int]:
    """Make the traffic; return how often each status was answered."""
    gate = Gate()
    held, missing, broken = new_id(), new_id(), new_id()
    upstream.add_event(held, names=["Arthur"])
    upstream.add_event(broken)
    upstream.rule(event_id=held, gate=gate)
    upstream.rule(event_id=broken, status=503)
    statuses = Counter[int]()

    def ask(event_id: str, **headers: str) -> requests.Response:
        answer = service.event(event_id, headers=headers)
        statuses[answer.status_code] += 1
        return answer

    waiting = [threading.Thread(target=ask, args=(held,)) for _ in range(4)]
    for thread in waiting:
        thread.start()
    until(
        lambda: service.get("/status.json").json()["cache"]["waiting"] == 4,
        "the limit of waiting requests",
    )
    at_once(*[partial(ask, new_id()) for _ in range(30)])
    assert statuses == {503: 30}
    gate.open()
    for thread in waiting:
        thread.join()
    ask(missing)
    ask(broken)
    tag = ask(held).headers["ETag"]
    for _ in range(20):
        at_once(
            partial(ask, held),
            partial(ask, missing),
            partial(ask, broken),
            partial(ask, held, **{"If-None-Match": tag}),
        )
    return statuses


def test_each_event_asked_for_counts_once(traffic: Traffic) -> None:
    """Under load, each request is counted once, by what the cache made of it."""
    results = values(traffic.samples, "c42_cache_requests_total", "result")
    assert results == {"hit": 81, "miss": 3, "collapsed": 3, "refused": 30}
    assert sum(results.values()) == traffic.statuses.total()


def test_cache_counts_by_kind(traffic: Traffic) -> None:
    """Hits, loads and entries are counted by the kind of the answer."""
    hits = values(traffic.samples, "c42_cache_hits_total", "kind")
    assert hits == {"ok": 41, "negative": 20, "fault": 20, "paused": 0}
    loads = values(traffic.samples, "c42_cache_loads_total", "outcome")
    assert loads == {"ok": 1, "negative": 1, "fault": 1, "paused": 0, "failed": 0}
    refreshes = values(traffic.samples, "c42_cache_refreshes_total", "outcome")
    assert set(refreshes) == set(loads)
    assert sum(refreshes.values()) == 0
    entries = values(traffic.samples, "c42_cache_entries", "kind")
    assert entries == {"ok": 1, "negative": 1, "fault": 1, "paused": 0}
    evicted = values(traffic.samples, "c42_cache_evictions_total", "reason")
    assert evicted == {"expired": 0, "bound": 0, "replaced": 0}


def test_each_response_counts_once(traffic: Traffic) -> None:
    """Each response is counted by route and status, hits included.

    Durations are of those that the app gave.
    """
    name = "c42_http_requests_total"
    for status, count in traffic.statuses.items():
        assert value(traffic.samples, name, route=ROUTE, status=str(status)) == count
    assert value(traffic.samples, name, route=ROUTE) == traffic.statuses.total()
    took = "c42_http_request_duration_seconds_count"
    assert value(traffic.samples, took, route=ROUTE) == 36, (
        "4 waited, 30 were refused, 2 were loaded later; hits don't count"
    )


def test_each_call_counts_once(traffic: Traffic) -> None:
    """Each call is counted and timed as often as Calendar42 saw it."""
    for endpoint, calls in traffic.calls.items():
        for name in (
            "c42_upstream_requests_total",
            "c42_upstream_request_duration_seconds_count",
        ):
            assert value(traffic.samples, name, endpoint=endpoint) == calls
    made = sum(traffic.calls.values())
    assert value(traffic.samples, "c42_upstream_requests_last_hour") == made
    refused = value(traffic.samples, "c42_upstream_requests_total", status="503")
    assert refused >= 1


def test_limits_are_told(traffic: Traffic) -> None:
    """What is bounded comes with its bound."""
    assert value(traffic.samples, "c42_cache_entries_limit") == 100_000
    assert value(traffic.samples, "c42_cache_bytes_limit") == 128 * 2**20
    assert 100 < value(traffic.samples, "c42_cache_bytes") < 10_000
    assert value(traffic.samples, "c42_waiting_requests_limit") == 4
    assert value(traffic.samples, "c42_waiting_requests") == 0
    assert value(traffic.samples, "c42_cache_loading") == 0
    assert value(traffic.samples, "c42_cache_refreshing") == 0


def test_states_are_told(traffic: Traffic) -> None:
    """What is on or off is 1 or 0."""
    assert value(traffic.samples, "c42_reaper_alive") == 1
    assert value(traffic.samples, "c42_stopping") == 0
    assert value(traffic.samples, "c42_upstream_pause_seconds") == 0
    assert value(traffic.samples, "c42_build_info") == 1
    assert value(traffic.samples, "c42_log_dropped_total") == 0
    assert not any("_created" in name for name, _ in traffic.samples)


def test_status_json_has_the_same_numbers(traffic: Traffic) -> None:
    """/status.json and the metrics agree.

    Kept errors are no hits.
    """
    page = traffic.page
    assert page["requests"] == 117
    assert page["hit_ratio"] == 61 / 117
    assert page["saved_calls"] == 2 * 61
    assert page["outcomes"] == {
        "hit": 61,
        "cached_error": 20,
        "miss": 3,
        "collapsed": 3,
        "refused": 30,
    }
    assert page["failed"] == 20 + 1 + 30
    upstream = page["upstream"]
    assert isinstance(upstream, dict)
    assert upstream["requests"] == sum(traffic.calls.values())
    assert upstream["requests_last_hour"] == sum(traffic.calls.values())
    (fault,) = upstream["faults"]
    assert (fault["endpoint"], fault["status"]) == ("events", 503)


def test_durations_are_in_buckets(inside: MakeInside) -> None:
    """Each duration is in all buckets that are at least as long.

    One bucket is just above the default of C42_TIMEOUT: calls that ran into it can be
    told apart.
    """
    service = inside()
    took = {"0.005": 0.004, "0.01": 0.01, "10.0": 10.0, "10.5": 10.02, "+Inf": 31.0}
    for seconds in took.values():
        service.components.metrics.on_response("/a", 200, seconds)
    text = service.http.get("/metrics").text
    name = "c42_http_request_duration_seconds"
    found = re.findall(rf'{name}_bucket{{le="(.*)",route="/a"}} (.*)\n', text)
    buckets = dict(found)
    assert list(buckets)[-3:] == ["10.5", "30.0", "+Inf"]
    assert [float(buckets[bound]) for bound in took] == [1, 2, 3, 4, 5]
    assert float(buckets["5.0"]) == 2
    assert f'{name}_count{{route="/a"}} 5.0\n' in text
    (total,) = re.findall(rf'{name}_sum{{route="/a"}} (.*)\n', text)
    assert float(total) == pytest.approx(sum(took.values()))


def test_durations_begin_at_zero(inside: MakeInside) -> None:
    """Each endpoint has its histogram before its first call, so rates include it."""
    text = inside().http.get("/metrics").text
    for endpoint in ENDPOINTS:
        name = "c42_upstream_request_duration_seconds_count"
        assert f'{name}{{endpoint="{endpoint}"}} 0.0\n' in text


def test_labels_are_bounded(start: Start) -> None:
    """No client can add a series.

    Unknown paths, odd methods and queries don't get labels of their own.
    """
    service = start()  # in which no call of an earlier test is still to be counted
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


@pytest.mark.parametrize(
    ("target", "headers", "status"),
    [
        (b"/livez", (b"Content-Length: one",), "400"),
        (b"/livez", (b"Transfer-Encoding: chunked",), "411"),
        (b"/livez", (b"Content-Length: 70000",), "413"),
        (b"/" + b"a" * 40_000, (), "414"),
        (b"/livez", (b"X: " + b"a" * 40_000,), "431"),
    ],
)
def test_rejected_requests_count(
    service: Service, target: bytes, headers: tuple[bytes, ...], status: str
) -> None:
    """A request that the server rejects before the app sees it is counted once.

    It isn't timed.
    """
    name = "c42_http_requests_total"
    before = samples(service)
    answer = service.raw(target, b"GET", *headers)
    assert str(answer.status) == status
    after = samples(service)
    labels = {"route": "other", "status": status}
    assert value(after, name, **labels) - value(before, name, **labels) == 1
    timed = "c42_http_request_duration_seconds_count"
    assert value(after, timed, route="other") == value(before, timed, route="other")


def test_form_is_the_one_asked_for(service: Service) -> None:
    """Prometheus' text format is the default, and OpenMetrics sent if asked for.

    Either may be compressed.
    """
    plain = service.get("/metrics", headers={"Accept-Encoding": "identity"})
    kind = plain.headers["Content-Type"]
    assert kind == "text/plain; version=0.0.4; charset=utf-8"
    assert "Content-Encoding" not in plain.headers
    openmetrics = service.get(
        "/metrics", headers={"Accept": "application/openmetrics-text;version=1.0.0"}
    )
    kind = openmetrics.headers["Content-Type"]
    assert kind.startswith("application/openmetrics-text; version=1.0.0")
    families = read_openmetrics(openmetrics.text)  # type: ignore[no-untyped-call]
    names = {family.name for family in families}
    assert {"c42_cache_requests", "c42_http_request_duration_seconds"} <= names
    raw = service.raw(b"/metrics", b"GET", b"Accept-Encoding: gzip")
    assert raw.headers["Content-Encoding"] == "gzip"
    assert b"c42_build_info" in gzip.decompress(raw.body)
    assert raw.headers["Cache-Control"] == "no-store"
    assert raw.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    "refusal", ["gzip;q=0", "identity, gzip;q=0.0", "gzip;q=0, *", "deflate"]
)
def test_no_compression_for_those_who_refuse_it(service: Service, refusal: str) -> None:
    """What a client refuses by a quality of 0 isn't sent (RFC 9110, 12.5.3)."""
    plain = service.raw(b"/metrics", b"GET", f"Accept-Encoding: {refusal}".encode())
    assert plain.headers["Content-Encoding"] is None
    assert b"c42_build_info" in plain.body


@pytest.mark.parametrize(
    "accept",
    [
        "text/plain;version=x",
        "text/plain;version=1..0",
        "application/openmetrics-text;version=1.0.0-rc.1",
        f"text/plain;version={'9' * 5000}",
        "text/plain;version",
        ";;,,=",
        "image/png",
    ],
)
def test_a_form_that_there_is_not(service: Service, accept: str) -> None:
    """Whatever form a client asks for, it gets one that there is."""
    answer = service.get("/metrics", headers={"Accept": accept})
    assert answer.status_code == 200
    assert "c42_build_info" in answer.text


@pytest.mark.parametrize(
    "name",
    [
        "c42_cache_requests_total",
        "c42_build_info",
        "c42_upstream_request_duration_seconds_count",
        "process_open_fds",
    ],
)
def test_the_metrics_that_are_named(service: Service, name: str) -> None:
    """A client may name the metrics that it wants.

    So it may with any program that uses prometheus_client.
    """
    answer = service.get("/metrics", params={"name[]": name})
    found = re.findall(r"^[a-z]\w+", answer.text, re.M)
    assert set(found) == {name}


def test_head_has_the_headers_alone(service: Service) -> None:
    """HEAD on /metrics has the content type of GET, and no body."""
    head = service.request("HEAD", "/metrics")
    assert head.status_code == 200
    assert head.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert head.content == b""


def test_multiprocess_directory_of_another_program(
    start: Start, upstream: Standin
) -> None:
    """PROMETHEUS_MULTIPROC_DIR, meant for another program, changes nothing.

    The directory that it names need not exist.
    """
    service = start(PROMETHEUS_MULTIPROC_DIR="/nonexistent")
    event_id = new_id()
    upstream.add_event(event_id)
    assert service.event(event_id).status_code == 200
    assert service.get("/livez").status_code == 200
    assert value(samples(service), "c42_upstream_requests_total") == 2


def test_alerts_are_about_what_is_there(service: Service) -> None:
    """The service has each metric that an alert uses.

    docs/operating.md has each alert, and the same metrics as the service.
    """
    rules = (ROOT / "deploy/c42c.rules.yml").read_text()
    page = (ROOT / "docs/operating.md").read_text()
    service.event(new_id())  # so that there are figures of calls
    had = {name for name, _ in samples(service)}
    elsewhere = {"up", "c42_shared_tier_up"}  # the latter with C42_CACHE_URL
    asked = set(re.findall(r"\b(?:c42|process)_[a-z_]+\b", rules))
    assert len(asked) > 8
    assert asked <= had | elsewhere
    alerts = re.findall(r"alert: (\w+)", rules)
    assert [alert for alert in alerts if f"### {alert}\n" not in page] == []
    ours = {re.sub("_(bucket|count|sum)$", "", name) for name in had}
    described = set(re.findall(r"^\| `(c42_[a-z_]+)", page, re.M))
    described |= set(re.findall(r"^\| .*, `(c42_[a-z_]+)` \|", page, re.M))
    with_redis = {"c42_shared_tier_up", "c42_shared_tier_loads_total"}
    assert {name for name in ours if name.startswith("c42_")} == described - with_redis
