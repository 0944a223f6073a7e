"""Answers shared with other instances through Redis.

If an answer isn't in Redis, the instance that gets the event's lock loads and stores
it; the others look again until the answer is there or the lock is free. The upstream's
pause is shared as well. While Redis is down, each instance loads for itself. A lock is
renewed during its load; if it is gone all the same (its holder was suspended, or Redis
was restarted or flushed), its holder stores nothing: another instance may have loaded
the event since.

Instances say when an answer expires by Redis's clock, so it may arrive late. Redis
counts in whole milliseconds, so each time that it tells may be almost one millisecond
too long.

Keys: `c42c:`, format and digest of the scope; then `pause`, or the event in braces
(which put all keys of an event on the same node of a cluster), and `:lock` for its
lock. `SharedTier._lock` guards the counters.
"""

import asyncio
import contextlib
import logging
import math
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable
from hashlib import blake2b
from pathlib import Path
from typing import Any

from answers.value import pack, unpack
from cache import Loaded, Loader, clock
from calendar42.calls import MAX_PAUSE, Pause
from sharing.link import PATIENCE, PROBE_EVERY, Command, Link, Lost

FORMAT = 4
# Seconds that a lock lasts unless it's renewed, or the time-out if that is shorter.
LEASE = 2.0
SHORTEST_WAIT = 0.01  # seconds between two looks
log = logging.getLogger("c42c.redis")

# Redis runs each without interruption.
LOOK_UP, _PUT, _RENEW, _PAUSE = (
    Path(__file__).with_name(f"{name}.lua").read_text()
    for name in ("look_up", "put", "renew", "pause")
)
_Pairs = Iterable[tuple[str, Loaded]]


class SharedTier:
    """Shares answers through a Redis with instances of the same `scope`.

    A load takes at most `timeout` seconds.
    """

    def __init__(
        self,
        url: str,
        *,
        scope: tuple[object, ...],
        timeout: float,
        pause: Pause,
        loop: asyncio.AbstractEventLoop | None = None,  # else it starts its own
        clock: Callable[[], float] = clock,
        probe_every: float = PROBE_EVERY,
    ) -> None:
        self._pause, self._clock = pause, clock
        self._prefix = f"c42c:{FORMAT}:{blake2b(repr(scope).encode(), digest_size=16).hexdigest()}:"
        self._token = secrets.token_hex(
            8
        )  # of our locks; the cache loads an event only once at a time
        self._lease = math.ceil(min(LEASE, timeout) * 1000)
        self._ahead = 0.0  # seconds that Redis's clock is ahead of ours, at least
        self._lock = threading.Lock()
        self._counts = Counter(found=0, awaited=0, loaded=0, alone=0)
        self._link = Link(url, probe_every=probe_every, loop=loop)

    def snapshot(self) -> dict[str, Any]:
        """Read at one moment whether Redis is `up`, and how many events were to be
        loaded.

        Each was found in Redis, awaited from another instance, loaded here for all, or
        loaded alone, without Redis.
        """
        with self._lock:
            return {**self._counts, "up": bool(self._link.up)}

    def close(self) -> None:
        """Disconnect from Redis. Loads go on without it."""
        self._link.close()

    def keys(self, event_id: str) -> tuple[str, str]:
        """Return the keys of an event's answer and of its lock."""
        key = f"{self._prefix}{{{event_id}}}"
        return key, f"{key}:lock"

    def load(self, load: Loader, event_ids: list[str], deadline: float) -> _Pairs:
        """Load events for the cache: look in Redis first, and ask `load` for the rest."""
        began = self._clock()

        def load_here(events: list[str]) -> _Pairs:
            waited = self._clock() - began
            for event_id, loaded in load(events, deadline):
                yield event_id, loaded._replace(age=loaded.age - waited)

        wanted, result, patience = event_ids, "shared", PATIENCE
        while wanted:
            try:
                if time.monotonic() > deadline + PATIENCE:
                    raise Lost  # another instance's load should have ended
                found, locked, left = self._look(wanted, patience, began)
            except Lost:
                self._count("alone", len(wanted))
                yield from load_here(wanted)
                return
            self._count("found" if result == "shared" else "awaited", len(found))
            for event_id, loaded in found.items():
                yield event_id, loaded._replace(source=result)
            if locked:
                left = yield from self._load_for_all(
                    load_here(locked), locked, left, began
                )
            if wanted := [
                each for each in wanted if each not in found and each not in locked
            ]:
                # Another instance is loading these, so patience starts again, less what
                # this look took.
                spent = patience - left
                wait = min(
                    max((self._clock() - began) / 5, SHORTEST_WAIT),
                    (PATIENCE - spent) / 5,
                )
                result, patience = "awaited", PATIENCE - spent - wait
                time.sleep(wait)

    def _look(
        self, wanted: list[str], patience: float, began: float
    ) -> tuple[dict[str, Loaded], list[str], float]:
        """Return the events that Redis has, those to load here (their locks are held
        now), and the patience left.
        """
        found, locked, useless = dict[str, Loaded](), list[str](), list[str]()
        commands: list[Command] = [("PTTL", f"{self._prefix}pause")]
        commands += [
            ("EVAL", LOOK_UP, 2, *self.keys(each), self._token, self._lease)
            for each in wanted
        ]
        sent, asked = self._clock(), time.monotonic()
        (pause, *replies), left = self._link.ask(commands, patience)
        try:
            if 0 < pause <= MAX_PAUSE * 1000:
                self._pause.extend(asked + (pause - 1) / 1000)
            for event_id, reply in zip(wanted, replies, strict=True):
                if reply:
                    self._ahead = reply[0] / 1000 - self._clock()
                if len(reply) == 1:
                    locked.append(event_id)
                elif reply:
                    loaded, expiry = (
                        _read(event_id, *reply[1:]),
                        sent + (reply[2] - 1) / 1000,
                    )
                    if loaded and expiry > self._clock():
                        found[event_id] = loaded._replace(
                            age=began - expiry + loaded.lifetime
                        )
                    else:
                        useless.append(self.keys(event_id)[0])
        except Exception as error:  # malformed replies can fail in any way
            raise self._link.lose(
                f"it answers nonsense ({type(error).__name__})"
            ) from None
        if useless:  # so that the next look takes the lock
            left = self._link.ask([("DEL", *useless)], left)[1]
        return found, locked, left

    def _load_for_all(
        self, loads: _Pairs, locked: list[str], patience: float, began: float
    ) -> Generator[tuple[str, Loaded], None, float]:
        """Load events, store the answers and the pause in Redis, release the locks, and
        return the patience left.
        """
        self._count("loaded", len(locked))
        renewals = [
            ("EVAL", _RENEW, 1, self.keys(each)[1], self._token, self._lease)
            for each in locked
        ]
        renewing = self._link.repeat(renewals, self._lease / 4000)
        answers = dict[str, tuple[bytes, float]]()  # with their expiry
        try:
            for event_id, loaded in loads:
                if not loaded.private:
                    answers[event_id] = (
                        pack(loaded),
                        began - loaded.age + loaded.lifetime,
                    )
                yield event_id, loaded
        finally:
            renewing.cancel()
            commands: list[Command] = []
            now = (
                self._clock()
            )  # before the pause is read, so that it gets no longer on the way
            if pause := self._pause.left:
                commands.append(
                    (
                        "EVAL",
                        _PAUSE,
                        1,
                        f"{self._prefix}pause",
                        self._on_redis(now + pause),
                    )
                )
            for event_id in locked:
                content, expiry = answers.get(event_id, (b"", 0.0))
                commands.append(
                    (
                        "EVAL",
                        _PUT,
                        2,
                        *self.keys(event_id),
                        self._token,
                        content,
                        self._on_redis(expiry),
                    )
                )
            with contextlib.suppress(
                Lost
            ):  # the answers are right all the same, and the locks end by themselves
                patience = self._link.ask(commands, patience)[1]
        return patience

    def _on_redis(self, moment: float) -> int:
        """Return a moment of our clock in milliseconds of Redis's."""
        return math.floor((moment + self._ahead) * 1000)

    def _count(self, what: str, number: int) -> None:
        with self._lock:
            self._counts[what] += number


def _read(event_id: str, content: bytes, left: int) -> Loaded | None:
    try:
        loaded = unpack(content)
        if not 0 < left <= loaded.lifetime * 1000:
            raise ValueError(f"{left} ms are left of it")
    except ValueError as error:
        log.warning("Redis has an invalid answer for event %s: %s", event_id, error)
        return None
    return loaded
