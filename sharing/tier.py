"""Answers shared with other instances through Redis.

If an answer isn't in Redis, the instance that gets the event's lock loads and stores
it; the others look again until the answer is there or the lock is free, for a bounded
time. Calendar42's pause is shared as well. While Redis is lost, each instance loads
for itself. An instance that lost its lock (its load took too long, or Redis was
restarted or flushed) stores nothing: another may have loaded the event since.

Instances say when an answer expires by Redis's clock, so it may arrive late. Redis
counts in whole milliseconds, so each time that it tells may be almost one millisecond
too long.

Keys: `c42c:`, format and digest of the scope; then `pause`, or `answer:` or `lock:`
and the event. `SharedTier._lock` guards the counters.
"""

import logging
import math
import os
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import redis
from redis.typing import EncodableT

from answers.value import StoredAnswer, pack, unpack
from cache import Loaded, Loader, clock
from calendar42.calls import MAX_PAUSE, Pause
from calendar42.payload import Event
from sharing.link import Link

# Raise it if keys, locks or the meaning of what is stored change. The names of the
# fields that are stored, and of those of an event, are part of the scope, so a new one
# needs no new format.
FORMAT = 6
# Seconds that a lock lasts, and that others wait for its holder; half of the time-out
# if that is shorter, so that there is time left to load.
LONGEST_LEASE = 5.0
_DIGEST_SIZE = 16  # bytes in the names of keys, for the settings
_LOOK_AGAIN = 0.03  # seconds between two looks, while another instance loads

# Redis runs each without interruption.
LOOK = Path(__file__).with_name("look.lua").read_text()
_STORE = Path(__file__).with_name("store.lua").read_text()

log = logging.getLogger("c42c.redis")
_Pairs = Iterator[tuple[str, Loaded]]
# What is stored of an event, or nothing: the packed answer, when it expires
# (milliseconds of Redis's clock), its kind.
_Row = tuple[bytes, int, str]


class _Look(NamedTuple):
    """What one look into Redis found."""

    answers: dict[str, Loaded]
    locked: list[str]  # to be loaded here
    wanted: list[str]  # to be looked for again
    ahead: float  # seconds that Redis's clock is ahead of ours, at least


class SharedTier:
    """Shares answers through Redis with instances of the same `scope`.

    A load takes about `timeout` seconds at most, waiting for Redis included.
    """

    def __init__(
        self,
        link: Link,
        *,
        scope: tuple[object, ...],
        timeout: float,
        pause: Pause,
        clock: Callable[[], float] = clock,
    ) -> None:
        self._link = link
        self._pause = pause
        self._clock = clock
        described = repr((StoredAnswer._fields, Event._fields, *scope)).encode()
        digest = blake2b(described, digest_size=_DIGEST_SIZE).hexdigest()
        self._prefix = f"c42c:{FORMAT}:{digest}:"
        self._name = secrets.token_hex(8)
        # Milliseconds, and at least one: Redis takes no shorter time.
        self._lease = math.ceil(1000 * min(LONGEST_LEASE, timeout / 2))
        self._lock = threading.Lock()
        self._counts = Counter(shared=0, awaited=0, loaded=0, alone=0)

    def snapshot(self) -> dict[str, int]:
        """Read at one moment whether Redis is `up`, and how many events were wanted.

        Each was found in Redis (`shared`), awaited from another instance, loaded here
        for all, or loaded alone, without Redis.
        """
        with self._lock:
            return {**self._counts, "up": not self._link.reason}

    @property
    def _token(self) -> str:
        """What our locks hold. The cache loads an event only once at a time.

        A server may have forked this process from one with the same name.
        """
        return f"{self._name}:{os.getpid()}"

    def keys(self, event_ids: Iterable[str]) -> list[str]:
        """Return the keys of the pause, and of each event's answer and lock."""
        keys = [f"{self._prefix}pause"]
        for event_id in event_ids:
            keys.append(self._answer_key(event_id))
            keys.append(f"{self._prefix}lock:{event_id}")
        return keys

    def _answer_key(self, event_id: str) -> str:
        return f"{self._prefix}answer:{event_id}"

    def load(
        self, loader: Loader, least_left: float, event_ids: list[str], deadline: float
    ) -> _Pairs:
        """Look in Redis first, and ask `loader` for the rest.

        Yield each event as soon as its answer is there. Of those in Redis, take only
        answers of which more than `least_left` seconds are left; those with less stay
        there until newer ones replace them. `loader` must say when an answer was born.
        """
        give_up = min(time.monotonic() + self._lease / 1000, deadline)
        wanted = event_ids
        source = "shared"
        while wanted:
            look = self._link.ask(partial(self._look, wanted, least_left, source))
            if look is None:
                break
            self._count(source, len(look.answers))
            yield from look.answers.items()
            wanted = look.wanted
            # What is there by the next look, another instance has loaded meanwhile.
            source = "awaited"
            if look.locked:
                yield from self._load_for_all(loader, deadline, look)
            elif wanted:
                if time.monotonic() >= give_up:
                    break
                time.sleep(_LOOK_AGAIN)
        if wanted:
            self._count("alone", len(wanted))
            yield from loader(wanted, deadline)

    def _look(
        self, wanted: list[str], least_left: float, source: str, client: redis.Redis
    ) -> _Look:
        """Look for events and for the pause. Lock the events that nobody loads."""
        keys = self.keys(wanted)
        asked = time.monotonic()
        sent = self._clock()
        redis_now, pause_left, sights = client.eval(
            LOOK, len(keys), *keys, self._token, self._lease, least_left * 1000
        )
        now = self._clock()
        ahead = redis_now / 1000 - now
        look = _Look(answers={}, locked=[], wanted=[], ahead=ahead)
        for event_id, sight in zip(wanted, sights, strict=True):
            if sight == b"load":
                look.locked.append(event_id)
                continue
            if sight == b"wait":
                look.wanted.append(event_id)
                continue
            content, left = sight
            loaded = _unpack(event_id, content, left)
            if loaded is None:
                # So that the next look takes its lock.
                client.delete(self._answer_key(event_id))
            expiry = sent + (left - 1) / 1000
            if loaded and expiry > now:
                born = expiry - loaded.lifetime
                look.answers[event_id] = loaded._replace(born=born, source=source)
            else:
                look.wanted.append(event_id)
        if 0 < pause_left <= MAX_PAUSE * 1000:
            self._pause.extend(asked + (pause_left - 1) / 1000)
        return look

    def _load_for_all(self, loader: Loader, deadline: float, look: _Look) -> _Pairs:
        """Load the locked events, and store the answers."""
        self._count("loaded", len(look.locked))
        rows: dict[str, _Row] = dict.fromkeys(look.locked, (b"", 0, ""))
        try:
            for event_id, loaded in loader(look.locked, deadline):
                if not loaded.private:
                    assert loaded.born is not None
                    expiry = loaded.born + loaded.lifetime + look.ahead
                    rows[event_id] = (pack(loaded), int(expiry * 1000), loaded.kind)
                yield event_id, loaded
        finally:
            # The answers are right even if this fails, and locks end by themselves.
            self._link.ask(partial(self._store, rows, look.ahead))

    def _store(self, rows: dict[str, _Row], ahead: float, client: redis.Redis) -> None:
        """Store the pause and the answers, and release the locks."""
        # Before the pause is read, so that it gets no longer on the way.
        now = self._clock()
        pause_left = self._pause.left
        pause_end = 0
        if pause_left:
            pause_end = int((now + ahead + pause_left) * 1000)
        args: list[EncodableT] = [self._token, pause_end]
        for row in rows.values():
            args += row
        keys = self.keys(rows)
        client.eval(_STORE, len(keys), *keys, *args)

    def _count(self, result: str, number: int) -> None:
        with self._lock:
            self._counts[result] += number


def _unpack(event_id: str, content: bytes, left: int) -> Loaded | None:
    """Return an answer of which so many milliseconds are left, if it is valid."""
    try:
        loaded = unpack(content)
        if left > loaded.lifetime * 1000:
            raise ValueError(f"{left} ms are left of it")
    except ValueError as error:
        log.warning("Redis has an invalid answer for event %s: %s", event_id, error)
        return None
    return loaded
