"""Answers kept for a lifetime, each loaded once.

The first caller that asks for an absent or expired key loads it; callers that ask for
it during the load wait and share the outcome. Keys never wait for each other. Nothing
that is kept is served at or past its expiry. A thread, the reaper, deletes what has
expired: it sleeps until the next expiry and works in small batches, so no reader waits
for long.

`Cache._lock` guards everything that changes, except for the two signals to the reaper,
`_closed` and `_wake`. It is never held during a load.
"""

import heapq
import math
import threading
import time
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any, Final, NamedTuple

OK: Final = "ok"  # a good answer
NEGATIVE: Final = "negative"  # a definite refusal
FAULT: Final = "fault"  # something is broken: worth asking again soon
PAUSED: Final = "paused"  # the upstream asked for a pause
KINDS: Final = (OK, NEGATIVE, FAULT, PAUSED)

# Seconds that a caller waits for another's load beyond its own deadline: that load may
# have begun at the same moment, and needs a moment to hand out its outcome.
GRACE: Final = 0.5
# Entries of each heap deleted per hold of the lock: a few tenths of a millisecond.
_REAP_BATCH = 256
_REAP_PAUSE = 0.0001  # seconds between two batches, in which readers get the lock

# Monotonic seconds, including the time that the machine was suspended if the system can
# tell.
clock = (
    partial(time.clock_gettime, time.CLOCK_BOOTTIME)
    if hasattr(time, "CLOCK_BOOTTIME")
    else time.monotonic
)

# The garbage collector doesn't track plain tuples of plain values, so a million of them
# don't slow it down.
_Entry = tuple[float, str, float, str, Hashable]  # expiry, key, born, kind, value
_EXPIRY: Final = 0
_KEY: Final = 1
_KIND: Final = 3
Hit = tuple[
    Any, str, float, float
]  # value, kind, age, ttl; a named tuple would make hits 50% slower


class Loaded(NamedTuple):
    """What a load returns for a key.

    If it has expired already, it is handed to the waiting callers but not kept.
    """

    value: Hashable  # which all callers share: immutable all the way down
    kind: str
    lifetime: float  # seconds from the value's birth to its expiry
    # Seconds from its birth to the load's beginning; negative if it was born later.
    age: float = 0.0
    # Or, from a shared cache: "shared" (it was there) or "awaited" (another loaded it).
    source: str = "miss"
    # Only for the caller that loaded it: it isn't kept, and waiting callers load again.
    private: bool = False


# Loads keys by a deadline of `time.monotonic`, and yields each with its outcome.
Loader = Callable[[list[str], float], Iterable[tuple[str, Loaded]]]


class Found(NamedTuple):
    """What a caller gets: the value, and how it came about.

    `age` and `ttl` are in seconds, at that moment.
    """

    value: Any
    kind: str
    age: float
    ttl: float
    # "hit", "collapsed" (another caller loaded it), or what the load said: "miss",
    # "shared", "awaited".
    source: str
    stored: bool


class Stats(NamedTuple):
    """One consistent reading of the counters; hits, loads and entries by kind.

    A miss is a load, ended or under way.
    """

    hits: dict[str, int]
    misses: int
    collapsed: int
    refused: int  # keys
    loads: dict[str, int]  # and "failed": those that raised
    evicted: dict[str, int]  # "expired", or "bound": to make room
    entries: dict[str, int]
    waiting: int  # callers that run a load or wait for one
    loading: int  # keys that are being loaded


class WaitingRoomFull(Exception):
    """Too many callers are already waiting for loads. Nothing was loaded."""


class LoadFailed(Exception):
    """The load that this caller waited for raised an exception, which is the cause."""


class _Outcome(NamedTuple):
    """The outcome of one key, held by a caller while it waits for the rest of its list."""

    entry: _Entry
    source: str
    stored: bool

    def found(self, now: float) -> Found:
        expiry, _, born, kind, value = self.entry
        return Found(value, kind, now - born, expiry - now, self.source, self.stored)


_Running = Future[
    _Outcome | None
]  # a load of one key that is under way; None: its outcome is private


class Cache:
    """Keeps what loads return, each value for its own lifetime. All methods may be
    called from any thread.

    Holds at most `max_entries` (two or more): nine tenths for good answers and one for
    all others. If a part is full, its entry that expires first makes room. At most
    `max_waiting` callers may run a load or wait for one.
    """

    def __init__(
        self, *, max_entries: int, max_waiting: int, clock: Callable[[], float] = clock
    ) -> None:
        self.max_entries = max_entries
        self._max_bad = max(1, max_entries // 10)
        self._max_good = max(1, max_entries - self._max_bad)
        self.max_waiting = max_waiting
        self.clock = clock
        self._lock = threading.Lock()
        self._entries: dict[str, _Entry] = {}
        self._good: list[
            _Entry
        ] = []  # heaps; they may have entries that the dict no longer has
        self._bad: list[_Entry] = []  # all but good answers
        self._loads: dict[str, _Running] = {}
        self._hits, self._loaded, self._held = (
            dict.fromkeys(KINDS, 0) for _ in range(3)
        )
        self._evicted = {"expired": 0, "bound": 0}
        self._misses = self._collapsed = self._refused = self._failed = (
            self._waiting
        ) = 0
        self._closed = False
        self._wake = (
            threading.Event()
        )  # set when the reaper has to look again: for an earlier expiry, or to end
        self.reaper = threading.Thread(
            target=self._reap_forever, name="c42c-reaper", daemon=True
        )
        self.reaper.start()

    def __len__(self) -> int:
        """The number of entries held, including expired ones that the reaper hasn't
        deleted yet.
        """
        return len(self._entries)

    def snapshot(self) -> Stats:
        """Read all counters at one moment."""
        with self._lock:
            loads = {**self._loaded, "failed": self._failed}
            requests = self._hits.copy(), self._misses, self._collapsed, self._refused
            entries = self._evicted.copy(), self._held.copy()
            return Stats(
                *requests,
                loads,
                *entries,
                self._waiting,
                self._misses - sum(loads.values()),
            )

    def get(self, key: str) -> Hit | None:
        """Return the fresh entry of `key` and count a hit; if there is none, return
        None and count nothing.
        """
        with self._lock:
            entry = self._entries.get(key)
            if entry is None or entry[_EXPIRY] <= (now := self.clock()):
                return None
            expiry, _, born, kind, value = entry
            self._hits[kind] += 1
        return value, kind, now - born, expiry - now

    def get_or_load(
        self, keys: Iterable[str], load: Loader, deadline: float = math.inf
    ) -> dict[str, Found]:
        """Return the fresh entries of `keys`, in their order; load the others together,
        unless another caller does.

        `load` yields each key with its outcome, which is kept and handed to waiting
        callers at once; it must end by itself at `deadline`, a moment of
        `time.monotonic`. This caller runs its own loads before it waits for others', so
        that two callers can't deadlock. Whatever expires meanwhile is loaded again.
        `GRACE` seconds after the deadline, this caller stops waiting and calls `load`
        for the keys it still lacks.

        Raises what `load` raises, KeyError if it leaves a key out or there is no such
        kind, TypeError if a value is mutable, `LoadFailed` if another caller's load
        raised, and `WaitingRoomFull` at once if too many callers wait already.
        """
        keys = list(dict.fromkeys(keys))
        wait_until = deadline + GRACE
        got = dict[str, _Outcome]()
        waits = False
        try:
            while True:
                with self._lock:
                    now = self.clock()
                    missing = self._look_up(keys, got, now)
                    if not missing:
                        for outcome in got.values():
                            self._hits[outcome.entry[_KIND]] += outcome.source == "hit"
                        return {key: got[key].found(now) for key in keys}
                    if not waits and self._waiting >= self.max_waiting:
                        self._refused += len(keys)
                        raise WaitingRoomFull
                    self._waiting += not waits
                    waits = True
                    mine, theirs = self._claim(
                        missing, late=time.monotonic() >= wait_until
                    )
                if mine:
                    self._run(mine, load, deadline, got)
                for key, running in theirs.items():
                    with suppress(TimeoutError):
                        if error := running.exception(
                            min(wait_until - time.monotonic(), threading.TIMEOUT_MAX)
                        ):
                            raise LoadFailed from error
                        if shared := running.result():
                            got[key] = shared._replace(source="collapsed")
        finally:
            with self._lock:
                self._waiting -= waits

    def _look_up(
        self, keys: list[str], got: dict[str, _Outcome], now: float
    ) -> list[str]:
        """Drop what has expired from `got`, add what is fresh, and return the missing
        keys. The lock is held.
        """
        for key in keys:
            if key in got and got[key].stored and got[key].entry[_EXPIRY] <= now:
                del got[key]
            if (
                key not in got
                and (entry := self._entries.get(key))
                and entry[_EXPIRY] > now
            ):
                got[key] = _Outcome(entry, "hit", stored=True)
        return [key for key in keys if key not in got]

    def _claim(
        self, keys: list[str], *, late: bool
    ) -> tuple[dict[str, _Running], dict[str, _Running]]:
        """Begin loads of `keys`; return this caller's, and those of others that it
        waits for. The lock is held.
        """
        theirs = (
            {}
            if late
            else {key: self._loads[key] for key in keys if key in self._loads}
        )
        mine = {key: _Running() for key in keys if key not in theirs}
        self._loads = (
            mine | self._loads
        )  # a late caller's load doesn't replace another's
        self._misses += len(mine)
        self._collapsed += len(theirs)
        return mine, theirs

    def _run(
        self,
        mine: dict[str, _Running],
        load: Loader,
        deadline: float,
        got: dict[str, _Outcome],
    ) -> None:
        """Load the keys of `mine` into `got`.

        Whatever happens, waiting callers are released.
        """
        try:
            began = self.clock()
            for key, loaded in load(list(mine), deadline):
                got[key] = self._settle(key, mine[key], loaded, began)
                del mine[key]
            if mine:
                raise KeyError(*mine)
        except BaseException as error:
            with self._lock:
                self._failed += len(mine)
                for key, running in mine.items():
                    if self._loads.get(key) is running:
                        del self._loads[key]
                    running.set_exception(error)
            raise

    def _settle(
        self, key: str, running: _Running, loaded: Loaded, began: float
    ) -> _Outcome:
        """Keep the outcome of a load, and hand it to waiting callers."""
        born = began - loaded.age
        entry = (born + loaded.lifetime, key, born, loaded.kind, loaded.value)
        hash(loaded.value)  # TypeError: it is mutable
        with self._lock:
            self._loaded[loaded.kind] += 1  # KeyError: there is no such kind
            listed = self._loads.get(key) is running  # unless it is a late caller's
            if listed:
                del self._loads[key]
            kept = listed and not loaded.private and self._keep(entry)
        outcome = _Outcome(entry, loaded.source, kept)
        running.set_result(None if loaded.private else outcome)
        return outcome

    def _keep(self, entry: _Entry) -> bool:
        """Make room for `entry` and add it; return False if it has expired already.

        The lock is held.
        """
        now = self.clock()
        if entry[_EXPIRY] <= now:
            return False
        if old := self._entries.get(entry[_KEY]):  # expired, but not reaped yet
            self._delete(old, now)
        if entry[_KIND] == OK:
            heap, held, most = self._good, self._held[OK], self._max_good
        else:
            heap, held, most = (
                self._bad,
                len(self._entries) - self._held[OK],
                self._max_bad,
            )
        while held >= most:
            held -= self._delete(heapq.heappop(heap), now)
        self._entries[entry[_KEY]] = entry
        self._held[entry[_KIND]] += 1
        heapq.heappush(heap, entry)
        if heap[0] is entry:
            self._wake.set()
        return True

    def _delete(self, entry: _Entry, now: float) -> bool:
        """Delete `entry`; return False if the dict no longer has it.

        The lock is held.
        """
        if there := self._entries.get(entry[_KEY]) is entry:
            del self._entries[entry[_KEY]]
            self._held[entry[_KIND]] -= 1
            self._evicted["expired" if entry[_EXPIRY] <= now else "bound"] += 1
        return there

    def reap(self) -> float:
        """Delete a batch of what has expired: the reaper's work.

        Return the seconds until the next expiry.
        """
        with self._lock:
            now = self.clock()
            for heap in self._good, self._bad:
                for _ in range(_REAP_BATCH):
                    if not heap or heap[0][_EXPIRY] > now:
                        break
                    self._delete(heapq.heappop(heap), now)
            return (
                min(
                    (heap[0][_EXPIRY] for heap in (self._good, self._bad) if heap),
                    default=math.inf,
                )
                - now
            )

    def _reap_forever(self) -> None:
        while not self._closed:
            self._wake.wait(min(max(self.reap(), _REAP_PAUSE), threading.TIMEOUT_MAX))
            # Before the next look at `_closed` and the heaps, so that no signal is
            # missed.
            self._wake.clear()

    def close(self) -> None:
        """Stop the reaper. The cache remains usable."""
        self._closed = True
        self._wake.set()
        self.reaper.join()
