"""Answers shared with other instances through Redis.

A `SharedTier` stands around the load function. It looks in Redis first. What is absent is loaded by the instance that
gets the event's lock, and put there; the others look again and again until the answer is there, or the lock is free.
The upstream's pause is shared as well. While Redis is lost, every instance loads for itself.

A lock lasts two seconds and is renewed while its load is under way, so an instance that dies holds nobody up for more.
One that is gone is lost, whether its holder was suspended or Redis was restarted or flushed: they can't be told apart,
and another instance may have loaded since. So it isn't taken again, and whoever lost it stores nothing.

Times come from Redis: what is left of an answer is what is left there (PTTL). What is written says when it ends on
Redis's clock, as it may be held up on its way. Times are whole milliseconds, of which one may be over already.

Keys: `c42c:`, format, digest of base URL and token; then `pause`, or the lifetimes and the event, and `:lock` for its
lock. `SharedTier._lock` guards all that changes.
"""

import asyncio
import logging
import math
import secrets
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from functools import partial
from hashlib import blake2b
from typing import NamedTuple

from answers.loading import Load
from answers.value import pack, unpack
from cache import Loaded, clock
from calendar42.pause import LONGEST, Pause
from sharing.link import PATIENCE, PROBE_EVERY, SLICE, Command, Link, Lost

FORMAT = 3
LEASE = 2.0  # seconds that a lock lasts by itself, or the time-out if that is shorter
SHORTEST_WAIT = 0.01  # seconds between two looks

log = logging.getLogger("c42c.redis")

_NOW = "local now = redis.call('time') now = now[1] * 1000 + math.floor(now[2] / 1000) "

# Returns time, answer and what is left of its lifetime; or the time alone, with the lock taken; or nothing. An answer
# that was of no use at the last look counts as none.
LOOK_UP = f"""{_NOW}
local left = redis.call('pttl', KEYS[1])
local answer = left ~= 0 and redis.call('get', KEYS[1])
if answer and answer ~= ARGV[3] then return {{now, answer, left}} end
local holder = redis.call('get', KEYS[2])
if holder and holder ~= ARGV[1] then return {{}} end
redis.call('set', KEYS[2], ARGV[1], 'px', ARGV[2])
return {{now}}"""

# Releases the lock and puts the answer there, but only if the lock is still held.
PUT = f"""{_NOW}
if redis.call('get', KEYS[2]) ~= ARGV[1] then return 0 end
redis.call('del', KEYS[2])
local left = math.min(tonumber(ARGV[3]), ARGV[4] - now - 1)
if left > 0 then redis.call('set', KEYS[1], ARGV[2], 'px', left) end
return left"""

_RENEW = """
if redis.call('get', KEYS[1]) == ARGV[1] then redis.call('set', KEYS[1], ARGV[1], 'px', ARGV[2]) end
return 1"""

_PROBE = """
redis.call('set', KEYS[1], ARGV[1], 'px', ARGV[2])
return redis.call('get', KEYS[1])"""

_PAUSE = f"""{_NOW}
local left = math.min(tonumber(ARGV[1]), ARGV[2] - now - 1)
if left > redis.call('pttl', KEYS[1]) then redis.call('set', KEYS[1], '', 'px', left) end
return left"""


class _Look(NamedTuple):
    """What a look into Redis found."""

    found: dict[str, Loaded]
    locked: list[str]  # the events to be loaded here, whose locks are held with `token`
    token: str
    ahead: float  # seconds that Redis's clock is ahead of ours, at least
    patience: float  # seconds left


class TierStats(NamedTuple):
    """One consistent reading of the shared tier. An event that was to be loaded counts once among the first four."""

    found: int  # in Redis, at once
    awaited: int  # in Redis, after another instance had loaded it
    loaded: int  # here, for all
    alone: int  # here, without Redis
    up: bool


class SharedTier:
    """Shares answers through the Redis at `url` with instances of the same `base_url`, `token` and lifetimes.

    All times are in seconds. `pause` is the one of the client whose loads it wraps. `loop` is an event loop that runs,
    or will run; without one, one is started.
    """

    def __init__(
        self,
        url: str,
        *,
        base_url: str,
        token: str,
        timeout: float,
        expiry: float,
        fault_expiry: float,
        pause: Pause,
        loop: asyncio.AbstractEventLoop | None = None,
        clock: Callable[[], float] = clock,
        probe_every: float = PROBE_EVERY,
    ) -> None:
        self._expiry, self._pause, self._clock = expiry, pause, clock
        lease = min(LEASE, timeout)
        self._lease = math.ceil(lease * 1000)
        scope = blake2b(f"{base_url}\0{token}".encode(), digest_size=16).hexdigest()
        self._prefix = f"c42c:{FORMAT}:{scope}:"
        self._lifetimes = f"{expiry:g}/{fault_expiry:g}"
        self._lock = threading.Lock()
        self._held: dict[str, str] = {}  # the tokens of the locks to be renewed, by event
        self._counts = dict.fromkeys(TierStats._fields[:-1], 0)
        self._ahead = -math.inf  # seconds that Redis's clock was ahead of ours at least, before it was set back
        self._noticed = math.inf  # when it was noticed that it was
        own = secrets.token_hex(8)
        self._link = Link(
            url,
            probe=("EVAL", _PROBE, 1, f"{self._prefix}probe:{own}", own, self._lease),
            right=own.encode(),
            regular=self._renewals,
            beat=lease / 4,
            probe_every=probe_every,
            loop=loop,
        )

    def snapshot(self) -> TierStats:
        """Read all counters at one moment."""
        with self._lock:
            return TierStats(**self._counts, up=bool(self._link.up))

    def close(self) -> None:
        """Let Redis go."""
        self._link.close()

    def key(self, event_id: str) -> str:
        """Return the key of an event's answer; the braces put its lock on the same node of a cluster."""
        return f"{self._prefix}{self._lifetimes}:{{{event_id}}}"

    def wrap(self, load: Load) -> Load:
        """Return a load function for the cache that looks in Redis first, and asks `load` for the rest."""
        return partial(self._load, load)

    def _load(self, load: Load, event_ids: list[str], deadline: float) -> Iterator[tuple[str, Loaded]]:
        began = self._clock()
        wanted, useless, wait, patience = event_ids, dict[str, bytes](), 0.0, PATIENCE
        while wanted:
            try:
                if time.monotonic() > deadline + PATIENCE:
                    raise Lost  # whoever loads it should have ended
                look = self._look(wanted, useless, patience, began)
            except Lost:
                self._count("alone", len(wanted))
                yield from self._dated(load, wanted, deadline, began)
                return
            self._count("awaited" if wait else "found", len(look.found))
            for event_id, loaded in look.found.items():
                yield event_id, loaded._replace(result="awaited" if wait else "shared")
            spent = patience - (yield from self._load_for_all(load, look, deadline, began))
            if wanted := [each for each in wanted if each not in look.found and each not in look.locked]:
                # The time of another's load is not spent on Redis: only what has passed since it was seen under way is.
                wait = min(max((self._clock() - began) / 5, SHORTEST_WAIT), (PATIENCE - spent) / 5)
                patience = PATIENCE - spent - wait
                time.sleep(wait)

    def _look(self, wanted: list[str], useless: dict[str, bytes], patience: float, began: float) -> _Look:
        """Look for all events at once, and take the locks of those that nobody loads; add what can't be used."""
        token = secrets.token_hex(8)
        commands: list[Command] = [("PTTL", f"{self._prefix}pause")]
        for event_id in wanted:
            known = useless.get(event_id, b"")
            commands.append(("EVAL", LOOK_UP, 2, *self._keys(event_id), token, self._lease, known))
        sent = self._clock()
        (pause, *replies), left = self._link.ask(commands, patience)
        found, locked, ahead = dict[str, Loaded](), [], 0.0
        try:
            if 0 < pause <= LONGEST * 1000:
                self._pause.extend(time.monotonic() + sent - self._clock() + (pause - 1) / 1000)
            for event_id, reply in zip(wanted, replies, strict=True):
                if reply:
                    ahead, set_back = self._compare_clocks(reply[0] / 1000, sent)
                if len(reply) == 1:
                    locked.append(event_id)
                elif reply:
                    _, content, milliseconds = reply
                    ends = sent + (milliseconds - 1) / 1000 - set_back
                    loaded = _read(event_id, content, milliseconds)
                    if loaded and ends > self._clock():
                        found[event_id] = loaded._replace(age=began - ends + loaded.lifetime)
                    else:
                        useless[event_id] = content
        except Exception as error:  # whatever comes of what is not as it should be
            self._link.lose(f"it answers nonsense ({type(error).__name__})")
            raise Lost from None
        return _Look(found, locked, token, ahead, left)

    def _compare_clocks(self, redis_now: float, sent: float) -> tuple[float, float]:
        """Return how far Redis's clock is ahead of ours at least, and by how much it was set back lately, in seconds.

        What was in Redis before will live longer by that, so it counts until all of that has expired.
        """
        now = self._clock()
        least, most = redis_now - now, redis_now - sent
        with self._lock:
            set_back = self._ahead - most
            self._noticed = min(self._noticed, now) if set_back > 0 else math.inf
            if now > self._noticed + self._expiry + set_back:
                self._ahead, self._noticed = -math.inf, math.inf
            self._ahead = max(self._ahead, least)
            return least, max(0.0, self._ahead - most)

    def _load_for_all(
        self, load: Load, look: _Look, deadline: float, began: float
    ) -> Generator[tuple[str, Loaded], None, float]:
        """Load the events whose locks are held, put the answers where all find them, and return the patience left."""
        if not look.locked:
            return look.patience
        self._count("loaded", len(look.locked))
        with self._lock:
            self._held |= dict.fromkeys(look.locked, look.token)
        loads = dict[str, Loaded]()
        try:
            for event_id, loaded in self._dated(load, look.locked, deadline, began):
                if not loaded.private:
                    loads[event_id] = loaded
                yield event_id, loaded
        finally:
            with self._lock:
                for event_id in look.locked:
                    self._held.pop(event_id, None)
            left = self._put(loads, look, began)
        return left

    def _put(self, loads: Mapping[str, Loaded], look: _Look, began: float) -> float:
        now = self._clock()
        commands: list[Command] = []
        if pause := self._pause.left:
            commands.append(("EVAL", _PAUSE, 1, f"{self._prefix}pause", *_times(now + pause, now, look.ahead)))
        for event_id in look.locked:
            loaded = loads.get(event_id)
            content, until = (pack(loaded), began - loaded.age + loaded.lifetime) if loaded else (b"", now)
            times = _times(until, now, look.ahead)
            commands.append(("EVAL", PUT, 2, *self._keys(event_id), look.token, content, *times))
        try:
            return self._link.ask(commands, max(look.patience, 2 * SLICE))[1]
        except Lost:  # the answers are right all the same, and the locks end by themselves
            return 0.0

    def _dated(self, load: Load, event_ids: list[str], deadline: float, began: float) -> Iterator[tuple[str, Loaded]]:
        """Load, and date the answers back to `began`."""
        waited = self._clock() - began
        for event_id, loaded in load(event_ids, deadline):
            yield event_id, loaded._replace(age=loaded.age - waited)

    def _renewals(self) -> list[Command]:
        with self._lock:
            held = list(self._held.items())
        return [("EVAL", _RENEW, 1, self._keys(event_id)[1], token, self._lease) for event_id, token in held]

    def _keys(self, event_id: str) -> tuple[str, str]:
        key = self.key(event_id)
        return key, f"{key}:lock"

    def _count(self, what: str, number: int) -> None:
        with self._lock:
            self._counts[what] += number


def _read(event_id: str, content: bytes, left: int) -> Loaded | None:
    try:
        loaded = unpack(content)
        if not 0 < left <= loaded.lifetime * 1000:
            raise ValueError(f"{left} ms are left of it")
    except ValueError as error:  # it will be replaced
        log.warning("Redis has something else than an answer of event %s: %s", event_id, error)
        return None
    return loaded


def _times(until: float, now: float, ahead: float) -> tuple[int, int]:
    """Return the milliseconds that are left `until` then, and when that is on Redis's clock."""
    return math.floor((until - now) * 1000), math.floor((until + ahead) * 1000)
