"""Callers of a cache, in threads that a test puts in order, and a clock that it moves.

Threads are put in order by gates and by the number of waiting callers, never by
sleeping. Tests wait for at most `BOUND` seconds, so a broken promise makes them fail
rather than hang. This is a plugin of pytest: it has the fixtures `clock`, `make` and
`cache`.
"""

import contextlib
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

import pytest

from cache import KINDS, OK, Cache, Found, Loaded, Stats

BOUND = 60.0  # seconds after which a test gives up on what should have happened at once
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
    assert list(stats.loads) == list(stats.refreshes) == [*KINDS, "failed"]
    assert stats.misses == sum(stats.loads.values()) + stats.loading
    assert stats.refreshing >= 0
    assert 0 <= held(stats) <= max_entries
    assert held(stats) - stats.entries[OK] <= max(1, max_entries // 10)
    return stats


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make(clock: Clock) -> Iterator[Make]:
    caches = []

    def make_cache(*, reaper: bool = False, **options: Any) -> Cache:
        usual = {"max_entries": 1000, "max_bytes": 10**9, "max_waiting": 1000}
        caches.append(Cache(**usual | options, clock=clock))
        if not reaper:
            caches[-1].close()
        return caches[-1]

    yield make_cache
    for cache in caches:
        start(cache.close).result(BOUND)


@pytest.fixture
def cache(make: Make) -> Cache:
    return make()


@contextlib.contextmanager
def hectic() -> Iterator[None]:
    """Make threads take turns as often as possible."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)
