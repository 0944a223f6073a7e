"""What the cache promises.

`python test_cache.py` prints nothing if all tests pass; pytest runs them too.

The clock is fake. `tests/cache_callers.py` has the callers, and the fixtures. The
reaper is stopped at once, so that only the test deletes entries.
`tests/test_cache_*.py` have the promises about the reaper, about bounds and about
refreshing.
"""

import contextlib
import functools
import gc
import io
import random
import subprocess
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, cast

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
    TooManyWaiting,
)
from tests import cache_callers
from tests.cache_callers import (
    A_WHILE,
    BOUND,
    Clock,
    Gated,
    Make,
    Pairs,
    ask,
    brief,
    checked,
    get_or_load,
    hectic,
    held,
    keep,
    reap,
    start,
    until,
    unwanted,
    waiting,
)


def test_the_names_of_the_kinds() -> None:
    """The kinds have the names that metrics and the shared cache use."""
    assert KINDS == ("ok", "negative", "fault", "paused")


# Promises 1 and 8: one load per key, and everybody gets its outcome.


@pytest.mark.parametrize("kind", KINDS)
def test_200_callers_of_a_cold_key(cache: Cache, kind: str) -> None:
    """200 callers of a cold key share one load and its object, whatever its kind."""
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
    """A load that raises anything frees its 200 callers and leaves nothing behind."""
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
    """A value that has expired when its load ends is handed out, but not kept."""
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
    """A private value goes only to the caller that loaded it, and isn't kept.

    Callers that waited for it load again, once.
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
    """`get` returns None at once for an absent or loading key, and counts nothing."""
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
    assert get_or_load(cache, "key", load).is_kept
    assert len(others) == 1
    others[0].result(BOUND)


# Promises 3 and 4: time.


def test_expiry_is_exact(cache: Cache, clock: Clock) -> None:
    """An entry is served until its expiry and never at it, even if it isn't reaped."""
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
        {"expired": 1, "bound": 0, "replaced": 0},
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
    """A key that expires while the rest of its list is loaded is loaded again."""
    asked = []

    def load(keys: list[str], _deadline: float) -> Pairs:
        asked.append(keys)
        born = clock.now - 2
        yield "first", Loaded(len(asked), kind, 4, born, source=result)
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
    """A list loads a key itself if another's answer expires before the rest comes."""
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
    """A value that has expired when its load ends is handed out, not loaded again.

    Loading it again wouldn't help.
    """

    def load(keys: list[str], _deadline: float) -> Pairs:
        began = clock.now
        for key in keys:
            yield key, Loaded(key, OK, 4, born=began - 4)
            clock.advance(1)

    found = cache.get_or_load(["a", "b"], load)
    assert [(each.ttl, each.is_kept) for each in found.values()] == [
        (-2, False),
        (-2, False),
    ]
    assert checked(cache).misses == 2


@pytest.mark.parametrize("source", ["shared", "awaited"])
def test_what_expired_on_its_way_from_a_shared_cache(
    cache: Cache, clock: Clock, source: str
) -> None:
    """An answer of a shared cache that has expired when it comes is loaded instead.

    Nobody gets it, even if this cache doesn't keep it.
    """
    old = Gated(Loaded("old", OK, 4, born=clock.now - 4, source=source))

    def load(key: str) -> Loaded:
        if old.calls:
            return Loaded("new", OK, 60)
        return old(key)

    callers = [ask(cache, "key", load) for _ in range(2)]
    old.go.set()
    assert [each.result(BOUND).value for each in callers] == ["new", "new"]


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
    cache: Cache, clock: Clock, age: float, left: int | None
) -> None:
    """If a load says when its value was born, the lifetime counts from then.

    The value may be older or younger than the load.
    """
    loaded = Loaded("key", OK, 10, born=clock.now - age)
    found = get_or_load(cache, "key", lambda key: loaded)
    assert (found.age, found.ttl, found.is_kept) == (age, left or 0, left is not None)
    assert cache.get("key") == (None if left is None else ("key", OK, age, left))


@pytest.mark.parametrize("result", ["miss", "shared", "awaited"])
def test_the_caller_that_loaded_is_told_the_result(cache: Cache, result: str) -> None:
    """The caller that loads is told its load's source, those that wait "collapsed"."""
    load = Gated(Loaded("value", OK, 0.5, source=result))
    callers = [ask(cache, "key", load), ask(cache, "key", load)]
    load.go.set()
    assert [caller.result(BOUND).source for caller in callers] == [result, "collapsed"]
    assert (checked(cache).misses, checked(cache).loads[OK]) == (1, 1)


def test_the_clock_counts_while_the_machine_sleeps() -> None:
    """The default clock counts the time spent suspended, if the system counts it."""
    seconds = (
        100_000  # for which the machine was suspended, as far as this process can tell
    )
    condition = f"cache.clock() - time.monotonic() > {seconds} - {BOUND}"
    script = f"import cache, time; print({condition})"
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
    script = (
        "import time; vars(time).pop('CLOCK_BOOTTIME', None); import cache; "
        "print(cache.clock is time.monotonic)"
    )
    command = [sys.executable, "-c", script]
    ended = subprocess.run(
        command, cwd=Path(__file__).parent, check=True, capture_output=True, text=True
    )
    assert ended.stdout == "True\n"


def test_the_usual_clock() -> None:
    """By default, lifetimes are real seconds."""
    cache = Cache(max_entries=1, max_bytes=10**6, max_waiting=1)
    cache.close()
    assert 0 <= keep(cache, "key", lifetime=BOUND).age < BOUND
    assert cache.get("key")


# Promise 7: what is handed out cannot be changed.


@pytest.mark.parametrize("value", [[], {}, set(), bytearray(), (1, ["deep"])], ids=repr)
def test_a_value_that_can_be_changed(cache: Cache, value: object) -> None:
    """A load that returns a mutable value fails for all callers; nothing is kept."""
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
    """A list takes hits, waits for others' loads, and loads the rest in one call."""
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
        ("z", ("z", "miss")),
        ("other", ("theirs", "collapsed")),
        ("a", ("a", "miss")),
        ("fresh", ("fresh", "hit")),
    ]
    assert other.result(BOUND).value is found["other"].value
    stats = checked(cache)
    assert (stats.misses, stats.collapsed, stats.loads[OK], stats.loads[FAULT]) == (
        4,
        1,
        3,
        1,
    )


def test_each_key_of_a_list_is_settled_as_it_comes(cache: Cache) -> None:
    """Each key of a list is kept, and handed to waiting callers, once it is loaded."""
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
    """If a list's load goes wrong half-way, what is left fails and the rest is kept.

    The load may leave a key out, yield one twice or one that nobody asked for, or
    raise.
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
    """If a load that a list waits for raises, the list fails; its own keys are kept."""
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
    """A caller that may not wait loads itself, without replacing the running load."""
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
    """A caller waits for another's load until `GRACE` after its deadline, then loads.

    That leaves time to answer within half a second, even if its own load raises.
    """
    assert GRACE < 0.5
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


# Promise 10: counters.


def random_traffic(cache: Cache, rng: random.Random) -> Counter[str]:
    """Ask for random keys in all ways; count the results seen and the kinds loaded."""
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
        except TooManyWaiting:
            seen["refused"] += len(keys)
        except (AssertionError, LoadFailed) as raised:
            seen["collapsed"] += isinstance(raised, LoadFailed)
        for each in found:
            seen["over"] += each.source == "hit" and each.ttl <= 0
            seen[each.source] += 1
            seen[f"hit {each.kind}"] += each.source == "hit"
    return seen


class CountingRefresher:
    """Refreshes in threads of its own, and counts what comes of it."""

    def __init__(self) -> None:
        self.cache: Cache | None = None
        self.pool = ThreadPoolExecutor(2)
        self.seen = Counter[str]()  # each thread's work is counted under the lock
        self.loading = set[str]()
        self._lock = threading.Lock()

    def on_refresh_due(self, keys: list[str]) -> bool:
        assert self.cache
        self.pool.submit(self.cache.refresh, keys, self.load)
        return True

    def load(self, keys: list[str], _deadline: float) -> Pairs:
        with self._lock:
            assert not self.loading.intersection(keys), "two refreshes of one key"
            self.loading.update(keys)
        left = list(keys)
        try:
            for key in keys:
                time.sleep(0)  # let others run
                kind = random.choice((*KINDS, OK, "failed"))
                if kind == "failed":
                    raise ValueError(key)
                left.remove(key)
                with self._lock:
                    self.seen[kind] += 1
                    self.loading.remove(key)
                yield key, Loaded(key, kind, random.uniform(0.001, 0.1))
        finally:
            with self._lock:
                self.seen["failed"] += len(left)
                self.loading.difference_update(left)


@pytest.mark.parametrize("refresh_ahead", [0.0, 0.5])
def test_counters_add_up_under_traffic(
    make: Make, clock: Clock, refresh_ahead: float
) -> None:
    """Under random traffic from eight threads, the counters always add up.

    In the end they are exact, with refreshing and without.
    """
    refresher = CountingRefresher()
    cache = make(
        max_entries=40,
        max_waiting=4,
        reaper=True,
        refresh_ahead=refresh_ahead,
        retry_refresh=0.001,
        on_refresh_due=refresher.on_refresh_due,
    )
    refresher.cache = cache
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
    refresher.pool.shutdown()
    start(cache.close).result(BOUND)
    stats = checked(cache, 40)
    assert (stats.waiting, stats.loading, stats.refreshing) == (0, 0, 0)
    assert (held(stats), seen["over"]) == (len(cache), 0)
    assert stats.hits == {kind: seen[f"hit {kind}"] for kind in KINDS}
    assert stats.loads == {kind: seen[kind] for kind in (*KINDS, "failed")}
    assert stats.refreshes == {
        kind: refresher.seen[kind] for kind in (*KINDS, "failed")
    }
    assert (sum(stats.refreshes.values()) > 0) == (refresh_ahead > 0)
    assert stats.refused == seen["refused"]
    # A key that expired while the rest of its list was waited for was loaded, or waited
    # for, once more.
    assert stats.misses >= seen["miss"] + seen["failed"]
    assert stats.collapsed >= seen["collapsed"]
    ended = stats.misses + sum(stats.refreshes.values())
    assert held(stats) + sum(stats.evicted.values()) <= ended


if __name__ == "__main__":
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        status = pytest.main(
            [
                __file__,
                "--noconftest",
                "-q",
                *("-W", "error"),
                *("-p", "no:cacheprovider"),
            ],
            plugins=[cache_callers],  # its fixtures
        )
    if status:
        sys.exit(output.getvalue() or "no test ran")
