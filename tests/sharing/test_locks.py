"""One instance loads for all: the one that holds the lock."""

import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

import sharing.tier
from cache import OK, Loaded, clock
from standin import Standin
from tests.fixtures import PATIENCE, ROOT, TOKEN, Start, new_id, until
from tests.machines import (
    VALUE,
    Make,
    Redis,
    Said,
    begin_load,
    quickly,
)


@pytest.mark.parametrize("how", ["flushed", "restarted", "run out"])
def test_a_lock_that_is_gone_is_lost(
    how: str,
    own_redis: Redis,
    machine: Make,
    counts: Counter[str],
    pool: ThreadPoolExecutor,
) -> None:
    """An instance that lost its lock stores nothing, and delays no one."""
    first, second = (machine(own_redis.url, timeout=0.4) for _ in range(2))
    event_id, gate, loading = begin_load(first, pool)
    if how == "restarted":
        own_redis.kill()
        own_redis.start()
    with own_redis.client() as client:
        if how == "flushed":
            client.flushall()
        elif how == "run out":
            until(lambda: not client.exists(first.lock(event_id)))
        gate.set()
        assert loading.result(PATIENCE).value == VALUE
        assert not client.exists(first.key(event_id))
    until(second.shares_again)
    assert second.ask(event_id).source == "miss"
    assert counts[event_id] == 2


def test_a_lock_that_became_anothers_is_left_alone(
    shared_redis: Redis, machine: Make
) -> None:
    """An instance that lost its lock leaves the new holder's lock and answer alone."""
    first = machine(shared_redis.url)
    event_id = new_id()
    with shared_redis.client() as client:

        def answer() -> Loaded:
            client.set(first.lock(event_id), "another's", px=10_000)
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
    """A suspended instance's 504 doesn't replace what others have stored since."""
    suspended = start(C42_CACHE_URL=shared_redis.url, C42_TIMEOUT="0.5")
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
    """When a load raises, another machine that waits for it loads at once."""
    first, second = (machine(shared_redis.url) for _ in range(2))

    def answer() -> Loaded:
        raise ZeroDivisionError

    first.answer = answer
    event_id, gate, loading = begin_load(first, pool)
    waiting = pool.submit(second.ask, event_id)
    until(lambda: second.cache.snapshot().waiting)
    gate.set()
    with pytest.raises(ZeroDivisionError):
        loading.result(PATIENCE)
    assert quickly(lambda: waiting.result(PATIENCE)).value == VALUE
    assert counts[event_id] == 2
    with shared_redis.client() as client:
        assert not client.exists(first.lock(event_id))


@pytest.mark.parametrize(("timeout", "seconds"), [(0.8, PATIENCE), (2 * PATIENCE, 0.4)])
def test_waiting_for_another_instance_is_bounded(
    timeout: float,
    seconds: float,
    shared_redis: Redis,
    machine: Make,
    said: Said,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who waits in vain for another's load loads alone, and Redis isn't lost.

    Waiting ends after half of the time-out, or by the deadline if that comes first, and
    doesn't age what follows.
    """
    monkeypatch.setattr(sharing.tier, "LONGEST_LEASE", PATIENCE)
    one, event_id = machine(shared_redis.url, timeout=timeout), new_id()
    own = Loaded(VALUE, OK, 252.0, born=clock())
    began = time.monotonic()

    def load(event_ids: list[str], deadline: float) -> Iterator[tuple[str, Loaded]]:
        assert deadline == began + seconds
        yield event_id, own

    with shared_redis.client() as client:
        client.set(one.lock(event_id), "another's", px=60_000)
        found = list(one.tier.load(load, 0.0, [event_id], began + seconds))
        assert 0.4 <= time.monotonic() - began < PATIENCE / 2
        assert client.get(one.lock(event_id)) == b"another's"
    assert found == [(event_id, own)]
    assert tuple(one.tier.snapshot().values()) == (0, 0, 0, 1, True)
    assert said("is lost") == 0


@pytest.mark.parametrize(("timeout", "longest"), [(4.0, 2.0), (60.0, 5.0)])
def test_a_lock_lasts_for_five_seconds_at_most(
    timeout: float, longest: float, shared_redis: Redis, machine: Make
) -> None:
    """A lock lasts for five seconds, or half of the time-out if that is shorter."""
    first, left = machine(shared_redis.url, timeout=timeout), list[int]()
    event_id = new_id()

    def answer() -> Loaded:
        with shared_redis.client() as client:
            left.append(client.pttl(first.lock(event_id)))
        return Loaded(VALUE, OK, 252.0)

    first.answer = answer
    began = time.monotonic()
    first.ask(event_id)
    passed = time.monotonic() - began
    assert 1000 * (longest - passed) - 10 <= left[0] <= longest * 1000


def test_a_lock_lasts_for_a_millisecond_at_least(
    shared_redis: Redis, machine: Make, counts: Counter[str]
) -> None:
    """Even if C42_TIMEOUT is a millisecond, Redis isn't asked for a shorter lock."""
    one, event_id = machine(shared_redis.url, timeout=0.001), new_id()
    assert one.ask(event_id).value == VALUE
    assert (one.shares, counts[event_id]) == (True, 1)


def test_a_lock_of_its_own_holds_nobody_up(
    shared_redis: Redis, machine: Make, counts: Counter[str]
) -> None:
    """An instance doesn't wait for a lock of its own."""
    one, event_id = machine(shared_redis.url), new_id()

    def answer() -> Loaded:
        one.answer = lambda: Loaded(VALUE, OK, 252.0)
        return one.refresh(event_id, least_left=0.0)

    one.ask(new_id())
    one.answer = answer
    with shared_redis.client() as client:
        before = client.info("commandstats")["cmdstat_eval"]["calls"]
        assert one.ask(event_id).value == VALUE
        asked = client.info("commandstats")["cmdstat_eval"]["calls"] - before
    assert counts[event_id] == 2
    assert asked == 4  # two looks, and two attempts to store


FORKED = """
import os, sys, time
import redis
from calendar42.calls import Pause
from cache import Loaded, clock
from sharing.link import Link
from sharing.tier import SharedTier
url = sys.argv[1]
tier = SharedTier(Link(url), scope=(), timeout=1.0, pause=Pause(6.0))
def load(event_ids, deadline):
    if not child:
        with redis.Redis.from_url(url, protocol=2) as client:
            client.persist(tier.keys(event_ids)[2])
        os._exit(0)
    yield event_ids[0], Loaded((b"", 200, "", ""), "ok", 252.0, clock())
child = os.fork()
if child:
    assert os.waitpid(child, 0)[1] == 0
list(tier.load(load, 0.0, ["E"], time.monotonic() + 60))
print(*tier.snapshot().values(), flush=True)
os._exit(0)
"""


def test_a_process_that_was_forked_has_its_own_locks(own_redis: Redis) -> None:
    """If a process forks, its child's locks aren't its own.

    gunicorn's workers are such children with `--preload`.
    """
    command = [sys.executable, "-c", FORKED, f"{own_redis.url}?socket_timeout=10"]
    said = subprocess.run(
        command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=PATIENCE
    )
    assert said.stdout == "0 0 0 1 True\n"  # it waited in vain, and loaded alone
