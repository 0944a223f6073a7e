"""What the cache promises. `python test_cache.py` prints nothing if all tests pass;
pytest runs them too.

The clock is fake. Threads are put in order by gates and by the number of waiting
callers, never by sleeping. The reaper is stopped at once, so that only the test deletes
entries, unless the test is about the reaper. Tests wait for at most `BOUND` seconds, so
a broken promise makes them fail rather than hang.
"""

import contextlib
import functools
import gc
import io
import itertools
import math
import random
import subprocess
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any, TypeVar, cast

try:
    import pytest
except ModuleNotFoundError:
    sys.exit("pytest is missing: pip install -r requirements.txt")

from cache import (
    FAULT,
    GRACE,
    KINDS,
    NEGATIVE,
    OK,
    PAUSED,
    Cache,
    Found,
    Loaded,
    LoadFailed,
    Stats,
    WaitingRoomFull,
)

BOUND = 10.0  # seconds after which a test gives up on what should have happened at once
A_WHILE = 0.05  # seconds in which a thread that need not wait gets on
REAPER = "c42c-reaper"

T = TypeVar("T")
Make = Callable[..., Cache]
Pairs = Iterator[tuple[str, Loaded]]


class Clock:
    """A clock that stands still until a test moves it.

    It calls `hook` whenever it is read.
    """

    def __init__(self) -> None:
        self.now = 1000.0
        self.hook: Callable[[], object] = lambda: None

    def __call__(self) -> float:
        self.hook()
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class Gated:
    """A load that waits for `go`, and then returns or raises `end`."""

    def __init__(self, end: Loaded | BaseException) -> None:
        self.end = end
        self.calls = 0
        self.begun = threading.Event()
        self.go = threading.Event()

    def __call__(self, _key: str) -> Loaded:
        self.calls += 1
        self.begun.set()
        if not self.go.wait(BOUND):
            self.go.set()  # later callers fail at once
            self.end = AssertionError("nobody let the load go")
        if isinstance(self.end, BaseException):
            raise self.end
        return self.end


def start(call: Callable[[], T]) -> Future[T]:
    """Run `call` in a new thread; the future gets what it returns or raises."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as raised:
            future.set_exception(raised)

    threading.Thread(target=run, daemon=True).start()
    return future


def until(condition: Callable[[], object]) -> None:
    """Return as soon as `condition` holds; fail if it never does."""
    end = time.monotonic() + BOUND
    while not condition():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.001)


def waiting(cache: Cache, call: Callable[[], T]) -> Future[T]:
    """Run `call` in a new thread, and return once it loads or waits."""
    before = cache.snapshot().waiting
    caller = start(call)
    until(lambda: cache.snapshot().waiting == before + 1 or caller.done())
    return caller


def get_or_load(
    cache: Cache, key: str, load: Callable[[str], Loaded], deadline: float = math.inf
) -> Found:
    """Ask for one key."""
    return cache.get_or_load(
        [key], lambda keys, _: ((key, load(key)) for key in keys), deadline
    )[key]


def ask(cache: Cache, key: str, load: Callable[[str], Loaded]) -> Future[Found]:
    """Ask for `key` in a new thread, and return once it loads or waits."""
    return waiting(cache, lambda: get_or_load(cache, key, load))


def keep(cache: Cache, key: str, kind: str = OK, lifetime: float = 60.0) -> Found:
    """Ask for `key`, and load the key itself if it is missing."""
    return get_or_load(cache, key, lambda key: Loaded(key, kind, lifetime))


def fill(cache: Cache, count: int, kind: str = OK, lifetime: float = 60.0) -> None:
    """Load `count` keys together."""
    keys = [f"{kind}{number}" for number in range(count)]
    cache.get_or_load(
        keys, lambda keys, _: ((key, Loaded(key, kind, lifetime)) for key in keys)
    )


def unwanted(key: object, _deadline: float = 0.0) -> Any:
    """Stand in for a load that must not run."""
    raise AssertionError(f"{key} was loaded")


def brief(found: dict[str, Found]) -> dict[str, tuple[Any, str]]:
    return {key: (each.value, each.source) for key, each in found.items()}


def reap(cache: Cache) -> None:
    """Delete everything that has expired."""
    while cache.reap() <= 0:
        pass


def held(stats: Stats) -> int:
    return sum(stats.entries.values())


def checked(cache: Cache, max_entries: int = 1000) -> Stats:
    """Read the counters, and check what must always hold for them."""
    stats = cache.snapshot()
    assert list(stats.hits) == list(stats.entries) == list(KINDS)
    assert list(stats.loads) == [*KINDS, "failed"]
    assert stats.misses == sum(stats.loads.values()) + stats.loading
    assert 0 <= held(stats) <= max_entries
    assert held(stats) - stats.entries[OK] <= max(1, max_entries // 10)
    return stats


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make(clock: Clock) -> Iterator[Make]:
    caches = []

    def make_cache(
        *, max_entries: int = 1000, max_waiting: int = 1000, reaper: bool = False
    ) -> Cache:
        caches.append(
            Cache(max_entries=max_entries, max_waiting=max_waiting, clock=clock)
        )
        if not reaper:
            caches[-1].close()
        return caches[-1]

    yield make_cache
    for cache in caches:
        start(cache.close).result(BOUND)


@pytest.fixture
def cache(make: Make) -> Cache:
    return make()


def test_the_names_of_the_kinds() -> None:
    """The kinds have the names that metrics and the shared cache use."""
    assert KINDS == ("ok", "negative", "fault", "paused")


# Promises 1 and 8: one load per key, and everybody gets its outcome.


@pytest.mark.parametrize("kind", KINDS)
def test_200_callers_of_a_cold_key(cache: Cache, kind: str) -> None:
    """200 callers of one cold key cause one load and all get the same object, whatever
    its kind.
    """
    load = Gated(Loaded(("a", "value"), kind, 60))
    callers = [start(lambda: get_or_load(cache, "key", load)) for _ in range(200)]
    until(lambda: cache.snapshot().waiting == 200)
    assert checked(cache).loading == 1
    load.go.set()
    found = [caller.result(BOUND) for caller in callers]
    assert load.calls == 1
    assert all(each.value is cast(Loaded, load.end).value for each in found)
    assert {each._replace(source="") for each in found} == {
        Found(("a", "value"), kind, 0, 60, "", True)
    }
    assert Counter(each.source for each in found) == {"miss": 1, "collapsed": 199}
    stats = checked(cache)
    assert (stats.misses, stats.collapsed, stats.loads[kind], stats.entries[kind]) == (
        1,
        199,
        1,
        1,
    )
    assert (sum(stats.hits.values()), stats.waiting, stats.loading) == (0, 0, 0)
    assert get_or_load(cache, "key", unwanted).source == "hit"
    assert (cache.snapshot().hits[kind], sum(cache.snapshot().hits.values())) == (1, 1)


@pytest.mark.parametrize(
    "error", [ValueError("no"), KeyboardInterrupt(), SystemExit(3)], ids=repr
)
def test_200_callers_of_a_load_that_raises(cache: Cache, error: BaseException) -> None:
    """If a load raises anything, its 200 callers are released and nothing is left
    behind.
    """
    load = Gated(error)
    callers = [start(lambda: get_or_load(cache, "key", load)) for _ in range(200)]
    until(lambda: cache.snapshot().waiting == 200)
    load.go.set()
    raised = [caller.exception(BOUND) for caller in callers]
    assert load.calls == 1
    waited = [each for each in raised if each is not error]
    assert len(waited) == 199
    assert all(
        isinstance(each, LoadFailed) and each.__cause__ is error for each in waited
    )
    stats = checked(cache)
    assert (stats.misses, stats.collapsed, stats.loads["failed"]) == (1, 199, 1)
    assert (stats.waiting, stats.loading, len(cache)) == (0, 0, 0)
    assert keep(cache, "key").source == "miss"


def test_a_raised_exception_is_not_held(cache: Cache) -> None:
    """The cache doesn't keep exceptions alive."""

    class Watched(Exception):
        """An exception that can be weakly referenced."""

    def fail(_key: str) -> Loaded:
        raise Watched

    with pytest.raises(Watched) as raised:
        get_or_load(cache, "key", fail)
    error = weakref.ref(raised.value)
    del raised
    gc.collect()
    assert error() is None


def test_an_answer_that_has_expired_when_it_comes(cache: Cache, clock: Clock) -> None:
    """A value that has expired when its load ends is handed to the callers that waited,
    but not kept.
    """
    load = Gated(Loaded("late", OK, 5))
    callers = [ask(cache, "key", load), ask(cache, "key", load)]
    clock.advance(5)
    load.go.set()
    assert [caller.result(BOUND) for caller in callers] == [
        Found("late", OK, 5, 0, "miss", False),
        Found("late", OK, 5, 0, "collapsed", False),
    ]
    stats = checked(cache)
    assert (stats.loads[OK], held(stats), sum(stats.evicted.values())) == (1, 0, 0)
    assert keep(cache, "key").source == "miss"


def test_a_private_outcome(cache: Cache) -> None:
    """Only the caller that loaded a private value gets it, and it isn't kept; callers
    that waited load again, once.
    """
    load = Gated(Loaded("not about the key", FAULT, 60, private=True))
    first = ask(cache, "key", load)
    second = Gated(Loaded("own", OK, 60))
    others = [ask(cache, "key", second), ask(cache, "key", second)]
    load.go.set()
    assert first.result(BOUND) == Found(
        "not about the key", FAULT, 0, 60, "miss", False
    )
    until(second.begun.is_set)
    assert len(cache) == 0
    until(lambda: cache.snapshot().collapsed == 3)
    second.go.set()
    assert sorted(each.result(BOUND).source for each in others) == ["collapsed", "miss"]
    assert {each.result(BOUND).value for each in others} == {"own"}
    assert (load.calls, second.calls, checked(cache).misses) == (1, 1, 2)


def test_get_does_not_wait(cache: Cache) -> None:
    """`get` returns None at once if the key is absent or still loading, and counts
    nothing.
    """
    load = Gated(Loaded("value", OK, 60))
    caller = ask(cache, "key", load)
    before = checked(cache)
    assert start(lambda: cache.get("key")).result(BOUND) is None
    assert cache.get("absent") is None
    assert checked(cache) == before
    load.go.set()
    caller.result(BOUND)
    assert cache.get("key") == ("value", OK, 0, 60)
    assert checked(cache).hits == {OK: 1, NEGATIVE: 0, FAULT: 0, PAUSED: 0}


# Promise 2: keys never wait for each other.


def test_a_slow_key_delays_no_other(cache: Cache) -> None:
    """While one load hangs, other keys are loaded and hits are answered."""
    keep(cache, "fresh")
    load = Gated(Loaded("slow", OK, 60))
    slow = ask(cache, "slow", load)
    assert start(lambda: keep(cache, "other").source).result(BOUND) == "miss"
    assert (
        start(lambda: get_or_load(cache, "fresh", unwanted).source).result(BOUND)
        == "hit"
    )
    assert start(lambda: keep(cache, "other").source).result(BOUND) == "hit"
    assert not slow.done()
    load.go.set()
    assert slow.result(BOUND).value == "slow"


def test_a_load_may_use_the_cache(cache: Cache) -> None:
    """The lock isn't held during a load: a load may ask the cache for other keys."""
    keep(cache, "fresh")

    def load(_key: str) -> Loaded:
        reap(cache)
        return Loaded(
            (
                cache.get("fresh"),
                keep(cache, "inner"),
                cache.snapshot().loading,
                len(cache),
            ),
            OK,
            60,
        )

    fresh, inner, *numbers = cast(
        Any, start(lambda: get_or_load(cache, "outer", load)).result(BOUND).value
    )
    assert (fresh[0], inner.source, numbers) == ("fresh", "miss", [1, 2])
    assert get_or_load(cache, "inner", unwanted).value == "inner"
    assert (checked(cache).misses, checked(cache).waiting) == (3, 0)


@pytest.mark.parametrize("operation", ["snapshot", "reap", "get", "get or load"])
def test_nothing_is_seen_half_changed(
    cache: Cache, clock: Clock, operation: str
) -> None:
    """While one thread changes the cache, every other operation waits."""
    operations = {
        "snapshot": cache.snapshot,
        "reap": cache.reap,
        "get": lambda: cache.get("other"),
        "get or load": lambda: keep(cache, "other"),
    }
    others: list[Future[object]] = []

    def interfere() -> (
        None
    ):  # the clock is read under the lock, when an outcome is being settled
        if cast(Any, clock).settling and not others:
            others.append(start(operations[operation]))
            assert not wait(others, A_WHILE).done

    def load(_key: str) -> Loaded:
        cast(Any, clock).settling = True
        return Loaded("value", OK, 60)

    cast(Any, clock).settling = False
    clock.hook = interfere
    assert get_or_load(cache, "key", load).stored
    assert len(others) == 1
    others[0].result(BOUND)


# Promises 3 and 4: time.


def test_expiry_is_exact(cache: Cache, clock: Clock) -> None:
    """An entry is served until just before its expiry, never at it, even if the reaper
    hasn't deleted it yet.
    """
    keep(cache, "key", lifetime=4)
    clock.advance(3.75)
    assert cache.get("key") == ("key", OK, 3.75, 0.25)
    assert get_or_load(cache, "key", unwanted) == Found(
        "key", OK, 3.75, 0.25, "hit", True
    )
    clock.advance(0.25)
    assert (cache.get("key"), len(cache)) == (None, 1)
    assert keep(cache, "key", NEGATIVE) == Found("key", NEGATIVE, 0, 60, "miss", True)
    stats = checked(cache)
    assert (stats.evicted, held(stats), len(cache)) == (
        {"expired": 1, "bound": 0},
        1,
        1,
    )
    reap(cache)
    assert get_or_load(cache, "key", unwanted).kind == NEGATIVE


def test_a_list_serves_nothing_that_expired_in_the_cache(
    make: Make, clock: Clock
) -> None:
    """A hit that expires while the rest of its list is loaded is loaded again."""
    cache = make(max_waiting=1)
    keep(cache, "over", lifetime=4)
    clock.advance(4)
    keep(cache, "fresh", lifetime=4)
    asked = []

    def load(keys: list[str], _deadline: float) -> Pairs:
        asked.append(keys)
        clock.advance(4)
        return ((key, Loaded(f"new {key}", OK, 60)) for key in keys)

    found = cache.get_or_load(["fresh", "over"], load)
    assert list(brief(found).items()) == [
        ("fresh", ("new fresh", "miss")),
        ("over", ("new over", "miss")),
    ]
    assert asked == [["over"], ["fresh"]]
    stats = checked(cache)
    assert (
        sum(stats.hits.values()),
        stats.misses,
        stats.evicted["expired"],
        stats.waiting,
    ) == (0, 4, 2, 0)


@pytest.mark.parametrize("result", ["miss", "shared", "awaited"])
@pytest.mark.parametrize("kind", [OK, NEGATIVE])
def test_a_list_serves_nothing_that_expired_since_it_came(
    cache: Cache, clock: Clock, result: str, kind: str
) -> None:
    """A key of a list that is loaded first, and expires before the rest is loaded, is
    loaded again.
    """
    asked = []

    def load(keys: list[str], _deadline: float) -> Pairs:
        asked.append(keys)
        yield "first", Loaded(len(asked), kind, 4, age=2, source=result)
        if "second" in keys:
            clock.advance(2)
            yield "second", Loaded("rest", OK, 60)

    found = cache.get_or_load(["first", "second"], load)
    assert asked == [["first", "second"], ["first"]]
    assert (found["first"].value, found["first"].ttl, found["second"].value) == (
        2,
        2,
        "rest",
    )


def test_a_list_serves_nothing_that_expired_since_others_loaded_it(
    cache: Cache, clock: Clock
) -> None:
    """A key that another caller loads, and that expires before the rest of the list is
    loaded, is loaded again.
    """
    first, second = Gated(Loaded("short", OK, 4)), Gated(Loaded("long", OK, 60))
    ask(cache, "first", first)
    ask(cache, "second", second)
    many = waiting(
        cache,
        lambda: cache.get_or_load(
            ["first", "second"], lambda keys, _: [(keys[0], Loaded("new", OK, 60))]
        ),
    )
    single = ask(cache, "first", unwanted)
    first.go.set()
    assert single.result(BOUND) == Found("short", OK, 0, 4, "collapsed", True)
    clock.advance(4)
    second.go.set()
    assert brief(many.result(BOUND)) == {
        "first": ("new", "miss"),
        "second": ("long", "collapsed"),
    }


def test_what_was_too_old_when_it_came_is_not_asked_for_again(
    cache: Cache, clock: Clock
) -> None:
    """A value that has already expired when its load ends is handed out as it is:
    loading it again wouldn't help.
    """

    def load(keys: list[str], _deadline: float) -> Pairs:
        for key in keys:
            yield key, Loaded(key, OK, 4, age=4)
            clock.advance(1)

    found = cache.get_or_load(["a", "b"], load)
    assert [(each.ttl, each.stored) for each in found.values()] == [
        (-2, False),
        (-2, False),
    ]
    assert checked(cache).misses == 2


def test_age_counts_from_the_beginning_of_the_load(cache: Cache, clock: Clock) -> None:
    """Age and lifetime count from the start of the load, for every caller."""
    load = Gated(Loaded("value", OK, 10))
    leader = ask(cache, "key", load)
    clock.advance(2)
    follower = ask(cache, "key", load)
    clock.advance(1)
    load.go.set()
    assert [each.result(BOUND)[2:4] for each in (leader, follower)] == [(3, 7), (3, 7)]
    clock.advance(2)
    assert get_or_load(cache, "key", unwanted)[2:4] == (5, 5)
    clock.advance(5)
    assert cache.get("key") is None


@pytest.mark.parametrize(("age", "left"), [(3.0, 7), (-3.0, 13), (10.0, None)])
def test_an_outcome_may_be_older_or_younger_than_its_load(
    cache: Cache, age: float, left: int | None
) -> None:
    """A load may say that its value is older or younger than the load; the lifetime
    counts from the value's birth.
    """
    found = get_or_load(cache, "key", lambda key: Loaded(key, OK, 10, age))
    assert (found.age, found.ttl, found.stored) == (age, left or 0, left is not None)
    assert cache.get("key") == (None if left is None else ("key", OK, age, left))


@pytest.mark.parametrize("result", ["miss", "shared", "awaited"])
def test_the_caller_that_loaded_is_told_the_result(cache: Cache, result: str) -> None:
    """The caller that loaded gets the load's own result; the callers that waited get
    "collapsed".
    """
    load = Gated(Loaded("value", OK, 0.5, source=result))
    callers = [ask(cache, "key", load), ask(cache, "key", load)]
    load.go.set()
    assert [caller.result(BOUND).source for caller in callers] == [result, "collapsed"]
    assert (checked(cache).misses, checked(cache).loads[OK]) == (1, 1)


def test_the_clock_counts_while_the_machine_sleeps() -> None:
    """The default clock includes the time for which the machine was suspended, if the
    system counts it.
    """
    seconds = (
        100_000  # for which the machine was suspended, as far as this process can tell
    )
    script = f"import cache, time; print(cache.clock() - time.monotonic() > {seconds} - {BOUND})"
    command = [
        "unshare",
        "--time",
        "--boottime",
        str(seconds),
        sys.executable,
        "-c",
        script,
    ]
    try:
        ended = subprocess.run(
            command,
            cwd=Path(__file__).parent,
            check=True,
            capture_output=True,
            text=True,
        )
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"can't make a time namespace: {error}")
    assert ended.stdout == "True\n"


def test_the_clock_of_other_systems() -> None:
    """On a system without such a clock, the default clock is the monotonic one."""
    script = "import time; vars(time).pop('CLOCK_BOOTTIME', None); import cache; print(cache.clock is time.monotonic)"
    command = [sys.executable, "-c", script]
    ended = subprocess.run(
        command, cwd=Path(__file__).parent, check=True, capture_output=True, text=True
    )
    assert ended.stdout == "True\n"


def test_the_usual_clock() -> None:
    """By default, lifetimes are real seconds."""
    cache = Cache(max_entries=1, max_waiting=1)
    cache.close()
    assert 0 <= keep(cache, "key", lifetime=BOUND).age < BOUND
    assert cache.get("key")


# Promise 5: the reaper.


def test_the_reaper_deletes_what_has_expired(make: Make, clock: Clock) -> None:
    """The reaper deletes an entry when it expires, even if it was going to sleep
    longer.
    """
    cache = make(reaper=True)
    keep(cache, "long", lifetime=1000)
    keep(cache, "short", FAULT, lifetime=0.01)
    assert get_or_load(cache, "short", unwanted).source == "hit"
    clock.advance(0.01)
    until(lambda: len(cache) == 1)
    stats = checked(cache)
    assert (stats.evicted, stats.entries[OK], stats.entries[FAULT]) == (
        {"expired": 1, "bound": 0},
        1,
        0,
    )
    keep(cache, "short", lifetime=0.01)  # and it goes on
    clock.advance(0.01)
    until(lambda: checked(cache).evicted["expired"] == 2)
    assert get_or_load(cache, "long", unwanted).source == "hit"


def test_the_reaper_keeps_up(make: Make, clock: Clock) -> None:
    """The reaper works in batches, but deletes thousands of expired entries almost at
    once.
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
    """The reaper wakes for the entry that expires first, good or bad, and deletes only
    that.
    """
    reads = reads_by_thread(clock)
    cache = make(reaper=True)
    until(lambda: reads[REAPER] == 1)
    keep(cache, "long", long, lifetime=1000)
    until(lambda: reads[REAPER] == 2)
    keep(cache, "short", short, lifetime=0.2)
    until(lambda: reads[REAPER] >= 3)  # it sleeps again, and wakes by itself
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
    until(lambda: reads[REAPER] == 1)
    keep(cache, "first", lifetime=lifetime)
    until(lambda: reads[REAPER] >= 2)
    for number in range(500):
        keep(cache, str(number), (OK, NEGATIVE)[number % 2], lifetime=42 + number)
    start(cache.close).result(BOUND)
    assert (
        reads[REAPER] <= 20
        # Its clock stands still, so the first entry never expires, and it looks again and
        # again.
    )
    assert reads["MainThread"] >= 1000


def test_reap_deletes_the_expired_only(cache: Cache, clock: Clock) -> None:
    """`reap` deletes the entries of all kinds that have reached their expiry, and no
    others.
    """
    for number, kind in itertools.product(range(10), KINDS):
        keep(cache, f"{kind}{number}", kind, lifetime=10 + number)
    clock.advance(13)
    reap(cache)
    reap(cache)
    assert (len(cache), checked(cache).evicted) == (24, {"expired": 16, "bound": 0})
    assert not any(
        cache.get(f"{kind}{number}") for kind in KINDS for number in range(4)
    )
    assert all(
        cache.get(f"{kind}{number}") for kind in KINDS for number in range(4, 10)
    )


class Moment(float):
    """A moment that counts how often it, or a moment computed from it, is compared."""

    compared = 0

    def _count(self, other: object, compare: Callable[[float, Any], bool]) -> bool:
        Moment.compared += 1
        return compare(self, other)

    def __add__(self, other: float) -> "Moment":
        return Moment(float(self) + other)

    def __sub__(self, other: float) -> "Moment":
        return Moment(float(self) - other)

    def __eq__(self, other: object) -> bool:
        return self._count(other, float.__eq__)

    def __lt__(self, other: float) -> bool:
        return self._count(other, float.__lt__)

    def __le__(self, other: float) -> bool:
        return self._count(other, float.__le__)

    def __gt__(self, other: float) -> bool:
        return self._count(other, float.__gt__)

    def __ge__(self, other: float) -> bool:
        return self._count(other, float.__ge__)

    __hash__ = float.__hash__


def reap_cost(
    make: Make, clock: Clock, *, held: int, expired: int
) -> tuple[int, list[int]]:
    """Return how many moments reaping compares, and how many entries were left at the
    start of each batch.
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
    """The cost of reaping depends on what expires, not on what is held; each batch is
    small.
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


# Promise 6: bounds.


def test_spam_evicts_no_good_answer(make: Make) -> None:
    """A flood of unknown ids evicts no good answer, and memory stays bounded."""

    class Key(str):
        """A key that can be weakly referenced."""

    cache = make(max_entries=100)
    for number in range(90):
        keep(cache, f"good{number}", lifetime=30)
    alive = weakref.WeakSet[Key]()
    for number in range(3000):
        key = Key(number)
        alive.add(key)
        assert keep(
            cache, key, (NEGATIVE, FAULT, PAUSED)[number % 3], lifetime=60 + number
        ).stored
        del key
    assert all(cache.get(f"good{number}") for number in range(90))
    stats = checked(cache, 100)
    assert (stats.entries[OK], len(cache), stats.evicted) == (
        90,
        100,
        {"expired": 0, "bound": 2990},
    )
    gc.collect()
    assert len(alive) < 100
    assert keep(cache, "better", lifetime=100).stored  # in place of another good answer
    assert (len(cache), checked(cache, 100).entries[OK]) == (100, 90)


@pytest.mark.parametrize(
    ("max_entries", "good", "bad"),
    [(2, 1, 1), (9, 8, 1), (10, 9, 1), (19, 18, 1), (20, 18, 2), (39, 36, 3)],
)
@pytest.mark.parametrize("good_first", [True, False])
def test_bad_answers_hold_a_tenth(
    make: Make, max_entries: int, good: int, bad: int, good_first: bool
) -> None:
    """Good answers get nine tenths of the entries, all others one; in each part, what
    expires first makes room.
    """
    cache = make(max_entries=max_entries)

    def fill(name: str, room: int, kinds: tuple[str, ...]) -> None:
        for number in range(room + 3):
            assert keep(
                cache,
                f"{name}{number}",
                kinds[number % len(kinds)],
                lifetime=60 - number,
            ).stored
        # Each entry beyond the bound replaced the one that expired first: the one
        # before it.
        assert [
            number for number in range(room + 3) if cache.get(f"{name}{number}")
        ] == [*range(room - 1), room + 2]

    parts = [("good", good, (OK,)), ("bad", bad, (FAULT, NEGATIVE, PAUSED))]
    for part in parts if good_first else reversed(parts):
        fill(*part)
    assert len(cache) == good + bad
    assert checked(cache, max_entries).evicted == {"expired": 0, "bound": 6}


def test_what_was_loaded_again_makes_room_once(make: Make, clock: Clock) -> None:
    """An expired entry that is loaded again before it is reaped counts once, and is
    evicted by its new expiry.
    """
    cache = make(max_entries=3)
    keep(cache, "twice", lifetime=4)
    clock.advance(4)
    keep(cache, "twice", lifetime=100)
    keep(cache, "once", lifetime=50)
    keep(cache, "new", lifetime=10)
    assert (cache.get("once"), len(cache)) == (None, 2)
    assert cache.get("twice")
    assert checked(cache).evicted == {"expired": 1, "bound": 1}
    clock.advance(50)
    reap(cache)
    assert (len(cache), checked(cache).evicted) == (1, {"expired": 2, "bound": 1})


def test_the_waiting_room_is_bounded(make: Make) -> None:
    """Callers beyond the bound are refused at once, whether they would load or wait.

    Hits are never refused.
    """
    cache = make(max_waiting=2)
    keep(cache, "fresh")
    load = Gated(Loaded("value", OK, 60))
    inside = [ask(cache, "key", load), ask(cache, "key", load)]
    before = checked(cache)
    refused = [ask(cache, key, unwanted).exception(BOUND) for key in ("key", "other")]
    assert [type(each) for each in refused] == [WaitingRoomFull, WaitingRoomFull]
    with pytest.raises(WaitingRoomFull):
        cache.get_or_load(["fresh", "key", "other", "key"], unwanted)
    assert checked(cache) == before._replace(refused=5)  # one for each key, and no hit
    assert get_or_load(cache, "fresh", unwanted).source == "hit"
    assert cache.get_or_load(["fresh"], unwanted)["fresh"].source == "hit"
    assert cache.get_or_load([], unwanted) == {}
    load.go.set()
    assert [caller.result(BOUND).value for caller in inside] == ["value", "value"]
    assert (keep(cache, "other").source, checked(cache).waiting) == ("miss", 0)


# Promise 7: what is handed out cannot be changed.


@pytest.mark.parametrize("value", [[], {}, set(), bytearray(), (1, ["deep"])], ids=repr)
def test_a_value_that_can_be_changed(cache: Cache, value: object) -> None:
    """A load that returns a mutable value fails for all callers, and nothing is kept."""
    load = Gated(Loaded(cast(Any, value), OK, 60))
    callers = [ask(cache, "key", load), ask(cache, "key", load)]
    load.go.set()
    raised = [caller.exception(BOUND) for caller in callers]
    assert [type(each) for each in raised] == [TypeError, LoadFailed]
    assert cast(LoadFailed, raised[1]).__cause__ is raised[0]
    assert (checked(cache).loads["failed"], len(cache), checked(cache).waiting) == (
        1,
        0,
        0,
    )


@pytest.mark.parametrize("kind", ["failed", "good", ""])
def test_an_unknown_kind(cache: Cache, kind: str) -> None:
    """A load that returns an unknown kind fails, and nothing is kept."""
    with pytest.raises(KeyError) as raised:
        keep(cache, "key", kind)
    assert raised.value.args == (kind,)
    assert (checked(cache).loads["failed"], checked(cache).loading, len(cache)) == (
        1,
        0,
        0,
    )
    assert keep(cache, "key").source == "miss"


# Lists.


def test_a_list_loads_what_is_left_in_one_call(make: Make) -> None:
    """A list takes hits from the cache, waits for keys that others load, and loads the
    rest in one call.
    """
    cache = make(max_waiting=2)
    keep(cache, "fresh")
    load = Gated(Loaded("theirs", FAULT, 60))
    other = ask(cache, "other", load)
    calls: list[list[str]] = []

    def load_many(keys: list[str], _deadline: float) -> Pairs:
        calls.append(keys)
        return ((key, Loaded(key, OK, 60)) for key in sorted(keys))

    keys = iter(["z", "other", "a", "fresh", "z"])
    many = start(lambda: cache.get_or_load(keys, load_many))
    until(lambda: cache.get("a"))  # its own keys don't wait for those that others load
    assert (checked(cache).waiting, checked(cache).loading) == (2, 1)
    load.go.set()
    found = many.result(BOUND)
    assert calls == [["z", "a"]]
    assert list(brief(found).items()) == [
        ("z", ("z", "miss")), ("other", ("theirs", "collapsed")), ("a", ("a", "miss")), ("fresh", ("fresh", "hit")),
    ]  # fmt: skip
    assert other.result(BOUND).value is found["other"].value
    stats = checked(cache)
    assert (stats.misses, stats.collapsed, stats.loads[OK], stats.loads[FAULT]) == (
        4,
        1,
        3,
        1,
    )


def test_each_key_of_a_list_is_settled_as_it_comes(cache: Cache) -> None:
    """Each key of a list is kept and handed to waiting callers as soon as it is loaded."""
    gates = {key: Gated(Loaded(key, OK, 60)) for key in ("first", "second")}
    many = waiting(
        cache,
        lambda: cache.get_or_load(
            gates, lambda keys, _: ((key, gates[key](key)) for key in keys)
        ),
    )
    single = ask(cache, "first", unwanted)
    gates["first"].go.set()
    assert single.result(BOUND) == Found("first", OK, 0, 60, "collapsed", True)
    until(gates["second"].begun.is_set)
    assert get_or_load(cache, "first", unwanted).source == "hit"
    assert (checked(cache).loading, many.done()) == (1, False)
    gates["second"].go.set()
    assert brief(many.result(BOUND)) == {
        "first": ("first", "miss"),
        "second": ("second", "miss"),
    }


@pytest.mark.parametrize("end", ["missing", "extra", "twice", "raised"])
def test_a_list_that_ends_wrongly(cache: Cache, end: str) -> None:
    """A load that leaves a key out, adds one or raises half-way fails for the keys that
    are left; the rest is kept.
    """
    gate = Gated(Loaded("value", OK, 60))

    def load(_keys: list[str], _deadline: float) -> Pairs:
        yield "there", Loaded("value", OK, 60)
        gate("missing")
        if end == "raised":
            raise KeyError("missing")
        if end != "missing":
            yield {"extra": "unasked", "twice": "there"}[end], Loaded("value", OK, 60)

    many = waiting(cache, lambda: cache.get_or_load(["there", "missing"], load))
    until(gate.begun.is_set)
    follower = ask(cache, "missing", unwanted)
    gate.go.set()
    error = many.exception(BOUND)
    assert isinstance(error, KeyError)
    assert error.args == ({"extra": "unasked", "twice": "there"}.get(end, "missing"),)
    assert cast(LoadFailed, follower.exception(BOUND)).__cause__ is error
    stats = checked(cache)
    assert (stats.loads["failed"], stats.loading, stats.waiting, len(cache)) == (
        1,
        0,
        0,
        1,
    )
    assert cache.get("there")


def test_a_list_whose_neighbour_fails(cache: Cache) -> None:
    """If a list waits for another caller's load and that raises, the list fails, but
    its own keys are kept.
    """
    load = Gated(ValueError("no"))
    ask(cache, "other", load)
    many = start(
        lambda: cache.get_or_load(
            ["other", "mine"], lambda keys, _: [("mine", Loaded(1, OK, 60))]
        )
    )
    until(lambda: cache.get("mine"))
    load.go.set()
    raised = many.exception(BOUND)
    assert isinstance(raised, LoadFailed)
    assert raised.__cause__ is load.end
    assert (checked(cache).waiting, len(cache)) == (0, 1)


def test_lists_that_load_what_the_other_waits_for(cache: Cache) -> None:
    """Two lists of the same keys in opposite order don't deadlock."""
    inside = threading.Barrier(2)

    def in_step(*keys: str) -> Iterator[str]:
        for key in keys:
            inside.wait(BOUND)
            yield key

    def load(keys: list[str], _deadline: float) -> Pairs:
        time.sleep(0)  # let the other one run
        return ((key, Loaded(object(), OK, 60)) for key in keys)

    def many(*keys: str) -> Future[dict[str, Found]]:
        return start(lambda: cache.get_or_load(in_step(*keys), load))

    for number in range(50):
        a, b, c = f"a{number}", f"b{number}", f"c{number}"
        pair = many(a, b, c), many(c, b, a)
        one, two = (each.result(BOUND) for each in pair)
        assert all(one[key].value is two[key].value for key in (a, b, c))
    assert (checked(cache).misses, checked(cache).waiting) == (150, 0)


def test_a_caller_that_may_not_wait(cache: Cache) -> None:
    """A caller that may not wait calls its own load, which doesn't replace the load
    that is under way.
    """
    slow, late = Gated(Loaded("slow", OK, 60)), Gated(Loaded("no time", FAULT, 60))
    first = ask(cache, "key", slow)
    second = ask(cache, "key", slow)
    overdue = waiting(
        cache, lambda: get_or_load(cache, "key", late, time.monotonic() - GRACE)
    )
    until(late.begun.is_set)
    third = ask(cache, "key", unwanted)
    late.go.set()
    assert overdue.result(BOUND) == Found("no time", FAULT, 0, 60, "miss", False)
    assert (checked(cache).loading, len(cache)) == (1, 0)
    slow.go.set()
    assert [each.result(BOUND).source for each in (first, second, third)] == [
        "miss",
        "collapsed",
        "collapsed",
    ]
    assert (cache.get("key"), slow.calls) == (("slow", OK, 0, 60), 1)


def test_the_load_is_told_the_deadline(cache: Cache) -> None:
    """The load gets the deadline that the caller gave."""
    deadlines = []

    def load(keys: list[str], deadline: float) -> Pairs:
        deadlines.append(deadline)
        return ((key, Loaded(key, OK, 60)) for key in keys)

    cache.get_or_load(["key"], load, 1234.5)
    assert deadlines == [1234.5]


def test_waiting_ends_in_time(cache: Cache) -> None:
    """A caller waits for another's load until `GRACE` after its deadline, then calls
    its own, even if that raises.
    """
    slow = Gated(Loaded("slow", OK, 60))
    first = ask(cache, "key", slow)
    caller = waiting(
        cache,
        lambda: get_or_load(cache, "key", unwanted, time.monotonic() - GRACE + 0.1),
    )
    with pytest.raises(AssertionError, match="key was loaded"):
        caller.result(BOUND)
    assert not first.done()
    follower = ask(cache, "key", unwanted)
    slow.go.set()
    assert [each.result(BOUND).value for each in (first, follower)] == ["slow", "slow"]
    assert (checked(cache).loads["failed"], checked(cache).waiting) == (1, 0)


# Promise 9: stopping.


def test_stopping_is_prompt(make: Make) -> None:
    """`close` ends the reaper within a second and may be called again; the cache
    remains usable.
    """
    cache = make(reaper=True)
    (reaper,) = (thread for thread in threading.enumerate() if thread.name == REAPER)
    assert (reaper.daemon, cache.reaper.is_alive()) == (True, True)
    keep(cache, "key", lifetime=1000)
    start(cache.close).result(1)
    assert (cache.reaper.is_alive(), reaper.is_alive()) == (False, False)
    start(cache.close).result(BOUND)
    assert (
        get_or_load(cache, "key", unwanted).source,
        keep(cache, "other").source,
    ) == ("hit", "miss")


def test_stopping_does_not_wait_for_a_long_reap(make: Make, clock: Clock) -> None:
    """`close` ends the reaper after the current batch, however much has expired."""
    cache, closing = make(max_entries=3000, reaper=True), list[Future[None]]()
    fill(cache, 2000, lifetime=10)

    def close_in_the_first_batch() -> None:
        if clock.now == 1010 and not closing:
            closing.append(start(cache.close))
            wait(closing, A_WHILE)

    clock.hook = close_in_the_first_batch
    keep(cache, "short", lifetime=0.01)  # makes the reaper wake soon
    clock.advance(10)
    until(lambda: closing)
    closing[0].result(BOUND)
    assert 1700 < len(cache) < 2000


@contextlib.contextmanager
def hectic() -> Iterator[None]:
    """Make threads take turns as often as possible."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)


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
            assert not cache.reaper.is_alive()


def close_from_the_reaper(cache: Cache, closing: list[Future[None]]) -> None:
    """Close the cache from another thread while the reaper holds the lock for the first
    time.
    """
    if threading.current_thread().name == REAPER and not closing:
        closing.append(start(cache.close))
        wait(closing, 0.0005)


# Promise 10: counters.


def random_traffic(cache: Cache, rng: random.Random) -> Counter[str]:
    """Ask for random keys in all ways; return how often each result was seen and each
    kind was loaded.
    """
    seen = Counter[str]()

    def load_one(key: str) -> Loaded:
        time.sleep(0)  # let others run
        if key.startswith("one") and rng.random() < 0.1:
            seen["failed"] += 1
            unwanted(key)
        loaded = Loaded(key, rng.choice(KINDS), rng.uniform(0.001, 0.1))
        seen[loaded.kind] += 1
        return loaded

    def load_many(keys: list[str], _deadline: float) -> Pairs:
        return ((key, load_one(key)) for key in keys)

    for _ in range(1500):
        # No list waits for a load that may raise: if a list fails, the caller can't
        # know how its keys were counted.
        keys = [str(number) for number in rng.sample(range(25), rng.choice((1, 3)))]
        found: list[Found] = []
        try:
            if len(keys) > 1:
                found += cache.get_or_load(keys, load_many).values()
            elif rng.random() < 0.5:
                hit = cache.get(keys[0])
                found += [Found(*hit, "hit", True)] if hit else []
            else:
                found.append(get_or_load(cache, "one " + keys[0], load_one))
        except WaitingRoomFull:
            seen["refused"] += len(keys)
        except (AssertionError, LoadFailed) as raised:
            seen["collapsed"] += isinstance(raised, LoadFailed)
        for each in found:
            seen["over"] += each.source == "hit" and each.ttl <= 0
            seen[each.source] += 1
            seen[f"hit {each.kind}"] += each.source == "hit"
    return seen


def test_counters_add_up_under_traffic(make: Make, clock: Clock) -> None:
    """With random traffic from eight threads, the counters add up at every moment and
    are exact in the end.
    """
    cache = make(max_entries=40, max_waiting=4, reaper=True)
    with hectic():
        callers = [
            start(functools.partial(random_traffic, cache, random.Random(seed)))
            for seed in range(8)
        ]
        while not all(caller.done() for caller in callers):
            clock.advance(0.001)
            checked(cache, 40)
            time.sleep(0)
    seen = sum((caller.result() for caller in callers), Counter[str]())
    start(cache.close).result(BOUND)
    stats = checked(cache, 40)
    assert (stats.waiting, stats.loading, held(stats), seen["over"]) == (
        0,
        0,
        len(cache),
        0,
    )
    assert stats.hits == {kind: seen[f"hit {kind}"] for kind in KINDS}
    assert stats.loads == {kind: seen[kind] for kind in (*KINDS, "failed")}
    assert stats.refused == seen["refused"]
    # A key that expired while the rest of its list was waited for was loaded, or waited
    # for, once more.
    assert stats.misses >= seen["miss"] + seen["failed"]
    assert stats.collapsed >= seen["collapsed"]
    assert held(stats) + sum(stats.evicted.values()) <= stats.misses


if __name__ == "__main__":
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        status = pytest.main(
            [__file__, "--noconftest", "-q", "-W", "error", "-p", "no:cacheprovider"]
        )
    if status:
        sys.exit(output.getvalue() or "no test ran")
