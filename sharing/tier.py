"""Answers shared with other instances through Redis.

If an answer isn't in Redis, the instance that gets the event's lock loads and stores
it; the others look again until the answer is there or the lock is free, for a bounded
time. Calendar42's pause is shared as well. While Redis is down, each instance loads
for itself. An instance that lost its lock (its load took too long, or Redis was
restarted or flushed) stores nothing: another may have loaded the event since.

Instances say when an answer expires by Redis's clock, so it may arrive late. Redis
counts in whole milliseconds, so each time that it tells may be almost one millisecond
too long.

Keys: `c42c:`, format and digest of the scope; then `pause`, or the event in braces
(which put all keys of an event on the same node of a cluster), and `:lock` for its
lock. `SharedTier._lock` guards the counters.
"""

import contextlib
import logging
import math
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

from answers.value import StoredAnswer, pack, unpack
from cache import Loaded, Loader, clock
from calendar42.calls import MAX_PAUSE, Pause
from calendar42.payload import Event
from sharing.client import PATIENCE
from sharing.link import RETRY_AFTER, Command, Link, Unavailable

# Raise it if the scripts or the meaning of what is stored change. The names of the
# fields that are stored, and of those of an event, are part of the scope, so a new one
# needs no new format.
FORMAT = 5
# Seconds that an instance waits for another's load, and that a lock lasts; or half of
# the time-out if that is shorter, so that there is time left to load.
LONGEST_WAIT = 5.0
_LOOK_AGAIN = 0.03  # seconds between two looks, while another instance loads
_NO_ANSWER = 2**53  # milliseconds that no answer has left

log = logging.getLogger("c42c.redis")
_Pairs = Iterator[tuple[str, Loaded]]
_LoadHere = Callable[[list[str]], _Pairs]


def _script(name: str) -> str:
    return Path(__file__).with_name(f"{name}.lua").read_text()


# Redis runs each without interruption.
LOOK_UP = _script("look_up")
_PUT = _script("put")
_PAUSE = _script("pause")


@dataclass
class _Look:
    """What one look into Redis finds; times are those of our clock."""

    sent: float
    answers: dict[str, Loaded] = field(default_factory=dict)  # with their age then
    invalid: list[str] = field(default_factory=list)  # there is something else
    locked: list[str] = field(default_factory=list)  # to be loaded here
    awaited: list[str] = field(default_factory=list)  # being loaded elsewhere
    ahead: float = 0.0  # seconds that Redis's clock is ahead, at least

    def note(self, event_id: str, reply: Any, now: float) -> None:
        """Add what look_up.lua returned; raise ValueError for anything else."""
        match reply:
            case [b"answer", int(moment), bytes(content), int(left)]:
                loaded = self._read(event_id, content, left, now)
                if loaded is None:
                    self.invalid.append(event_id)
                else:
                    self.answers[event_id] = loaded
            case [b"load", int(moment)]:
                self.locked.append(event_id)
            case [b"wait", int(moment)]:
                self.awaited.append(event_id)
            case _:
                raise ValueError("not what look_up.lua returns")
        self.ahead = moment / 1000 - now

    def _read(
        self, event_id: str, content: bytes, left: int, now: float
    ) -> Loaded | None:
        """Return an answer; None if it is invalid, or expired on its way."""
        try:
            loaded = unpack(content)
            if left > loaded.lifetime * 1000:
                raise ValueError(f"{left} ms are left of it")
        except ValueError as error:
            log.warning("Redis has an invalid answer for event %s: %s", event_id, error)
            return None
        expiry = self.sent + (left - 1) / 1000
        if expiry <= now:
            return None
        return loaded._replace(age=self.sent - expiry + loaded.lifetime)


class SharedTier:
    """Shares answers through a Redis with instances of the same `scope`.

    A load takes about `timeout` seconds at most, waiting for Redis included: `patience`
    for each of its exchanges. Raises ValueError for an invalid URL.
    """

    def __init__(
        self,
        url: str,
        *,
        scope: tuple[object, ...],
        timeout: float,
        pause: Pause,
        clock: Callable[[], float] = clock,
        patience: float = PATIENCE,
        retry_after: float = RETRY_AFTER,
    ) -> None:
        self._pause = pause
        self._clock = clock
        described = repr((StoredAnswer._fields, Event._fields, *scope)).encode()
        digest = blake2b(described, digest_size=16).hexdigest()
        self._prefix = f"c42c:{FORMAT}:{digest}:"
        # Of our locks. The cache loads an event only once at a time.
        self._token = secrets.token_hex(8)
        self._longest_wait = min(LONGEST_WAIT, timeout / 2)
        self._lock = threading.Lock()
        self._counts = Counter(found=0, awaited=0, loaded=0, alone=0)
        self._link = Link(
            url, prefix=self._prefix, patience=patience, retry_after=retry_after
        )

    def snapshot(self) -> dict[str, int]:
        """Read at one moment whether Redis is `up`, and how many events were to be
        loaded.

        Each was found in Redis, awaited from another instance, loaded here for all, or
        loaded alone, without Redis.
        """
        with self._lock:
            return {**self._counts, "up": not self._link.down}

    def close(self) -> None:
        """Disconnect from Redis. Loads go on without it."""
        self._link.close()

    def keys(self, event_id: str) -> tuple[str, str]:
        """Return the keys of an event's answer and of its lock."""
        key = f"{self._prefix}{{{event_id}}}"
        return key, f"{key}:lock"

    def wrap(self, load: Loader, *, least_left: float = 0.0) -> Loader:
        """Return a loader that looks in Redis first and asks `load` for the rest.

        It takes only answers of which more than `least_left` seconds are left; those
        with less stay there until newer ones replace them.
        """
        return partial(self._load, load, math.ceil(least_left * 1000))

    def _load(
        self, load: Loader, least_left: int, event_ids: list[str], deadline: float
    ) -> _Pairs:
        began = self._clock()
        give_up = min(time.monotonic() + self._longest_wait, deadline)
        load_here = partial(self._load_here, load, deadline, began)
        wanted = dict.fromkeys(event_ids, least_left)
        awaited = set[str]()
        while wanted:
            try:
                look = self._look(wanted)
            except Unavailable:
                break
            for event_id, loaded in look.answers.items():
                del wanted[event_id]
                source = self._count_source(event_id in awaited)
                age = loaded.age - (look.sent - began)
                yield event_id, loaded._replace(age=age, source=source)
            for event_id in look.invalid:
                wanted[event_id] = _NO_ANSWER  # so that the next look takes the lock
            awaited.update(look.awaited)
            if look.locked:
                for event_id in look.locked:
                    del wanted[event_id]
                yield from self._load_for_all(load_here, look, began)
            elif look.awaited:
                if time.monotonic() >= give_up:
                    break
                time.sleep(_LOOK_AGAIN)
        if wanted:
            self._count("alone", len(wanted))
            yield from load_here(list(wanted))

    def _load_here(
        self, load: Loader, deadline: float, began: float, event_ids: list[str]
    ) -> _Pairs:
        """Load without Redis; ages count from when the cache began, as it expects."""
        waited = self._clock() - began
        for event_id, loaded in load(event_ids, deadline):
            yield event_id, loaded._replace(age=loaded.age - waited)

    def _look(self, wanted: dict[str, int]) -> _Look:
        """Look for events in Redis, and for the pause; take the locks of those that
        nobody is loading.

        `wanted` has the milliseconds that must be left of each answer.
        """
        lease = math.ceil(self._longest_wait * 1000)
        commands: list[Command] = [("PTTL", f"{self._prefix}pause")]
        for event_id, least_left in wanted.items():
            keys = self.keys(event_id)
            commands.append(("EVAL", LOOK_UP, 2, *keys, self._token, lease, least_left))
        asked = time.monotonic()
        look = _Look(self._clock())

        def read(replies: list[Any]) -> None:
            pause_left, *sightings = replies
            now = self._clock()
            for event_id, reply in zip(wanted, sightings, strict=True):
                look.note(event_id, reply, now)
            if 0 < pause_left <= MAX_PAUSE * 1000:
                self._pause.extend(asked + (pause_left - 1) / 1000)

        self._link.ask(commands, read)
        return look

    def _load_for_all(self, load_here: _LoadHere, look: _Look, began: float) -> _Pairs:
        """Load the locked events, store the answers and the pause in Redis, and release
        the locks.
        """
        self._count("loaded", len(look.locked))
        answers = dict[str, Loaded]()
        try:
            for event_id, loaded in load_here(look.locked):
                if not loaded.private:
                    answers[event_id] = loaded
                yield event_id, loaded
        finally:
            commands = self._pass_pause_on(look.ahead)
            for event_id in look.locked:
                put = self._put(event_id, answers.get(event_id), began + look.ahead)
                commands.append(put)
            # The answers are right even if this fails, and locks end by themselves.
            with contextlib.suppress(Unavailable):
                self._link.ask(commands, len)

    def _pass_pause_on(self, ahead: float) -> list[Command]:
        # Before the pause is read, so that it gets no longer on the way.
        now = self._clock()
        left = self._pause.left
        if not left:
            return []
        end = math.floor((now + left + ahead) * 1000)
        return [("EVAL", _PAUSE, 1, f"{self._prefix}pause", end)]

    def _put(self, event_id: str, loaded: Loaded | None, began: float) -> Command:
        """Return the command that releases a lock, and stores the answer if there is
        one; the load began then by Redis's clock.
        """
        release = ("EVAL", _PUT, 2, *self.keys(event_id), self._token)
        if loaded is None:
            return (*release, b"", 0, "")
        expiry = math.floor((began - loaded.age + loaded.lifetime) * 1000)
        return (*release, pack(loaded), expiry, loaded.kind)

    def _count_source(self, was_awaited: bool) -> str:
        """Count an answer from Redis, and return its source for the cache."""
        if was_awaited:
            self._count("awaited", 1)
            return "awaited"
        self._count("found", 1)
        return "shared"

    def _count(self, what: str, number: int) -> None:
        with self._lock:
            self._counts[what] += number
