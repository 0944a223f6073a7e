"""/status.json: what it says is wrong, and how bad it is, and what happened lately."""

import json
import math
import random
import re
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import NoReturn

import pytest
from prometheus_client import generate_latest

from cache import FAULT, NEGATIVE, OK, PAUSED, Cache, Loaded
from calendar42.calls import CallRecord, Pause
from calendar42.errors import C42Error
from operations import logs
from operations.metrics import Metrics
from operations.recent import SPAN, STEP, SlidingCount
from operations.status import read_status
from standin import Gate, Standin
from tests.cache_callers import Clock
from tests.fixtures import MakeInside, Service, Start, new_id, threads, until
from tests.test_health import Tier


@pytest.fixture
def clock() -> Clock:
    """Give a test a clock that stands still."""
    return Clock()


@pytest.fixture
def cache(clock: Clock) -> Iterator[Cache]:
    """Give a test a small cache under its clock."""
    made = Cache(max_entries=10, max_bytes=10**6, max_waiting=1, clock=clock)
    yield made
    made.close()


@pytest.fixture
def metrics(cache: Cache) -> Metrics:
    """Give a test metrics of that cache."""
    return Metrics(cache, Pause(1), 252.0)


def fault(status: int = 500, message: str = "broken") -> C42Error:
    """Make a fault of Calendar42."""
    return C42Error("events", message, status, status)


# Counting what happened lately


def test_sliding_count_forgets(clock: Clock) -> None:
    """What is older than the span no longer counts."""
    count = SlidingCount(60.0, 1.0, clock)
    assert count.total() == 0
    count.add()
    count.add()
    clock.now += 30
    count.add()
    assert count.total() == 3
    clock.now += 29.9
    assert count.total() == 3
    clock.now += 0.1
    assert count.total() == 1
    clock.now += 30
    assert count.total() == 0
    count.add()
    assert count.total() == 1


def test_sliding_count_takes_bounded_memory(clock: Clock) -> None:
    """However often something happens, only one number per step is kept."""
    count = SlidingCount(60.0, 1.0, clock)
    for _ in range(10_000):
        count.add()
        clock.now += 0.01
    assert len(count) <= 61
    assert 5_900 <= count.total() <= 6_000


def test_calls_of_the_last_hour(metrics: Metrics, clock: Clock) -> None:
    """Calls count for an hour, as Calendar42's limit does."""
    for _ in range(3):
        metrics.on_call(CallRecord("events", 200, 0.1))
        clock.now += 1000
    upstream = read_status(metrics)["upstream"]
    assert (upstream["requests_last_hour"], upstream["hourly_limit"]) == (3, 10_000)
    clock.now += 599.9
    assert read_status(metrics)["upstream"]["requests_last_hour"] == 3
    clock.now += 0.1
    upstream = read_status(metrics)["upstream"]
    assert (upstream["requests_last_hour"], upstream["requests"]) == (2, 3)


def test_durations_of_the_last_calls(metrics: Metrics) -> None:
    """The median and the 99th percentile are of the last 500 calls.

    Before the first call, they are null.
    """
    numbers = read_status(metrics)["upstream"]["endpoints"]["events"]
    assert numbers == {"requests": 0, "median_seconds": None, "p99_seconds": None}
    for milliseconds in [9000] * 3 + list(range(1, 501)):
        metrics.on_call(CallRecord("events", 200, milliseconds / 1000))
    numbers = read_status(metrics)["upstream"]["endpoints"]["events"]
    assert numbers == {"requests": 503, "median_seconds": 0.25, "p99_seconds": 0.495}


# Faults


def test_faults_are_listed(metrics: Metrics) -> None:
    """The latest twenty faults are kept, newest first."""
    for number in range(25):
        metrics.on_outcome(fault(0, f"cause {number}"))
    faults = read_status(metrics)["upstream"]["faults"]
    assert len(faults) == 20
    assert [one["cause"] for one in faults[:2]] == ["cause 24", "cause 23"]


def test_equal_faults_are_counted_together(metrics: Metrics, clock: Clock) -> None:
    """Of equal faults, each less than a minute after another, the first is listed.

    It has its request's id, and their number.
    """
    token = logs.request_id.set("report-1")
    metrics.on_outcome(fault(503))
    logs.request_id.set("report-2")
    for _ in range(3):
        clock.now += 59.9
        metrics.on_outcome(fault(503))
    (only,) = read_status(metrics)["upstream"]["faults"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", only.pop("time"))
    assert only == {
        "endpoint": "events",
        "status": 503,
        "cause": "broken",
        "request_id": "report-1",
        "count": 4,
    }
    clock.now += 60
    metrics.on_outcome(fault(503))
    logs.request_id.reset(token)
    faults = read_status(metrics)["upstream"]["faults"]
    told = [(one["request_id"], one["count"]) for one in faults]
    assert told == [("report-2", 1), ("report-1", 4)]


@pytest.mark.parametrize(
    "other",
    [
        C42Error("event-subscriptions", "broken", 500, 503),
        C42Error("events", "broken", 500, 0),
        C42Error("events", "broken again", 500, 503),
    ],
)
def test_different_faults_are_listed(metrics: Metrics, other: C42Error) -> None:
    """Faults of another endpoint, status or cause are listed by themselves."""
    metrics.on_outcome(fault(503))
    metrics.on_outcome(other)
    faults = read_status(metrics)["upstream"]["faults"]
    assert [one["count"] for one in faults] == [1, 1]


def test_fault_says_why_no_reply_came(inside: MakeInside, upstream: Standin) -> None:
    """A fault's cause is the reply, or what became of the call if none came."""
    service = inside(C42_TIMEOUT="3")
    for fault in ({"reset": True}, {"status": 503}, {"hang": True}):
        upstream.rule("events", **fault)
        service.event(new_id())
        upstream.clear_rules()
    assert [one["cause"] for one in service.status()["upstream"]["faults"]] == [
        "Calendar42 did not answer within 3 seconds",
        "Calendar42 answered 503",
        "Calendar42 could not be reached, or broke off (Connection reset by peer)",
    ]


# Troubles


def loads(metrics: Metrics, failed: int, good: int) -> None:
    """Let so many loads fail and succeed."""
    for _ in range(failed):
        metrics.recent.on_load(FAULT, 0.1)
        metrics.on_outcome(fault())
    for _ in range(good):
        metrics.recent.on_load(OK, 0.1)


@pytest.mark.parametrize(
    ("failed", "good", "expected"),
    [
        (0, 5, []),
        (1, 0, ["faults"]),
        (2, 0, ["faults"]),
        (3, 0, ["outage"]),
        (3, 2, ["outage"]),
        (3, 3, ["faults"]),
        (12, 68, ["faults"]),
    ],
)
def test_outage_is_more_than_a_fault(
    metrics: Metrics, failed: int, good: int, expected: list[str]
) -> None:
    """It is an outage if most loads of the last minute have failed, three at least."""
    loads(metrics, failed, good)
    numbers = read_status(metrics)
    assert numbers["troubles"] == expected
    minute = numbers["last_minute"]
    assert (minute["failed"], minute["loads"]) == (failed, failed + good)


def test_a_fault_is_a_trouble_for_a_minute(metrics: Metrics, clock: Clock) -> None:
    """What failed a minute ago is no trouble any more."""
    loads(metrics, failed=1, good=0)
    clock.now += 59.9
    assert read_status(metrics)["troubles"] == ["faults"]
    clock.now += 0.1
    assert read_status(metrics)["troubles"] == []


@pytest.mark.parametrize("status", [401, 403])
def test_refused_token_is_a_trouble_of_its_own(
    metrics: Metrics, clock: Clock, status: int
) -> None:
    """A refused token is a trouble of its own, not faults in general.

    Those are a trouble as well if there are others.
    """
    for _ in range(5):
        metrics.recent.on_load(FAULT, 0.1)
        metrics.on_outcome(fault(status))
        assert read_status(metrics)["troubles"] == ["token"]
    loads(metrics, failed=1, good=0)
    assert read_status(metrics)["troubles"] == ["token", "faults"]
    clock.now += 60
    assert read_status(metrics)["troubles"] == []


def test_definite_refusals_and_pauses_are_no_faults(metrics: Metrics) -> None:
    """An unknown event is a good load, and in a pause nothing is loaded."""
    metrics.recent.on_load(NEGATIVE, 0.1)
    metrics.recent.on_load(PAUSED, 0.0)
    numbers = read_status(metrics)
    assert numbers["troubles"] == []
    assert (numbers["last_minute"]["loads"], numbers["last_minute"]["failed"]) == (1, 0)


def test_nearly_all_calls_of_the_hour(metrics: Metrics) -> None:
    """More than four fifths of an hour's calls are a trouble before the pause comes.

    These are the calls that Calendar42 allows.
    """
    for _ in range(8000):
        metrics.on_call(CallRecord("events", 200, 0.1))
    assert read_status(metrics)["troubles"] == []
    metrics.on_call(CallRecord("events", 200, 0.1))
    assert read_status(metrics)["troubles"] == ["limit"]


def test_troubles_of_the_service_itself(cache: Cache) -> None:
    """A service that stops, a dead reaper and a lost Redis are troubles."""
    healthy = Metrics(cache, Pause(1), 252.0, tier=Tier(up=True))
    assert read_status(healthy)["troubles"] == []
    cache.close()
    sick = Metrics(cache, Pause(1), 252.0, stopping=lambda: True, tier=Tier(up=False))
    assert read_status(sick)["troubles"] == ["stopping", "reaper", "redis"]


def test_troubles_of_calendar42(inside: MakeInside, upstream: Standin) -> None:
    """A fault that a request met is a trouble for a minute, a pause while it lasts."""
    service, event_id = inside(), new_id()
    assert service.status()["troubles"] == []
    upstream.rule("events", event_id, status=500)
    service.event(event_id)
    assert service.status()["troubles"] == ["faults"]
    assert service.status()["last_minute"] == {
        "loads": 1,
        "failed": 1,
        "token_refused": 0,
        "refused": 0,
        "refused_seconds_ago": None,
    }
    service.clock.now += 60
    assert service.status()["troubles"] == []
    upstream.rule(times=2, status=429, headers={"Retry-After": "100"})
    service.event(new_id())
    assert service.status()["troubles"] == ["pause"]


def test_refusals_are_a_trouble_for_a_minute(
    inside: MakeInside, upstream: Standin
) -> None:
    """The limit of waiting requests is a trouble, as is a refusal for a minute."""
    service = inside(C42_THREADS="17", C42_TIMEOUT="60")  # one may wait
    event_id, gate = new_id(), Gate()
    upstream.add_event(event_id)
    upstream.rule(event_id=event_id, gate=gate)
    waiting = threading.Thread(target=service.event, args=(event_id,))
    waiting.start()
    gate.wait_for(2)
    assert service.status()["troubles"] == ["full"]
    service.clock.now += 18
    assert service.status()["upstream"]["oldest_load_seconds"] == 18
    assert service.event(new_id()).status_code == 503
    assert service.status()["troubles"] == ["full", "refusing"]
    assert service.status()["last_minute"]["refused"] == 1
    gate.open()
    waiting.join()
    assert service.status()["upstream"]["oldest_load_seconds"] is None
    service.clock.now += 59.9
    assert service.status()["troubles"] == ["refusing"]
    assert service.status()["last_minute"]["refused_seconds_ago"] == 59.9
    service.clock.now += 0.1
    assert service.status()["troubles"] == []
    assert service.status()["last_minute"]["refused_seconds_ago"] is None


# History


def test_history_has_rates_and_latencies(inside: MakeInside, upstream: Standin) -> None:
    """The history has each outcome's rate between samples, and latencies at each.

    Kept errors are no hits.
    """
    service, good, bad = inside(), new_id(), new_id()
    history = service.components.metrics.history
    upstream.add_event(good)
    upstream.rule("events", bad, status=500)
    for event_id in (good, good, good, bad, bad):
        service.event(event_id)
    service.clock.now += 4
    history.sample()
    service.clock.now += 1
    told = service.status()["history"]
    assert told["seconds"] == 5
    assert told["seconds_ago"] == [5.0, 1.0]
    assert told["requests_per_second"] == {
        "hit": [None, 0.5],
        "cached_error": [None, 0.25],
        "miss": [None, 0.5],
        "collapsed": [None, 0.0],
        "refused": [None, 0.0],
    }
    before, after = told["latency_seconds"]["events"]["median"]
    assert before is None
    assert after > 0
    assert told["outcomes"]["hit"] == 2
    assert told["hit_ratio"] == 2 / 5


def test_failures_are_counted(inside: MakeInside, upstream: Standin) -> None:
    """Faults and pauses count as failed when they are loaded and whenever they are hit.

    Definite refusals don't.
    """
    service, good, bad = inside(), new_id(), new_id()
    upstream.add_event(good)
    upstream.rule("events", bad, status=500)
    for event_id in (good, new_id(), bad, bad):
        service.event(event_id)
    service.components.metrics.history.sample()
    service.clock.now += 4
    upstream.rule(status=429, headers={"Retry-After": "100"})
    paused = new_id()
    for event_id in (paused, paused, new_id(), good):
        service.event(event_id)
    service.components.metrics.history.sample()
    told = service.status()
    assert told["failed"] == 5
    assert told["history"]["failed"] == 5
    assert told["history"]["failed_per_second"] == [None, None, 0.75]


def fill_history(metrics: Metrics, clock: Clock) -> None:
    """Let so much time pass that all samples are new."""
    for _ in range(int(SPAN / STEP) + 1):
        clock.now += STEP
        metrics.history.sample()


def test_loads_that_raise_have_failed(
    cache: Cache, metrics: Metrics, clock: Clock
) -> None:
    """A load that raises counts as failed, like one that ends in a fault.

    What is ten minutes old isn't in the history's sum any more.
    """

    def load(keys: list[str], deadline: float) -> NoReturn:
        raise ZeroDivisionError

    with suppress(ZeroDivisionError):
        cache.get_or_load(["a"], load)
    told = read_status(metrics)
    assert (told["failed"], told["history"]["failed"]) == (1, 1)
    fill_history(metrics, clock)
    told = read_status(metrics)
    assert (told["failed"], told["history"]["failed"]) == (1, 0)


def test_oldest_load_is_told(metrics: Metrics, clock: Clock) -> None:
    """The load that has been under way for longest is told, also if one raises."""

    def told() -> object:
        return read_status(metrics)["upstream"]["oldest_load_seconds"]

    assert told() is None
    with suppress(ZeroDivisionError), metrics.recent.loading():
        clock.now += 7
        with metrics.recent.loading():
            clock.now += 3
            assert told() == 10
        assert told() == 10
        raise ZeroDivisionError
    assert told() is None


def test_numbers_are_rounded(cache: Cache, metrics: Metrics, clock: Clock) -> None:
    """Times have a tenth of a second, durations four digits, and rates three."""

    def load(keys: list[str], _: float) -> Iterator[tuple[str, Loaded]]:
        for key in keys:
            yield key, Loaded((key,), OK, 100.0)

    metrics.recent.on_load(OK, 1 / 3)
    metrics.on_call(CallRecord("events", 200, 1 / 3))
    metrics.on_full()
    cache.get_or_load(["a"], load)
    metrics.pause.extend(time.monotonic() + 100 / 3)
    with metrics.recent.loading():
        clock.now += 1.37
        metrics.history.sample()
        told = read_status(metrics)
    assert told["uptime_seconds"] == 1.4
    assert told["last_minute"]["refused_seconds_ago"] == 1.4
    assert told["upstream"]["oldest_load_seconds"] == 1.4
    assert told["upstream"]["endpoints"]["events"]["median_seconds"] == 0.3333
    pause = told["upstream"]["pause_seconds"]
    assert pause == round(pause, 1)
    history = told["history"]
    assert history["seconds"] == 1.4
    assert history["seconds_ago"] == [1.4, 0.0]
    assert history["slowest_load_seconds"] == 0.3333
    assert history["requests_per_second"]["miss"] == [None, 0.73]


def test_refreshes_are_counted(clock: Clock) -> None:
    """Refreshes are told by outcome, in all, and as a rate in the history."""
    due: list[str] = []

    def load(keys: list[str], _: float) -> Iterator[tuple[str, Loaded]]:
        for key in keys:
            yield key, Loaded((key,), OK, 100.0)

    def on_refresh_due(keys: list[str]) -> bool:
        due.extend(keys)
        return True

    cache = Cache(
        max_entries=10,
        max_bytes=10**6,
        max_waiting=1,
        refresh_ahead=0.1,
        on_refresh_due=on_refresh_due,
        clock=clock,
    )
    metrics = Metrics(cache, Pause(1), 252.0)
    cache.get_or_load(["a", "b"], load)
    clock.now += 95
    metrics.history.sample()
    cache.get_or_load(["a", "b"], load)
    cache.refresh(due, load)
    clock.now += 4
    metrics.history.sample()
    cache.close()
    told = read_status(metrics)
    assert told["refreshes"] == 2
    assert told["history"]["refreshes"] == 2
    assert told["history"]["refreshes_per_second"] == [None, 0.0, 0.5]
    fill_history(metrics, clock)
    later = read_status(metrics)
    assert (later["refreshes"], later["history"]["refreshes"]) == (2, 0)
    assert told["outcomes"]["miss"] == 2
    text = generate_latest(metrics.registry).decode()
    assert 'c42_cache_refreshes_total{outcome="ok"} 2.0\n' in text


def test_hit_ratio_is_of_the_last_minutes(
    inside: MakeInside, upstream: Standin
) -> None:
    """What was before the history doesn't count in its hit ratio."""
    service, event_id = inside(C42_EXPIRY="60"), new_id()
    history = service.components.metrics.history
    upstream.add_event(event_id)
    service.event(event_id)
    assert service.status()["history"]["hit_ratio"] == 0
    for _ in range(int(SPAN / STEP) + 1):
        service.clock.now += STEP
        history.sample()
    assert service.status()["history"]["hit_ratio"] is None
    service.event(event_id)
    told = service.status()
    assert (told["history"]["hit_ratio"], told["hit_ratio"]) == (1, 0.5)
    assert (told["history"]["seconds"], len(told["history"]["seconds_ago"])) == (
        SPAN,
        SPAN / STEP + 1,
    )


def test_slowest_load_of_the_last_minutes(metrics: Metrics, clock: Clock) -> None:
    """The slowest load is told at once, and until it is ten minutes old."""

    def told() -> object:
        return read_status(metrics)["history"]["slowest_load_seconds"]

    assert told() is None
    metrics.recent.on_load(OK, 3.5)
    metrics.recent.on_load(OK, 0.5)
    assert told() == 3.5
    for _ in range(int(SPAN / STEP)):
        clock.now += STEP
        metrics.history.sample()
        assert told() == 3.5
        metrics.recent.on_load(OK, 0.25)
    clock.now += STEP
    metrics.history.sample()
    assert told() == 0.25


def test_loads_are_timed_from_their_beginning(metrics: Metrics, clock: Clock) -> None:
    """A load of several events is as slow as its last one."""

    def load(keys: list[str], deadline: float) -> Iterator[tuple[str, Loaded]]:
        for key in keys:
            clock.now += 2
            yield key, Loaded((key,), OK, 100.0)

    list(metrics.watch(load)(["a", "b"], math.inf))
    assert read_status(metrics)["history"]["slowest_load_seconds"] == 4


def test_history_leaves_no_thread(metrics: Metrics) -> None:
    """A history may be closed whether or not it has begun; then it has no thread."""
    others = threads()
    metrics.history.close()
    metrics.history.start()
    metrics.history.close()
    assert threads() <= others


def test_history_is_kept_before_anyone_looks(start: Start, upstream: Standin) -> None:
    """Once requests come, the history goes on by itself."""
    service, event_id = start(), new_id()
    upstream.add_event(event_id)
    service.event(event_id)
    time.sleep(STEP + 0.5)
    looked = time.monotonic()
    until(
        lambda: len(service.get("/status.json").json()["history"]["seconds_ago"]) > 1,
        "a sample",
        every=0.2,
    )
    assert time.monotonic() - looked < STEP, "the look began it"


# Instances


def test_instances_can_be_told_apart(service: Service, start: Start) -> None:
    """Each start has another instance id, and each instance tells its port."""
    first, second = service, start()
    told = [service.get("/status.json").json() for service in (first, second)]
    assert told[0]["instance"] != told[1]["instance"]
    assert [one["port"] for one in told] == [first.port, second.port]
    assert told[0]["host"] == told[1]["host"] != ""
    again = first.get("/status.json").json()
    assert again["instance"] == told[0]["instance"]


def test_numbers_are_few(cache: Cache, metrics: Metrics, clock: Clock) -> None:
    """/status.json, which the page reads each second, stays small.

    Here, it has different numbers at each moment of the last hour.
    """

    def load(keys: list[str], _: float) -> Iterator[tuple[str, Loaded]]:
        for key in keys:
            metrics.on_call(CallRecord("events", 200, random.random()))
            metrics.on_call(CallRecord("event-subscriptions", 200, random.random()))
            yield key, Loaded((key,), OK, 0.1)

    for number in range(720):
        for _ in range(random.randrange(7)):
            cache.get_or_load([str(number)], load)
        metrics.on_outcome(fault(0, f"Calendar42 did not answer within {number} s"))
        clock.now += STEP
        metrics.history.sample()
    assert len(json.dumps(read_status(metrics))) < 16_000


@pytest.mark.parametrize(
    ("said", "port"), [("5000", 5000), ("", None), ("None", None), ("/a.sock", None)]
)
def test_a_server_without_a_port(
    inside: MakeInside, said: str, port: int | None
) -> None:
    """On a Unix socket there is no port, whatever the server says in its place."""
    environ = {"SERVER_PORT": said}
    answer = inside().http.get("/status.json", environ_overrides=environ)
    assert answer.status_code == 200
    assert json.loads(answer.text)["port"] == port
