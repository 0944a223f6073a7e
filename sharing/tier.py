"""Answers shared with other processes and machines through Redis.

A `SharedTier` stands between a process's own cache and the upstream, around the load function. It looks in Redis
first. What is not there is loaded by whoever gets the event's lock, and put there; who does not get it looks again and
again, until the answer is there or the lock is free. A lock lasts two seconds and is made to last longer while its
load is under way, so that a process that dies holds the others up for no longer than that. The pause that the upstream
asks for is shared as well. Where Redis is lost, loads go on without.

Times come from Redis: what is left of a lifetime is what is left there (PTTL). What is written says until when it
counts on Redis's own clock, for it may be held up on its way there. All rounding makes lives shorter: the time and what
is left are whole milliseconds, of which one may be over already.

Keys: `c42c:`, format, digest of base URL and token; then the lifetimes and the event, or `pause`. A lock's key is the
answer's with `:lock` behind it; in a cluster both are on one node. An answer is a line of JSON and then its body.
"""

import contextlib
import logging
import math
import os
import secrets
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from hashlib import blake2b
from typing import NamedTuple

from answers.value import pack, unpack
from cache import Loaded
from calendar42.pause import LONGEST, Pause
from operations.settings import Settings
from sharing.link import Budget, Command, Link, Lost

FORMAT = 1
BUDGET = 0.25  # seconds that an answer may wait for Redis, in all
LEASE = 2.0  # seconds that a lock lasts by itself, or the time-out where that is shorter
SHORTEST_WAIT, LONGEST_WAIT = 0.01, 0.05  # seconds between two looks

log = logging.getLogger("c42c.redis")

_NOW = "local now = redis.call('time') now = now[1] * 1000 + math.floor(now[2] / 1000) "

# Returns time, answer and what is left of its lifetime; or the time alone, with the lock taken; or nothing.
_LOOK_UP = f"""{_NOW}
local left = redis.call('pttl', KEYS[1])
local answer = left ~= 0 and redis.call('get', KEYS[1])
if answer then return {{now, answer, left}} end
if redis.call('set', KEYS[2], ARGV[1], 'nx', 'px', ARGV[2]) then return {{now}} end
return {{}}"""

# Releases the lock and puts the answer there, unless the lock has become another's.
_PUT = f"""{_NOW}
local holder = redis.call('get', KEYS[2])
if holder and holder ~= ARGV[1] then return 0 end
if holder then redis.call('del', KEYS[2]) end
local left = math.min(tonumber(ARGV[3]), ARGV[4] - now - 1)
if left > 0 then redis.call('set', KEYS[1], ARGV[2], 'px', left) end
return left"""

# Takes the lock, or makes it last; a Redis that was restarted has forgotten it.
_HOLD = """
local holder = redis.call('get', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('set', KEYS[1], ARGV[1], 'px', ARGV[2])
return ARGV[1]"""

_PAUSE = f"""{_NOW}
local left = math.min(tonumber(ARGV[1]), ARGV[2] - now - 1)
if left > redis.call('pttl', KEYS[1]) then redis.call('set', KEYS[1], '', 'px', left) end
return left"""

LoadMany = Callable[[list[str], float], Iterator[tuple[str, Loaded]]]  # until a moment of `time.monotonic`


class _Locks(NamedTuple):
    """Of one look: those of the events that are now to be loaded here. They have one token."""

    event_ids: list[str]
    token: str
    clock: float  # Redis's time is at least this much more than time.monotonic, in milliseconds


class TierStats(NamedTuple):
    """One consistent reading of the shared tier. An event that was to be loaded, by how that ended: the first four."""

    found: int  # in Redis, at once
    awaited: int  # in Redis, after another process had loaded it
    loaded: int  # here, for all
    alone: int  # here, without Redis
    up: bool


class SharedTier:
    """Shares answers through the Redis of `settings`; `pause` is the one of the client whose loads it wraps."""

    def __init__(self, settings: Settings, pause: Pause) -> None:
        self._url = settings.cache_url
        self._timeout = settings.timeout
        self._lease = max(1, int(min(LEASE, settings.timeout) * 1000))
        self._pause = pause
        scope = blake2b(f"{settings.base_url}\0{settings.token}".encode(), digest_size=16).hexdigest()
        self._prefix = f"c42c:{FORMAT}:{scope}:"
        # Who keeps answers for another time can't take over these.
        self._answers = f"{self._prefix}{settings.expiry:g}/{settings.fault_expiry:g}:"
        self._start()
        _tiers.add(self)
        self._link.wait_until_known(2 * BUDGET)

    def _start(self) -> None:
        self._lock = threading.Lock()  # guards what follows
        self._held: dict[str, str] = {}  # the tokens of the locks that are to last, by event
        self._counts = dict.fromkeys(TierStats._fields[:-1], 0)
        token = secrets.token_hex(8)
        probe = ("EVAL", _HOLD, 1, f"{self._prefix}probe:{token}", token, self._lease)
        self._link = Link(self._url, probe=probe, right=token.encode(), regular=self._hold)

    def snapshot(self) -> TierStats:
        """Read all counters at one moment."""
        with self._lock:
            return TierStats(**self._counts, up=self._link.up)

    def close(self) -> None:
        """Let Redis go."""
        _tiers.discard(self)
        self._link.close()

    def wrap(self, load: LoadMany) -> LoadMany:
        """Return a load function for the cache that looks in Redis first, and asks `load` for the rest.

        Both get the events and a deadline, and yield each event as it comes.
        """

        def wrapped(event_ids: list[str], deadline: float) -> Iterator[tuple[str, Loaded]]:
            return self._load(event_ids, load, deadline)

        return wrapped

    def _load(self, event_ids: list[str], load: LoadMany, deadline: float) -> Iterator[tuple[str, Loaded]]:
        began = time.monotonic()
        wanted, wait, budget = list(event_ids), 0.0, Budget(BUDGET)
        while wanted:
            # Who waits for another's load does not wait for Redis, but at the very end.
            look = Budget(budget.left - wait) if wait else budget
            try:
                if time.monotonic() > deadline + BUDGET:
                    raise Lost  # whoever loads it should have ended
                found, locks = self._look_up(wanted, began, look)
            except Lost:
                self._count("alone", len(wanted))
                yield from _ask(wanted, load, deadline, began)
                return
            self._count("awaited" if wait else "found", len(found))
            for event_id, loaded in found.items():
                yield event_id, loaded._replace(source="awaited" if wait else "shared")
            if locks.event_ids:
                self._count("loaded", len(locks.event_ids))
                yield from self._load_for_all(locks, load, deadline, began, look).items()
            wanted = [event_id for event_id in wanted if event_id not in found and event_id not in locks.event_ids]
            if wanted:
                wait = min(max((time.monotonic() - began) / 5, SHORTEST_WAIT), LONGEST_WAIT)
                time.sleep(wait)

    def _look_up(self, event_ids: list[str], began: float, budget: Budget) -> tuple[dict[str, Loaded], _Locks]:
        """Return what is there, and the locks of those that are now to be loaded here; the others are being loaded."""
        token = secrets.token_hex(8)
        commands: list[Command] = [("PTTL", f"{self._prefix}pause")]
        commands += [("EVAL", _LOOK_UP, 2, *self._keys(event_id), token, self._lease) for event_id in event_ids]
        sent = time.monotonic()
        pause, *replies = self._link.ask(commands, budget)
        received = time.monotonic()
        found: dict[str, Loaded] = {}
        missing, clock = [], 0.0
        try:
            if 0 < pause <= LONGEST * 1000:
                self._pause.extend(sent + (pause - 1) / 1000)
            for event_id, reply in zip(event_ids, replies, strict=True):
                if not reply:
                    continue
                now, *answer = reply
                clock = now - received * 1000
                if not answer:
                    missing.append(event_id)
                    continue
                try:
                    content, left = answer
                    loaded = unpack(content)
                    if not 0 < left <= loaded.lifetime * 1000:
                        raise ValueError("lives longer than it may")
                except ValueError as error:  # it will be replaced
                    log.warning("Redis has something else than an answer of event %s: %s", event_id, error)
                    missing.append(event_id)
                else:
                    found[event_id] = loaded._replace(age=loaded.lifetime - (left - 1) / 1000 - (sent - began))
        except Exception as error:  # whatever comes of what is not as it should be
            self._link.lose(f"it answers nonsense: {error}")
            raise Lost from None
        return found, _Locks(missing, token, clock)

    def _load_for_all(
        self, locks: _Locks, load: LoadMany, deadline: float, began: float, budget: Budget
    ) -> Mapping[str, Loaded]:
        """Load the events whose locks are held, put the answers where all find them, and release the locks."""
        with self._lock:
            self._held |= dict.fromkeys(locks.event_ids, locks.token)
        loaded: Mapping[str, Loaded] = {}
        try:
            loaded = dict(_ask(locks.event_ids, load, deadline, began))
        finally:
            with self._lock:
                for event_id in locks.event_ids:
                    self._held.pop(event_id, None)  # forgotten in a fork
            self._put(loaded, locks, began, budget)
        return loaded

    def _put(self, loaded: Mapping[str, Loaded], locks: _Locks, began: float, budget: Budget) -> None:
        commands: list[Command] = []
        now = time.monotonic()
        if pause := self._pause.left:
            commands.append(("EVAL", _PAUSE, 1, f"{self._prefix}pause", *_until(now + pause, now, locks.clock)))
        for event_id in locks.event_ids:
            content, until = b"", now
            if answer := loaded.get(event_id):
                content, until = pack(answer), began - answer.age + answer.lifetime
            times = _until(until, now, locks.clock)
            commands.append(("EVAL", _PUT, 2, *self._keys(event_id), locks.token, content, *times))
        with contextlib.suppress(Lost):  # the answer is right all the same, and the lock ends by itself
            self._link.ask(commands, budget, keep=True)

    def _hold(self) -> list[Command]:
        with self._lock:
            held = list(self._held.items())
        return [("EVAL", _HOLD, 1, self._keys(event_id)[1], token, self._lease) for event_id, token in held]

    def _keys(self, event_id: str) -> tuple[str, str]:
        """Return the key of the answer and that of the lock; the braces put both on one node of a cluster."""
        key = f"{self._answers}{{{event_id}}}"
        return key, f"{key}:lock"

    def _count(self, what: str, number: int) -> None:
        with self._lock:
            self._counts[what] += number


# A fork copies the one thread that forks: loads and connection are the parent's. So tiers begin anew in a child.
_tiers: "weakref.WeakSet[SharedTier]" = weakref.WeakSet()


def _start_anew() -> None:
    for tier in _tiers:
        tier._start()


os.register_at_fork(after_in_child=_start_anew)


def _ask(event_ids: list[str], load: LoadMany, deadline: float, began: float) -> Iterator[tuple[str, Loaded]]:
    """Load, and date the answers back to `began`."""
    waited = time.monotonic() - began
    for event_id, loaded in load(event_ids, deadline):
        yield event_id, loaded._replace(age=loaded.age - waited)


def _until(until: float, now: float, clock: float) -> tuple[int, int]:
    """Return the milliseconds that are left `until` then, and when that is on Redis's clock."""
    return math.floor((until - now) * 1000), math.floor(until * 1000 + clock)
