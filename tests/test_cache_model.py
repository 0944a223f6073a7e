"""Compare the cache with a model: operations in any order, and in several threads."""

import itertools
import math
import random
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple, cast

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from cache import KINDS, NEGATIVE, OK, Cache, Found, Loaded, LoadFailed, TooManyWaiting
from tests.cache_callers import Clock
from tests.fixtures import PATIENCE, until

Entry = tuple[float, str, float, str, Any]  # expiry, key, born, kind, value
Ending = tuple[
    int, Loaded | BaseException
]  # what comes of a key, after so many seconds


class Got(NamedTuple):
    """What a caller has of a key.

    If a cache keeps it, this one or a shared one, it must still be fresh when it is
    handed out.
    """

    entry: Entry
    source: str
    is_kept: bool
    is_shared: bool = False

    def has_expired(self, now: float) -> bool:
        return (self.is_kept or self.is_shared) and self.entry[0] <= now

    def found(self, now: float) -> Found:
        expiry, _, born, kind, value = self.entry
        return Found(value, kind, now - born, expiry - now, self.source, self.is_kept)


class Large:
    """A value that is too large to be kept."""

    def __sizeof__(self) -> int:
        return MAX_BYTES


LARGE = Large()


class Reference:
    """The simplest cache that does the same, for one caller at a time."""

    def __init__(self, max_entries: int, max_waiting: int, now: float) -> None:
        self.max_entries = max_entries
        self.max_waiting = max_waiting
        self.now = now
        self.entries: dict[str, Entry] = {}
        self.due: dict[str, float] = {}  # of each entry
        self.claimed: set[str] = set()
        self.accepts = True
        self.loads = Counter[str]()
        self.refreshes = Counter[str]()
        self.evicted = Counter[str]()

    def hits(self, keys: list[str]) -> dict[str, Got]:
        entries = {key: self.entries[key] for key in keys if key in self.entries}
        return {
            key: Got(entry, "hit", True)
            for key, entry in entries.items()
            if entry[0] > self.now
        }

    def ask(self, keys: list[str], outcomes: Iterator[Ending]) -> dict[str, Got]:
        got: dict[str, Got] = {}
        waiting = 0
        while wanted := [
            key for key in keys if key not in got or got[key].has_expired(self.now)
        ]:
            hits = self.hits(wanted)
            began = self.now
            missing = [key for key in wanted if key not in hits]
            got |= hits
            if missing:
                waiting = 1
            self.claimed.difference_update(missing)
            for key, loaded in self.load(missing, outcomes, self.loads):
                got[key] = self.settle(key, loaded, began)
        self.begin_refreshes([key for key in keys if got[key].source == "hit"], waiting)
        return got

    def load(
        self, keys: list[str], outcomes: Iterator[Ending], counts: Counter[str]
    ) -> Iterator[tuple[str, Loaded]]:
        for position, key in enumerate(keys):
            seconds, loaded = next(outcomes)
            self.now += seconds
            if isinstance(loaded, BaseException):
                counts["failed"] += len(keys) - position
                if counts is self.refreshes:
                    self.retry_later(keys[position:])
                raise loaded
            counts[loaded.kind] += 1
            yield key, loaded

    def settle(self, key: str, loaded: Loaded, began: float) -> Got:
        born = began if loaded.born is None else loaded.born
        entry = (born + loaded.lifetime, key, born, loaded.kind, loaded.value)
        kept = not loaded.private and self.is_worth_keeping(entry)
        if kept:
            self.keep(entry)
        return Got(entry, loaded.source, kept, loaded.source != "miss")

    def is_worth_keeping(self, entry: Entry) -> bool:
        if entry[0] <= self.now or entry[4] == LARGE:
            return False
        return not self.hits([entry[1]]) or entry[3] in (OK, NEGATIVE)

    def keep(self, entry: Entry) -> None:
        expiry, key, born, kind, _ = entry
        if key in self.entries:
            self.remove(self.entries[key], "replaced")
        peers = [
            held for held in self.entries.values() if (held[3] == OK) == (kind == OK)
        ]
        tenth = max(1, self.max_entries // 10)
        if len(peers) == (self.max_entries - tenth if kind == OK else tenth):
            self.remove(min(peers))
        self.entries[key] = entry
        self.due[key] = due(expiry, born, kind)

    def remove(self, entry: Entry, reason: str = "bound") -> None:
        del self.entries[entry[1]]
        self.claimed.discard(entry[1])
        self.evicted["expired" if entry[0] <= self.now else reason] += 1

    def begin_refreshes(self, hits: list[str], waiting: int = 0) -> None:
        claimed = [key for key in hits if self.due[key] <= self.now]
        if 2 * waiting > self.max_waiting:
            return
        if self.accepts:
            self.claimed.update(claimed)
            self.due.update(dict.fromkeys(claimed, math.inf))
        else:
            self.retry_later(claimed)

    def refresh(self, keys: list[str], outcomes: Iterator[Ending]) -> None:
        mine = [key for key in keys if key in self.claimed]
        self.claimed.difference_update(mine)
        began = self.now
        for key, loaded in self.load(mine, outcomes, self.refreshes):
            got = self.settle(key, loaded, began)
            if not got.is_kept or self.due[key] <= self.now:
                self.retry_later([key])

    def retry_later(self, keys: list[str]) -> None:
        for key in keys:
            if key in self.entries:
                expiry, _, born, kind, _ = self.entries[key]
                self.due[key] = max(due(expiry, born, kind), self.now + RETRY)


def due(expiry: float, born: float, kind: str) -> float:
    """Return from when on a hit begins a refresh."""
    return born + (expiry - born) * (1 - AHEAD) if kind == OK else math.inf


AHEAD = 0.5
RETRY = 2.0
MAX_BYTES = 100_000
KEY = st.sampled_from("abcdef")
KEYS = st.lists(KEY, min_size=1, max_size=4, unique=True)
LOADED = st.builds(
    Loaded,
    value=st.integers() | st.integers() | st.just(LARGE),
    kind=st.sampled_from([OK, *KINDS]),
    lifetime=st.integers(0, 9).map(float),
    born=st.none() | st.none() | st.integers(990, 1030).map(float),
    source=st.sampled_from(["miss", "miss", "shared", "awaited"]),
    private=st.sampled_from([False, False, False, True]),
)
# Those of a shared cache are fresh when they come.
FRESH = LOADED.map(
    lambda loaded: (
        loaded
        if loaded.source == "miss"
        else loaded._replace(lifetime=loaded.lifetime + 1, born=None)
    )
)
ERROR = (
    st.none()
    | st.none()
    | st.sampled_from([ValueError("no"), KeyboardInterrupt(), SystemExit(1)])
)
SECONDS = st.sampled_from([0, 0, 0, 1, 4])


def script(
    outcomes: list[Ending], error: BaseException | None = None
) -> Iterator[Ending]:
    """Yield the outcomes, then the error if there is one, then one outcome forever."""
    last: Ending = (0, Loaded("the last", OK, 100.0))
    return itertools.chain(
        outcomes, [(0, error)] if error else [], itertools.repeat(last)
    )


def plain(outcomes: list[Loaded]) -> list[Ending]:
    """Add that no time passes."""
    return [(0, loaded) for loaded in outcomes]


def next_loaded(outcomes: Iterator[Ending]) -> Loaded:
    return cast(Loaded, next(outcomes)[1])


def attempt(call: Callable[[], Any]) -> Any:
    """Return what `call` returns or raises."""
    try:
        return call()
    except BaseException as raised:
        return raised


class CacheMachine(RuleBasedStateMachine):
    """A cache and its reference, which must agree after each step."""

    @initialize(
        max_entries=st.sampled_from([2, 3, 5, 9, 20]),
        max_waiting=st.sampled_from([1, 2, 2, 2]),
    )
    def begin(self, max_entries: int, max_waiting: int) -> None:
        self.clock = Clock()
        self.cache = Cache(
            max_entries=max_entries,
            max_bytes=MAX_BYTES,
            max_waiting=max_waiting,
            refresh_ahead=AHEAD,
            retry_refresh=RETRY,
            on_refresh_due=self.on_refresh_due,
            clock=self.clock,
        )
        self.cache.close()  # so that only the steps delete entries
        self.reference = Reference(max_entries, max_waiting, self.clock.now)
        self.max_waiting = max_waiting
        self.hits = Counter[str]()
        self.refused = self.collapsed = 0

    def on_refresh_due(self, keys: list[str]) -> bool:
        self.handed_over = keys
        return self.reference.accepts

    def expect(self, got: dict[str, Got]) -> dict[str, Found]:
        """Count the hits that were handed out, and return all."""
        self.hits.update(each.entry[3] for each in got.values() if each.source == "hit")
        return {key: each.found(self.reference.now) for key, each in got.items()}

    def load(
        self, keys: list[str], outcomes: Iterator[Ending]
    ) -> Iterator[tuple[str, Loaded]]:
        for key in keys:
            seconds, loaded = next(outcomes)
            self.clock.now += seconds
            if isinstance(loaded, BaseException):
                raise loaded
            yield key, loaded

    @rule(seconds=st.integers(1, 5))
    def advance(self, seconds: int) -> None:
        """Let time pass."""
        self.clock.now += seconds
        self.reference.now += seconds

    @rule()
    def reap(self) -> None:
        """Delete what has expired."""
        self.cache.reap()
        for entry in [
            entry
            for entry in self.reference.entries.values()
            if entry[0] <= self.reference.now
        ]:
            self.reference.remove(entry)

    @rule()
    def close(self) -> None:
        """Close it again: it remains usable."""
        self.cache.close()

    @rule(accepts=st.booleans())
    def accept(self, accepts: bool) -> None:
        """From now on, accept refreshes or decline them."""
        self.reference.accepts = accepts

    @rule(key=KEY)
    def get(self, key: str) -> None:
        """Get a key."""
        hit = self.cache.get(key)
        hits = self.reference.hits([key])
        assert ({key: Found(*hit, "hit", True)} if hit else {}) == self.expect(hits)
        self.reference.begin_refreshes(list(hits))

    @rule(
        keys=KEYS,
        outcomes=st.lists(st.tuples(SECONDS, LOADED), max_size=3),
        error=ERROR,
    )
    def refresh(
        self, keys: list[str], outcomes: list[Ending], error: BaseException | None
    ) -> None:
        """Refresh those keys of a list that were handed over."""
        expected = attempt(
            lambda: self.reference.refresh(keys, script(outcomes, error))
        )
        plan = script(outcomes, error)
        assert (
            attempt(
                lambda: self.cache.refresh(keys, lambda mine, _: self.load(mine, plan))
            )
            == expected
        )

    @rule(
        keys=KEYS,
        outcomes=st.lists(st.tuples(SECONDS, LOADED), max_size=3),
        error=ERROR,
    )
    def ask(
        self, keys: list[str], outcomes: list[Ending], error: BaseException | None
    ) -> None:
        """Ask for a list, whose load may take time or raise in the middle."""
        expected = attempt(
            lambda: self.expect(self.reference.ask(keys, script(outcomes, error)))
        )
        plan = script(outcomes, error)
        assert (
            attempt(
                lambda: self.cache.get_or_load(
                    keys, lambda missing, _: self.load(missing, plan)
                )
            )
            == expected
        )

    @rule(
        outer=KEYS,
        inner=KEYS,
        outcomes=st.lists(FRESH, max_size=3),
        own=st.lists(FRESH, max_size=3),
        error=ERROR,
    )
    def overlap(
        self,
        outer: list[str],
        inner: list[str],
        outcomes: list[Loaded],
        own: list[Loaded],
        error: BaseException | None,
    ) -> None:
        """Ask for a list in another thread while one that may share keys is loaded."""
        theirs = [key for key in outer if key not in self.reference.hits(outer)]
        due = [
            key
            for key in self.reference.hits(outer + inner)
            if self.reference.due[key] <= self.reference.now
        ]
        # How many callers wait when what is due is hit would be left to chance.
        if not theirs or due:
            return
        plan, plan_too = script(plain(outcomes), error), script(plain(own))
        ended = threading.Event()
        rounds: list[list[str]] = []
        futures: list[Future[dict[str, Found]]] = []

        def load_inner(
            missing: list[str], _deadline: float
        ) -> Iterator[tuple[str, Loaded]]:
            rounds.append(missing)
            assert len(rounds) == 1 or ended.wait(
                PATIENCE
            )  # or it would not be known who settles first
            return self.load(missing, plan_too)

        with ThreadPoolExecutor(1) as pool:

            def load_outer(
                missing: list[str], _deadline: float
            ) -> Iterator[tuple[str, Loaded]]:
                futures.append(pool.submit(self.cache.get_or_load, inner, load_inner))
                until(
                    lambda: futures[0].done() or self.is_waiting(2, loading=len(theirs))
                )
                return self.load(missing, plan)

            found = attempt(lambda: self.cache.get_or_load(outer, load_outer))
            ended.set()
            found_too: Any = attempt(lambda: futures[0].result(PATIENCE))
        expected, expected_too = self.expect_both(
            outer, inner, script(plain(outcomes), error), script(plain(own))
        )
        assert found == expected
        if isinstance(found_too, Exception):
            found_too = type(found_too), found_too.__cause__
        assert found_too == expected_too

    def is_waiting(self, callers: int, *, loading: int) -> bool:
        stats = self.cache.snapshot()
        return (stats.waiting, stats.loading) == (callers, loading)

    def expect_both(
        self,
        outer: list[str],
        inner: list[str],
        plan: Iterator[Ending],
        own: Iterator[Ending],
    ) -> Any:
        """Return what both callers of `overlap` get.

        The outer load begins first and ends last.
        """
        reference, now = self.reference, self.reference.now
        got, got_too = reference.hits(outer), reference.hits(inner)
        theirs, left = (
            [key for key in outer if key not in got],
            [key for key in inner if key not in got_too],
        )
        shared, again = [key for key in left if key in theirs], []
        private = set[str]()
        refused = bool(left) and self.max_waiting == 1
        reference.claimed.difference_update(theirs)
        if refused:
            self.refused += len(inner)
        else:
            reference.claimed.difference_update(left)
            self.collapsed += len(shared)
            got_too |= {
                key: self.settle(key, next_loaded(own), now)
                for key in left
                if key not in shared
            }
        error: Any = None
        for position, key in enumerate(theirs):
            _, loaded = next(plan)
            if isinstance(loaded, BaseException):
                reference.loads["failed"] += len(theirs) - position
                error = loaded
                break
            got[key] = self.settle(key, loaded, now)
            private |= {key} if loaded.private else set()
        expected = error or self.expect(got)
        if refused:
            return expected, (TooManyWaiting, None)
        for key in shared:
            if key not in got:
                return expected, (LoadFailed, error)
            if key in private:
                again.append(key)
            else:
                got_too[key] = got[key]._replace(source="collapsed")
        got_too |= {key: self.settle(key, next_loaded(own), now) for key in again}
        return expected, self.expect(got_too)

    def settle(self, key: str, loaded: Loaded, began: float) -> Got:
        self.reference.loads[loaded.kind] += 1
        return self.reference.settle(key, loaded, began)

    @invariant()
    def agree(self) -> None:
        """Both hold and count the same."""
        stats, reference = self.cache.snapshot(), self.reference
        assert stats.entries == {
            kind: sum(entry[3] == kind for entry in reference.entries.values())
            for kind in KINDS
        }
        assert stats.hits == {kind: self.hits[kind] for kind in KINDS}
        assert stats.loads == {
            kind: reference.loads[kind] for kind in (*KINDS, "failed")
        }
        assert stats.refreshes == {
            kind: reference.refreshes[kind] for kind in (*KINDS, "failed")
        }
        assert (stats.bytes == 0) <= (len(self.cache) == 0)
        assert 300 * len(self.cache) <= stats.bytes <= MAX_BYTES
        assert stats.refreshing == 0
        assert stats.evicted == {
            reason: reference.evicted[reason]
            for reason in ("expired", "bound", "replaced")
        }
        assert (stats.misses, stats.collapsed, stats.refused) == (
            reference.loads.total(),
            self.collapsed,
            self.refused,
        )
        assert (stats.waiting, stats.loading, len(self.cache)) == (
            0,
            0,
            len(reference.entries),
        )
        assert self.clock.now == reference.now


TestCache = CacheMachine.TestCase
TestCache.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


class PastLoad(NamedTuple):
    """A load of one key, and when it happened."""

    key: str
    caller: int
    begun: int
    ended: int  # its outcome is settled later
    asked_at: float  # the clock when its caller asked: it began then or later
    outcome: Loaded | BaseException


class PastCall(NamedTuple):
    """One operation of a caller, and its result."""

    caller: int
    begun: int
    ended: int
    began_at: float
    ended_at: float
    keys: list[str]
    came: dict[str, Found] | BaseException


class Callers:
    """Callers in several threads, and a history of what they did."""

    def __init__(self) -> None:
        ticks = itertools.count()
        self.clock: Callable[[], float] = lambda: (
            next(ticks) * 0.001
        )  # time passes whenever somebody looks
        self.cache = Cache(
            max_entries=1000, max_bytes=10**9, max_waiting=1000, clock=self.clock
        )
        self.order = itertools.count()
        self.loads: list[PastLoad] = []
        self.settled = defaultdict[int, float](
            lambda: math.inf
        )  # by the beginning of the load, the moment afterwards
        self.asked: list[PastCall] = []

    def load_many(
        self,
        keys: list[str],
        _deadline: float,
        *,
        caller: int,
        asked_at: float,
        rng: random.Random,
    ) -> Iterator[tuple[str, Loaded]]:
        for key in keys:
            loaded = self.load(key, caller, asked_at, rng)
            yield key, loaded
            self.settled[cast(Any, loaded.value)[1]] = next(self.order)

    def load(
        self, key: str, caller: int, asked_at: float, rng: random.Random
    ) -> Loaded:
        begun = next(self.order)
        time.sleep(0)  # let others run
        lifetime = rng.choice([0.01, 0.02, 0.05])
        private = rng.random() < 0.25
        outcome: Loaded | BaseException = Loaded(
            (key, begun), rng.choice(KINDS), lifetime, private=private
        )
        if rng.random() < 0.1:
            outcome = rng.choice([ValueError, KeyboardInterrupt])(key)
        self.loads.append(
            PastLoad(key, caller, begun, next(self.order), asked_at, outcome)
        )
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def run(self, seed: int) -> None:
        rng = random.Random(seed)
        for caller in range(seed * 1000, seed * 1000 + 400):
            keys = rng.sample("abcdefgh", rng.choice([1, 1, 3]))
            begun, began_at = next(self.order), self.clock()
            if len(keys) == 1 and rng.random() < 0.5:
                hit = self.cache.get(keys[0])
                came: Any = {keys[0]: Found(*hit, "hit", True)} if hit else {}
            else:
                came = attempt(
                    partial(
                        self.cache.get_or_load,
                        keys,
                        partial(
                            self.load_many, caller=caller, asked_at=began_at, rng=rng
                        ),
                    )
                )
            self.asked.append(
                PastCall(
                    caller, begun, next(self.order), began_at, self.clock(), keys, came
                )
            )


def check_found(
    one: PastCall, found: Found, load: PastLoad, settled: float, loads: list[PastLoad]
) -> None:
    """Assert that `found` is a legal answer to `one`.

    It is from `load`; `loads` are all loads of the key.
    """
    loaded = cast(Loaded, load.outcome)
    assert found.kind == loaded.kind
    assert abs(found.age + found.ttl - loaded.lifetime) < 1e-6
    assert load.ended < one.ended, "a value from the future"
    assert found.ttl > 0 or not found.is_kept, "a value that has expired since it came"
    if found.source == "miss":
        assert load.caller == one.caller
    elif found.source == "collapsed":
        assert load.caller != one.caller
        assert settled > one.begun, "that load was over"
        assert not loaded.private
    else:
        assert found.source == "hit"
        assert not any(load.ended < later.begun < one.begun for later in loads), (
            "there was a newer value"
        )


def check_none(
    one: PastCall,
    key: str,
    loads: dict[Any, PastLoad],
    known: dict[str, list[tuple[int, Any]]],
) -> None:
    """Assert that finding nothing is legal: all that was found may have expired."""
    for ended, value in known[key]:
        load = loads[value]
        if ended < one.begun:
            assert (
                load.asked_at + cast(Loaded, load.outcome).lifetime <= one.ended_at
            ), "a fresh value was lost"


def test_what_several_threads_see_is_in_a_legal_order() -> None:
    """With many threads, loads of a key never overlap and each answer fits its time."""
    traffic = Callers()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(6) as pool:
            list(pool.map(traffic.run, range(1, 7)))
    finally:
        sys.setswitchinterval(interval)
        traffic.cache.close()
    loads_of: dict[str, list[PastLoad]] = defaultdict(list)
    for load in sorted(traffic.loads, key=lambda load: load.begun):
        loads_of[load.key].append(load)
    for loads in loads_of.values():
        assert all(one.ended < two.begun for one, two in itertools.pairwise(loads)), (
            "two loads of a key at once"
        )
    by_value = {
        load.outcome.value: load
        for load in traffic.loads
        if isinstance(load.outcome, Loaded)
    }
    errors = {
        id(load.outcome): load
        for load in traffic.loads
        if isinstance(load.outcome, BaseException)
    }
    known: dict[str, list[tuple[int, Any]]] = defaultdict(list)
    results = Counter[str]()
    for one in sorted(traffic.asked, key=lambda one: one.ended):
        if isinstance(one.came, BaseException):
            failed = errors[
                id(one.came.__cause__ if isinstance(one.came, LoadFailed) else one.came)
            ]
            assert isinstance(one.came, LoadFailed) == (failed.caller != one.caller)
            results["failed"] += 1
            continue
        for key in one.keys:
            if key in one.came:
                found = one.came[key]
                check_found(
                    one,
                    found,
                    by_value[found.value],
                    traffic.settled[found.value[1]],
                    loads_of[key],
                )
                results[found.source] += 1
                if found.is_kept:
                    known[key].append((one.ended, found.value))
            else:
                check_none(one, key, by_value, known)
                results["none"] += 1
    assert (
        min(
            results[result] for result in ("hit", "miss", "collapsed", "failed", "none")
        )
        > 20
    ), results
