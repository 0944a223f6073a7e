"""A good answer that is hit late in its lifetime is loaded again.

So nobody has to wait for it. The old answer is never served past its expiry.

Lifetimes are 100 s, refreshed in the last tenth. A refresh that failed is tried again
after 3 s.
"""

import gc
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import pytest

from cache import (
    FAULT,
    KINDS,
    NEGATIVE,
    OK,
    PAUSED,
    Cache,
    Found,
    Loaded,
    LoadFailed,
)
from tests.cache_callers import (
    BOUND,
    Clock,
    Gated,
    Make,
    Pairs,
    ask,
    checked,
    get_or_load,
    keep,
    reap,
    start,
    until,
    unwanted,
)

LIFETIME = 100.0
AHEAD = 0.1
RETRY = 3.0


class Due:
    """Takes what is due, and accepts, declines or raises."""

    def __init__(self) -> None:
        self.handed: list[list[str]] = []
        self.accepts = True
        self.error: Exception | None = None

    def __call__(self, keys: list[str]) -> bool:
        self.handed.append(keys)
        if self.error:
            raise self.error
        return self.accepts


@pytest.fixture
def due() -> Due:
    return Due()


@pytest.fixture
def refreshing(make: Make, due: Due) -> Make:
    """Give a test a way to make caches that refresh."""

    def make_cache(**options: Any) -> Cache:
        usual = {
            "refresh_ahead": AHEAD,
            "retry_refresh": RETRY,
            "on_refresh_due": due,
        }
        return make(**usual | options)

    return make_cache


@pytest.fixture
def cache(refreshing: Make) -> Cache:
    return refreshing()


def keep_old(cache: Cache, clock: Clock, *keys: str) -> None:
    """Keep answers, and let time pass until they are due."""
    for key in keys:
        keep(cache, key, lifetime=LIFETIME)
    clock.advance(LIFETIME * (1 - AHEAD))


def refresh(cache: Cache, key: str, kind: str = OK, **options: Any) -> None:
    """Refresh one key, as the executor would."""
    loaded = Loaded("new", kind, LIFETIME, **options)
    cache.refresh([key], lambda keys, _: [(key, loaded) for key in keys])


def value(cache: Cache, key: str) -> Any:
    hit = cache.get(key)
    return hit and hit[0]


# What is due


def test_a_hit_in_the_last_part_begins_a_refresh(
    cache: Cache, clock: Clock, due: Due
) -> None:
    """The first hit in the last tenth hands the key over, and is answered as always."""
    keep(cache, "key", lifetime=LIFETIME)
    clock.advance(89)
    assert cache.get("key") == ("key", OK, 89, 11)
    assert due.handed == []
    clock.advance(1)
    assert cache.get("key") == ("key", OK, 90, 10)
    assert due.handed == [["key"]]
    assert get_or_load(cache, "key", unwanted) == Found("key", OK, 90, 10, "hit", True)
    assert due.handed == [["key"]]
    assert checked(cache).hits[OK] == 3


def test_a_list_hands_over_all_that_is_due_at_once(
    cache: Cache, clock: Clock, due: Due
) -> None:
    """The due keys of a request are handed over in one call, and no others.

    Missing keys, and those that aren't due or are claimed already, stay out.
    """
    keep_old(cache, clock, "old", "older", "claimed")
    keep(cache, "fresh", lifetime=LIFETIME)
    cache.get("claimed")
    keys = ["older", "missing", "fresh", "claimed", "old"]
    found = cache.get_or_load(
        keys, lambda keys, _: [(key, Loaded(key, OK, 60)) for key in keys]
    )
    assert [each.source for each in found.values()] == ["hit", "miss", *["hit"] * 3]
    assert due.handed == [["claimed"], ["older", "old"]]


def test_the_lock_is_not_held(refreshing: Make, clock: Clock) -> None:
    """`on_refresh_due` is called without the lock, and may even refresh by itself."""
    caches: list[Cache] = []

    def refresh_now(keys: list[str]) -> bool:
        refresh(caches[0], *keys)
        return True

    caches.append(refreshing(on_refresh_due=refresh_now))
    keep_old(caches[0], clock, "key")
    assert start(lambda: value(caches[0], "key")).result(BOUND) == "key"
    assert caches[0].get("key") == ("new", OK, 0, LIFETIME)


@pytest.mark.parametrize("kind", [NEGATIVE, FAULT, PAUSED])
def test_bad_answers_are_not_refreshed(
    cache: Cache, clock: Clock, due: Due, kind: str
) -> None:
    """Only good answers are refreshed."""
    keep(cache, "key", kind, lifetime=LIFETIME)
    clock.advance(99)
    assert value(cache, "key") == "key"
    assert due.handed == []


def test_refreshing_can_be_turned_off(refreshing: Make, clock: Clock, due: Due) -> None:
    """With a share of 0, nothing is refreshed."""
    cache = refreshing(refresh_ahead=0.0)
    keep(cache, "key", lifetime=LIFETIME)
    clock.advance(LIFETIME - 0.001)
    assert value(cache, "key") == "key"
    assert get_or_load(cache, "key", unwanted).value == "key"
    assert due.handed == []


def test_defaults_of_refreshing(make: Make, clock: Clock, due: Due) -> None:
    """By default nothing is refreshed, and what was declined is due again after 6 s."""
    cache = make(on_refresh_due=due)
    keep(cache, "key", lifetime=LIFETIME)
    clock.advance(LIFETIME - 0.001)
    assert value(cache, "key") == "key"
    assert due.handed == []
    cache = make(on_refresh_due=due, refresh_ahead=AHEAD)
    due.accepts = False
    keep_old(cache, clock, "key")
    cache.get("key")
    clock.advance(5.999)
    cache.get("key")
    assert len(due.handed) == 1
    clock.advance(0.001)
    cache.get("key")
    assert len(due.handed) == 2


def test_the_share_is_that_of_the_whole_lifetime(
    refreshing: Make, clock: Clock, due: Due
) -> None:
    """The last part is counted from the answer's birth, not from when it came."""
    cache = refreshing(refresh_ahead=0.5)
    loaded = Loaded("key", OK, LIFETIME, born=clock.now - 49)
    get_or_load(cache, "key", lambda key: loaded)
    cache.get("key")
    assert due.handed == []
    clock.advance(1)
    cache.get("key")
    assert due.handed == [["key"]]


def test_one_refresh_at_a_time(refreshing: Make, clock: Clock, due: Due) -> None:
    """200 clients that hit a key when it is due cause one refresh, five times in a row.

    All are answered.
    """
    cache = refreshing()
    keep_old(cache, clock, "key")
    together = threading.Barrier(200)

    def hit(number: int) -> Found:
        together.wait(BOUND)
        if number % 2:
            return get_or_load(cache, "key", unwanted)
        found = cache.get("key")
        assert found
        return Found(*found, "hit", True)

    for times in range(1, 6):
        clients = [start(partial(hit, number)) for number in range(200)]
        assert {client.result(BOUND).source for client in clients} == {"hit"}
        assert due.handed == [["key"]] * times
        load = Gated(Loaded(times, OK, LIFETIME))
        refreshed = start(
            lambda load=load: cache.refresh(  # type: ignore[misc]
                ["key"], lambda keys, _: [(key, load(key)) for key in keys]
            )
        )
        load.begun.wait(BOUND)
        cache.get("key")
        load.go.set()
        refreshed.result(BOUND)
        assert (value(cache, "key"), load.calls) == (times, 1)
        clock.advance(90)
    assert checked(cache).refreshes[OK] == 5
    assert checked(cache).misses == 1


# How it ends


@pytest.mark.parametrize("kind", [OK, NEGATIVE])
def test_an_answer_replaces_the_old_one(
    cache: Cache, clock: Clock, due: Due, kind: str
) -> None:
    """A good answer or a refusal replaces the old one, aged from its load's start."""
    keep_old(cache, clock, "key")
    cache.get("key")
    load = Gated(Loaded("new", kind, LIFETIME))
    refreshed = start(
        lambda: cache.refresh(["key"], lambda keys, _: [("key", load("key"))])
    )
    load.begun.wait(BOUND)
    clock.advance(2)
    assert cache.get("key") == ("key", OK, 92, 8)
    assert checked(cache).refreshing == 1
    load.go.set()
    refreshed.result(BOUND)
    assert cache.get("key") == ("new", kind, 2, 98)
    stats = checked(cache)
    assert (stats.refreshes[kind], stats.evicted["replaced"], len(cache)) == (1, 1, 1)
    assert (stats.entries[kind], stats.misses, stats.refreshing) == (1, 1, 0)
    clock.advance(90)
    cache.get("key")
    assert len(due.handed) == (2 if kind == OK else 1)
    clock.advance(8)
    reap(cache)
    assert (len(cache), checked(cache).evicted["expired"]) == (0, 1)


class Referenced:
    """A value that can be weakly referenced."""


def test_a_replaced_answer_is_freed_at_once(cache: Cache, clock: Clock) -> None:
    """The cache doesn't hold an answer that has been replaced."""
    get_or_load(cache, "key", lambda key: Loaded(Referenced(), OK, LIFETIME))
    clock.advance(90)
    old = weakref.ref(value(cache, "key"))
    before = checked(cache).bytes
    assert old()
    refresh(cache, "key")
    gc.collect()
    assert old() is None
    assert checked(cache).bytes < before + 200


@pytest.mark.parametrize(
    ("kind", "private"), [(FAULT, False), (PAUSED, False), (FAULT, True)]
)
def test_a_fault_while_the_old_answer_is_fresh(
    cache: Cache, clock: Clock, due: Due, kind: str, private: bool
) -> None:
    """A fault is neither kept nor handed out, and the next refresh begins 3 s later."""
    keep_old(cache, clock, "key")
    cache.get("key")
    clock.advance(1)
    refresh(cache, "key", kind, private=private)
    assert cache.get("key") == ("key", OK, 91, 9)
    clock.advance(RETRY - 0.5)
    assert value(cache, "key") == "key"
    assert due.handed == [["key"]]
    clock.advance(0.5)
    assert value(cache, "key") == "key"
    assert due.handed == [["key"]] * 2
    refresh(cache, "key")
    assert value(cache, "key") == "new"
    stats = checked(cache)
    assert (stats.refreshes[kind], stats.refreshes[OK]) == (1, 1)
    assert (stats.entries[kind], sum(stats.loads.values())) == (kind == OK, 1)


def test_a_fault_that_lasts(cache: Cache, clock: Clock) -> None:
    """If faults go on, the old answer ends exactly at its expiry."""
    keep_old(cache, clock, "key")
    for _ in range(3):
        assert value(cache, "key") == "key"
        refresh(cache, "key", FAULT)
        clock.advance(RETRY)
    clock.advance(0.75)
    assert cache.get("key") == ("key", OK, 99.75, 0.25)
    clock.advance(0.25)
    assert cache.get("key") is None
    assert checked(cache).refreshes[FAULT] == 3


@pytest.mark.parametrize("kind", KINDS)
def test_callers_that_miss_share_the_refresh(
    cache: Cache, clock: Clock, kind: str
) -> None:
    """If the old answer expires during its refresh, callers wait and share the outcome.

    It is kept, whatever it is.
    """
    keep_old(cache, clock, "key")
    cache.get("key")
    load = Gated(Loaded("new", kind, LIFETIME))
    refreshed = start(
        lambda: cache.refresh(["key"], lambda keys, _: [("key", load("key"))])
    )
    load.begun.wait(BOUND)
    assert checked(cache).waiting == 0
    clock.advance(10)
    callers = [start(lambda: get_or_load(cache, "key", unwanted)) for _ in range(50)]
    until(lambda: checked(cache).waiting == 50)
    load.go.set()
    expected = Found("new", kind, 10, 90, "collapsed", True)
    assert {caller.result(BOUND) for caller in callers} == {expected}
    refreshed.result(BOUND)
    assert cache.get("key") == ("new", kind, 10, 90)
    stats = checked(cache)
    assert (stats.misses, stats.collapsed, stats.refreshes[kind]) == (1, 50, 1)


def test_an_answer_that_is_evicted_during_its_refresh(
    refreshing: Make, clock: Clock
) -> None:
    """If the old answer is evicted during its refresh, callers share even a fault."""
    cache = refreshing(max_entries=2)
    keep_old(cache, clock, "key")
    cache.get("key")
    load = Gated(Loaded("new", FAULT, LIFETIME))
    refreshed = start(
        lambda: cache.refresh(["key"], lambda keys, _: [("key", load("key"))])
    )
    load.begun.wait(BOUND)
    keep(cache, "other", lifetime=LIFETIME)
    caller = ask(cache, "key", unwanted)
    load.go.set()
    refreshed.result(BOUND)
    assert caller.result(BOUND) == Found("new", FAULT, 0, 100, "collapsed", True)
    assert value(cache, "key") == "new"


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()], ids=repr)
def test_a_refresh_that_raises(
    cache: Cache, clock: Clock, due: Due, error: BaseException
) -> None:
    """A refresh that raises frees the callers that wait; the next begins 3 s later."""
    keep_old(cache, clock, "key", "other")
    cache.get_or_load(["key", "other"], unwanted)
    load = Gated(error)

    def load_many(keys: list[str], _deadline: float) -> Pairs:
        yield "other", Loaded("new", OK, LIFETIME)
        yield "key", load("key")

    refreshed = start(lambda: cache.refresh(["key", "other"], load_many))
    load.begun.wait(BOUND)
    assert value(cache, "other") == "new"
    load.go.set()
    assert refreshed.exception(BOUND) is error
    stats = checked(cache)
    assert (stats.refreshes["failed"], stats.refreshes[OK], stats.refreshing) == (
        1,
        1,
        0,
    )
    assert value(cache, "key") == "key"
    assert len(due.handed) == 1
    clock.advance(RETRY)
    assert value(cache, "key") == "key"
    assert due.handed[1:] == [["key"]]
    load = Gated(error)
    refreshed = start(
        lambda: cache.refresh(["key"], lambda keys, _: [("key", load("key"))])
    )
    load.begun.wait(BOUND)
    clock.advance(LIFETIME)
    caller = ask(cache, "key", unwanted)
    load.go.set()
    assert cast(LoadFailed, caller.exception(BOUND)).__cause__ is error


def test_every_lifetime_has_its_refresh(
    refreshing: Make, clock: Clock, due: Due
) -> None:
    """A young answer that a refresh brought is refreshed in its turn.

    This holds even if failed refreshes have to wait for longer than a lifetime.
    """
    cache = refreshing(retry_refresh=LIFETIME)
    keep_old(cache, clock, "key")
    for number in range(1, 4):
        assert cache.get("key")
        assert len(due.handed) == number
        refresh(cache, "key")
        clock.advance(LIFETIME * (1 - AHEAD))


@pytest.mark.parametrize("age", [90, 91])
def test_an_answer_that_is_too_old_when_it_comes(
    cache: Cache, clock: Clock, due: Due, age: int
) -> None:
    """If a refresh brings an answer that is itself due, the next begins 3 s later."""
    keep_old(cache, clock, "key")
    cache.get("key")
    refresh(cache, "key", born=clock.now - age)
    assert cache.get("key") == ("new", OK, age, 100 - age)
    clock.advance(RETRY)
    assert len(due.handed) == 1
    cache.get("key")
    assert len(due.handed) == 2


def test_a_refusal_makes_no_room_for_good_answers(
    refreshing: Make, clock: Clock
) -> None:
    """A refusal that replaced a good answer isn't evicted when good ones need room.

    Here, it expires at the same moment as the good answer would have.
    """
    cache = refreshing(max_entries=2)
    keep_old(cache, clock, "key")
    cache.get("key")
    loaded = Loaded("new", NEGATIVE, 10.0)
    cache.refresh(["key"], lambda keys, _: [("key", loaded)])
    assert cache.get("key") == ("new", NEGATIVE, 0, 10)
    keep(cache, "other")
    keep(cache, "another")
    assert cache.get("key") == ("new", NEGATIVE, 0, 10)
    assert checked(cache, 2).evicted["bound"] == 1


# Claims


@pytest.mark.parametrize("how", ["declines", "raises"])
def test_a_claim_that_is_released(
    cache: Cache,
    clock: Clock,
    due: Due,
    how: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """If a refresh is declined or can't begin, its claim is released.

    The hit is answered, and another hit tries again some seconds later.
    """
    keep_old(cache, clock, "key")
    due.accepts = how != "declines"
    due.error = RuntimeError("no further thread") if how == "raises" else None
    assert value(cache, "key") == "key"
    assert value(cache, "key") == "key"
    assert due.handed == [["key"]]
    refresh(cache, "key")  # there is no claim
    assert value(cache, "key") == "key"
    clock.advance(RETRY)
    due.accepts, due.error = True, None
    assert value(cache, "key") == "key"
    assert due.handed == [["key"]] * 2
    refresh(cache, "key")
    assert value(cache, "key") == "new"
    assert (len(caplog.records) == 1) == (how == "raises")
    assert checked(cache).refreshing == 0


def test_only_claimed_keys_are_refreshed(cache: Cache, clock: Clock) -> None:
    """`refresh` loads nothing that no hit has claimed, and each claim once."""
    keep_old(cache, clock, "key")
    cache.refresh(["key", "absent"], unwanted)
    cache.get("key")
    refresh(cache, "key")
    cache.refresh(["key"], unwanted)
    assert checked(cache).refreshes[OK] == 1


def test_a_caller_takes_over_a_refresh_that_has_not_begun(
    cache: Cache, clock: Clock
) -> None:
    """If an answer expires before its refresh begins, the next caller loads instead.

    The refresh is skipped.
    """
    keep_old(cache, clock, "key")
    cache.get("key")
    clock.advance(10)
    load = Gated(Loaded("new", OK, LIFETIME))
    caller = ask(cache, "key", load)
    cache.refresh(["key"], unwanted)
    load.go.set()
    assert caller.result(BOUND).source == "miss"
    cache.refresh(["key"], unwanted)
    assert checked(cache).misses == 2


@pytest.mark.parametrize("how", ["expired", "bound"])
def test_a_refresh_of_what_is_gone(refreshing: Make, clock: Clock, how: str) -> None:
    """An answer that was deleted before its refresh began isn't loaded again."""
    cache = refreshing(max_entries=2)
    keep_old(cache, clock, "key")
    cache.get("key")
    if how == "expired":
        clock.advance(10)
        reap(cache)
    else:
        keep(cache, "other")
    cache.refresh(["key"], unwanted)
    assert checked(cache).evicted[how] == 1


def test_callers_come_first(refreshing: Make, clock: Clock, due: Due) -> None:
    """No refresh begins while waiting callers are above half their limit."""
    cache = refreshing(max_waiting=4)
    keep_old(cache, clock, "key")
    load = Gated(Loaded("value", OK, 60))
    callers = [ask(cache, "cold", load) for _ in range(3)]
    assert value(cache, "key") == "key"
    assert due.handed == []
    load.go.set()
    assert {caller.result(BOUND).value for caller in callers} == {"value"}
    load = Gated(Loaded("value", OK, 60))
    callers = [ask(cache, "other", load) for _ in range(2)]
    assert value(cache, "key") == "key"
    assert due.handed == [["key"]]
    load.go.set()
    assert {caller.result(BOUND).value for caller in callers} == {"value"}


def test_a_refresh_is_no_waiting_caller(refreshing: Make, clock: Clock) -> None:
    """A refresh doesn't count as a waiting caller."""
    cache = refreshing(max_waiting=1)
    keep_old(cache, clock, "key")
    cache.get("key")
    load = Gated(Loaded("new", OK, LIFETIME))
    refreshed = start(
        lambda: cache.refresh(["key"], lambda keys, _: [("key", load("key"))])
    )
    load.begun.wait(BOUND)
    assert keep(cache, "cold").source == "miss"
    load.go.set()
    refreshed.result(BOUND)


def test_the_load_of_a_refresh_is_told_the_deadline(cache: Cache, clock: Clock) -> None:
    """A refresh loads all its keys in one call, by the deadline that it was given."""
    keep_old(cache, clock, "a", "b")
    cache.get_or_load(["a", "b"], unwanted)
    calls = []

    def load(keys: list[str], deadline: float) -> Pairs:
        calls.append((keys, deadline))
        return ((key, Loaded(key, OK, LIFETIME)) for key in keys)

    cache.refresh(["a", "b"], load, 1234.5)
    assert calls == [(["a", "b"], 1234.5)]


# What it is for, and what it costs


class Upstream:
    """A service whose answers are loaded at once, and which may be in trouble."""

    def __init__(self, clock: Clock, refreshing: Make, **options: Any) -> None:
        self.calls = 0
        self.in_trouble: Callable[[], bool] = lambda: False
        self.cache = refreshing(
            on_refresh_due=self._refresh, retry_refresh=6.0, **options
        )
        self._clock = clock

    def _refresh(self, keys: list[str]) -> bool:
        self.cache.refresh(keys, self.load)
        return True

    def load(self, keys: list[str], _deadline: float) -> Iterator[tuple[str, Loaded]]:
        self.calls += 1
        for key in keys:
            if self.in_trouble():
                yield key, Loaded("fault", FAULT, 6.0)
            else:
                yield key, Loaded(self._clock.now, OK, 252.0)

    def ask(self, *keys: str) -> list[Found]:
        return list(self.cache.get_or_load(keys, self.load).values())


@pytest.mark.parametrize("phase", range(0, 252, 9))
def test_short_trouble_is_not_seen(refreshing: Make, clock: Clock, phase: int) -> None:
    """Those who ask for a hot event don't see 15 s of trouble in every 252.

    Whenever that is, they get only good answers, none past its lifetime.
    """
    upstream = Upstream(clock, refreshing)
    began = clock.now
    upstream.ask("key")
    upstream.in_trouble = lambda: (clock.now - began + phase) % 252 >= 237
    if upstream.in_trouble():
        clock.advance(15)
    sources = Counter[str]()
    for _ in range(1100):
        (found,) = upstream.ask("key")
        assert found.kind == OK
        assert found.age < 252
        sources[found.source] += 1
        clock.advance(0.5)
    assert set(sources) == {"hit"}


def test_a_hot_list_costs_a_ninth_more_calls(refreshing: Make, clock: Clock) -> None:
    """A list of 100 events that is asked for all the time costs a ninth more calls."""
    keys = [str(number) for number in range(100)]
    with_refreshing = Upstream(clock, refreshing)
    without = Upstream(clock, refreshing, refresh_ahead=0.0)
    lifetimes = 45
    for _ in range(lifetimes * 21):
        assert len(with_refreshing.ask(*keys)) == 100
        assert len(without.ask(*keys)) == 100
        clock.advance(12)
    assert without.calls == lifetimes
    assert without.calls < with_refreshing.calls <= lifetimes * 10 / 9


def test_a_last_hit_costs_one_load(refreshing: Make, clock: Clock) -> None:
    """An event whose last hit comes late costs one load more, and then expires."""
    upstream = Upstream(clock, refreshing)
    upstream.ask("key")
    clock.advance(240)
    upstream.ask("key")
    for _ in range(100):
        clock.advance(10)
        reap(upstream.cache)
    assert (upstream.calls, len(upstream.cache)) == (2, 0)


def test_replaced_answers_leave_nothing_behind(refreshing: Make, clock: Clock) -> None:
    """However often an answer is refreshed, the memory for it is bounded."""
    cache = refreshing(retry_refresh=0.0, refresh_ahead=0.5)
    keep_old(cache, clock, "key")
    once = checked(cache).bytes
    for _ in range(5000):
        cache.get("key")
        refresh(cache, "key", born=clock.now - 60)
    stats = checked(cache)
    assert (stats.refreshes[OK], len(cache)) == (5000, 1)
    assert stats.bytes < once + 30_000


def test_what_is_forgotten_changes_no_expiry(refreshing: Make, clock: Clock) -> None:
    """However often one answer is refreshed, the reaper deletes all in their time."""
    cache = refreshing(retry_refresh=0.0, refresh_ahead=0.5)
    keep(cache, "late", lifetime=1000)
    keep(cache, "refusal", NEGATIVE, lifetime=500)
    keep_old(cache, clock, "key")
    until_next = set()
    for _ in range(500):
        cache.get("key")
        refresh(cache, "key", born=clock.now - 60)
        until_next.add(cache.reap())
    assert until_next == {10, 40}  # until the first answer's expiry, and the others'
    for seconds, left in (40, 2), (370, 1), (500, 0):
        clock.advance(seconds - 1)
        reap(cache)
        assert len(cache) == left + 1
        clock.advance(1)
        reap(cache)
        assert len(cache) == left


def test_counters_add_up(refreshing: Make, clock: Clock, due: Due) -> None:
    """Loads and refreshes are counted apart, and every kept answer is accounted for.

    Each is still there, has expired, was replaced or had to make room.
    """
    cache = refreshing(max_entries=3)
    keep_old(cache, clock, "a", "b")
    cache.get_or_load(["a", "b"], unwanted)
    refresh(cache, "a")
    refresh(cache, "b", NEGATIVE)
    keep(cache, "c")
    keep(cache, "d")
    stats = checked(cache)
    assert (stats.misses, sum(stats.loads.values())) == (4, 4)
    assert stats.refreshes == {OK: 1, NEGATIVE: 1, FAULT: 0, PAUSED: 0, "failed": 0}
    assert sum(stats.entries.values()) + sum(stats.evicted.values()) == 6
    assert stats.evicted == {"expired": 0, "bound": 1, "replaced": 2}
