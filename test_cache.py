"""What the cache promises. `python test_cache.py` says nothing when all of it holds; pytest runs it too.

Time is a fake clock. What several threads do is ordered by gates and by the number of callers that wait,
never by sleeping. A cache's reaper is stopped at once, so that nothing but the test deletes entries, except
where it is the reaper that is tested. What would hang if a promise were broken is waited for with a bound.
"""

import contextlib
import functools
import gc
import io
import itertools
import random
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from types import FrameType
from typing import Any, TypeVar, cast

import pytest

from cache import FAULT, KINDS, NEGATIVE, OK, Cache, Found, Loaded, LoadFailed, Refused, Stats

BOUND = 10.0  # seconds after which a test gives up on what should have happened at once
REAPER = "c42c-reaper"

T = TypeVar("T")
Make = Callable[..., Cache]


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class Gated:
    """A load that begins, waits until it is let go, and then returns or raises `end`."""

    def __init__(self, end: Loaded | BaseException) -> None:
        self.end = end
        self.calls = 0
        self.begun = threading.Event()
        self.go = threading.Event()

    def __call__(self, _key: str) -> Loaded:
        self.calls += 1
        self.begun.set()
        if not self.go.wait(BOUND):
            self.go.set()  # whoever comes after fails at once
            self.end = AssertionError("nobody let the load go")
        if isinstance(self.end, BaseException):
            raise self.end
        return self.end


def start(call: Callable[[], T]) -> Future[T]:
    """Begin `call` in a thread of its own; what it returns or raises is in the future."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as raised:
            future.set_exception(raised)

    threading.Thread(target=run, daemon=True).start()
    return future


def until(condition: Callable[[], object]) -> None:
    """Return as soon as `condition` holds; fail when it does not come to that."""
    end = time.monotonic() + BOUND
    while not condition():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.001)


def ask(cache: Cache, key: str, load: Callable[[str], Loaded]) -> Future[Found]:
    """Ask for `key` in a thread of its own, and return once it has begun to load or to wait."""
    before = cache.snapshot().waiting
    caller = start(lambda: cache.get_or_load(key, load))
    until(lambda: cache.snapshot().waiting == before + 1 or caller.done())
    return caller


def keep(cache: Cache, key: str, kind: str = OK, lifetime: float = 60.0) -> Found:
    """Ask for `key` with a load that ends at once and returns the key itself."""
    return cache.get_or_load(key, lambda key: Loaded(key, kind, lifetime))


def unwanted(key: object) -> Any:
    """Stand in for a load that must not run."""
    raise AssertionError(f"{key} was loaded")


def held(stats: Stats) -> int:
    return stats.entries_ok + stats.entries_negative + stats.entries_fault + stats.entries_paused


def checked(cache: Cache, max_entries: int = 1000) -> Stats:
    """Read the counters, and assert what must be true of them at every moment."""
    stats = cache.snapshot()
    assert min(stats) >= 0
    loads = stats.loads_ok + stats.loads_negative + stats.loads_fault + stats.loads_paused + stats.loads_failed
    assert stats.misses == loads + stats.loading
    assert held(stats) <= max_entries
    assert held(stats) - stats.entries_ok <= max(1, max_entries // 10)
    return stats


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make(clock: Clock) -> Iterator[Make]:
    caches = []

    def make_cache(*, max_entries: int = 1000, max_waiting: int = 1000, reaper: bool = False) -> Cache:
        caches.append(Cache(max_entries=max_entries, max_waiting=max_waiting, clock=clock))
        if not reaper:
            caches[-1].close()
        return caches[-1]

    yield make_cache
    for cache in caches:
        start(cache.close).result(BOUND)


@pytest.fixture
def cache(make: Make) -> Cache:
    return make()


# Promises 1 and 8: one load per key, and everybody gets its outcome.


@pytest.mark.parametrize("kind", KINDS)
def test_200_callers_of_a_cold_key(cache: Cache, kind: str) -> None:
    """200 callers of one cold key cause one load and get one and the same value, be it good or bad."""
    load = Gated(Loaded(("a", "value"), kind, 60))
    callers = [start(lambda: cache.get_or_load("key", load)) for _ in range(200)]
    until(lambda: cache.snapshot().waiting == 200)
    assert checked(cache).loading == 1
    load.go.set()
    found = [caller.result(BOUND) for caller in callers]
    assert load.calls == 1
    assert all(each.value is load.end.value for each in found)  # type: ignore[union-attr]  # it is a Loaded
    assert {each[:4] + each[5:] for each in found} == {(("a", "value"), kind, 0, 60, True)}
    assert Counter(each.result for each in found) == {"miss": 1, "collapsed": 199}
    stats = checked(cache)
    assert (stats.misses, stats.collapsed, stats.hits, stats.waiting) == (1, 199, 0, 0)
    assert cache.get_or_load("key", unwanted).result == "hit"


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(3)], ids=repr)
def test_200_callers_of_a_load_that_raises(cache: Cache, error: BaseException) -> None:
    """A load that raises, whatever it raises, releases its 200 callers and leaves nothing behind."""
    load = Gated(error)
    callers = [start(lambda: cache.get_or_load("key", load)) for _ in range(200)]
    until(lambda: cache.snapshot().waiting == 200)
    load.go.set()
    raised = [caller.exception(BOUND) for caller in callers]
    assert load.calls == 1
    waited = [each for each in raised if each is not error]
    assert len(waited) == 199
    assert all(isinstance(each, LoadFailed) and each.__cause__ is error for each in waited)
    stats = checked(cache)
    assert (stats.misses, stats.collapsed, stats.loads_failed) == (1, 199, 1)
    assert (stats.waiting, stats.loading, len(cache)) == (0, 0, 0)
    assert keep(cache, "key").result == "miss"


def test_a_raised_exception_is_not_held(cache: Cache) -> None:
    """What a load raised is let go of: the cache stores no exception object."""

    class Watched(Exception):
        """One that a weak reference can watch."""

    def fail(_key: str) -> Loaded:
        raise Watched

    with pytest.raises(Watched) as raised:
        cache.get_or_load("key", fail)
    error = weakref.ref(raised.value)
    del raised
    gc.collect()
    assert error() is None


def test_an_answer_that_is_over_when_it_comes(cache: Cache, clock: Clock) -> None:
    """An answer whose time is up when its load ends goes to those who waited for it and is not kept."""
    load = Gated(Loaded("late", OK, 5))
    callers = [ask(cache, "key", load), ask(cache, "key", load)]
    clock.advance(5)
    load.go.set()
    assert [caller.result(BOUND) for caller in callers] == [
        Found("late", OK, 5, 0, "miss", False),
        Found("late", OK, 5, 0, "collapsed", False),
    ]
    stats = checked(cache)
    assert (stats.loads_ok, held(stats), stats.evicted_expired, stats.evicted_bound) == (1, 0, 0, 0)
    assert keep(cache, "key").result == "miss"


def test_get_does_not_wait(cache: Cache) -> None:
    """`get` of what is absent, or being loaded by others, is None at once and counts nothing."""
    load = Gated(Loaded("value", OK, 60))
    caller = ask(cache, "key", load)
    before = checked(cache)
    assert start(lambda: cache.get("key")).result(BOUND) is None
    assert cache.get("absent") is None
    assert checked(cache) == before
    load.go.set()
    caller.result(BOUND)
    assert cache.get("key") == ("value", OK, 0, 60)
    assert checked(cache).hits == 1


# Promise 2: keys never wait for each other.


def test_a_slow_key_delays_no_other(cache: Cache) -> None:
    """While one load hangs, other keys are loaded and hits are answered."""
    keep(cache, "fresh")
    load = Gated(Loaded("slow", OK, 60))
    slow = ask(cache, "slow", load)
    assert start(lambda: keep(cache, "other").result).result(BOUND) == "miss"
    assert start(lambda: cache.get_or_load("fresh", unwanted).result).result(BOUND) == "hit"
    assert start(lambda: keep(cache, "other").result).result(BOUND) == "hit"
    assert not slow.done()
    load.go.set()
    assert slow.result(BOUND).value == "slow"


def test_a_load_may_use_the_cache(cache: Cache) -> None:
    """The lock is not held during a load: it may itself ask the cache for another key, cold or fresh."""
    keep(cache, "fresh")

    def load(_key: str) -> Loaded:
        parts = (cache.get("fresh"), keep(cache, "inner"), cache.snapshot().loading, len(cache), cache.reap())
        return Loaded(parts, OK, 60)

    fresh, inner, *numbers = cast(Any, start(lambda: cache.get_or_load("outer", load)).result(BOUND).value)
    assert (fresh[0], inner.result, numbers) == ("fresh", "miss", [1, 2, 0])
    assert cache.get_or_load("inner", unwanted).value == "inner"
    assert (checked(cache).misses, checked(cache).waiting) == (3, 0)


# Promises 3 and 4: time.


def test_expiry_is_exact(cache: Cache, clock: Clock) -> None:
    """An entry is served until just before its expiry and never at it, though the reaper did not come by."""
    keep(cache, "key", lifetime=4)
    clock.advance(3.75)
    assert cache.get("key") == ("key", OK, 3.75, 0.25)
    assert cache.get_or_load("key", unwanted) == Found("key", OK, 3.75, 0.25, "hit", True)
    clock.advance(0.25)
    assert (cache.get("key"), len(cache)) == (None, 1)
    assert keep(cache, "key", NEGATIVE) == Found("key", NEGATIVE, 0, 60, "miss", True)
    stats = checked(cache)
    assert (stats.evicted_expired, stats.evicted_bound, held(stats), len(cache)) == (1, 0, 1, 1)
    assert (cache.reap(), cache.get_or_load("key", unwanted).kind) == (0, NEGATIVE)


def test_a_batch_serves_nothing_expired(make: Make, clock: Clock) -> None:
    """A batch asks again for what is at its expiry, also where that came while its other keys were loaded."""
    cache = make(max_waiting=1)
    keep(cache, "over", lifetime=4)
    clock.advance(4)
    keep(cache, "fresh", lifetime=4)

    def load(keys: list[str]) -> Iterator[tuple[str, Loaded]]:
        clock.advance(4)
        return ((key, Loaded(f"new {key}", OK, 60)) for key in keys)

    found = cache.get_or_load_many(["fresh", "over"], load)
    assert [(key, each.value, each.result) for key, each in found.items()] == [
        ("fresh", "new fresh", "miss"), ("over", "new over", "miss"),
    ]  # fmt: skip
    stats = checked(cache)
    assert (stats.hits, stats.misses, stats.evicted_expired, stats.waiting) == (0, 4, 2, 0)


def test_age_counts_from_the_beginning_of_the_load(cache: Cache, clock: Clock) -> None:
    """Age and lifetime count from when the load began, for whoever asks and whenever they came."""
    load = Gated(Loaded("value", OK, 10))
    leader = ask(cache, "key", load)
    clock.advance(2)
    follower = ask(cache, "key", load)
    clock.advance(1)
    load.go.set()
    assert [each.result(BOUND)[2:4] for each in (leader, follower)] == [(3, 7), (3, 7)]
    clock.advance(2)
    assert cache.get_or_load("key", unwanted)[2:4] == (5, 5)
    clock.advance(5)
    assert cache.get("key") is None


# Promise 5: the reaper.


def test_the_reaper_deletes_what_has_expired(make: Make, clock: Clock) -> None:
    """The reaper deletes an entry when its time has come, also where that is sooner than it meant to wake."""
    cache = make(reaper=True)
    keep(cache, "long", lifetime=1000)
    keep(cache, "short", FAULT, lifetime=0.01)
    assert cache.get_or_load("short", unwanted).result == "hit"
    clock.advance(0.01)
    until(lambda: len(cache) == 1)
    stats = checked(cache)
    assert (stats.evicted_expired, stats.entries_ok, stats.entries_fault) == (1, 1, 0)
    keep(cache, "short", lifetime=0.01)  # and it goes on
    clock.advance(0.01)
    until(lambda: checked(cache).evicted_expired == 2)
    assert cache.get_or_load("long", unwanted).result == "hit"


def test_the_reaper_sleeps_until_the_next_expiry(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reaper does not poll, nor wake for what expires later than the next entry that does."""
    waits: list[float | None] = []
    wait = threading.Condition.wait

    def noted(condition: threading.Condition, timeout: float | None = None) -> bool:
        if threading.current_thread().name == REAPER:
            waits.append(timeout)
        return wait(condition, timeout)

    monkeypatch.setattr(threading.Condition, "wait", noted)
    cache = make(reaper=True)
    until(lambda: waits)
    keep(cache, "first", lifetime=42)
    until(lambda: waits[-1] == 42)
    for number in range(500):
        keep(cache, str(number), lifetime=43)
    start(cache.close).result(BOUND)
    assert waits[1:] == [42]
    assert waits[0] is None or waits[0] > 3600


def test_reap_deletes_the_expired_only(cache: Cache, clock: Clock) -> None:
    """`reap` deletes what is at its expiry, of all kinds, leaves the rest, and says how many went."""
    for number, kind in itertools.product(range(10), KINDS):
        keep(cache, f"{kind}{number}", kind, lifetime=10 + number)
    clock.advance(13)
    assert (cache.reap(), cache.reap(), len(cache)) == (16, 0, 24)
    assert checked(cache).evicted_expired == 16
    assert not any(cache.get(f"{kind}{number}") for kind in KINDS for number in range(4))
    assert all(cache.get(f"{kind}{number}") for kind in KINDS for number in range(4, 10))


def reap_cost(cache: Cache, clock: Clock, *, held: int, expired: int) -> tuple[int, int]:
    """Count the lines of Python that reaping executes: all, and the most in one hold of the lock."""
    for number in random.Random(5).sample(range(held), held):
        keep(cache, str(number), lifetime=10 if number < expired else 1000 + number)
    lock: threading.Lock = vars(cache)["_lock"]
    total = hold = longest = 0

    def trace(_frame: FrameType, event: str, _argument: object) -> Any:
        nonlocal total, hold, longest
        total += event == "line"
        hold = hold + 1 if lock.locked() else 0
        longest = max(longest, hold)
        return trace

    clock.advance(10)
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        deleted = cache.reap()
    finally:
        sys.settrace(before)
    assert (deleted, len(cache)) == (expired, held - expired)
    return total, longest


def test_the_cost_of_reaping(make: Make, clock: Clock) -> None:
    """Reaping costs what expires, not what is held, and holds the lock for a small batch at a time."""
    base, base_hold = reap_cost(make(max_entries=10**6), clock, held=3000, expired=3000)
    more_held, _ = reap_cost(make(max_entries=10**6), clock, held=15_000, expired=3000)
    more_expired, hold = reap_cost(make(max_entries=10**6), clock, held=15_000, expired=15_000)
    assert more_held <= 1.1 * base
    assert more_expired <= 5.5 * base
    assert hold == base_hold < base


# Promise 6: bounds.


class Model:
    """The bounds, said naively; it has no entry that is expired."""

    def __init__(self, max_entries: int) -> None:
        self.max_entries = max_entries
        self.entries: dict[str, tuple[Loaded, float]] = {}  # with the expiry
        self.counts = Counter[str]()

    def keep(self, key: str, loaded: Loaded, expiry: float) -> bool:
        negatives = [key for key, (held, _) in self.entries.items() if held.kind != OK]
        full = len(self.entries) == self.max_entries
        if full or (loaded.kind != OK and len(negatives) == max(1, self.max_entries // 10)):
            if loaded.kind != OK and not negatives:
                return False
            del self.entries[min(negatives or self.entries, key=lambda key: self.entries[key][1])]
            self.counts["evicted_bound"] += 1
        self.entries[key] = loaded, expiry
        return True

    def reap(self, now: float) -> int:
        gone = [key for key, (_, expiry) in self.entries.items() if expiry <= now]
        for key in gone:
            del self.entries[key]
        self.counts["evicted_expired"] += len(gone)
        return len(gone)


@pytest.mark.parametrize("max_entries", [1, 2, 9, 10, 29, 30])
@pytest.mark.parametrize("seed", range(3))
def test_the_cache_agrees_with_a_naive_model(make: Make, clock: Clock, max_entries: int, seed: int) -> None:
    """After any steps the cache holds and counts what a naive model of its bounds says."""
    rng = random.Random(seed)
    cache, model = make(max_entries=max_entries), Model(max_entries)
    keys = [str(number) for number in range(2 * max_entries + 3)]
    for step in range(250):
        if rng.random() < 0.1:
            clock.advance(rng.uniform(0, 30))
            assert cache.reap() == model.reap(clock.now)
        else:
            key = rng.choice(keys)
            new = Loaded((key, step), rng.choice((OK, OK, *KINDS)), rng.uniform(1, 60))
            found = cache.get_or_load(key, lambda _key, new=new: new)  # type: ignore[misc]  # not inferable
            if key in model.entries:
                assert (found.result, found.value) == ("hit", model.entries[key][0].value)
                model.counts["hits"] += 1
            else:
                kept = model.keep(key, new, clock.now + new.lifetime)
                assert (found.result, found.value, found.kept) == ("miss", new.value, kept)
                model.counts["misses"] += 1
        stats = checked(cache, max_entries)
        kinds = Counter(held.kind for held, _ in model.entries.values())
        assert [getattr(stats, f"entries_{kind}") for kind in KINDS] == [kinds[kind] for kind in KINDS]
        for name in ("hits", "misses", "evicted_expired", "evicted_bound"):
            assert getattr(stats, name) == model.counts[name], name
        assert [key for key in keys if cache.get(key)] == [key for key in keys if key in model.entries]
        model.counts["hits"] += len(model.entries)


def test_spam_evicts_no_good_answer(make: Make) -> None:
    """Spam of unknown ids evicts other negatives and never a good answer, and memory stays bounded."""

    class Key(str):
        """A key that can be watched."""

    cache = make(max_entries=100)
    for number in range(95):
        keep(cache, f"good{number}", lifetime=30)
    alive = weakref.WeakSet[Key]()
    for number in range(3000):
        key = Key(number)
        alive.add(key)
        assert keep(cache, key, (NEGATIVE, FAULT)[number % 2], lifetime=60 + number).kept
        del key
    assert all(cache.get(f"good{number}") for number in range(95))
    assert (checked(cache, 100).entries_ok, len(cache), checked(cache, 100).evicted_bound) == (95, 100, 2995)
    gc.collect()
    assert len(alive) < 100
    for number in range(5):
        assert keep(cache, f"better{number}", lifetime=10).kept
    assert not keep(cache, "bad", NEGATIVE).kept
    assert (len(cache), checked(cache, 100).entries_ok, cache.get("bad")) == (100, 100, None)


def test_the_waiting_room_is_bounded(make: Make) -> None:
    """Who would wait beyond the bound is refused at once, leaders and followers alike; hits never are."""
    cache = make(max_waiting=2)
    keep(cache, "fresh")
    load = Gated(Loaded("value", OK, 60))
    inside = [ask(cache, "key", load), ask(cache, "key", load)]
    before = checked(cache)
    refused = [ask(cache, key, unwanted).exception(BOUND) for key in ("key", "other")]
    assert [type(each) for each in refused] == [Refused, Refused]
    with pytest.raises(Refused):
        cache.get_or_load_many(["fresh", "key", "other", "key"], unwanted)
    assert checked(cache) == before._replace(refused=5)  # one for each key, and no hit
    assert cache.get_or_load("fresh", unwanted).result == "hit"
    assert cache.get_or_load_many(["fresh"], unwanted)["fresh"].result == "hit"
    assert cache.get_or_load_many([], unwanted) == {}
    load.go.set()
    assert [caller.result(BOUND).value for caller in inside] == ["value", "value"]
    assert (keep(cache, "other").result, checked(cache).waiting) == ("miss", 0)


# Promise 7: what is handed out cannot be changed.


@pytest.mark.parametrize("value", [[], {}, set(), bytearray(), (1, ["deep"])], ids=repr)
def test_a_value_that_can_be_changed(cache: Cache, value: object) -> None:
    """A load that returns a value that can be changed fails for everybody, and nothing is kept."""
    load = Gated(Loaded(value, OK, 60))
    callers = [ask(cache, "key", load), ask(cache, "key", load)]
    load.go.set()
    raised = [caller.exception(BOUND) for caller in callers]
    assert [type(each) for each in raised] == [TypeError, LoadFailed]
    assert cast(LoadFailed, raised[1]).__cause__ is raised[0]
    assert (checked(cache).loads_failed, len(cache), checked(cache).waiting) == (1, 0, 0)


# Batches.


def test_a_batch_loads_what_is_left_in_one_call(make: Make) -> None:
    """A batch takes the fresh from the cache, waits for what others load, and loads the rest in one call."""
    cache = make(max_waiting=2)
    keep(cache, "fresh")
    load = Gated(Loaded("theirs", FAULT, 60))
    other = ask(cache, "other", load)
    calls: list[list[str]] = []

    def load_many(keys: list[str]) -> Iterator[tuple[str, Loaded]]:
        calls.append(keys)
        return ((key, Loaded(key, OK, 60)) for key in sorted(keys))

    keys = iter(["z", "other", "a", "fresh", "z"])
    batch = start(lambda: cache.get_or_load_many(keys, load_many))
    until(lambda: cache.get("a"))  # what it loads itself does not wait for what others load
    assert (checked(cache).waiting, checked(cache).loading) == (2, 1)
    load.go.set()
    found = batch.result(BOUND)
    assert calls == [["z", "a"]]
    assert [(key, each.value, each.result) for key, each in found.items()] == [
        ("z", "z", "miss"), ("other", "theirs", "collapsed"), ("a", "a", "miss"), ("fresh", "fresh", "hit"),
    ]  # fmt: skip
    assert other.result(BOUND).value is found["other"].value
    stats = checked(cache)
    assert (stats.misses, stats.collapsed, stats.loads_ok, stats.loads_fault) == (4, 1, 3, 1)


def test_a_batch_that_leaves_a_key_out(cache: Cache) -> None:
    """A batch load that leaves a key out is a KeyError, fails whoever waits for it, and keeps the rest."""
    gate = Gated(Loaded("value", OK, 60))
    keys = ["there", "missing"]
    batch = start(lambda: cache.get_or_load_many(keys, lambda _keys: [("there", gate("there"))]))
    until(gate.begun.is_set)
    follower = ask(cache, "missing", unwanted)
    gate.go.set()
    error = batch.exception(BOUND)
    assert isinstance(error, KeyError)
    assert cast(LoadFailed, follower.exception(BOUND)).__cause__ is error
    assert (checked(cache).loads_failed, checked(cache).waiting, len(cache)) == (1, 0, 1)


def test_a_batch_whose_neighbour_fails(cache: Cache) -> None:
    """A batch that waits for another's load which raises is told so, and what it loaded itself is kept."""
    load = Gated(ValueError("no"))
    ask(cache, "other", load)
    batch = start(lambda: cache.get_or_load_many(["other", "mine"], lambda keys: [("mine", Loaded(1, OK, 60))]))
    until(lambda: cache.get("mine"))
    load.go.set()
    raised = batch.exception(BOUND)
    assert isinstance(raised, LoadFailed)
    assert raised.__cause__ is load.end
    assert (checked(cache).waiting, len(cache)) == (0, 1)


def test_batches_that_lead_what_the_other_waits_for(cache: Cache) -> None:
    """Batches that ask for the same keys at the same time, in opposite order, do not wait for ever."""
    inside = threading.Barrier(2)

    def in_step(*keys: str) -> Iterator[str]:
        for key in keys:
            inside.wait(BOUND)
            yield key

    def load(keys: list[str]) -> Iterator[tuple[str, Loaded]]:
        time.sleep(0)  # let the other one run
        return ((key, Loaded(object(), OK, 60)) for key in keys)

    def batch(*keys: str) -> Future[dict[str, Found]]:
        return start(lambda: cache.get_or_load_many(in_step(*keys), load))

    for number in range(50):
        a, b, c = f"a{number}", f"b{number}", f"c{number}"
        pair = batch(a, b, c), batch(c, b, a)
        one, two = (each.result(BOUND) for each in pair)
        assert all(one[key].value is two[key].value for key in (a, b, c))
    assert (checked(cache).misses, checked(cache).waiting) == (150, 0)


# Promise 9: stopping.


def test_stopping_is_prompt(make: Make) -> None:
    """`close` ends the reaper within a second, may be called again, and the cache goes on answering."""
    cache = make(reaper=True)
    (reaper,) = (thread for thread in threading.enumerate() if thread.name == REAPER)
    assert (reaper.daemon, cache.reaper_alive) == (True, True)
    keep(cache, "key", lifetime=1000)
    before = time.monotonic()
    start(cache.close).result(BOUND)
    assert time.monotonic() - before < 1
    assert (cache.reaper_alive, reaper.is_alive()) == (False, False)
    start(cache.close).result(BOUND)
    assert (cache.get_or_load("key", unwanted).result, keep(cache, "other").result) == ("hit", "miss")


def test_stopping_does_not_wait_for_a_long_reap(make: Make, clock: Clock) -> None:
    """`close` ends the reaper between two batches, however much has expired."""
    cache = make(max_entries=10**6, reaper=True)
    keys = [str(number) for number in range(100_000)]
    cache.get_or_load_many(keys, lambda keys: ((key, Loaded("value", OK, 10)) for key in keys))
    keep(cache, "short", lifetime=0.01)
    clock.advance(10)
    until(lambda: checked(cache, 10**6).evicted_expired)
    start(cache.close).result(BOUND)
    assert 0 < len(cache) < len(keys)


# Promise 10: counters.


def random_traffic(cache: Cache, rng: random.Random) -> Counter[str]:
    """Ask for random keys in all ways; return how often each result was seen and an entry was kept."""
    seen = Counter[str]()

    def load_one(key: str) -> Loaded:
        time.sleep(0)  # let others run
        if key.startswith("one") and rng.random() < 0.1:
            unwanted(key)
        seen["loads"] += 1
        return Loaded(key, rng.choice(KINDS), rng.uniform(0.001, 0.1))

    def load_many(keys: list[str]) -> Iterator[tuple[str, Loaded]]:
        return ((key, load_one(key)) for key in keys)

    for _ in range(1500):
        # No batch waits for `load_one`: when a batch fails, the caller cannot know how its keys were counted.
        keys = [str(number) for number in rng.sample(range(25), rng.choice((1, 3)))]
        found: list[Found] = []
        try:
            if len(keys) > 1:
                found += cache.get_or_load_many(keys, load_many).values()
            elif rng.random() < 0.5:
                hit = cache.get(keys[0])
                found += [Found(*hit, "hit", True)] if hit else []
            else:
                found.append(cache.get_or_load("one " + keys[0], load_one))
        except Refused:
            seen["refused"] += len(keys)
        except (AssertionError, LoadFailed) as raised:
            seen["collapsed" if isinstance(raised, LoadFailed) else "failed"] += 1
        for each in found:
            seen["over"] += each.result == "hit" and each.ttl <= 0
            seen[each.result] += 1
    return seen


def test_counters_add_up_under_traffic(make: Make, clock: Clock) -> None:
    """Under random traffic of eight threads the counters add up at every moment, and are exact in the end."""
    cache = make(max_entries=40, max_waiting=4, reaper=True)
    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        callers = [start(functools.partial(random_traffic, cache, random.Random(seed))) for seed in range(8)]
        while not all(caller.done() for caller in callers):
            clock.advance(0.001)
            checked(cache, 40)
            time.sleep(0)
    finally:
        sys.setswitchinterval(switch)
    seen = sum((caller.result() for caller in callers), Counter[str]())
    start(cache.close).result(BOUND)
    stats = checked(cache, 40)
    assert (stats.waiting, stats.loading, held(stats), seen["over"]) == (0, 0, len(cache), 0)
    assert (stats.hits, stats.refused) == (seen["hit"], seen["refused"])
    assert stats.misses - stats.loads_failed == seen["loads"] >= seen["miss"]
    assert stats.collapsed >= seen["collapsed"]
    assert held(stats) + stats.evicted_expired + stats.evicted_bound <= seen["loads"]


if __name__ == "__main__":
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        status = pytest.main([__file__, "-q", "-W", "error", "-p", "no:cacheprovider"])
    if status:
        sys.exit(output.getvalue() or "no test ran")
