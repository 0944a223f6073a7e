"""Answers kept for a lifetime, each loaded once.

A `Cache` is a dict under one lock. A key that is absent or expired is loaded by the first caller that asks for it;
callers that ask meanwhile share the outcome. Keys never wait for each other, and the lock is never held during a load.
Nothing is served at or past its expiry. A thread, the reaper, deletes expired entries: it sleeps until the next
expiry and works in small batches, so that its cost follows what expires and no reader waits for long.

`Cache._lock` guards everything in a cache that changes. A `_Load` changes once, before its `done` is set.
"""

import heapq
import math
import threading
import time
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, NamedTuple

OK: Final = "ok"  # a good answer
NEGATIVE: Final = "negative"  # a definite refusal
FAULT: Final = "fault"  # something is broken: worth asking again soon
PAUSED: Final = "paused"  # the upstream asked for a pause
KINDS: Final = (OK, NEGATIVE, FAULT, PAUSED)

_REAP_BATCH = 256  # entries deleted per hold of the lock: a few tenths of a millisecond
_REAP_PAUSE = 0.0001  # seconds between two batches; without it the reaper takes the lock again before any reader
_GRACE = 0.5  # seconds after its deadline by which any load has ended

# Monotonic seconds that include the time for which the machine was suspended, where the system counts them.
clock = partial(time.clock_gettime, time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic

# Stands in the dict and, ordered by expiry, in a heap. The garbage collector stops tracking exact tuples of plain
# values, so that a million of them do not slow down each full collection.
_Entry = tuple[float, str, float, str, Hashable]  # expiry, key, born, kind, value
_EXPIRY: Final = 0
_KEY: Final = 1
_KIND: Final = 3

Hit = tuple[Any, str, float, float]  # value, kind, age, ttl; a plain tuple, since a named one costs half a hit more


class Loaded(NamedTuple):
    """What a load returns for a key.

    Every caller gets the same `value`, so it must be immutable all the way down: hashable. `lifetime` and `age` are in
    seconds: the value was born `age` before the load began (negative: after), and expires `lifetime` after its birth.
    A value that has expired when its load ends is handed to those who waited, and not kept. A `lifetime` of 0 says
    that the outcome is only for the caller that loaded it: others who waited load for themselves.
    """

    value: Hashable
    kind: str
    lifetime: float
    age: float = 0.0
    source: str = "load"  # or, from a cache further on: "shared" (it was there) or "awaited" (another loaded it)


LoadMany = Callable[[list[str]], Iterable[tuple[str, Loaded]]]


class Found(NamedTuple):
    """What a caller gets: the value, and where it came from. `age` and `ttl` are in seconds, at that moment."""

    value: Any
    kind: str
    age: float
    ttl: float
    result: str  # "hit", "miss" (loaded by this caller), "collapsed" (by another), or the source: "shared", "awaited"
    kept: bool


class Stats(NamedTuple):
    """One consistent reading of the counters; hits, loads and entries by kind. A miss is a load, ended or under way."""

    hits: dict[str, int]
    misses: int
    collapsed: int
    refused: int  # keys
    loads: dict[str, int]  # and "failed": those that raised
    evicted: dict[str, int]  # "expired", or "bound": to make room
    entries: dict[str, int]
    waiting: int  # callers that run a load or wait for one
    loading: int  # keys that are being loaded


class Refused(Exception):
    """Too many callers wait for a load already; nothing was loaded."""


class LoadFailed(Exception):
    """The load that this caller waited for raised; what it raised is the cause."""


class _Outcome(NamedTuple):
    """What came of a key for one caller. If it was `fresh` when it came, it is not served once it has expired."""

    entry: _Entry
    result: str
    fresh: bool
    kept: bool


@dataclass
class _Load:
    """A load of one key. It is `done` with an outcome, with an error, or with nothing for those who wait for it."""

    done: threading.Event = field(default_factory=threading.Event)
    outcome: _Outcome | None = None
    error: BaseException | None = None


_Outcomes = dict[str, _Outcome]  # by key
_Loads = dict[str, _Load]


class Cache:
    """Keeps what loads return for the lifetime that each says. All methods may be called from any thread.

    At most `max_entries` are held. Everything but good answers holds at most a tenth of that and makes room among
    itself only, so that no flood of unknown keys evicts a good entry; of its peers, the one that expires first goes.
    At most `max_waiting` callers may be in a load or wait for one. `clock` gives monotonic seconds.
    """

    def __init__(self, *, max_entries: int, max_waiting: int, clock: Callable[[], float] = clock) -> None:
        self._max_entries = max_entries
        self._max_poor = max(1, max_entries // 10)
        self._max_waiting = max_waiting
        self._clock = clock
        self._lock = threading.Lock()
        self._entries: dict[str, _Entry] = {}
        self._good: list[_Entry] = []  # heaps; an entry in them that is no longer the dict's is passed over
        self._poor: list[_Entry] = []  # all but good answers
        self._loads: dict[str, _Load] = {}
        self._hits, self._loaded, self._held = (dict.fromkeys(KINDS, 0) for _ in range(3))
        self._evicted = {"expired": 0, "bound": 0}
        self._misses = self._collapsed = self._refused = self._failed = self._waiting = 0
        self._closed = False
        self._wake = threading.Condition(self._lock)  # for the reaper: an earlier expiry, or the end
        self._wake_at = math.inf  # when the reaper wakes by itself
        self._reaper = threading.Thread(target=self._reap_forever, name="c42c-reaper", daemon=True)
        self._reaper.start()

    def __len__(self) -> int:
        """The number of entries held, including expired ones that the reaper has not deleted yet."""
        return len(self._entries)

    def snapshot(self) -> Stats:
        """Read all counters at one moment."""
        with self._lock:
            loads = {**self._loaded, "failed": self._failed}
            requests = self._hits.copy(), self._misses, self._collapsed, self._refused
            entries = self._evicted.copy(), self._held.copy()
            return Stats(*requests, loads, *entries, self._waiting, self._misses - sum(loads.values()))

    def get(self, key: str) -> Hit | None:
        """Return what is fresh under `key` and count a hit; if there is nothing, return None and count nothing."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None or entry[_EXPIRY] <= (now := self._clock()):
                return None
            expiry, _, born, kind, value = entry
            self._hits[kind] += 1
        return value, kind, now - born, expiry - now

    def get_or_load(self, key: str, load: Callable[[str], Loaded], deadline: float = math.inf) -> Found:
        """Return what is fresh under `key`, or else what `load` returns; as `get_or_load_many` with one key."""
        return self.get_or_load_many((key,), lambda keys: ((key, load(key)) for key in keys), deadline)[key]

    def get_or_load_many(self, keys: Iterable[str], load: LoadMany, deadline: float = math.inf) -> dict[str, Found]:
        """Return what is fresh under `keys`, in their order; load together those that nobody else is loading.

        `load` yields each key with what came of it, which is kept and handed to those who wait for it at once. This
        caller runs its own loads before it waits for others', so that two callers can't deadlock. What expires while
        it waits is loaded again. From `deadline` on, a moment of `time.monotonic`, it waits for nobody: it asks `load`,
        which should know the deadline too and say at once that there is no time.

        Raises what `load` raises, KeyError if it leaves a key out or there is no such kind, TypeError if a value is
        mutable, `LoadFailed` if another caller's load raised, and `Refused` at once if too many wait already.
        """
        wanted = keys = list(dict.fromkeys(keys))
        got, found = _Outcomes(), dict[str, Found]()
        give_up = deadline + _GRACE
        waits = False
        try:
            while wanted:
                held, theirs, mine = self._claim(keys, wanted, waits, time.monotonic() >= give_up)
                waits = waits or bool(theirs or mine)
                got |= held | self._run(mine, load)
                for key, running in theirs.items():
                    running.done.wait(min(give_up - time.monotonic(), threading.TIMEOUT_MAX))
                    if running.error is not None:
                        raise LoadFailed from running.error
                    if running.outcome is not None:
                        got[key] = running.outcome._replace(result="collapsed")
                now = self._clock()
                wanted = [key for key in keys if key not in got or (got[key].fresh and got[key].entry[_EXPIRY] <= now)]
            found = {key: _found(got[key], now) for key in keys}
            return found
        finally:
            with self._lock:
                self._waiting -= waits
                for each in found.values():
                    self._hits[each.kind] += each.result == "hit"

    def _claim(self, keys: list[str], wanted: list[str], waits: bool, late: bool) -> tuple[_Outcomes, _Loads, _Loads]:
        """Return what is held of `wanted`, what others are loading, and what is left to load: if `late`, the rest."""
        held, theirs, mine = _Outcomes(), _Loads(), _Loads()
        with self._lock:
            now = self._clock()
            for key in wanted:
                if (entry := self._entries.get(key)) and entry[_EXPIRY] > now:
                    held[key] = _Outcome(entry, "hit", fresh=True, kept=True)
                elif key in self._loads and not late:
                    theirs[key] = self._loads[key]
                else:
                    mine[key] = _Load()
            if (theirs or mine) and not waits:
                if self._waiting >= self._max_waiting:
                    self._refused += len(keys)
                    raise Refused
                self._waiting += 1
            self._misses += len(mine)
            self._collapsed += len(theirs)
            self._loads = mine | self._loads  # a late caller takes nobody's place
        return held, theirs, mine

    def _run(self, mine: _Loads, load: LoadMany) -> _Outcomes:
        """Load the keys of `mine`, settle each as it comes, and release those who wait, whatever happens."""
        outcomes = _Outcomes()
        try:
            began = self._clock()
            for key, loaded in load(list(mine)) if mine else ():
                outcomes[key] = self._settle(key, mine[key], loaded, began)
                del mine[key]
            if mine:
                raise KeyError(*mine)
        except BaseException as error:
            with self._lock:
                self._failed += len(mine)
                for key, running in mine.items():
                    if self._loads.get(key) is running:
                        del self._loads[key]
                    running.error = error
                    running.done.set()
            raise
        return outcomes

    def _settle(self, key: str, running: _Load, loaded: Loaded, began: float) -> _Outcome:
        """Keep what came of a load, and hand it to those who wait for it."""
        value, kind, lifetime, age, source = loaded
        hash(value)  # TypeError: it is mutable
        entry = (began - age + lifetime, key, began - age, kind, value)
        with self._lock:
            self._loaded[kind] += 1  # KeyError: there is no such kind
            fresh = lifetime > 0 and entry[_EXPIRY] > self._clock()
            if kept := self._loads.get(key) is running:  # a late caller's is not listed
                del self._loads[key]
                kept = fresh and self._keep(entry)
            outcome = _Outcome(entry, "miss" if source == "load" else source, fresh, kept)
            running.outcome = outcome if lifetime > 0 else None
            running.done.set()
        return outcome

    def _keep(self, entry: _Entry) -> bool:
        """Put `entry` in, after making room for it, and say whether it is kept. The lock is held."""
        now = self._clock()
        if old := self._entries.get(entry[_KEY]):  # expired, and the reaper has not deleted it yet
            self._delete(old, now)
        heap = self._good if entry[_KIND] == OK else self._poor
        while heap is self._poor and len(self._entries) - self._held[OK] >= self._max_poor:
            self._delete(heapq.heappop(self._poor), now)
        while len(self._entries) >= self._max_entries:
            if not self._poor and heap is self._poor:
                return False
            self._delete(heapq.heappop(self._poor or self._good), now)
        self._entries[entry[_KEY]] = entry
        heapq.heappush(heap, entry)
        self._held[entry[_KIND]] += 1
        if entry[_EXPIRY] < self._wake_at:
            self._wake.notify()
        return True

    def _delete(self, entry: _Entry, now: float) -> None:
        """Delete `entry`, unless the dict has it no more. The lock is held."""
        if self._entries.get(entry[_KEY]) is entry:
            del self._entries[entry[_KEY]]
            self._held[entry[_KIND]] -= 1
            self._evicted["expired" if entry[_EXPIRY] <= now else "bound"] += 1

    def reap(self) -> None:
        """Delete everything that has expired: the reaper's work."""
        while self._reap_batch():
            pass

    def _reap_batch(self) -> bool:
        """Delete a batch of what has expired; return False if there was nothing."""
        with self._lock:
            now = self._clock()
            due = [heap for heap in (self._good, self._poor) if heap and heap[0][_EXPIRY] <= now]
            for heap in due:
                for _ in range(_REAP_BATCH):
                    if heap and heap[0][_EXPIRY] <= now:
                        self._delete(heapq.heappop(heap), now)
        return bool(due)

    def _reap_forever(self) -> None:
        while not self._closed:
            if self._reap_batch():
                time.sleep(_REAP_PAUSE)
                continue
            with self._wake:
                self._wake_at = min((heap[0][_EXPIRY] for heap in (self._good, self._poor) if heap), default=math.inf)
                delay = min(self._wake_at - self._clock(), threading.TIMEOUT_MAX)
                if delay > 0 and not self._closed:
                    self._wake.wait(delay)

    @property
    def reaper_alive(self) -> bool:
        """Whether the reaper thread runs."""
        return self._reaper.is_alive()

    def close(self) -> None:
        """Stop the reaper. The cache remains usable."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._reaper.join()


def _found(outcome: _Outcome, now: float) -> Found:
    expiry, _, born, kind, value = outcome.entry
    return Found(value, kind, now - born, expiry - now, outcome.result, outcome.kept)
