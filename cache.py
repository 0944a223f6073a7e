"""Answers kept for a lifetime, each loaded once.

The first caller that asks for an absent or expired key loads it. Callers that ask for
it during the load wait and share the outcome. Keys never wait for each other. Nothing
is served from the cache at or past its expiry.

A hit in the last part of a good answer's lifetime begins a refresh: the answer is
loaded again in the background, so nobody has to wait for an answer that is in use.

A thread, the reaper, deletes what has expired. It sleeps until the next expiry and
works in small batches, so no reader waits for long.

`Cache._lock` guards everything that changes, except for the two signals to the reaper,
`_closed` and `_wake`. It is never held during a load or a call of `on_refresh_due`.
"""

import heapq
import logging
import math
import sys
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, NamedTuple

OK: Final = "ok"  # a good answer
NEGATIVE: Final = "negative"  # a definite refusal
FAULT: Final = "fault"  # something is broken: worth asking again soon
PAUSED: Final = "paused"  # the upstream asked for a pause
KINDS: Final = (OK, NEGATIVE, FAULT, PAUSED)

# Seconds beyond its own deadline that a caller waits for another's load. That load may
# have the same deadline, and hands out its outcome a moment after it: so this is longer
# than the slack of a loader, and shorter than the half second within which answers are
# promised.
GRACE: Final = 0.4
# Answers of each part deleted per hold of the lock: a few tenths of a millisecond.
_REAP_BATCH = 128
_REAP_PAUSE = 0.0001  # seconds between two batches, in which readers get the lock

log = logging.getLogger("c42c.cache")

# Monotonic seconds, including the time that the machine was suspended if the system can
# tell.
clock = (
    partial(time.clock_gettime, time.CLOCK_BOOTTIME)
    if hasattr(time, "CLOCK_BOOTTIME")
    else time.monotonic
)


class _Entry(NamedTuple):
    """What is kept for a key: `_Entry(*entry)` reads one.

    The dict has exact tuples of plain values. The garbage collector doesn't track
    those, so a million of them don't slow it down.
    """

    expiry: float
    born: float
    kind: str
    value: Hashable
    due: float  # from when on a hit begins a refresh; the expiry: never
    size: int  # bytes


_EntryTuple = tuple[float, float, str, Hashable, float, int]
_EXPIRY: Final = 0  # positions in it
_KIND: Final = 2
_DUE: Final = 4
_SIZE: Final = 5

# Value, kind, age, ttl. A named tuple would make hits 50% slower.
Hit = tuple[Any, str, float, float]

# Bytes of a place in a heap: the tuple, whose content belongs to the entry, and a
# pointer in a list that has room for an eighth more.
_PLACE_SIZE = sys.getsizeof((0.0, "")) + 9
# Bytes of an entry without its key and value: the tuple, three floats, the size, and a
# place in the dict, which is between a third and two thirds full.
_ENTRY_SIZE = (
    sys.getsizeof((0,) * len(_Entry._fields)) + 3 * sys.getsizeof(0.0) + 32 + 64
)


class Loaded(NamedTuple):
    """What a load returns for a key.

    If it has expired already, it isn't kept. If it was loaded here, it is handed to the
    waiting callers all the same; if it comes from a shared cache, it is loaded again.
    """

    value: Hashable  # which all callers share: immutable all the way down
    kind: str
    lifetime: float  # seconds from the value's birth to its expiry
    # When it was born, by the cache's clock; None: when the load began.
    born: float | None = None
    # "miss" if it was loaded here; from a shared cache, "shared" if it was there, or
    # "awaited" if another instance was loading it.
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
    # "hit", "collapsed" if another caller loaded it, or what the load said.
    source: str
    is_kept: bool


class Stats(NamedTuple):
    """One consistent reading of the counters, which count keys.

    Each key that a caller asks for is a hit, a miss, collapsed or refused; it counts
    again if its answer expires while the caller waits for the rest of a list, or if the
    load that it waited for was private. Refreshes are none of these, since nobody asks
    for them. At each moment
    - misses = all loads + loading
    - all loads and refreshes that were kept = entries + evicted
    """

    hits: dict[str, int]  # by kind
    misses: int  # loads that callers began
    collapsed: int  # waited for a load that another caller or a refresh had begun
    refused: int  # there were too many waiting callers
    loads: dict[str, int]  # of callers, ended: by kind, and "failed": those that raised
    refreshes: dict[str, int]  # the same of refreshes
    # "expired", "bound" (to make room), or "replaced" by a refresh.
    evicted: dict[str, int]
    entries: dict[str, int]  # held, by kind
    bytes: int  # that the entries take, as far as it can be estimated
    waiting: int  # callers that run a load or wait for one
    loading: int  # loads of callers under way
    refreshing: int  # refreshes under way


class TooManyWaiting(Exception):
    """Too many callers are already waiting for loads. Nothing was loaded."""


class LoadFailed(Exception):
    """The load that this caller waited for raised an exception, which is the cause."""


class _Outcome(NamedTuple):
    """The outcome of one key, held by a caller that waits for the rest of a list."""

    entry: _EntryTuple
    source: str
    is_kept: bool
    is_shared: bool = False  # it comes from a shared cache

    def has_expired(self, now: float) -> bool:
        """Whether it must be loaded again. What no cache keeps is handed out anyway."""
        is_cached = self.is_kept or self.is_shared
        return is_cached and self.entry[_EXPIRY] <= now

    def found(self, now: float) -> Found:
        entry = _Entry(*self.entry)
        return Found(
            value=entry.value,
            kind=entry.kind,
            age=now - entry.born,
            ttl=entry.expiry - now,
            source=self.source,
            is_kept=self.is_kept,
        )


class _Running(Future["_Outcome | None"]):
    """A load of one key that is under way.

    Its result is None if only the caller that loads may have the outcome.
    """

    def __init__(self, *, is_refresh: bool) -> None:
        super().__init__()
        self.is_refresh = is_refresh


class _Part:
    """Good answers, or all others: what they take, and which of them expires first.

    The cache's lock guards it.
    """

    def __init__(self, max_entries: int, max_bytes: int) -> None:
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._entries = 0
        self._entry_bytes = 0
        # A heap of (expiry, key). If an entry is replaced, its place stays until it
        # comes to the front, at its old expiry at the latest.
        self._places: list[tuple[float, str]] = []

    @property
    def bytes(self) -> int:
        """The bytes that its entries take, and their places."""
        return self._entry_bytes + _PLACE_SIZE * len(self._places)

    @property
    def next_expiry(self) -> float:
        """When the reaper has to look again."""
        if not self._places:
            return math.inf
        return self._places[0][0]

    def has_room(self, size: int) -> bool:
        """Tell whether an entry of so many bytes fits in."""
        return (
            self._entries < self._max_entries
            and self.bytes + size + _PLACE_SIZE <= self._max_bytes
        )

    def add(self, key: str, expiry: float, size: int) -> bool:
        """Add an entry; return whether it is the first to expire."""
        place = (expiry, key)
        self._entries += 1
        self._entry_bytes += size
        heapq.heappush(self._places, place)
        return self._places[0] is place

    def remove(self, size: int) -> None:
        """Take an entry out, but not its place."""
        self._entries -= 1
        self._entry_bytes -= size

    def pop(self) -> tuple[float, str]:
        """Take out the first place, and return its expiry and key."""
        return heapq.heappop(self._places)

    @property
    def is_sparse(self) -> bool:
        """Whether most places are those of replaced entries."""
        return len(self._places) > 2 * self._entries + _REAP_BATCH

    def rebuild(self, places: list[tuple[float, str]]) -> None:
        """Replace all places."""
        heapq.heapify(places)
        self._places = places


class Cache:
    """Keeps what loads return, each value for its own lifetime.

    All methods may be called from any thread.

    Holds at most `max_entries` (two or more), which take at most `max_bytes`. Good
    answers get nine tenths of both, all others a tenth. If a part is full, its entries
    that expire first make room. A value that takes more than a tenth of `max_bytes`
    isn't kept. At most `max_waiting` callers may run a load or wait for one.

    A good answer that is hit in the last `refresh_ahead` of its lifetime (a share from
    0 to 0.5) is due for a refresh. `on_refresh_due` is called at once, without the
    lock, with all such keys of a request. It either has `refresh` called soon in
    another thread and returns True, or declines and returns False. A key isn't handed
    over again until its refresh has ended. After a refresh that was declined, or
    brought nothing that is good for longer, `retry_refresh` seconds must pass too.
    `on_refresh_due` may be set once the cache is made.
    """

    def __init__(
        self,
        *,
        max_entries: int,
        max_bytes: int,
        max_waiting: int,
        refresh_ahead: float = 0.0,
        retry_refresh: float = 6.0,
        on_refresh_due: Callable[[list[str]], bool] = lambda keys: False,
        clock: Callable[[], float] = clock,
    ) -> None:
        self.max_entries = max_entries
        self.max_bytes = max_bytes
        self.max_waiting = max_waiting
        self.clock = clock
        self.on_refresh_due = on_refresh_due
        self._refresh_ahead = refresh_ahead
        self._retry_refresh = retry_refresh
        self._lock = threading.Lock()
        self._entries: dict[str, _EntryTuple] = {}
        max_bad = max(1, max_entries // 10)
        self._max_size = max_bytes // 10  # of one entry, and of all bad ones
        self._bad = _Part(max_bad, self._max_size)
        self._good = _Part(max(1, max_entries - max_bad), max_bytes - self._max_size)
        self._loads: dict[str, _Running] = {}
        # Keys that were handed to `on_refresh_due`, and whose refresh hasn't begun.
        self._claimed: set[str] = set()
        self._waiting = 0
        self._hits = dict.fromkeys(KINDS, 0)
        self._misses = 0
        self._collapsed = 0
        self._refused = 0
        self._loaded = dict.fromkeys((*KINDS, "failed"), 0)
        self._refreshed = dict.fromkeys((*KINDS, "failed"), 0)
        self._refreshes_begun = 0
        self._evicted = dict.fromkeys(("expired", "bound", "replaced"), 0)
        self._held = dict.fromkeys(KINDS, 0)
        self._closed = False
        # Set when the reaper has to look again: for an earlier expiry, or to end.
        self._wake = threading.Event()
        self._reaper: threading.Thread | None = None

    def __len__(self) -> int:
        """The number of entries held.

        It includes expired ones that the reaper hasn't deleted yet.
        """
        return len(self._entries)

    def snapshot(self) -> Stats:
        """Read all counters at one moment."""
        with self._lock:
            return Stats(
                hits=self._hits.copy(),
                misses=self._misses,
                collapsed=self._collapsed,
                refused=self._refused,
                loads=self._loaded.copy(),
                refreshes=self._refreshed.copy(),
                evicted=self._evicted.copy(),
                entries=self._held.copy(),
                bytes=self._good.bytes + self._bad.bytes,
                waiting=self._waiting,
                loading=self._misses - sum(self._loaded.values()),
                refreshing=self._refreshes_begun - sum(self._refreshed.values()),
            )

    # Reading

    def get(self, key: str) -> Hit | None:
        """Return the fresh entry of `key` and count a hit.

        If there is none, return None and count nothing.
        """
        # This is the path of a hit, and `with` would take twice as long.
        self._lock.acquire()
        try:
            entry = self._entries.get(key)
            if entry is None:
                return None
            now = self.clock()
            expiry, born, kind, value, due, _ = entry
            if expiry <= now:
                return None
            self._hits[kind] += 1
        finally:
            self._lock.release()
        if due <= now:
            self._begin_refreshes([key])
        return value, kind, now - born, expiry - now

    def get_or_load(
        self, keys: Iterable[str], load: Loader, deadline: float = math.inf
    ) -> dict[str, Found]:
        """Return what there is for each of `keys`, in their order, loading what isn't.

        Keys without a fresh entry are loaded together, except those that another caller
        loads already. `load` yields each key with its outcome, which is kept and handed
        to waiting callers at once. It must end by itself at `deadline`, a moment of
        `time.monotonic`. This caller runs its own loads before it waits for others', so
        that two callers can't deadlock. Whatever expires meanwhile is loaded again.
        `GRACE` seconds after the deadline, this caller stops waiting and calls `load`
        for the keys it still lacks.

        Raises what `load` raises, KeyError if it leaves a key out or there is no such
        kind, TypeError if a value is mutable, `LoadFailed` if another caller's load
        raised, and `TooManyWaiting` at once if too many callers wait already.
        """
        keys = list(dict.fromkeys(keys))
        got: dict[str, _Outcome] = {}
        found = self._hand_out(keys, got)
        if found is not None:
            return found
        with self._count_waiting(len(keys)):
            while found is None:
                self._load_missing(keys, got, load, deadline)
                found = self._hand_out(keys, got)
        return found

    def _hand_out(
        self, keys: list[str], got: dict[str, _Outcome]
    ) -> dict[str, Found] | None:
        """Return what a caller gets, and count its hits; None if keys are missing."""
        found = {}
        due = []
        with self._lock:
            now = self.clock()
            if self._look_up(keys, got, now):
                return None
            for key in keys:
                outcome = got[key]
                found[key] = outcome.found(now)
                if outcome.source == "hit":
                    self._hits[outcome.entry[_KIND]] += 1
                    if outcome.entry[_DUE] <= now:
                        due.append(key)
        if due:
            self._begin_refreshes(due)
        return found

    def _look_up(
        self, keys: list[str], got: dict[str, _Outcome], now: float
    ) -> list[str]:
        """Return the missing keys; add to `got` what is kept. The lock is held."""
        missing = []
        for key in keys:
            outcome = got.get(key)
            if outcome is not None and not outcome.has_expired(now):
                continue
            entry = self._entries.get(key)
            if entry is not None and entry[_EXPIRY] > now:
                got[key] = _Outcome(entry, "hit", is_kept=True)
            else:
                missing.append(key)
        return missing

    @contextmanager
    def _count_waiting(self, keys: int) -> Iterator[None]:
        """Count a waiting caller; raise `TooManyWaiting` if there are too many."""
        with self._lock:
            if self._waiting >= self.max_waiting:
                self._refused += keys
                raise TooManyWaiting
            self._waiting += 1
        try:
            yield
        finally:
            with self._lock:
                self._waiting -= 1

    # Loading

    def _load_missing(
        self,
        keys: list[str],
        got: dict[str, _Outcome],
        load: Loader,
        deadline: float,
    ) -> None:
        """Load the missing keys into `got`, and wait for those that others load."""
        wait_until = deadline + GRACE
        is_late = time.monotonic() >= wait_until
        mine = {}
        theirs = {}
        with self._lock:
            for key in self._look_up(keys, got, self.clock()):
                running = self._loads.get(key)
                if running is None or is_late:
                    mine[key] = self._begin_load(key)
                else:
                    theirs[key] = running
            self._collapsed += len(theirs)
        if mine:
            got.update(self._run(mine, load, deadline))
        for key, running in theirs.items():
            outcome = _wait_for(running, wait_until)
            if outcome is not None:
                got[key] = outcome._replace(source="collapsed")

    def _begin_load(self, key: str) -> _Running:
        """Begin a caller's load. The lock is held."""
        running = _Running(is_refresh=False)
        self._misses += 1
        self._claimed.discard(key)
        # A late caller's load doesn't replace the one that others wait for.
        self._loads.setdefault(key, running)
        return running

    def _run(
        self, mine: dict[str, _Running], load: Loader, deadline: float
    ) -> dict[str, _Outcome]:
        """Load keys. Whatever happens, waiting callers are released."""
        left = mine.copy()
        outcomes = {}
        began = self.clock()
        try:
            for key, loaded in load(list(mine), deadline):
                outcomes[key] = self._settle(key, left[key], loaded, began)
                del left[key]
            if left:
                raise KeyError(*left)
        except BaseException as error:
            self._fail(left, error)
            raise
        return outcomes

    def _settle(
        self, key: str, running: _Running, loaded: Loaded, began: float
    ) -> _Outcome:
        """Keep the outcome of a load, and hand it to waiting callers."""
        hash(loaded.value)  # TypeError: it is mutable
        if loaded.kind not in KINDS:
            raise KeyError(loaded.kind)
        entry = self._make_entry(key, loaded, began)
        kept = False
        with self._lock:
            self._count_end(running, loaded.kind)
            # A late caller's load isn't listed, and isn't kept.
            if self._unlist(key, running) and not loaded.private:
                kept = self._keep(key, entry)
            if running.is_refresh and not (kept and self._is_young(entry)):
                self._retry_later(key)
        is_shared = loaded.source != "miss"
        outcome = _Outcome(entry, loaded.source, kept, is_shared)
        if loaded.private:
            running.set_result(None)
        else:
            running.set_result(outcome)
        return outcome

    def _fail(self, left: dict[str, _Running], error: BaseException) -> None:
        """Tell waiting callers that a load raised."""
        with self._lock:
            for key, running in left.items():
                self._count_end(running, "failed")
                self._unlist(key, running)
                if running.is_refresh:
                    self._retry_later(key)
        for running in left.values():
            running.set_exception(error)

    def _count_end(self, running: _Running, outcome: str) -> None:
        """Count a load that has ended. The lock is held."""
        if running.is_refresh:
            self._refreshed[outcome] += 1
        else:
            self._loaded[outcome] += 1

    def _unlist(self, key: str, running: _Running) -> bool:
        """End a load for those who come from now on.

        Return False if it is a late caller's, which wasn't listed. The lock is held.
        """
        if self._loads.get(key) is not running:
            return False
        del self._loads[key]
        return True

    # Refreshing

    def refresh(
        self, keys: Iterable[str], load: Loader, deadline: float = math.inf
    ) -> None:
        """Load the keys that `on_refresh_due` was given, all in one call.

        Those that a caller has loaded since, or that are gone, are skipped. Callers
        that miss meanwhile wait for the outcome, which is kept, except that a fault
        replaces no answer that is still fresh. Raises what `load` raises.
        """
        mine = {}
        with self._lock:
            for key in keys:
                if key in self._claimed:
                    self._claimed.remove(key)
                    running = _Running(is_refresh=True)
                    self._loads[key] = running
                    mine[key] = running
            self._refreshes_begun += len(mine)
        if mine:
            self._run(mine, load, deadline)

    def _begin_refreshes(self, keys: list[str]) -> None:
        """Claim those of `keys` that are due, and hand them over.

        Begin none while more than half of `max_waiting` callers wait: they come first.
        """
        with self._lock:
            if 2 * self._waiting > self.max_waiting:
                return
            now = self.clock()
            claimed = [key for key in keys if self._claim(key, now)]
        if not claimed:
            return
        accepted = False
        try:
            accepted = self.on_refresh_due(claimed)
        except Exception:
            log.exception("a refresh could not begin")
        if not accepted:
            self._release(claimed)

    def _claim(self, key: str, now: float) -> bool:
        """Claim a key, unless another hit did. The lock is held."""
        entry = self._entries.get(key)
        if entry is None or entry[_DUE] > now or entry[_EXPIRY] <= now:
            return False
        self._claimed.add(key)
        self._entries[key] = _with_due(entry, entry[_EXPIRY])
        return True

    def _release(self, keys: list[str]) -> None:
        """Give up claims."""
        with self._lock:
            for key in keys:
                if key in self._claimed:
                    self._claimed.remove(key)
                    self._retry_later(key)

    def _retry_later(self, key: str) -> None:
        """Let at least `retry_refresh` seconds pass before what is kept is refreshed.

        The lock is held.
        """
        entry = self._entries.get(key)
        if entry is not None:
            kept = _Entry(*entry)
            usual = self._due(kept.expiry, kept.born, kept.kind)
            soonest = self.clock() + self._retry_refresh
            self._entries[key] = _with_due(entry, max(usual, soonest))

    def _is_young(self, entry: _EntryTuple) -> bool:
        """Tell whether a hit wouldn't begin a refresh yet."""
        return self.clock() < entry[_DUE]

    def _due(self, expiry: float, born: float, kind: str) -> float:
        """Return from when on a hit is to begin a refresh; at the expiry: never."""
        if kind != OK:
            return expiry
        return expiry - self._refresh_ahead * (expiry - born)

    # Keeping and deleting

    def _make_entry(self, key: str, loaded: Loaded, began: float) -> _EntryTuple:
        born = loaded.born
        if born is None:
            born = began
        expiry = born + loaded.lifetime
        due = self._due(expiry, born, loaded.kind)
        size = _ENTRY_SIZE + _estimate(key) + _estimate(loaded.value)
        return (expiry, born, loaded.kind, loaded.value, due, size)

    def _keep(self, key: str, entry: _EntryTuple) -> bool:
        """Make room for `entry` and add it; return whether it is kept.

        It isn't if it has expired already, is too large, or is worse than what there
        is. The lock is held.
        """
        new = _Entry(*entry)
        now = self.clock()
        if new.expiry <= now or new.size + _PLACE_SIZE > self._max_size:
            return False
        old = self._entries.get(key)
        if old is not None:
            if old[_EXPIRY] <= now:
                self._delete(key, "expired")
            elif new.kind in (FAULT, PAUSED):
                return False
            else:
                self._delete(key, "replaced")
        part = self._part(new.kind)
        while not part.has_room(new.size):
            self._delete_first(part, now)
        self._entries[key] = entry
        self._held[new.kind] += 1
        is_first = part.add(key, new.expiry, new.size)
        if part.is_sparse:
            self._rebuild(part)
        if is_first or self._reaper is None:
            self._wake_reaper()
        return True

    def _part(self, kind: str) -> _Part:
        if kind == OK:
            return self._good
        return self._bad

    def _delete(self, key: str, reason: str) -> None:
        """Delete the entry of `key`. The lock is held."""
        entry = self._entries.pop(key)
        kind = entry[_KIND]
        self._claimed.discard(key)
        self._held[kind] -= 1
        self._part(kind).remove(entry[_SIZE])
        self._evicted[reason] += 1

    def _delete_first(self, part: _Part, now: float) -> None:
        """Delete the entry of a part's first place, unless it has been replaced.

        The lock is held.
        """
        expiry, key = part.pop()
        entry = self._entries.get(key)
        if entry is None or entry[_EXPIRY] != expiry:
            return
        if self._part(entry[_KIND]) is not part:
            return
        if expiry <= now:
            self._delete(key, "expired")
        else:
            self._delete(key, "bound")

    def _rebuild(self, part: _Part) -> None:
        """Forget the places of replaced entries. The lock is held.

        This takes long with a million entries, but happens only after as many refreshes
        within the last part of a lifetime.
        """
        places = []
        for key, entry in self._entries.items():
            if self._part(entry[_KIND]) is part:
                places.append((entry[_EXPIRY], key))
        part.rebuild(places)

    # The reaper

    @property
    def reaper_alive(self) -> bool:
        """Whether expired entries are deleted.

        Before the first entry, the reaper isn't needed and hasn't started.
        """
        with self._lock:
            if self._reaper is None:
                return not self._entries and not self._closed
            return self._reaper.is_alive()

    def _wake_reaper(self) -> None:
        """Have the reaper look again. The lock is held.

        It starts with the first entry, so that a server may make the app in one process
        and serve it in others (`gunicorn --preload`).
        """
        if self._reaper is not None:
            self._wake.set()
            return
        if self._closed:
            return
        reaper = threading.Thread(
            target=self._reap_forever, name="c42c-reaper", daemon=True
        )
        try:
            reaper.start()
        except RuntimeError:
            log.warning("the reaper could not start: no further thread is possible")
            return
        self._reaper = reaper

    def _reap_forever(self) -> None:
        while not self._closed:
            seconds = max(self.reap(), _REAP_PAUSE)
            self._wake.wait(min(seconds, threading.TIMEOUT_MAX))
            # Before the next look at `_closed` and the heaps, so that no signal is
            # missed.
            self._wake.clear()

    def reap(self) -> float:
        """Delete a batch of what has expired: the reaper's work.

        Return the seconds until the next expiry.
        """
        with self._lock:
            now = self.clock()
            for part in (self._good, self._bad):
                for _ in range(_REAP_BATCH):
                    if part.next_expiry > now:
                        break
                    self._delete_first(part, now)
            return min(self._good.next_expiry, self._bad.next_expiry) - now

    def close(self) -> None:
        """Stop the reaper. The cache remains usable."""
        self._closed = True  # at once: the reaper may take the lock again and again
        with self._lock:
            reaper = self._reaper
        self._wake.set()
        if reaper is not None:
            reaper.join()


def _with_due(entry: _EntryTuple, due: float) -> _EntryTuple:
    expiry, born, kind, value, _, size = entry
    return (expiry, born, kind, value, due, size)


def _wait_for(running: _Running, until: float) -> _Outcome | None:
    """Return the outcome of another caller's load, or None.

    It is None if the outcome doesn't come until then, or only the other caller may have
    it. Raises `LoadFailed`.
    """
    seconds = until - time.monotonic()
    try:
        error = running.exception(min(seconds, threading.TIMEOUT_MAX))
    except TimeoutError:
        return None
    if error is not None:
        raise LoadFailed from error
    return running.result()


def _estimate(value: Hashable) -> int:
    """Estimate the bytes that a value takes.

    What several values may share is counted for each, except zero and what is empty:
    Python shares those.
    """
    if not value:
        return 0
    size = sys.getsizeof(value)
    if isinstance(value, tuple):
        size += sum(map(_estimate, value))
    return size
