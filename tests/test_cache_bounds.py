"""The cache is bounded: in entries, in bytes and in waiting callers."""

import gc
import random
import subprocess
import sys
import weakref
from pathlib import Path

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
    TooManyWaiting,
)
from tests.cache_callers import (
    BOUND,
    Clock,
    Gated,
    Make,
    Moment,
    ask,
    checked,
    get_or_load,
    keep,
    reap,
    unwanted,
)


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
        ).is_kept
        del key
    assert all(cache.get(f"good{number}") for number in range(90))
    stats = checked(cache, 100)
    assert (stats.entries[OK], len(cache), stats.evicted) == (
        90,
        100,
        {"expired": 0, "bound": 2990, "replaced": 0},
    )
    gc.collect()
    assert len(alive) < 100
    assert keep(
        cache, "better", lifetime=100
    ).is_kept  # in place of another good answer
    assert (len(cache), checked(cache, 100).entries[OK]) == (100, 90)


@pytest.mark.parametrize(
    ("max_entries", "good", "bad"),
    [(2, 1, 1), (9, 8, 1), (10, 9, 1), (19, 18, 1), (20, 18, 2), (39, 36, 3)],
)
@pytest.mark.parametrize("good_first", [True, False])
def test_bad_answers_hold_a_tenth(
    make: Make, max_entries: int, good: int, bad: int, good_first: bool
) -> None:
    """Good answers get nine tenths of the entries, all others one.

    In each part, what expires first makes room.
    """
    cache = make(max_entries=max_entries)

    def fill(name: str, room: int, kinds: tuple[str, ...]) -> None:
        for number in range(room + 3):
            assert keep(
                cache,
                f"{name}{number}",
                kinds[number % len(kinds)],
                lifetime=60 - number,
            ).is_kept
        # Each entry beyond the bound replaced the one that expired first: the one
        # before it.
        assert [
            number for number in range(room + 3) if cache.get(f"{name}{number}")
        ] == [*range(room - 1), room + 2]

    parts = [("good", good, (OK,)), ("bad", bad, (FAULT, NEGATIVE, PAUSED))]
    for part in parts if good_first else reversed(parts):
        fill(*part)
    assert len(cache) == good + bad
    assert checked(cache, max_entries).evicted == {
        "expired": 0,
        "bound": 6,
        "replaced": 0,
    }


def test_what_was_loaded_again_makes_room_once(make: Make, clock: Clock) -> None:
    """A key that is loaded again before it is reaped counts once, by its new expiry."""
    cache = make(max_entries=3)
    keep(cache, "twice", lifetime=4)
    clock.advance(4)
    keep(cache, "twice", lifetime=100)
    keep(cache, "once", lifetime=50)
    keep(cache, "new", lifetime=10)
    assert (cache.get("once"), len(cache)) == (None, 2)
    assert cache.get("twice")
    assert checked(cache).evicted == {"expired": 1, "bound": 1, "replaced": 0}
    clock.advance(50)
    reap(cache)
    assert (len(cache), checked(cache).evicted) == (
        1,
        {"expired": 2, "bound": 1, "replaced": 0},
    )


def test_waiting_callers_are_bounded(make: Make) -> None:
    """Callers beyond the bound are refused at once, whether they would load or wait.

    Hits are never refused.
    """
    cache = make(max_waiting=2)
    keep(cache, "fresh")
    load = Gated(Loaded("value", OK, 60))
    inside = [ask(cache, "key", load), ask(cache, "key", load)]
    before = checked(cache)
    refused = [ask(cache, key, unwanted).exception(BOUND) for key in ("key", "other")]
    assert [type(each) for each in refused] == [TooManyWaiting, TooManyWaiting]
    with pytest.raises(TooManyWaiting):
        cache.get_or_load(["fresh", "key", "other", "key"], unwanted)
    assert checked(cache) == before._replace(refused=5)  # one for each key, and no hit
    assert get_or_load(cache, "fresh", unwanted).source == "hit"
    assert cache.get_or_load(["fresh"], unwanted)["fresh"].source == "hit"
    assert cache.get_or_load([], unwanted) == {}
    load.go.set()
    assert [caller.result(BOUND).value for caller in inside] == ["value", "value"]
    assert (keep(cache, "other").source, checked(cache).waiting) == ("miss", 0)


# Bytes


def keep_bytes(
    cache: Cache, key: str, size: int, kind: str = OK, lifetime: float = 60.0
) -> Found:
    """Load a value of so many bytes."""
    return get_or_load(cache, key, lambda _: Loaded(bytes(size), kind, lifetime))


def test_entries_are_bounded_in_bytes(make: Make) -> None:
    """What is kept takes at most `max_bytes`; what expires first makes room."""
    cache = make(max_bytes=100_000)
    for number in range(300):
        assert keep_bytes(cache, str(number), 1000, lifetime=60 + number).is_kept
        assert checked(cache).bytes <= 100_000
    left = [number for number in range(300) if cache.get(str(number))]
    assert left == list(range(300 - len(left), 300))
    assert 60 <= len(left) <= 80  # each has an overhead of some 400 bytes
    assert checked(cache).bytes > 88_000
    assert checked(cache).evicted["bound"] == 300 - len(left)
    # A single one may take the place of many.
    assert keep_bytes(cache, "large", 9000, lifetime=1000).is_kept
    assert len(cache) < len(left) - 5


def test_the_bound_in_bytes_is_exact(make: Make) -> None:
    """Good answers take all of nine tenths of `max_bytes`, and not a byte more.

    One of them takes all of a tenth, and not a byte more.
    """
    cache = make(max_bytes=100_000)
    keep_bytes(cache, "00", 1000)
    size = checked(cache).bytes
    for max_bytes, room in ((20 * size, 18), (20 * size - 2, 17)):
        cache = make(max_bytes=max_bytes)
        for number in range(20):
            keep_bytes(cache, f"{number:02}", 1000)
        assert len(cache) == room
    assert keep_bytes(make(max_bytes=10 * size), "00", 1000).is_kept
    assert not keep_bytes(make(max_bytes=10 * size - 1), "00", 1000).is_kept


def test_keys_count(make: Make) -> None:
    """The bytes of keys count."""
    cache = make(max_bytes=100_000)
    for number in range(300):
        assert keep_bytes(cache, f"{number:01000d}", 1).is_kept
    assert checked(cache).bytes <= 100_000
    assert len(cache) <= 90


def test_bad_answers_take_a_tenth_of_the_bytes(make: Make) -> None:
    """Errors take at most a tenth of the bytes, and evict no good answer."""
    cache = make(max_bytes=1_000_000)
    for number in range(600):
        assert keep_bytes(cache, f"good{number}", 1000).is_kept
    good = checked(cache)
    assert good.entries[OK] == 600
    for number in range(500):
        kind = (NEGATIVE, FAULT, PAUSED)[number % 3]
        assert keep_bytes(cache, f"bad{number}", 8000, kind, 60 + number).is_kept
        assert checked(cache).bytes - good.bytes <= 100_000
    stats = checked(cache)
    assert stats.entries[OK] == 600
    assert 10 <= len(cache) - 600 <= 12
    assert cache.get("bad499")


def test_good_answers_take_nine_tenths_of_the_bytes(make: Make) -> None:
    """Good answers leave errors their tenth."""
    cache = make(max_bytes=1_000_000)
    for number in range(900):
        keep_bytes(cache, f"good{number}", 1000)
    before = checked(cache)
    assert 880_000 < before.bytes <= 900_000
    assert keep_bytes(cache, "bad", 90_000, FAULT).is_kept
    assert checked(cache).entries[OK] == before.entries[OK]


@pytest.mark.parametrize("kind", [OK, NEGATIVE])
def test_a_large_answer_is_not_kept(make: Make, kind: str) -> None:
    """An answer over a tenth of the bytes is handed out, but isn't kept.

    It evicts nothing.
    """
    cache = make(max_bytes=100_000)
    keep_bytes(cache, "small", 1000)
    load = Gated(Loaded(bytes(10_000), kind, 60))
    callers = [ask(cache, "large", load), ask(cache, "large", load)]
    load.go.set()
    for caller in callers:
        found = caller.result(BOUND)
        assert (len(found.value), found.is_kept) == (10_000, False)
    assert (len(cache), checked(cache).loads[kind]) == (1, 2 if kind == OK else 1)
    assert cache.get("small")
    assert keep_bytes(cache, "largest", 9_500, kind).is_kept


def test_a_large_answer_replaces_none(make: Make, clock: Clock) -> None:
    """If a refresh brings an answer that is too large, the old one stays.

    It expires in its time.
    """
    cache = make(max_bytes=100_000, refresh_ahead=0.5, on_refresh_due=lambda keys: True)
    keep_bytes(cache, "key", 1)
    clock.advance(30)
    assert cache.get("key")
    cache.refresh(["key"], lambda keys, _: [("key", Loaded(bytes(10_000), OK, 60))])
    assert cache.get("key") == (b"\0", OK, 30, 30)
    clock.advance(30)
    assert cache.get("key") is None


def test_what_is_empty_takes_nothing(make: Make) -> None:
    """Zero and what is empty are shared, so only their places in a value count."""
    cache = make()
    get_or_load(cache, "a", lambda _: Loaded((), OK, 60))
    empty = checked(cache).bytes
    get_or_load(cache, "b", lambda _: Loaded((0, "", b""), OK, 60))
    assert checked(cache).bytes == 2 * empty + sys.getsizeof((0, "", b""))


def test_memory_is_freed(make: Make, clock: Clock) -> None:
    """An empty cache takes no bytes, however its entries went."""
    cache = make(max_entries=100, max_bytes=200_000)
    for number in range(500):
        kind = KINDS[number % 4]
        keep_bytes(cache, str(number % 200), number, kind, lifetime=1 + number % 7)
        clock.advance(0.1)
    assert checked(cache).bytes > 10_000
    clock.advance(100)
    reap(cache)
    assert (len(cache), checked(cache).bytes) == (0, 0)


def eviction_cost(make: Make, clock: Clock, *, held: int) -> int:
    """Return how many moments are compared to make room 100 times."""
    cache = make(max_entries=held * 10 // 9 + 1)
    clock.now = Moment(1000.0)
    for number in random.Random(5).sample(range(held), held):
        keep(cache, str(number), lifetime=1000 + number)
    before = checked(cache, 10 * held).evicted["bound"]
    Moment.compared = 0
    for number in range(100):
        keep(cache, f"new{number}", lifetime=10_000 + number)
    assert checked(cache, 10 * held).evicted["bound"] >= before + 99
    return Moment.compared


def test_the_cost_of_making_room(make: Make, clock: Clock) -> None:
    """To make room costs hardly more if more is held."""
    small = eviction_cost(make, clock, held=500)
    large = eviction_cost(make, clock, held=5000)
    assert large <= 2 * small


def refresh_cost(make: Make, clock: Clock, *, held: int) -> int:
    """Return how many moments are compared to refresh 100 answers."""
    cache = make(refresh_ahead=0.5, on_refresh_due=lambda keys: True, max_entries=10000)
    clock.now = Moment(1000.0)
    for number in range(held):
        keep(cache, str(number), lifetime=1000)
    clock.advance(500)
    Moment.compared = 0
    for number in range(100):
        key = str(number)
        cache.get(key)
        cache.refresh([key], lambda keys, _: [(keys[0], Loaded("new", OK, 1000))])
    assert checked(cache, 10000).refreshes[OK] == 100
    return Moment.compared


def test_the_cost_of_refreshing(make: Make, clock: Clock) -> None:
    """To refresh an answer costs hardly more if more is held."""
    small = refresh_cost(make, clock, held=200)
    large = refresh_cost(make, clock, held=2000)
    assert large <= 2 * small


def test_the_estimate_is_honest() -> None:
    """The bytes in the counters are those that the process takes, within a fifth."""
    script = """
import sys
from cache import Cache, Loaded

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

def load(keys, deadline):
    for key in keys:
        etag = f'"{key[-24:]}"'
        body = key.encode() + bytes(300 - len(key))
        yield key, Loaded((body, 200, "application/json", etag, 200, 0), "ok", 252.0)

count = int(sys.argv[1])
cache = Cache(max_entries=2 * count, max_bytes=10**12, max_waiting=1)
before = resident()
for number in range(count):
    cache.get_or_load([f"{number:032x}_14602021609581"], load)
print(resident() - before, cache.snapshot().bytes)
"""
    ended = subprocess.run(
        [sys.executable, "-c", script, "20000"],
        cwd=Path(__file__).parent.parent,
        check=True,
        capture_output=True,
        text=True,
    )
    taken, estimated = map(int, ended.stdout.split())
    assert 0.8 < taken / estimated < 1.2
