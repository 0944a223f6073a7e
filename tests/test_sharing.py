"""What instances that share answers through Redis promise, with a real Redis and with
failing ones.
"""

import asyncio
import contextlib
import gc
import logging
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis
import requests
import uvloop
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import main
import sharing.link
import sharing.tier
from answers import response
from answers import value as values
from bench.machine import free_port
from cache import FAULT, KINDS, OK, Found, Loaded, clock
from calendar42.calls import Pause
from calendar42.errors import C42Error
from operations import settings
from sharing.link import PATIENCE as WAIT
from sharing.link import SLICE
from sharing.tier import LOOK_UP
from standin import Standin
from tests.fixtures import (
    PATIENCE,
    ROOT,
    TOKEN,
    MakeInside,
    Service,
    Start,
    new_id,
    until,
)
from tests.machines import VALUE, Machine, Proxy, Redis, running
from tests.reading import lifetime

PASSWORD = "se%2Fcret"

# The loop of these tests may end before uvloop has closed what was dropped.
pytestmark = pytest.mark.filterwarnings(
    "ignore:unclosed resource <TCPTransport:ResourceWarning"
)


def failed(status: int, body: str = "", retry_after: float = 0.0) -> values.StoredTuple:
    """Make the value that says that the upstream answered so."""
    error = C42Error(
        endpoint="events",
        message="",
        status=status,
        upstream_status=status,
        body=body.encode(),
        retry_after=retry_after,
    )
    return values.failure(error)


Make = Callable[..., Machine]
MakeProxy = Callable[..., Proxy]
Said = Callable[[str], int]


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    with running(uvloop.new_event_loop) as made:
        yield made


@pytest.fixture(scope="module")
def shared_redis() -> Iterator[Redis]:
    server = Redis()
    yield server
    server.kill()


@pytest.fixture
def own_redis() -> Iterator[Redis]:
    """Give a test a Redis of its own, to be killed, stopped or filled."""
    server = Redis()
    yield server
    server.kill()


@pytest.fixture
def counts() -> Counter[str]:
    """Count the loads of all machines, by event."""
    return Counter()


@pytest.fixture
def machine(counts: Counter[str], loop: asyncio.AbstractEventLoop) -> Iterator[Make]:
    """Give a test a way to make machines: `machine(url, expiry=60.0)`."""
    with contextlib.ExitStack() as stack:

        def make(url: str, *, ready: bool = True, **options: Any) -> Machine:
            made = Machine(url, counts, **{"loop": loop} | options)
            stack.callback(made.end)
            if ready:
                until(lambda: made.shares, "Redis to be there")
            return made

        yield make


@pytest.fixture
def proxy() -> Iterator[MakeProxy]:
    with contextlib.ExitStack() as stack:

        def make(*args: Any) -> Proxy:
            made = Proxy(*args)
            stack.callback(made.end)
            return made

        yield make


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(500) as executor:
        yield executor


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Said:
    """Count the log records about Redis that contain a text."""
    caplog.set_level(logging.INFO, "c42c")
    return lambda text: sum(
        text in one.getMessage() and one.name == "c42c.redis" for one in caplog.records
    )


def quickly(ask: Callable[[], Found]) -> Found:
    """Return what `ask` returns; fail if it takes so long that it must have waited for
    a Redis that hangs.
    """
    began = time.monotonic()
    found = ask()
    assert time.monotonic() - began < 2.0
    return found


def begin_load(
    machine: Machine, pool: ThreadPoolExecutor
) -> tuple[str, threading.Event, Future[Found]]:
    """Have a machine load an event until the gate is opened; return the event, the
    gate, and the coming answer.
    """
    event_id, gate = new_id(), threading.Event()
    machine.gate = gate
    loading = pool.submit(machine.ask, event_id)
    assert machine.entered.acquire(timeout=PATIENCE)
    return event_id, gate, loading


# Sharing


def test_machines_load_once_between_them(
    shared_redis: Redis, machine: Make, counts: Counter[str], pool: ThreadPoolExecutor
) -> None:
    """Callers on several machines that ask for one cold event cause one load, and all
    get its outcome.
    """
    machines = [machine(shared_redis.url) for _ in range(4)]
    event_id, gate = new_id(), threading.Event()
    for each in machines:
        each.gate = gate
    futures = [pool.submit(each.ask, event_id) for each in machines for _ in range(10)]
    until(lambda: sum(each.cache.snapshot().waiting for each in machines) == 40)
    gate.set()
    found = [future.result(PATIENCE) for future in futures]
    assert counts[event_id] == 1
    assert {each.value for each in found} == {VALUE}
    stats = [each.tier.snapshot() for each in machines]
    assert sum(each["loaded"] for each in stats) == 1
    assert sum(each["found"] + each["awaited"] for each in stats) == 3


@pytest.mark.parametrize("awaited", [False, True])
def test_an_answer_ages_from_its_load_wherever_it_is_served(
    awaited: bool, shared_redis: Redis, machine: Make, pool: ThreadPoolExecutor
) -> None:
    """An answer that was taken over expires no later than where it was loaded, and
    knows its age.
    """
    first, second = machine(shared_redis.url), machine(shared_redis.url)
    event_id, first.gate = new_id(), threading.Event()
    first.answer = lambda: Loaded(VALUE, OK, first.expiry, age=100.0)
    loading = pool.submit(first.ask, event_id)
    assert first.entered.acquire(timeout=PATIENCE)
    waiting = pool.submit(second.ask, event_id) if awaited else None
    until(lambda: not awaited or second.cache.snapshot().waiting)
    first.gate.set()
    loading.result(PATIENCE)
    found = waiting.result(PATIENCE) if waiting else second.ask(event_id)
    loaded, taken = first.held(event_id), second.held(event_id)
    assert found.ttl == pytest.approx(152, abs=1)
    assert taken.ttl <= loaded.ttl
    assert taken.ttl == pytest.approx(loaded.ttl, abs=0.5)
    assert taken.age >= loaded.age >= 100
    assert taken.age + taken.ttl == pytest.approx(first.expiry)
    assert ("Cache-Control", f"max-age={int(found.ttl)}") in response.render(
        found, None
    )[1]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != OK])
def test_errors_are_shared(
    kind: str, shared_redis: Redis, machine: Make, counts: Counter[str]
) -> None:
    """An error is shared for its own lifetime, with all that its answer says."""
    first, second = machine(shared_redis.url), machine(shared_redis.url)
    value = failed(503, "<p>Störung", retry_after=7.5)
    first.answer = lambda: Loaded(value, kind, 6.0)
    event_id = new_id()
    first.ask(event_id)
    found = second.ask(event_id)
    assert (found.value, found.kind, counts[event_id]) == (value, kind, 1)
    assert found.age + found.ttl == pytest.approx(6.0)


def test_expiry_is_the_same_for_all(
    shared_redis: Redis, machine: Make, counts: Counter[str]
) -> None:
    """When an answer has expired, no machine serves it any more."""
    first, second = (machine(shared_redis.url, expiry=0.3) for _ in range(2))
    event_id = new_id()
    first.ask(event_id)
    second.ask(event_id)
    until(lambda: not first.cache.get(event_id))
    assert second.cache.get(event_id) is None
    assert second.ask(event_id).source == "miss"
    assert counts[event_id] == 2


def test_only_the_same_is_shared(
    inside: MakeInside, shared_redis: Redis, upstream: Standin
) -> None:
    """Instances with another token, upstream or lifetime never get these answers, and
    no key shows the token.
    """
    other_url = upstream.base_url.replace("127.0.0.1", "localhost")
    others = [{"C42_TOKEN": f"{TOKEN}2"}, {"C42_BASE_URL": other_url}]
    others += [{"C42_EXPIRY": "4"}, {"C42_FAULT_EXPIRY": "0.2"}]
    made = [
        inside(C42_CACHE_URL=shared_redis.url, **environ)
        for environ in [{}, {}, *others]
    ]
    upstream.add_event(event_id := new_id(), title="Shared")
    calls = []
    for one in made:
        until(lambda one=one: one.components.metrics.status()["shared_tier"]["up"])  # type: ignore[misc]
        one.event(event_id)
        calls.append(upstream.calls("events", event_id))
    assert calls == [1, 1, 2, 3, 4, 5]
    with shared_redis.client() as client:
        assert not any(TOKEN.encode() in key for key in client.keys("*"))


def test_lists_that_overlap(
    shared_redis: Redis, machine: Make, counts: Counter[str], pool: ThreadPoolExecutor
) -> None:
    """Lists that overlap crosswise load every event once, and never wait for each other
    without end.
    """
    # With the usual time-out of these tests, a busy machine might renew the locks too
    # late.
    first, second = (machine(shared_redis.url, timeout=PATIENCE) for _ in range(2))
    ids = [new_id() for _ in range(60)]
    first.ask(ids[0])
    gate = first.gate = second.gate = threading.Event()
    lists = [pool.submit(first.ask_many, ids[:40])]
    assert first.entered.acquire(timeout=PATIENCE)
    assert first.entered.acquire(timeout=PATIENCE)
    lists.append(pool.submit(second.ask_many, ids[:19:-1]))
    single = pool.submit(second.ask, ids[5])
    until(lambda: second.cache.snapshot().waiting == 2)
    gate.set()
    assert list(lists[0].result(PATIENCE)) == ids[:40]
    assert list(lists[1].result(PATIENCE)) == ids[:19:-1]
    assert single.result(PATIENCE).value == VALUE
    assert dict(counts) == dict.fromkeys(ids, 1)


def test_what_redis_has_of_a_list_is_there_at_once(
    shared_redis: Redis, machine: Make, counts: Counter[str], pool: ThreadPoolExecutor
) -> None:
    """A request for an event that Redis has doesn't wait for the rest of somebody
    else's list.
    """
    first, second = machine(shared_redis.url), machine(shared_redis.url)
    there, missing = new_id(), new_id()
    first.ask(there)
    second.gate = threading.Event()
    listed = pool.submit(second.ask_many, [missing, there])
    assert second.entered.acquire(timeout=PATIENCE)
    assert second.ask(there).value == VALUE
    assert not listed.done()
    second.gate.set()
    assert {key: found.source for key, found in listed.result(PATIENCE).items()} == {
        missing: "miss",
        there: "shared",
    }
    assert counts == {there: 1, missing: 1}


@pytest.mark.parametrize("loader", ["here", "elsewhere"])
def test_nothing_outlives_its_time_in_a_list(
    loader: str,
    shared_redis: Redis,
    machine: Make,
    counts: Counter[str],
    pool: ThreadPoolExecutor,
) -> None:
    """An answer from Redis that expires while the rest of its list is being waited for
    is loaded again.
    """
    first, second = (machine(shared_redis.url, expiry=1.0) for _ in range(2))
    there, missing = new_id(), new_id()
    first.ask(there)
    first.answer = second.answer = lambda: Loaded(VALUE, OK, 252.0)
    loading = second if loader == "here" else first
    loading.gate = threading.Event()
    alone = pool.submit(first.ask, missing) if loader == "elsewhere" else None
    listed = pool.submit(second.ask_many, [there, missing])
    assert loading.entered.acquire(timeout=PATIENCE)
    until(lambda: second.cache.get(there), "the answer from Redis")
    until(lambda: not (first.cache.get(there) or second.cache.get(there)), "its end")
    assert not listed.done()
    loading.gate.set()
    found = listed.result(PATIENCE)
    assert all(each.ttl > 0 for each in found.values())
    assert found[missing].source == ("miss" if loader == "here" else "awaited")
    assert (counts[there], counts[missing]) == (2, 1)
    assert not alone or alone.result(PATIENCE).value == VALUE


def test_how_an_answer_came_is_told(
    shared_redis: Redis, proxy: MakeProxy, machine: Make, pool: ThreadPoolExecutor
) -> None:
    """`Cache-Status` tells an answer that was found in Redis from one that another
    instance was loading.
    """
    looks, between = threading.Semaphore(0), proxy(shared_redis.port)
    first, second = (
        machine(shared_redis.url),
        machine(between.url, probe_every=PATIENCE),
    )

    def watch(data: bytes, sink: socket.socket) -> None:
        looks.release()
        sink.sendall(data)

    event_id, first.gate, between.spoil = new_id(), threading.Event(), watch
    loading = pool.submit(first.ask, event_id)
    assert first.entered.acquire(timeout=PATIENCE)
    waiting = pool.submit(second.ask_many, [event_id])
    assert looks.acquire(timeout=PATIENCE)
    first.gate.set()
    awaited = waiting.result(PATIENCE)
    shared = machine(shared_redis.url).ask_many([event_id])
    assert dict(response.render(loading.result(PATIENCE), None)[1])["Cache-Status"] == (
        "c42c; fwd=miss; fwd-status=200; stored; ttl=251"
    )
    for found, detail in [
        (awaited, "collapsed; detail=shared"),
        (shared, "detail=shared"),
    ]:
        for _, headers, _ in (
            response.render(found[event_id], None),
            response.render_many(found, None),
        ):
            assert (
                dict(headers)["Cache-Status"]
                == f"c42c; fwd=miss; {detail}; stored; ttl=251"
            )


def test_the_pause_is_shared(
    shared_redis: Redis, machine: Make, counts: Counter[str]
) -> None:
    """A pause that the upstream asks of one machine holds for all, and passing it on
    never makes it longer.
    """
    first, second = (machine(shared_redis.url, scope=("paused",)) for _ in range(2))
    value = failed(429, retry_after=30.0)

    def answer() -> Loaded:
        first.pause.begin("30")
        return Loaded(value, FAULT, 30.0)

    first.answer = answer
    first.ask(event_id := new_id())
    first.answer = lambda: Loaded(VALUE, OK, 252.0)
    for _ in range(5):
        second.ask(new_id())
        first.ask(new_id())
    asked, told = first.pause.left, second.pause.left
    assert 25 < told <= asked <= 30
    second.pause.begin("60")
    second.ask(new_id())
    first.ask(new_id())
    assert 55 < first.pause.left <= 60
    assert ("Retry-After", "30") in response.render(second.ask(event_id), None)[1]
    assert counts[event_id] == 1


def test_the_last_millisecond(shared_redis: Redis, machine: Make) -> None:
    """An answer with less than a millisecond left counts as expired, not as invalid."""
    first = machine(shared_redis.url)
    with shared_redis.client() as client:
        for _ in range(30):
            key = first.key(new_id())
            client.set(key, b"answer", px=3)
            while (
                len(reply := client.eval(LOOK_UP, 2, key, f"{key}:lock", "token", 1000))
                > 1
            ):
                assert reply[2] > 0


# What comes back from Redis

GOOD = values.pack(Loaded(VALUE, OK, 252.0))
INVALID_ENTRIES = [
    b"",
    b"\xff\n",
    b"[]\n",
    b"[" * 100000,
    GOOD[:-1],
    GOOD + b" ",
    GOOD.replace(b"252.0", b"250.0"),
]
INVALID_ENTRIES += [
    values.pack(Loaded(VALUE, OK, 10.0))
]  # less than what is left of it there


def test_what_is_no_answer_is_replaced(
    shared_redis: Redis, machine: Make, counts: Counter[str], said: Said
) -> None:
    """If an answer's key holds anything else, that is never served: the event is loaded
    and the content replaced.
    """
    first, second = machine(shared_redis.url), machine(shared_redis.url)
    with shared_redis.client() as client:
        for number, content in enumerate(INVALID_ENTRIES, 1):
            event_id = new_id()
            client.set(first.key(event_id), content, px=60000)
            assert first.ask(event_id).value == VALUE, content
            assert second.ask(event_id).source == "shared", content
            assert (counts[event_id], said("invalid answer")) == (1, number)
        client.set(first.key(event_id := new_id()), GOOD)  # without an end
        assert first.ask(event_id).source == "miss"
        assert client.pttl(first.key(event_id)) > 0
    assert first.shares


def test_keys_of_another_type(
    shared_redis: Redis, machine: Make, counts: Counter[str], said: Said
) -> None:
    """If an answer's key, a lock or the pause holds a list, the event is loaded and
    Redis isn't taken for lost.
    """
    first, second = (machine(shared_redis.url, scope=("types",)) for _ in range(2))
    first.pause.begin("1")
    event_id, locked = new_id(), new_id()
    with shared_redis.client() as client:
        for key in (
            first.key(event_id),
            first.lock(locked),
            first.key("x").partition("{")[0] + "pause",
        ):
            client.lpush(key, "1")
    for each in (event_id, locked):
        assert quickly(lambda each=each: first.ask(each)).source == "miss"  # type: ignore[misc]
        assert second.ask(each).source == "shared"
        assert counts[each] == 1
    assert second.pause.left > 0
    assert said("Redis is lost") == 0
    assert said("invalid answer") == 1


def encoded(reply: Any) -> bytes:
    """Return a reply in Redis's protocol."""
    if isinstance(reply, list):
        return b"*%d\r\n%b" % (len(reply), b"".join(map(encoded, reply)))
    if isinstance(reply, bytes):
        return b"$%d\r\n%b\r\n" % (len(reply), reply)
    return b":%d\r\n" % reply if isinstance(reply, int) else reply.encode() + b"\r\n"


scalars = (
    st.integers(-(2**63), 2**63 - 1)
    | st.binary(max_size=20)
    | st.sampled_from(["$-1", "*-1", "+OK", "-ERR", GOOD])
)
replies = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4), max_leaves=8)


@hypothesis_settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(first=replies, second=replies)
def test_whatever_redis_replies(
    first: Any, second: Any, shared_redis: Redis, proxy: MakeProxy, machine: Make
) -> None:
    """Whatever Redis replies twice, the answer is right and prompt, and Redis is used
    again afterwards.
    """
    between = proxy(shared_redis.port)
    one = machine(between.url, probe_every=0.02)

    def reply(data: bytes, sink: socket.socket) -> None:
        between.spoil = None
        sink.sendall(encoded(first) + encoded(second))

    between.spoil = reply
    assert quickly(lambda: one.ask(new_id())).value == VALUE
    between.spoil = None
    until(lambda: one.shares)
    assert one.ask(new_id()).value == VALUE
    one.end()


@pytest.mark.parametrize(
    ("pause", "answer"),
    [
        (b"x", []),
        (-2, 7),
        (-2, "$-1"),
        (-2, [b"x"]),
        (-2, [1, 2, 3]),
        (-2, [1, GOOD, b"x"]),
    ],
)
def test_a_malformed_reply_is_a_loss(
    pause: Any,
    answer: Any,
    shared_redis: Redis,
    proxy: MakeProxy,
    machine: Make,
    said: Said,
) -> None:
    """A reply that Redis never gives makes it count as lost, with the reason in the
    log; the event is loaded here.
    """
    between = proxy(shared_redis.port)
    one = machine(between.url, probe_every=PATIENCE)
    between.spoil = lambda data, sink: sink.sendall(encoded(pause) + encoded(answer))
    assert quickly(lambda: one.ask(new_id())).value == VALUE
    assert tuple(one.tier.snapshot().values()) == (0, 0, 0, 1, False)
    assert (
        said(
            "Redis is lost, and this instance is on its own: it answers nonsense (TypeError)"
        )
        == 1
    )


# Clocks


class Shifted:
    """A clock that a test sets back."""

    by = 0.0

    def __call__(self) -> float:
        return clock() + self.by


def test_a_clock_that_stands_still_during_a_load(
    shared_redis: Redis, machine: Make
) -> None:
    """If the clock of the loading machine stands still during the load, the others keep
    the answer no longer.

    That is what happens to a suspended machine without CLOCK_BOOTTIME.
    """
    shifted = Shifted()
    first, second = machine(shared_redis.url, clock=shifted), machine(shared_redis.url)

    def answer() -> Loaded:
        began = clock()
        until(lambda: clock() > began + 0.5)
        shifted.by -= 0.5
        return Loaded(VALUE, OK, 252.0)

    first.answer = answer
    first.ask(event_id := new_id())
    assert 240 < second.ask(event_id).ttl <= 251.5


def test_a_pause_is_no_longer_if_it_is_passed_on_slowly(
    shared_redis: Redis, machine: Make
) -> None:
    """If the machine is held up just when it passes a pause on, the pause ends no later
    for the others.
    """
    shifted = Shifted()

    class SlowPause(Pause):
        @property
        def left(self) -> float:
            left = super().left
            # The machine is held up, and its other clock seems to have been for less
            # time.
            shifted.by += 0.5
            return left

    scope = ("passed on slowly",)  # without the pauses of other tests
    first = machine(shared_redis.url, clock=shifted, pause=SlowPause(6.0), scope=scope)
    second = machine(shared_redis.url, scope=scope)
    first.pause.begin("30")
    first.ask(new_id())
    second.ask(new_id())
    assert (
        first.pause.left >= second.pause.left > 0
    )  # in this order: the test may be held up in between


def test_an_answer_never_lives_longer_than_its_lifetime_again(
    shared_redis: Redis, machine: Make
) -> None:
    """If Redis's clock is set back, each machine keeps an answer from Redis for at most
    one lifetime.
    """
    first, second = (machine(shared_redis.url) for _ in range(2))
    with shared_redis.client() as client:
        for left, result in (251_900, "shared"), (252_100, "miss"):
            first.ask(event_id := new_id())
            client.pexpire(first.key(event_id), left)  # what the clock would do
            found = second.ask(event_id)
            assert (found.source, found.ttl <= 252) == (result, True)


# Locks


def test_a_lock_lasts_as_long_as_its_load(
    shared_redis: Redis, machine: Make, counts: Counter[str], pool: ThreadPoolExecutor
) -> None:
    """A load may take longer than a lock lasts by itself."""
    first, second = (machine(shared_redis.url, timeout=0.4) for _ in range(2))
    event_id, gate, loading = begin_load(first, pool)
    waiting = pool.submit(second.ask, event_id)
    began = time.monotonic()
    with shared_redis.client() as client:
        until(
            lambda: (
                not client.exists(first.lock(event_id))
                or time.monotonic() > began + 0.8
            )
        )
        assert client.exists(first.lock(event_id))
        gate.set()
        assert loading.result(PATIENCE).value == waiting.result(PATIENCE).value
        assert counts[event_id] == 1
        assert not client.exists(first.lock(event_id))


@pytest.mark.parametrize(("timeout", "longest"), [(1.5, 1.5), (5.0, 2.0)])
def test_a_lock_lasts_by_itself_for_two_seconds_at_most(
    timeout: float, longest: float, shared_redis: Redis, machine: Make
) -> None:
    """A lock ends by itself after two seconds, or the time-out if that is shorter."""
    first, left = machine(shared_redis.url, timeout=timeout), list[int]()
    event_id = new_id()

    def answer() -> Loaded:
        with shared_redis.client() as client:
            left.append(client.pttl(first.lock(event_id)))
        return Loaded(VALUE, OK, 252.0)

    first.answer = answer
    first.ask(event_id)
    assert longest * 900 < left[0] <= longest * 1000


@pytest.mark.parametrize("how", ["flushed", "restarted", "run out"])
def test_a_lock_that_is_gone_is_lost(
    how: str,
    own_redis: Redis,
    machine: Make,
    counts: Counter[str],
    pool: ThreadPoolExecutor,
) -> None:
    """An instance that loses its lock during a load answers its own callers, stores
    nothing, and delays no one.
    """
    first, second = (machine(own_redis.url, timeout=0.4) for _ in range(2))
    event_id, gate, loading = begin_load(first, pool)
    if how == "restarted":
        own_redis.kill()
        until(lambda: not first.shares)
        own_redis.start()
        until(lambda: first.shares and second.shares)
    with own_redis.client() as client:
        if how == "flushed":
            client.flushall()
        elif how == "run out":
            client.delete(first.lock(event_id))
        renewed = client.info("commandstats")["cmdstat_eval"]["calls"] + 20
        until(
            lambda: client.info("commandstats")["cmdstat_eval"]["calls"] >= renewed,
            "some renewals",
        )
        assert not client.exists(first.lock(event_id))
        gate.set()
        assert loading.result(PATIENCE).value == VALUE
        assert not client.exists(first.key(event_id))
    assert second.ask(event_id).source == "miss"
    assert counts[event_id] == 2


@pytest.mark.parametrize(
    "late",
    [failed(504), values.success({"id": "1", "title": "old", "names": []})],
    ids=["504", "200"],
)
def test_a_late_answer_replaces_no_other(
    late: values.StoredTuple,
    shared_redis: Redis,
    machine: Make,
    pool: ThreadPoolExecutor,
) -> None:
    """An instance that lost its lock never replaces the answer that another has stored
    since.
    """
    first, second, third = (machine(shared_redis.url) for _ in range(3))
    event_id, first.gate = new_id(), threading.Event()
    first.answer = lambda: Loaded(
        late, OK if values.StoredAnswer(*late).status == 200 else FAULT, 252.0
    )
    loading = pool.submit(first.ask, event_id)
    assert first.entered.acquire(timeout=PATIENCE)
    with shared_redis.client() as client:
        client.delete(first.lock(event_id))
    assert second.ask(event_id).source == "miss"
    first.gate.set()
    assert loading.result(PATIENCE).value == late
    found = third.ask(event_id)
    assert (found.source, found.value) == ("shared", VALUE)


def test_a_lock_that_became_anothers_is_left_alone(
    shared_redis: Redis, machine: Make
) -> None:
    """An instance that lost its lock leaves the new holder's lock and answer alone."""
    first = machine(shared_redis.url, timeout=0.2)
    event_id = new_id()
    with shared_redis.client() as client:

        def answer() -> Loaded:
            client.set(first.lock(event_id), "another's", px=10_000)
            until(lambda: client.pttl(first.lock(event_id)) < 9_900)
            return Loaded(VALUE, OK, 252.0)

        first.answer = answer
        assert first.ask(event_id).value == VALUE
        assert client.get(first.lock(event_id)) == b"another's"
        assert not client.exists(first.key(event_id))


def test_an_instance_that_is_suspended_in_mid_load(
    start: Start,
    upstream: Standin,
    shared_redis: Redis,
    machine: Make,
    pool: ThreadPoolExecutor,
) -> None:
    """An instance that was suspended for longer than its lock lasts doesn't replace the
    others' answer with its 504.
    """
    suspended = start(C42_CACHE_URL=shared_redis.url, C42_TIMEOUT="0.5")
    until(lambda: "answers are shared" in suspended.log)
    scope = (upstream.base_url, TOKEN, 252.0, 6.0)
    second, third = (machine(shared_redis.url, scope=scope) for _ in range(2))
    upstream.rule("events", event_id := new_id(), hang=True)
    late = pool.submit(suspended.event, event_id)
    until(lambda: upstream.calls("events", event_id) == 1)
    suspended.process.send_signal(signal.SIGSTOP)
    try:
        assert second.ask(event_id).source == "miss"
    finally:
        suspended.process.send_signal(signal.SIGCONT)
    assert late.result(PATIENCE).status_code == 504
    found = third.ask(event_id)
    assert (found.source, found.value) == ("shared", VALUE)


def test_a_load_that_raises_releases_its_lock(
    shared_redis: Redis, machine: Make, counts: Counter[str], pool: ThreadPoolExecutor
) -> None:
    """A load that raises leaves nothing behind, and another machine that waits for it
    loads at once.
    """
    first, second = (machine(shared_redis.url, timeout=PATIENCE) for _ in range(2))
    event_id, first.gate = new_id(), threading.Event()

    def answer() -> Loaded:
        raise ZeroDivisionError

    first.answer = answer
    loading = pool.submit(first.ask, event_id)
    assert first.entered.acquire(timeout=PATIENCE)
    waiting = pool.submit(second.ask, event_id)
    until(lambda: second.cache.snapshot().waiting)
    first.gate.set()
    with pytest.raises(ZeroDivisionError):
        loading.result(PATIENCE)
    assert quickly(lambda: waiting.result(PATIENCE)).value == VALUE
    assert counts[event_id] == 2
    with shared_redis.client() as client:
        assert not client.exists(first.lock(event_id))


def test_nobody_waits_longer_than_the_time_out(
    shared_redis: Redis, machine: Make
) -> None:
    """An instance that waits in vain for another's load then loads by itself, but has
    no time left to do so.
    """
    one, deadlines = machine(shared_redis.url), list[float]()
    event_id, deadline = new_id(), time.monotonic() + 0.3

    def load(event_ids: list[str], deadline: float) -> Iterator[tuple[str, Loaded]]:
        deadlines.append(deadline)
        yield event_id, Loaded(VALUE, OK, 252.0)

    with shared_redis.client() as client:
        client.set(one.lock(event_id), "another's", px=60000)
    ((_, loaded),) = list(one.tier.load(load, [event_id], deadline))
    assert deadlines == [deadline]
    assert 0 < time.monotonic() - deadline < 2
    assert loaded.age < -0.3  # it counts from its own load
    assert one.tier.snapshot()["alone"] == 1


# Redis fails


def nonsense(answer: bytes) -> Callable[[bytes, socket.socket], None]:
    return lambda data, sink: sink.sendall(
        answer * max(1, data.count(b"EVAL") + data.count(b"PTTL"))
    )


def in_drops(data: bytes, sink: socket.socket) -> None:
    for at in range(len(data)):
        sink.sendall(data[at : at + 1])
        time.sleep(0.05)


def silence(data: bytes, sink: socket.socket) -> None:
    """Say nothing."""


def cut(data: bytes, sink: socket.socket) -> None:
    sink.sendall(data[: len(data) // 2])
    sink.shutdown(socket.SHUT_RDWR)


WRONG: dict[str, Callable[[bytes, socket.socket], None]] = {
    "web server": nonsense(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"),
    "OK to all": nonsense(b"+OK\r\n"),
    "noise": nonsense(bytes(range(256))),
    "endless": nonsense(b"$500000000\r\nxxx"),
    "echo": lambda data, sink: sink.sendall(data),
    "an error": nonsense(b"-LOADING Redis is loading the dataset in memory\r\n"),
    "silence": silence,
    "cut": cut,
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_server_that_is_no_redis(
    kind: str,
    proxy: MakeProxy,
    machine: Make,
    said: Said,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """If something else answers in place of Redis, instances load alone, log it once,
    and keep the password secret.
    """
    address = proxy(0, WRONG[kind]).address
    lonely = machine(f"redis://:{PASSWORD}@{address}", ready=False)
    for _ in range(10):
        assert quickly(lambda: lonely.ask(new_id())).value == VALUE
    until(lambda: said("Redis is lost"))
    assert tuple(lonely.tier.snapshot().values()) == (0, 0, 0, 10, False)
    assert (said("Redis is lost"), said("answers are shared")) == (1, 0)
    assert not any(secret in caplog.text for secret in (PASSWORD, "se/cret", TOKEN))


@pytest.mark.parametrize("password", ["Zq%2FZq", "%27Zq%5CZq%22", "Zqä"])
@pytest.mark.parametrize(
    "before", [b"-ERR unknown command ", b"-ERR " + 183 * b"-", b"", b":"]
)
def test_a_password_that_comes_back(
    before: bytes,
    password: str,
    proxy: MakeProxy,
    machine: Make,
    said: Said,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """No part of the password is in the log, wherever the URL has it, and however a
    server sends it back.
    """
    address = proxy(
        0,
        lambda data, sink: sink.sendall(before + data.replace(b"\r\n", b" ") + b"\r\n"),
    ).address
    for url in (
        f"redis://:{password}@{address}",
        f"redis://{address}?password={password}",
    ):
        alone = machine(url, ready=False)
        assert quickly(partial(alone.ask, new_id())).value == VALUE
    until(lambda: said("Redis is lost") == 2)
    assert "Zq" not in caplog.text


def test_a_redis_that_is_not_there_at_first(
    own_redis: Redis, machine: Make, counts: Counter[str], said: Said
) -> None:
    """The service starts without Redis, logs that once, and shares when Redis comes,
    even after restarts of Redis.
    """
    own_redis.kill()
    first, second = (machine(own_redis.url, ready=False) for _ in range(2))
    for each in (first, second):
        assert quickly(lambda each=each: each.ask("alone")).value == VALUE  # type: ignore[misc]
    assert counts["alone"] == 2
    until(lambda: said("Redis is lost") == 2)
    for _ in range(2):
        own_redis.start()
        until(lambda: first.shares and second.shares)
        event_id = new_id()
        assert (first.ask(event_id).source, second.ask(event_id).source) == (
            "miss",
            "shared",
        )
        own_redis.kill()
        assert quickly(lambda: first.ask(new_id())).value == VALUE
        until(lambda: not (first.shares or second.shares))
    assert (said("Redis is lost"), said("Redis is back")) == (6, 4)


def test_a_redis_that_stands_still(
    own_redis: Redis, machine: Make, said: Said, pool: ThreadPoolExecutor
) -> None:
    """While Redis is suspended, nobody waits for it; when it continues, it is used
    again.
    """
    one = machine(own_redis.url)
    own_redis.signal(signal.SIGSTOP)
    futures = [pool.submit(quickly, lambda: one.ask(new_id())) for _ in range(50)]
    assert {future.result(PATIENCE).value for future in futures} == {VALUE}
    until(lambda: not one.shares)
    own_redis.signal(signal.SIGCONT)
    until(lambda: one.shares)
    assert (said("Redis is lost"), said("Redis is back")) == (1, 1)


def test_what_is_written_late_lives_no_longer(own_redis: Redis, machine: Make) -> None:
    """If an answer reaches Redis late because Redis was suspended, it expires there
    when it expires here.
    """
    one = machine(own_redis.url, expiry=3.0, timeout=5.0)
    event_id = new_id()

    def answer() -> Loaded:
        own_redis.signal(signal.SIGSTOP)
        return Loaded(VALUE, OK, one.expiry)

    one.answer = answer
    one.ask(event_id)
    until(lambda: one.held(event_id).ttl < 2.4)
    own_redis.signal(signal.SIGCONT)
    until(lambda: one.shares)
    with own_redis.client() as client:
        left = client.pttl(one.key(event_id)) / 1000
        here = one.held(event_id)
    assert 0 < left < 2.4
    assert left <= here.ttl + 0.05  # what it took to look here after there


@pytest.mark.parametrize("delay", [0.1, 0.4])
def test_a_slow_redis(
    delay: float, shared_redis: Redis, proxy: MakeProxy, machine: Make, said: Said
) -> None:
    """If Redis is always slow, it is either used or given up, and that is logged only
    once.
    """
    between = proxy(shared_redis.port)
    one = machine(between.url)

    def slowly(data: bytes, sink: socket.socket) -> None:
        time.sleep(delay)
        sink.sendall(data)

    between.spoil = slowly
    for _ in range(6):
        assert quickly(lambda: one.ask(new_id())).value == VALUE
    assert said("Redis is lost") in ([1] if delay > WAIT else [0, 1])
    assert said("Redis is back") == 0
    between.spoil = None
    until(lambda: one.shares)


def test_no_answer_waits_longer_for_redis_in_all(
    shared_redis: Redis, proxy: MakeProxy, machine: Make, pool: ThreadPoolExecutor
) -> None:
    """After its load has ended elsewhere, an answer waits at most 250 ms for a Redis
    that stalls 50 ms each time.
    """
    between, stalls = proxy(shared_redis.port), Counter[str]()
    first = machine(shared_redis.url)
    second = machine(between.url, probe_every=PATIENCE)

    def stall(data: bytes, sink: socket.socket) -> None:
        time.sleep(0.05)
        stalls["all"] += 1
        sink.sendall(data)

    between.spoil = stall
    event_id, gate, loading = begin_load(first, pool)
    waiting = pool.submit(second.ask, event_id)
    until(lambda: stalls["all"] >= 5, "some looks")
    assert second.tier.snapshot()["up"]
    gate.set()
    loading.result(PATIENCE)
    before = stalls["all"]
    assert waiting.result(PATIENCE).value == VALUE
    assert stalls["all"] - before <= 5  # a sixth would have made it 300 ms


def test_the_pause_before_a_look_is_part_of_the_patience(
    shared_redis: Redis,
    proxy: MakeProxy,
    machine: Make,
    counts: Counter[str],
    pool: ThreadPoolExecutor,
) -> None:
    """After a pause of 50 ms, a look has 200 ms: one that takes 260 ms is given up, and
    the event is loaded here.
    """
    between, stalls = proxy(shared_redis.port), Counter[str]()
    first, second = machine(shared_redis.url), machine(between.url)

    def stall(data: bytes, sink: socket.socket) -> None:
        between.spoil = None
        time.sleep(0.26)
        stalls["ended"] += 1
        sink.sendall(data)

    def given_up() -> bool:
        event_id, gate, loading = begin_load(first, pool)
        waiting, began = pool.submit(second.ask, event_id), time.monotonic()
        until(lambda: time.monotonic() > began + 0.4, "the pauses to reach 50 ms")
        between.spoil = stall
        before = stalls["ended"]
        until(
            lambda: counts[event_id] == 2 or stalls["ended"] > before, "the look to end"
        )
        gate.set()
        assert loading.result(PATIENCE).value == waiting.result(PATIENCE).value == VALUE
        until(lambda: second.shares)
        return counts[event_id] == 2

    assert any(
        given_up() for _ in range(5)
    )  # the delays of a busy machine aren't counted


def test_nothing_half_read_is_used(
    shared_redis: Redis, proxy: MakeProxy, machine: Make, counts: Counter[str]
) -> None:
    """A reply that comes too late is never taken for the reply to the next command."""
    between, held_back = proxy(shared_redis.port), list[tuple[bytes, socket.socket]]()
    one, other = machine(between.url), machine(shared_redis.url)
    other.answer = lambda: Loaded(
        values.success({"id": "2", "title": None, "names": []}), OK, 252.0
    )
    other.ask(late := new_id())
    between.spoil = lambda data, sink: held_back.append((data, sink))
    assert quickly(lambda: one.ask(late)).value == VALUE
    until(lambda: not one.shares)
    between.spoil = None
    for data, sink in held_back:
        with contextlib.suppress(OSError):
            sink.sendall(data)
    until(lambda: one.shares)
    for _ in range(5):
        assert one.ask(event_id := new_id()).value == VALUE
        assert other.ask(event_id).value == VALUE
        assert counts[event_id] == 1


def test_a_loop_that_is_held_up_is_no_slow_redis(
    shared_redis: Redis,
    machine: Make,
    said: Said,
    loop: asyncio.AbstractEventLoop,
    pool: ThreadPoolExecutor,
) -> None:
    """On a crowded machine, where the event loop itself has to wait, Redis is not taken
    for slow.
    """
    one, other = machine(shared_redis.url), machine(shared_redis.url)
    other.ask(event_id := new_id())
    asking = [pool.submit(one.ask, event_id)]
    loop.call_soon_threadsafe(time.sleep, 2 * WAIT)
    asking.append(pool.submit(one.ask, new_id()))
    assert [future.result(PATIENCE).source for future in asking] == ["shared", "miss"]
    assert tuple(one.tier.snapshot().values()) == (1, 0, 1, 0, True)
    assert said("Redis is lost") == 0


def test_a_loop_that_is_held_up_all_the_time_is_no_slow_redis(
    shared_redis: Redis,
    proxy: MakeProxy,
    machine: Make,
    said: Said,
    loop: asyncio.AbstractEventLoop,
) -> None:
    """Patience isn't spent while each turn of the event loop takes long, however many
    they are.
    """
    between, other, turns = (
        proxy(shared_redis.port),
        machine(shared_redis.url),
        Counter[str](),
    )
    one = machine(between.url, probe_every=PATIENCE)
    other.ask(event_id := new_id())

    def hold_up() -> None:
        time.sleep(1.5 * SLICE)
        turns["all"] += 1
        if turns["all"] < 100:
            loop.call_soon(hold_up)

    def late(data: bytes, sink: socket.socket) -> None:
        until(lambda: turns["all"] >= 100)
        sink.sendall(data)

    between.spoil = late
    loop.call_soon_threadsafe(hold_up)
    assert one.ask(event_id).source == "shared"
    assert said("Redis is lost") == 0


def test_a_millisecond_may_be_over_already(
    shared_redis: Redis, proxy: MakeProxy, machine: Make
) -> None:
    """If Redis says that 1000 ms are left of an answer, it is kept for 999 ms, since
    Redis rounds to milliseconds.
    """
    between = proxy(shared_redis.port)
    one = machine(between.url, clock=lambda: 5000.0, probe_every=PATIENCE)
    reply = b":-2\r\n*3\r\n:%d\r\n$%d\r\n%b\r\n:1000\r\n" % (
        time.time() * 1000,
        len(GOOD),
        GOOD,
    )
    between.spoil = lambda data, sink: sink.sendall(reply)
    found = one.ask(new_id())
    assert (found.source, found.value) == ("shared", VALUE)
    assert found.ttl == pytest.approx(0.999, abs=1e-6)


def test_looks_become_rarer(
    shared_redis: Redis, proxy: MakeProxy, machine: Make, pool: ThreadPoolExecutor
) -> None:
    """The longer another instance's load takes, the longer are the pauses between two
    looks, up to 50 ms.
    """
    between, looks = proxy(shared_redis.port), list[float]()
    first, second = machine(shared_redis.url), machine(between.url)

    def note(data: bytes, sink: socket.socket) -> None:
        if data.endswith(
            b"*0\r\n"
        ):  # there is no answer, and another instance has the lock
            looks.append(time.monotonic())
        sink.sendall(data)

    event_id, gate, loading = begin_load(first, pool)
    between.spoil = note
    waiting = pool.submit(second.ask, event_id)
    until(lambda: len(looks) >= 20)
    assert looks[19] - looks[0] > 0.4
    gate.set()
    assert loading.result(PATIENCE).value == waiting.result(PATIENCE).value == VALUE


def test_a_name_that_is_looked_up_for_ever(machine: Make, said: Said) -> None:
    """A name server that doesn't answer delays no request; it is tried again, and
    logged once.
    """
    looked_up = list[str]()

    class Loop(asyncio.SelectorEventLoop):
        async def getaddrinfo(self, host: Any, port: Any, **options: Any) -> Any:
            looked_up.append(host)
            await asyncio.sleep(PATIENCE)

    with running(Loop) as own:
        one = machine("redis://somewhere:1234", ready=False, loop=own)
        assert quickly(lambda: one.ask(new_id())).value == VALUE
        until(lambda: len(looked_up) >= 2)
        assert set(looked_up) == {"somewhere"}
        assert (said("Redis is lost"), said("timed out")) == (1, 1)
        one.end()


def test_a_redis_that_is_lost_keeps_nobody_waiting(
    proxy: MakeProxy,
    machine: Make,
    said: Said,
    loop: asyncio.AbstractEventLoop,
    pool: ThreadPoolExecutor,
) -> None:
    """While Redis is lost, a load doesn't even wait for the event loop."""
    one, gate = machine(proxy(0, silence).url, ready=False), threading.Event()
    until(lambda: said("Redis is lost"))
    loop.call_soon_threadsafe(gate.wait, PATIENCE)
    try:
        assert pool.submit(one.ask, new_id()).result(4).value == VALUE
    finally:
        gate.set()


def test_a_redis_that_is_slow_is_not_back(
    shared_redis: Redis, proxy: MakeProxy, machine: Make, said: Said
) -> None:
    """A Redis that was lost is back once it answers quickly, and not while it takes 150
    ms for one small answer.
    """
    between, tries = proxy(shared_redis.port), list[bytes]()
    one = machine(between.url)
    between.spoil = silence
    one.ask(new_id())
    until(lambda: not one.shares)

    def slowly(data: bytes, sink: socket.socket) -> None:
        time.sleep(0.15)
        tries.append(data)
        sink.sendall(data)

    between.spoil = slowly
    until(lambda: len(tries) >= 5, "several tries")
    assert said("Redis is back") == 0
    between.spoil = None
    until(lambda: one.shares)


def test_a_connection_that_hangs_is_dropped_at_once(
    shared_redis: Redis, proxy: MakeProxy, machine: Make
) -> None:
    """A connection over which no reply came in time is closed, and not only when Redis
    is tried again.
    """
    between = proxy(shared_redis.port)
    with shared_redis.client() as client:
        before = len(client.client_list())
        one = machine(between.url, probe_every=3 * PATIENCE)
        between.spoil = silence
        one.ask(new_id())
        until(lambda: len(client.client_list()) <= before)
    assert not one.shares


def test_drops_are_not_waited_for(
    shared_redis: Redis, proxy: MakeProxy, machine: Make
) -> None:
    """A reply that comes in drops, a byte every 50 ms, is waited for 250 ms in all, not
    after each byte.
    """
    between = proxy(shared_redis.port)
    one = machine(between.url, probe_every=PATIENCE)
    between.spoil = in_drops
    began = time.monotonic()
    assert one.ask(new_id()).value == VALUE
    assert 0.9 * WAIT < time.monotonic() - began < 4 * WAIT
    assert tuple(one.tier.snapshot().values()) == (0, 0, 0, 1, False)


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, None])
def test_any_loop(
    factory: Callable[[], asyncio.AbstractEventLoop] | None,
    shared_redis: Redis,
    machine: Make,
) -> None:
    """Redis is asked on the given event loop, or else on one of its own."""
    with running(factory) if factory else contextlib.nullcontext() as own:
        first, second = (machine(shared_redis.url, loop=own) for _ in range(2))
        event_id = new_id()
        assert (first.ask(event_id).source, second.ask(event_id).source) == (
            "miss",
            "shared",
        )
        daemons = [
            thread.daemon
            for thread in threading.enumerate()
            if thread.name == "c42c-redis"
        ]
        assert own or (daemons and all(daemons))
        first.end()
        second.end()


def test_a_tier_that_is_closed(shared_redis: Redis, machine: Make, said: Said) -> None:
    """After `close`, loads go on without Redis, the connection is closed, and no loss
    is logged.
    """
    one = machine(shared_redis.url)
    with shared_redis.client() as client:
        connected = len(client.client_list())
        one.tier.close()
        until(lambda: len(client.client_list()) < connected)
    assert not one.shares
    assert one.ask(new_id()).value == VALUE
    assert one.tier.snapshot()["alone"] == 1
    assert said("Redis is lost") == 0


def test_a_tier_that_is_closed_during_a_look_up(
    shared_redis: Redis,
    machine: Make,
    pool: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`close` lets go of the loads that wait for Redis."""
    monkeypatch.setattr(sharing.link, "HELD_UP", 1000.0)
    monkeypatch.setattr(sharing.tier, "PATIENCE", 1000.0)
    asked = threading.Event()
    proxy = Proxy(shared_redis.port)
    one = machine(proxy.url, probe_every=1000.0)
    proxy.spoil = lambda *_: asked.set()
    asking = pool.submit(one.ask, new_id())
    assert asked.wait(PATIENCE)
    one.tier.close()
    assert asking.result(PATIENCE).value == VALUE
    proxy.end()


@pytest.mark.parametrize("probe_every", [1000.0, 0.0], ids=["a look-up", "a probe"])
def test_a_server_that_stops_during_an_exchange(
    shared_redis: Redis,
    machine: Make,
    pool: ThreadPoolExecutor,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    probe_every: float,
) -> None:
    """When the server's loop ends, loads that wait for Redis are let go, and neither a
    loss nor a bug is logged.
    """
    monkeypatch.setattr(sharing.tier, "PATIENCE", 1000.0)
    monkeypatch.setattr(sharing.link, "PATIENCE", 1000.0)
    monkeypatch.setattr(sharing.link, "CONNECT", 1000.0)
    runner, asked, told, proxy = (
        asyncio.Runner(),
        threading.Event(),
        asyncio.Event(),
        Proxy(shared_redis.port),
    )

    def serve() -> None:
        with runner:
            runner.run(told.wait())

    one = machine(
        proxy.url, loop=runner.get_loop(), probe_every=probe_every, ready=False
    )
    serving = threading.Thread(target=serve)
    serving.start()
    until(lambda: one.shares, "Redis to be there")
    caplog.clear()
    proxy.spoil = lambda *_: asked.set()
    asking = pool.submit(one.ask, new_id())
    assert asked.wait(PATIENCE)
    runner.get_loop().call_soon_threadsafe(told.set)
    serving.join(PATIENCE)
    assert asking.result(PATIENCE).value == VALUE
    gc.collect()
    assert [record.getMessage() for record in caplog.records] == []
    proxy.end()


def test_a_connection_that_was_closed_meanwhile_is_no_loss(
    shared_redis: Redis, machine: Make, said: Said
) -> None:
    """A Redis that closes idle connections is asked over a new one."""
    one = machine(shared_redis.url)
    one.ask(new_id())
    with shared_redis.client() as client:
        client.client_kill_filter(_type="normal", skipme=True)
    one.ask(new_id())
    assert one.tier.snapshot()["loaded"] == 2
    assert said("Redis is lost") == 0


def test_a_full_redis(own_redis: Redis, machine: Make, said: Said) -> None:
    """A full Redis counts as lost, which is logged once, until it has room again."""
    one = machine(own_redis.url)
    with own_redis.client() as client:
        client.config_set("maxmemory", 1)
        assert one.ask(new_id()).value == VALUE
        until(lambda: not one.shares)
        tried = client.info("errorstats")["errorstat_OOM"]["count"] + 3
        until(
            lambda: client.info("errorstats")["errorstat_OOM"]["count"] >= tried,
            "more tries",
        )
        assert said("OutOfMemory") == said("Redis is lost") == 1
        client.config_set("maxmemory", 0)
        until(lambda: one.shares)


def test_many_loads_at_once_do_not_look_like_a_slow_redis(
    shared_redis: Redis, machine: Make, said: Said, pool: ThreadPoolExecutor
) -> None:
    """As many loads as may be under way at once all go through Redis, over one
    connection.
    """
    one = machine(shared_redis.url)
    with shared_redis.client() as client:
        connected = len(client.client_list())
        one.gate = threading.Event()
        ids = [new_id() for _ in range(240)]
        futures = [pool.submit(one.ask, event_id) for event_id in ids]
        for _ in ids:
            assert one.entered.acquire(timeout=PATIENCE)
        one.gate.set()
        for future in futures:
            future.result(PATIENCE)
        assert len(client.client_list()) == connected
    assert said("Redis is lost") == 0
    assert tuple(one.tier.snapshot().values()) == (0, 0, 240, 0, True)


# Addresses and settings


def test_addresses(tmp_path: Path, machine: Make, said: Said) -> None:
    """Redis is reached by TCP, TLS and a Unix socket, with a password and a database."""
    if not shutil.which("openssl"):
        pytest.skip("there is no openssl to make a certificate with")
    make = "openssl req -x509 -newkey rsa:2048 -nodes -keyout key -out crt -days 2 -subj /CN=localhost -addext"
    command = [*make.split(), "subjectAltName=DNS:localhost"]
    subprocess.run(
        command, check=True, capture_output=True, timeout=PATIENCE, cwd=tmp_path
    )
    tls, path = free_port(), tmp_path / "s"
    files = [
        "--tls-cert-file",
        f"{tmp_path}/crt",
        "--tls-key-file",
        f"{tmp_path}/key",
        "--tls-auth-clients",
        "no",
    ]
    server = Redis(
        "--requirepass",
        "se/cret",
        "--unixsocket",
        str(path),
        "--tls-port",
        str(tls),
        *files,
    )
    try:
        for number, url in enumerate(
            [
                f"redis://:{PASSWORD}@127.0.0.1:{server.port}/1",
                f"redis://default:{PASSWORD}@localhost:{server.port}?db=2",
                f"unix://:{PASSWORD}@{path}?db=3",
                f"rediss://:{PASSWORD}@localhost:{tls}/4?ssl_ca_certs={tmp_path}/crt",
            ],
            1,
        ):
            one = machine(url)
            one.ask(event_id := new_id())
            with redis.Redis(
                port=server.port, password="se/cret", db=number, protocol=2
            ) as client:
                assert client.exists(one.key(event_id))
        for url in (
            f"rediss://:{PASSWORD}@localhost:{tls}",  # a strange certificate
            f"redis://:wrong@127.0.0.1:{server.port}",
            f"redis://127.0.0.1:{server.port}",
        ):
            lost = said("Redis is lost")
            one = machine(url, ready=False)
            until(lambda lost=lost: said("Redis is lost") > lost)  # type: ignore[misc]
            assert not one.shares
    finally:
        server.kill()


def test_a_user_with_few_rights(own_redis: Redis, machine: Make) -> None:
    """The rights that docs/scaling.md names are enough for the user of Redis."""
    rights = re.findall(
        r"`([A-Z]+)`",
        (ROOT / "docs/scaling.md").read_text().partition("logs in as needs")[2][:120],
    )
    with own_redis.client() as client:
        allowed = [f"+{right.lower()}" for right in rights]
        client.execute_command(
            "ACL", "SETUSER", "c42c", "on", ">secret", "~c42c:*", *allowed
        )
    first, second = (
        machine(f"redis://c42c:secret@127.0.0.1:{own_redis.port}") for _ in range(2)
    )
    event_id = new_id()
    assert (first.ask(event_id).source, second.ask(event_id).source) == (
        "miss",
        "shared",
    )
    first.pause.begin("30")
    first.ask(new_id())
    with own_redis.client() as client:
        client.set(first.key(event_id := new_id()), "wrong", px=60000)
        assert first.ask(event_id).source == "miss"
        assert first.shares
        assert "cmdstat_hello" not in client.info(
            "commandstats"
        )  # Redis 5 does not know it


@pytest.mark.parametrize(
    "url",
    [
        "localhost:6379",
        "http://:se/cret@localhost",
        "redis://",
        "redis://:se/cret@localhost",  # the slash should have been escaped
        "redis://:secret@localhost:70000",
        "redis://:secret@localhost/one",
        "redis://:secret@localhost?socket_timeout=60",
        "redis://:secret@localhost?db",
        "redis://:secret@localhost?db=one",
        "redis://:secret@localhost?ssl_ca_certs=/a.pem",  # only rediss:// has them
        "rediss://:secret@localhost?ssl_cert_reqs=always",
        "redis://:secret@localhost:0",
        "unix://:secret@localhost/socket",
        "redis://:secret@local host",
        "redis://:secret@localhost#1",
        "redis://[::1",
        "unix://:secret@",
    ],
)
def test_invalid_addresses(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An invalid C42_CACHE_URL stops the start with one line that names it and does not
    show it.
    """
    assert main.main([], {"C42_TOKEN": TOKEN, "C42_CACHE_URL": url}) == 2
    said = capsys.readouterr().err
    assert said.startswith("C42_CACHE_URL is invalid: expected redis://")
    assert said.count("\n") == 1
    assert "cret" not in said


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost",
        "redis://u:p%2F@h.example.com:6379/15",
        "rediss://[::1]:1/?ssl_ca_certs=/a.pem&ssl_cert_reqs=required",
        "unix://:secret@/run/redis.sock?db=3",
        "unix:///run/redis.sock",
    ],
)
def test_sound_addresses(url: str) -> None:
    """C42_CACHE_URL takes what docs/scaling.md names."""
    assert settings.read({"C42_TOKEN": TOKEN, "C42_CACHE_URL": url}).cache_url == url


def test_secrets_are_not_shown() -> None:
    """The settings do not show the address of Redis, which may hold a password."""
    shown = repr(
        settings.read(
            {"C42_TOKEN": TOKEN, "C42_CACHE_URL": f"redis://:{PASSWORD}@localhost"}
        )
    )
    assert PASSWORD not in shown
    assert "localhost" not in shown


def test_redis_is_not_installed() -> None:
    """C42_CACHE_URL without the redis package stops the start and says what to install."""
    environ = {"C42_TOKEN": TOKEN, "C42_CACHE_URL": "redis://localhost"}
    code = f"import sys; sys.modules['redis'] = None; import main; sys.exit(main.main([], {environ}))"
    ended = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert ended.returncode == 2
    assert (
        ended.stderr
        == "C42_CACHE_URL needs the redis package: pip install -r requirements-redis.txt\n"
    )


# Several instances keep the promises of one


LIKE_ALL = {"C42_TIMEOUT": "10", "C42_FAULT_EXPIRY": "0.05"}


@pytest.fixture(scope="module")
def services(shared_upstream: Standin, shared_redis: Redis) -> Iterator[list[Service]]:
    """Start four instances that share a Redis."""
    made = [
        Service(shared_upstream, (), **LIKE_ALL, C42_CACHE_URL=shared_redis.url)
        for _ in range(4)
    ]
    try:
        for service in made:
            service.wait_until_ready()
            until(lambda s=service: "answers are shared" in s.log)  # type: ignore[misc]
        yield made
    finally:
        for service in made:
            service.end()


def ask_all(
    several: list[Service], event_id: str, times: int, pool: ThreadPoolExecutor
) -> list[requests.Response]:
    """Ask each service so many times, all at once, on separate connections."""
    together = threading.Barrier(times * len(several))

    def ask(service: Service) -> requests.Response:
        together.wait(PATIENCE)
        return requests.get(
            f"{service.url}/events-with-subscriptions/{event_id}", timeout=PATIENCE
        )

    return [
        future.result()
        for future in [pool.submit(ask, service) for service in several * times]
    ]


def test_one_load_for_all(
    services: list[Service], upstream: Standin, pool: ThreadPoolExecutor
) -> None:
    """A hundred callers of each of four instances cause one call to each endpoint, and
    all get the same.
    """
    upstream.add_event(event_id := new_id(), title="Schön", names=["Ada", "Grace"])
    upstream.rule("events", event_id, delay=0.3)
    responses = ask_all(services, event_id, 100, pool)
    assert {response.status_code for response in responses} == {200}
    assert {response.text for response in responses} == {
        f'{{"id":"{event_id}","title":"Schön","names":["Ada","Grace"]}}'
    }
    assert len({response.headers["ETag"] for response in responses}) == 1
    logs = "".join(service.log for service in services)
    assert upstream.calls("events", event_id) == 1, logs
    assert upstream.calls("event-subscriptions", event_id) == 1, logs


@pytest.mark.parametrize("status", [404, 503])
def test_errors_are_passed_through_by_all(
    status: int, services: list[Service], upstream: Standin, pool: ThreadPoolExecutor
) -> None:
    """An upstream error is the answer of every instance, with its bytes, after one
    call.
    """
    event_id = new_id()
    upstream.rule("events", event_id, status=status, body=f'{{"error": "{event_id}"}}')
    responses = ask_all(services, event_id, 8, pool)
    assert {(response.status_code, response.text) for response in responses} == {
        (status, f'{{"error": "{event_id}"}}')
    }
    assert upstream.calls("events", event_id) == 1


def test_no_answer_outlives_its_load(
    services: list[Service], upstream: Standin
) -> None:
    """`max-age`, wherever an answer is served, never says more than what is left of the
    expiry from its load.
    """
    upstream.add_event(event_id := new_id(), names=["Ada"])
    began = time.monotonic()
    first = services[0].event(event_id)
    assert lifetime(first) == 251
    until(lambda: time.monotonic() > began + 1)
    for service in services:
        asked = time.monotonic()
        left = lifetime(service.event(event_id))
        assert left
        assert 240 < left <= 252 - (asked - began) + first.elapsed.total_seconds()
    assert upstream.calls("events", event_id) == 1


def test_operators_see_the_state_of_redis(
    services: list[Service], service: Service
) -> None:
    """`/readyz` and the metrics say whether Redis is there."""
    shared = services[0]
    assert service.get("/readyz").json()["shared_tier"] is None
    assert "c42_shared_tier" not in service.get("/metrics").text
    assert shared.get("/readyz").json()["shared_tier"] == "up"
    metrics = shared.get("/metrics").text
    assert "c42_shared_tier_up 1.0\n" in metrics
    assert 'c42_shared_tier_loads_total{result="awaited"} ' in metrics


def test_an_instance_dies_in_mid_load(
    services: list[Service],
    start: Callable[..., Service],
    shared_redis: Redis,
    upstream: Standin,
    pool: ThreadPoolExecutor,
) -> None:
    """When an instance is killed in mid-load, another one has a good answer well before
    the time-out.
    """
    other, dying = services[0], start(**LIKE_ALL, C42_CACHE_URL=shared_redis.url)
    until(lambda: "answers are shared" in dying.log)
    upstream.add_event(event_id := new_id(), names=["Ada"])
    upstream.rule("events", event_id, times=1, hang=True)
    lost = pool.submit(dying.event, event_id)
    until(lambda: upstream.calls("events", event_id) == 1)
    waiting = pool.submit(other.event, event_id)
    dying.process.kill()
    assert waiting.result(PATIENCE).status_code == 200
    assert upstream.calls("events", event_id) == 2
    with pytest.raises(requests.ConnectionError):
        lost.result(PATIENCE)
