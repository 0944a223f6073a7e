"""Answers kept for a lifetime, each loaded once.

A `Cache` is a dict under one lock. A key that is not there, or whose time is up, is loaded by the first caller that
asks for it; whoever asks meanwhile shares the outcome. Keys never wait for each other, and the lock is never held in a
load. Nothing is served at or past its expiry. A thread, the reaper, deletes what has expired: it sleeps until the next
expiry and works in small batches, so that its cost follows what expires, and no reader waits for long.

`Cache._lock` guards all that changes in a cache. A `_Load` is written before its `done` is set, and only read after.
"""

import heapq
import math
import os
import threading
import time
import weakref
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

OK: Final = "ok"  # a good answer
NEGATIVE: Final = "negative"  # a definite no
FAULT: Final = "fault"  # something is out of order: worth asking again soon
KINDS: Final = (OK, NEGATIVE, FAULT)

_REAP_BATCH = 256  # entries deleted per hold of the lock: a few tenths of a millisecond
_REAP_PAUSE = 0.0001  # seconds between two batches; without it the reaper takes the lock again before any reader

# Stands in the dict and, ordered by expiry, in a heap. The garbage collector stops tracking exact tuples of plain
# values, so that a million of them do not make each full collection slow.
_Entry = tuple[float, str, float, str, Hashable]  # expiry, key, born, kind, value
_EXPIRY: Final = 0
_KEY: Final = 1
_KIND: Final = 3


class Loaded(NamedTuple):
    """What a load returns for a key.

    Every caller gets the same `value`, so it must be immutable all the way down: hashable. `lifetime` is in seconds
    from when the value began to be; where it is over when the load ends, those who waited get the value and none is
    kept. A value begins to be when its load begins, or `age` seconds before: it may come from a cache further on.
    """

    value: Hashable
    kind: str
    lifetime: float
    age: float = 0.0  # less than 0 where the value began to be only later, after waiting


class Found(NamedTuple):
    """What a caller gets: the value, and where it came from. `age` and `ttl` are in seconds, at that moment."""

    value: Any
    kind: str
    # "hit", "miss" (this caller loaded it), "shared" (this caller's load found it in a cache further on) or "collapsed"
    # (it waited for another caller's load)
    result: str
    age: float
    ttl: float
    kept: bool


class Stats(NamedTuple):
    """One consistent reading. A key asked for is one of the first four; a miss is a load, ended or under way."""

    hits: int
    misses: int
    collapsed: int
    refused: int
    loads_ok: int
    loads_negative: int
    loads_fault: int
    loads_failed: int  # raised
    evicted_expired: int
    evicted_bound: int
    entries_ok: int
    entries_negative: int
    entries_fault: int
    waiting: int  # callers that run a load or wait for one
    loading: int  # keys that are being loaded


class Refused(Exception):
    """Too many callers wait for a load already; nothing was loaded."""


class LoadFailed(Exception):
    """The load that this caller waited for raised; what it raised is the cause."""


_LoadMany = Callable[[list[str]], Mapping[str, Loaded]]


@dataclass(slots=True, eq=False)
class _Load:
    done: threading.Event = field(default_factory=threading.Event)
    entry: _Entry | None = None
    kept: bool = False
    result: str = "miss"
    error: BaseException | None = None


class Cache:
    """Keeps what loads return for the lifetime that each says. All methods may be called from any thread.

    At most `max_entries` are held. Negatives and faults hold at most a tenth of that and make room among themselves
    only, so that no flood of unknown keys evicts a good entry; of its peers, the one that expires first goes. At
    most `max_waiting` callers may be in a load or wait for one. `clock` gives monotonic seconds.
    """

    def __init__(self, *, max_entries: int, max_waiting: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_entries = max_entries
        self._max_poor = max(1, max_entries // 10)
        self._max_waiting = max_waiting
        self._clock = clock
        self._closed = False
        self._start()
        _caches.add(self)

    def _start(self) -> None:
        self._lock = threading.Lock()
        self._entries: dict[str, _Entry] = {}
        self._good: list[_Entry] = []  # heaps; an entry in them that is no longer the dict's is passed over
        self._poor: list[_Entry] = []  # negatives and faults
        self._loads: dict[str, _Load] = {}
        self._waiting = 0
        self._counts = dict.fromkeys(Stats._fields[:-2], 0)
        self._wake = threading.Condition(self._lock)  # for the reaper: an earlier expiry, or the end
        self._wake_at = math.inf  # when the reaper wakes by itself
        self._reaper = threading.Thread(target=self._reap_forever, name="c42c-reaper", daemon=True)
        if not self._closed:
            self._reaper.start()

    def __len__(self) -> int:
        """The number of entries held, with those that have expired and wait for the reaper."""
        return len(self._entries)

    def snapshot(self) -> Stats:
        """Read all counters at one moment."""
        with self._lock:
            return Stats(**self._counts, waiting=self._waiting, loading=len(self._loads))

    def get(self, key: str) -> Found | None:
        """Return what is fresh under `key` and count a hit; where there is nothing, return None and count nothing."""
        with self._lock:
            entry = self._entries.get(key)
            now = self._clock()
            if entry is None or entry[_EXPIRY] <= now:
                return None
            self._counts["hits"] += 1
        return _found(entry, "hit", now)

    def get_or_load(self, key: str, load: Callable[[str], Loaded]) -> Found:
        """Return what is fresh under `key`, or else what `load` returns; as `get_or_load_many` with one key."""
        return self.get_or_load_many((key,), lambda keys: {key: load(key)})[key]

    def get_or_load_many(self, keys: Iterable[str], load: _LoadMany) -> dict[str, Found]:
        """Return what is fresh under `keys`, in their order; load together those that nobody loads already.

        What others load is waited for after the own load, so that no two callers wait for each other. Raises what
        `load` raises, KeyError where it leaves a key out, TypeError where a value can be changed, `LoadFailed` where
        another caller's load raised, and `Refused` at once where too many wait already.
        """
        return self._find(list(dict.fromkeys(keys)), load, admitted=False)

    def _find(self, keys: list[str], load: _LoadMany, *, admitted: bool) -> dict[str, Found]:
        held, loads, mine, hits = dict[str, _Entry](), dict[str, _Load](), dict[str, _Load](), 0
        with self._lock:
            now = self._clock()
            for key in keys:
                entry = self._entries.get(key)
                if entry and entry[_EXPIRY] > now:
                    held[key] = entry
                elif key in self._loads:
                    loads[key] = self._loads[key]
                else:
                    loads[key] = mine[key] = _Load()
            enters = bool(loads) and not admitted
            if enters and self._waiting >= self._max_waiting:
                self._counts["refused"] += len(keys)
                raise Refused
            self._waiting += enters
            self._counts["misses"] += len(mine)
            self._counts["collapsed"] += len(loads) - len(mine)
            self._loads |= mine
        try:
            if mine:
                self._run(mine, load)
            for running in loads.values():
                running.done.wait()
                if running.error is not None:
                    raise LoadFailed from running.error
            now = self._clock() if loads else now
            found = {key: _found(entry, "hit", now) for key, entry in held.items()}
            for key, running in loads.items():
                assert running.entry
                found[key] = _found(running.entry, running.result if key in mine else "collapsed", now, running.kept)
            if late := [key for key, entry in held.items() if entry[_EXPIRY] <= now]:  # while others were loaded
                found |= self._find(late, load, admitted=True)
            hits = len(held) - len(late)
            return {key: found[key] for key in keys}
        finally:
            with self._lock:
                self._waiting -= enters
                self._counts["hits"] += hits

    def _run(self, mine: dict[str, _Load], load: _LoadMany) -> None:
        """Load the keys of `mine`, keep what came and release whoever waits, whatever happens."""
        entries: dict[str, _Entry] = {}
        try:
            began = self._clock()
            loaded = load(list(mine))
            for key, running in mine.items():
                value, kind, lifetime, age = loaded[key]
                hash(value)  # TypeError: it can be changed
                KINDS.index(kind)  # ValueError: there is no such kind
                running.result = "shared" if age > 0 else "miss"
                entries[key] = (began - age + lifetime, key, began - age, kind, value)
        except BaseException as error:
            entries.clear()
            for running in mine.values():
                running.error = error
            raise
        finally:
            with self._lock:
                for key, running in mine.items():
                    if self._loads.get(key) is running:  # not forgotten in a fork
                        del self._loads[key]
                    running.entry = entries.get(key)
                    running.kept = running.entry is not None and self._keep(running.entry)
                    self._counts["loads_" + (running.entry[_KIND] if running.entry else "failed")] += 1
                    running.done.set()

    def _keep(self, entry: _Entry) -> bool:
        """Put `entry` in, after making room for it, and say whether it is kept. The lock is held."""
        now = self._clock()
        if not entry[_EXPIRY] > now:
            return False
        if old := self._entries.get(entry[_KEY]):  # expired, and the reaper did not come by yet
            self._delete(old, now)
        heap = self._good if entry[_KIND] == OK else self._poor
        while heap is self._poor and self._counts["entries_negative"] + self._counts["entries_fault"] >= self._max_poor:
            self._delete(heapq.heappop(self._poor), now)
        while len(self._entries) >= self._max_entries:
            if not self._poor and heap is self._poor:
                return False
            self._delete(heapq.heappop(self._poor or self._good), now)
        self._entries[entry[_KEY]] = entry
        heapq.heappush(heap, entry)
        self._counts["entries_" + entry[_KIND]] += 1
        if entry[_EXPIRY] < self._wake_at:
            self._wake.notify()
        return True

    def _delete(self, entry: _Entry, now: float) -> bool:
        """Delete `entry`, which left its heap or is stale there; False where the dict has it no more."""
        if held := self._entries.get(entry[_KEY]) is entry:
            del self._entries[entry[_KEY]]
            self._counts["entries_" + entry[_KIND]] -= 1
            self._counts["evicted_expired" if entry[_EXPIRY] <= now else "evicted_bound"] += 1
        return held

    def reap(self, stopped: Callable[[], bool] = lambda: False) -> int:
        """Delete all that has expired, unless `stopped`, and return how many entries that were: the reaper's work."""
        deleted = 0
        for heap in (self._good, self._poor):
            due = True
            while due and not stopped():
                with self._lock:
                    now = self._clock()
                    for _ in range(_REAP_BATCH):
                        if not (due := bool(heap) and heap[0][_EXPIRY] <= now):
                            break
                        deleted += self._delete(heapq.heappop(heap), now)
                if due:
                    time.sleep(_REAP_PAUSE)
        return deleted

    def _reap_forever(self) -> None:
        while not self._closed:
            with self._wake:
                self._wake_at = min((heap[0][_EXPIRY] for heap in (self._good, self._poor) if heap), default=math.inf)
                delay = min(self._wake_at - self._clock(), threading.TIMEOUT_MAX)
                if delay > 0 and not self._closed:
                    self._wake.wait(delay)
                self._wake_at = -math.inf  # it is awake
            self.reap(lambda: self._closed)

    @property
    def reaper_alive(self) -> bool:
        """Whether the reaper thread runs."""
        return self._reaper.is_alive()

    def close(self) -> None:
        """Stop the reaper and wait for its end, a matter of milliseconds. The cache goes on answering."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        if self._reaper.ident:  # a fork of a closed cache has none
            self._reaper.join()


def _found(entry: _Entry, result: str, now: float, kept: bool = True) -> Found:
    expiry, _, born, kind, value = entry
    return tuple.__new__(Found, (value, kind, result, now - born, expiry - now, kept))  # Found(…) in half the time


# A fork copies the one thread that forks: who held a lock, loaded or reaped is gone. So caches begin anew in a child.
_caches: "weakref.WeakSet[Cache]" = weakref.WeakSet()


def _start_anew() -> None:
    for cache in _caches:
        cache._start()


os.register_at_fork(after_in_child=_start_anew)
