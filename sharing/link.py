"""A connection to Redis, on an event loop, with bounded waits.

Commands from several threads go out together, in one exchange at a time. Redis is asked
only while it is up, and probed every few seconds. It is down once a caller's patience
runs out or a reply is wrong, until a probe is answered quickly.
"""

import asyncio
import contextlib
import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

PATIENCE = 0.25  # seconds that an answer may wait for Redis, in all
SLICE = 0.01  # seconds: patience is spent in such slices
CONNECT = 1.0  # seconds for a probe that may have to connect
QUICK = 0.08  # seconds for a probe that shows that Redis is up again
PROBE_EVERY = 5.0  # seconds
HELD_UP = 10.0  # seconds that a thread waits for a loop that is held up
AT_ONCE = 64  # callers whose commands go out together

_PROBE = (
    "redis.call('set', KEYS[1], ARGV[1], 'px', 1000) return redis.call('get', KEYS[1])"
)
log = logging.getLogger("c42c.redis")
Command = tuple[Any, ...]


class Lost(Exception):
    """Redis is down, or gave no right answer in time."""


@dataclass
class _Ask:
    commands: Sequence[Command]
    patience: float = PATIENCE  # what is left of it
    replies: Future[list[Any]] = field(default_factory=Future)


class Link:
    """Asks the Redis at `url`, for any thread.

    It works on `loop`, or else on a loop in a thread of its own.
    """

    def __init__(
        self, url: str, *, probe_every: float, loop: asyncio.AbstractEventLoop | None
    ) -> None:
        # The one retry is over a new connection, if Redis has closed the old one.
        self._redis: Any = Redis.from_url(url, protocol=2, retry=Retry(NoBackoff(), 1))
        self._probe_every = probe_every
        self._asks = deque[_Ask]()
        self._asked = asyncio.Event()
        self.up: bool | None = None  # None: not known yet
        if not loop:
            loop = asyncio.new_event_loop()
            threading.Thread(
                target=loop.run_forever, name="c42c-redis", daemon=True
            ).start()
        self._loop = loop
        self._running = asyncio.run_coroutine_threadsafe(self._run(), loop)

    def ask(
        self, commands: Sequence[Command], patience: float
    ) -> tuple[list[Any], float]:
        """Return what Redis answers to all `commands`, and what is left of `patience`,
        in seconds; or raise `Lost`.
        """
        ask = _Ask(commands, patience)
        if self.up:
            self._loop.call_soon_threadsafe(self._take, ask)
            with contextlib.suppress(TimeoutError):
                return ask.replies.result(HELD_UP), ask.patience
        raise Lost

    def repeat(self, commands: Sequence[Command], every: float) -> Future[None]:
        """Send `commands` every so many seconds until the returned future is cancelled.

        The answers are ignored.
        """

        async def repeat() -> None:
            while True:
                await asyncio.sleep(every)
                if self.up:
                    self._take(_Ask(commands))

        return asyncio.run_coroutine_threadsafe(repeat(), self._loop)

    def lose(self, why: str) -> Lost:
        """Don't ask again until a probe shows that Redis is up.

        Return the error to raise.
        """
        if self.up is not False:
            log.warning("Redis is lost, and this instance is on its own: %s", why)
        self.up = False
        return Lost()

    def close(self) -> None:
        """Disconnect, and ask no more."""
        self.up = False
        self._running.cancel()

    async def _run(self) -> None:
        probing = asyncio.ensure_future(self._probe())
        try:
            while True:
                await self._asked.wait()
                self._asked.clear()
                while self._asks:
                    await self._exchange(
                        [
                            self._asks.popleft()
                            for _ in range(min(AT_ONCE, len(self._asks)))
                        ]
                    )
        finally:
            self.up = False
            probing.cancel()
            await self._redis.aclose()

    def _take(self, ask: _Ask) -> None:
        self._asks.append(ask)
        self._asked.set()

    async def _exchange(self, asks: list[_Ask]) -> None:
        """Send the commands of all and hand out the replies.

        If one caller's patience runs out, none gets a reply.
        """
        pipeline = self._redis.pipeline(transaction=False)
        for command in (command for ask in asks for command in ask.commands):
            pipeline.execute_command(*command)
        replying, began = asyncio.ensure_future(pipeline.execute()), time.monotonic()
        try:
            while not (await asyncio.wait([replying], timeout=SLICE))[0]:
                waiting, now = (*asks, *self._asks), time.monotonic()
                for ask in (
                    waiting if now - began < 2 * SLICE else ()
                ):  # else the loop was held up: a crowded machine
                    ask.patience -= SLICE
                if any(ask.patience <= 0 for ask in waiting):
                    raise TimeoutError
                began = now
            replies = replying.result()
        except (
            BaseException
        ) as error:  # redis-py may raise anything if a reply is malformed
            if isinstance(error, asyncio.CancelledError):
                self.up = False  # the link is closed, which is no loss
            self.lose(
                "timed out" if isinstance(error, TimeoutError) else type(error).__name__
            )
            for ask in (one for one in (*asks, *self._asks) if not one.replies.done()):
                ask.replies.set_exception(Lost())
            self._asks.clear()
            if not isinstance(error, Exception):
                raise
        else:
            for ask in asks:
                ask.replies.set_result([replies.pop(0) for _ in ask.commands])
        finally:
            replying.cancel()

    async def _probe(self) -> None:
        own = secrets.token_hex(8)
        while True:
            with contextlib.suppress(Lost):
                for patience in CONNECT, PATIENCE if self.up else QUICK:
                    probe = _Ask(
                        [("EVAL", _PROBE, 1, f"c42c:probe:{own}", own)], patience
                    )
                    self._take(probe)
                    if await asyncio.wrap_future(probe.replies) != [own.encode()]:
                        raise self.lose("it answers nonsense")
                if not self.up:
                    log.info(
                        "Redis is %s: answers are shared",
                        "there" if self.up is None else "back",
                    )
                self.up = True
            await asyncio.sleep(self._probe_every)
