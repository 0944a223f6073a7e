"""The reaper deletes what has expired, holds up nobody, and stops when told."""

import functools
import itertools
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import Future, wait
from pathlib import Path

import pytest

from cache import (
    FAULT,
    KINDS,
    NEGATIVE,
    OK,
    PAUSED,
    Cache,
)
from tests.cache_callers import (
    A_WHILE,
    BOUND,
    REAPER,
    Clock,
    Make,
    Moment,
    checked,
    fill,
    get_or_load,
    hectic,
    keep,
    reap,
    start,
    until,
    unwanted,
)


def reapers() -> list[threading.Thread]:
    """Return the reapers that are running."""
    return [thread for thread in threading.enumerate() if thread.name == REAPER]


def test_the_reaper_deletes_what_has_expired(make: Make, clock: Clock) -> None:
    """The reaper deletes an entry when it expires.

    It does so even if it was going to sleep longer.
    """
    cache = make(reaper=True)
    keep(cache, "long", lifetime=1000)
    keep(cache, "short", FAULT, lifetime=0.01)
    assert get_or_load(cache, "short", unwanted).source == "hit"
    clock.advance(0.01)
    until(lambda: len(cache) == 1)
    stats = checked(cache)
    assert (stats.evicted, stats.entries[OK], stats.entries[FAULT]) == (
        {"expired": 1, "bound": 0, "replaced": 0},
        1,
        0,
    )
    keep(cache, "short", lifetime=0.01)  # and it goes on
    clock.advance(0.01)
    until(lambda: checked(cache).evicted["expired"] == 2)
    assert get_or_load(cache, "long", unwanted).source == "hit"


def test_the_reaper_keeps_up(make: Make, clock: Clock) -> None:
    """The reaper deletes thousands of expired entries almost at once.

    It works in batches all the same.
    """
    cache = make(max_entries=20_000, reaper=True)
    fill(cache, 9000, lifetime=10)
    fill(cache, 1000, FAULT, lifetime=10)
    keep(cache, "short", lifetime=0.01)  # makes the reaper wake soon
    clock.advance(10)
    until(lambda: len(cache) == 0)
    assert checked(cache, 20_000).evicted["expired"] == 10_001


def reads_by_thread(clock: Clock) -> Counter[str]:
    """Count how often each thread reads the clock.

    The reaper does so once per batch.
    """
    reads = Counter[str]()

    def note() -> None:
        reads[threading.current_thread().name] += 1

    clock.hook = note
    return reads


@pytest.mark.parametrize(
    ("long", "short"), [(OK, FAULT), (FAULT, OK), (OK, OK), (PAUSED, NEGATIVE)]
)
def test_the_reaper_wakes_for_what_expires_first(
    make: Make, clock: Clock, long: str, short: str
) -> None:
    """The reaper wakes for the entry that expires first, good or bad.

    It deletes only that.
    """
    reads = reads_by_thread(clock)
    cache = make(reaper=True)
    keep(cache, "long", long, lifetime=1000)
    until(lambda: reads[REAPER] == 1)
    keep(cache, "short", short, lifetime=0.2)
    until(lambda: reads[REAPER] >= 2)  # it sleeps again, and wakes by itself
    clock.advance(1)
    until(lambda: len(cache) < 2)
    assert cache.get("long")


@pytest.mark.parametrize("lifetime", [0.5, 42])
def test_the_reaper_sleeps_until_the_next_expiry(
    make: Make, clock: Clock, lifetime: float
) -> None:
    """An entry that doesn't expire first doesn't wake the reaper."""
    reads = reads_by_thread(clock)
    cache = make(reaper=True)
    keep(cache, "first", lifetime=lifetime)
    until(lambda: reads[REAPER] >= 1)
    for number in range(500):
        keep(cache, str(number), (OK, NEGATIVE)[number % 2], lifetime=42 + number)
    start(cache.close).result(BOUND)
    # Its clock stands still, so the first entry never expires, and it looks again and
    # again.
    assert reads[REAPER] <= 20
    assert reads["MainThread"] >= 1000


def test_reap_deletes_the_expired_only(cache: Cache, clock: Clock) -> None:
    """`reap` deletes the entries of all kinds that have expired, and no others."""
    for number, kind in itertools.product(range(10), KINDS):
        keep(cache, f"{kind}{number}", kind, lifetime=10 + number)
    clock.advance(13)
    reap(cache)
    reap(cache)
    assert (len(cache), checked(cache).evicted) == (
        24,
        {"expired": 16, "bound": 0, "replaced": 0},
    )
    assert not any(
        cache.get(f"{kind}{number}") for kind in KINDS for number in range(4)
    )
    assert all(
        cache.get(f"{kind}{number}") for kind in KINDS for number in range(4, 10)
    )


def reap_cost(
    make: Make, clock: Clock, *, held: int, expired: int
) -> tuple[int, list[int]]:
    """Return how many moments reaping compares.

    Also return how many entries were left at the start of each batch.
    """
    cache = make(max_entries=10**6)
    clock.now = Moment(clock.now)
    for number in random.Random(5).sample(range(held), held):
        keep(cache, str(number), lifetime=10 if number < expired else 1000 + number)
    clock.advance(10)
    sizes: list[int] = []
    clock.hook = lambda: sizes.append(len(cache))
    Moment.compared = 0
    reap(cache)
    compared, clock.hook = Moment.compared, lambda: None
    sizes.append(len(cache))
    assert len(cache) == held - expired
    return compared, sizes


def test_the_cost_of_reaping(make: Make, clock: Clock) -> None:
    """The cost of reaping depends on what expires, not on what is held.

    Each batch is small.
    """
    base, sizes = reap_cost(make, clock, held=1000, expired=1000)
    more_held, _ = reap_cost(make, clock, held=5000, expired=1000)
    more_expired, _ = reap_cost(make, clock, held=5000, expired=5000)
    assert (
        more_held <= 2 * base
    )  # a heap that is five times as large is two or three levels higher
    assert more_expired <= 10 * base
    batches = [before - after for before, after in itertools.pairwise(sizes)]
    assert sum(batches) == 1000
    assert max(batches) <= 256


def test_stopping_is_prompt(make: Make) -> None:
    """`close` ends the reaper within a second and may be called again.

    The cache remains usable.
    """

    def seconds_to_stop() -> float:
        cache = make(reaper=True)
        keep(cache, "key", lifetime=1000)
        (reaper,) = reapers()
        assert (reaper.daemon, cache.reaper_alive) == (True, True)
        told = time.monotonic()
        start(cache.close).result(BOUND)
        seconds = time.monotonic() - told
        assert (cache.reaper_alive, reaper.is_alive()) == (False, False)
        start(cache.close).result(BOUND)
        assert get_or_load(cache, "key", unwanted).source == "hit"
        assert keep(cache, "other").source == "miss"
        assert reapers() == []
        return seconds

    assert any(seconds_to_stop() < 1 for _ in range(3))  # a busy machine may be late


def test_the_reaper_starts_with_the_first_entry(make: Make) -> None:
    """A cache has no thread until it keeps something, and is healthy without one."""
    cache = make(reaper=True)
    assert cache.get("key") is None
    assert (cache.reaper_alive, reapers()) == (True, [])
    keep(cache, "key", lifetime=0.0)  # it isn't kept
    assert (cache.reaper_alive, reapers()) == (True, [])
    keep(cache, "key")
    assert (cache.reaper_alive, len(reapers())) == (True, 1)


def test_stopping_before_the_first_entry(make: Make) -> None:
    """A cache that was closed before its first entry starts no thread."""
    cache = make(reaper=True)
    start(cache.close).result(BOUND)
    keep(cache, "key")
    assert (cache.reaper_alive, reapers()) == (False, [])


def test_a_fork_has_a_reaper_of_its_own() -> None:
    """If a process forks before the first entry, its children have reapers.

    Servers do so.
    """
    script = """
import os, time
from cache import Cache, Loaded
cache = Cache(max_entries=10, max_bytes=10**6, max_waiting=1)
if child := os.fork():
    raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
cache.get_or_load(["key"], lambda keys, _: [("key", Loaded("value", "ok", 0.05))])
end = time.monotonic() + 60
while len(cache) and time.monotonic() < end:
    time.sleep(0.01)
os._exit(len(cache))
"""
    command = [sys.executable, "-c", script]
    subprocess.run(command, cwd=Path(__file__).parent.parent, check=True)


def test_stopping_does_not_wait_for_a_long_reap(make: Make, clock: Clock) -> None:
    """`close` ends the reaper between two batches, however much has expired."""
    cache, closing = make(max_entries=3000, reaper=True), list[Future[None]]()
    fill(cache, 2000, lifetime=10)

    def close_in_the_first_batch() -> None:
        if clock.now == 1010:
            if not closing:
                closing.append(start(cache.close))
            # A busy machine may need several batches until it runs that thread.
            wait(closing, A_WHILE)

    clock.hook = close_in_the_first_batch
    keep(cache, "short", lifetime=0.01)  # makes the reaper wake soon
    clock.advance(10)
    until(lambda: closing)
    closing[0].result(BOUND)
    assert 0 < len(cache) < 2000


def test_stopping_races_the_reaper(make: Make, clock: Clock) -> None:
    """`close` ends the reaper whether it is starting, reaping or going to sleep."""
    with hectic():
        for number in range(300):
            cache = make(reaper=True)
            clock.hook = (
                functools.partial(close_from_the_reaper, cache, [])
                if number % 2
                else lambda: None
            )
            keep(cache, "key", lifetime=1000)
            start(cache.close).result(BOUND)
            assert reapers() == []


def close_from_the_reaper(cache: Cache, closing: list[Future[None]]) -> None:
    """Close the cache when the reaper holds the lock for the first time.

    Another thread closes it.
    """
    if threading.current_thread().name == REAPER and not closing:
        closing.append(start(cache.close))
        wait(closing, 0.0005)


def test_a_reaper_that_could_not_start(
    make: Make,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """If the system allows no thread for the reaper, the next entry starts it.

    The log has a warning.
    """

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    cache = make(reaper=True)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        keep(cache, "first", lifetime=10)
    assert not cache.reaper_alive
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "the reaper could not start" in caplog.text
    keep(cache, "second", lifetime=20)
    assert cache.reaper_alive
    clock.advance(20)
    until(lambda: len(cache) == 0)
