"""A Redis on an event loop that keeps nobody waiting.

Threads hand over their commands; what comes while an exchange is under way goes out together in the next one. One that
takes too long is cancelled: redis-py then drops its connection, so that nothing half-read is ever used. An exchange on
a connection that Redis had closed is repeated on a new one, so commands must bear that. All state is the loop's.
"""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from calendar42.transport import reason

PATIENCE = 0.25  # seconds that an answer may wait for Redis, in all
CONNECT = 1.0  # seconds for name look-up, connection, handshake and answer together while nobody waits
QUICK = 0.08  # seconds: a Redis that was lost and takes longer for one small answer is not back
PROBE_EVERY = 5.0  # seconds
AT_ONCE = 64  # callers whose commands go out together
SLICE = 0.01  # seconds
HELD_UP = 5.0  # seconds that a thread waits for a loop that is held up

log = logging.getLogger("c42c.redis")

Command = tuple[Any, ...]


class Lost(Exception):
    """Redis gave no right answer in time, or did not lately and is not asked."""


class Link:
    """Asks the Redis at `url` from any thread, on `loop`, or on one in a thread of its own.

    An exchange that fails, or is late, shows that Redis is lost: from then on nobody waits for it. Every few seconds it
    is sent `probe`, to which its answer must be `right`. The log says once that it is lost, and once that it is back.
    What `regular` returns is sent every `beat` seconds, and nobody gets the answers.
    """

    def __init__(
        self,
        url: str,
        *,
        probe: Command,
        right: Any,
        regular: Callable[[], Sequence[Command]],
        beat: float,
        probe_every: float = PROBE_EVERY,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        options: dict[str, Any] = {"socket_timeout": None, "socket_connect_timeout": None}  # the limits are ours
        self._redis = redis.asyncio.Redis.from_url(url, protocol=2, retry=Retry(NoBackoff(), 1), **options)
        self._probe, self._right, self._probe_every = probe, right, probe_every
        self._regular, self._beat = regular, beat
        self._asks = asyncio.Queue[tuple[Sequence[Command], asyncio.Future[list[Any]]]]()
        self.up: bool | None = None  # whether Redis is asked at present; None: not known yet
        if not loop:
            loop = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="c42c-redis", daemon=True).start()
        self._loop = loop
        self._running = asyncio.run_coroutine_threadsafe(self._run(), loop)

    def ask(self, commands: Sequence[Command], patience: float) -> tuple[list[Any], float]:
        """Return what Redis answers to all `commands`, and what is left of `patience`, in seconds; or raise Lost."""
        if self.up is False:
            raise Lost
        asked = asyncio.run_coroutine_threadsafe(self._ask(commands, patience), self._loop)
        try:
            return asked.result(patience + HELD_UP)
        except TimeoutError:
            raise Lost from None

    def close(self) -> None:
        """Ask no more, and let the connections go."""
        self._running.cancel()

    def lose(self, why: str) -> None:
        """Ask no more until a try shows that Redis is back."""
        self._loop.call_soon_threadsafe(self._note, False, why)

    async def _ask(self, commands: Sequence[Command], patience: float) -> tuple[list[Any], float]:
        answer = self._loop.create_future()
        self._asks.put_nowait((commands, answer))
        left = await _within(patience, answer)
        if not answer.result():
            raise Lost
        return answer.result(), left

    async def _run(self) -> None:
        try:
            await asyncio.gather(self._serve(), self._keep())
        finally:
            self.up = False
            await self._redis.aclose()

    async def _serve(self) -> None:
        while True:
            asks = [await self._asks.get()]
            while len(asks) < AT_ONCE and not self._asks.empty():
                asks.append(self._asks.get_nowait())
            replies = await self._exchange([command for commands, _ in asks for command in commands])
            for commands, answer in asks:
                if not answer.done():
                    answer.set_result(replies[: len(commands)])
                replies = replies[len(commands) :]

    async def _keep(self) -> None:
        """Try Redis every few seconds, and send in between what is sent regularly."""
        try_at = 0.0
        while True:
            with contextlib.suppress(Lost, TimeoutError):
                if time.monotonic() >= try_at:
                    try_at = time.monotonic() + self._probe_every
                    await self._try()
                elif self.up and (commands := self._regular()):
                    await self._ask(commands, PATIENCE)
            await asyncio.sleep(self._beat)

    async def _try(self) -> None:
        for _ in range(2):  # the first may have to connect
            replies, left = await self._ask([self._probe], CONNECT)
        if replies != [self._right]:
            self._note(False, "it answers nonsense")
        elif self.up is not False or left >= CONNECT - QUICK:
            self._note(True)

    async def _exchange(self, commands: Sequence[Command]) -> list[Any]:
        """Return what Redis answers to all `commands`; nothing if it fails, which shows that it is lost."""
        pipeline = self._redis.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        exchange = asyncio.ensure_future(pipeline.execute())
        try:
            await _within(PATIENCE if self.up else CONNECT, exchange)
            return exchange.result()
        except Exception as error:  # whatever redis-py makes of what it reads
            self._note(False, reason(error))
            return []

    def _note(self, up: bool, why: str = "") -> None:
        was_up, self.up = self.up, up
        if up and not was_up:
            log.info("Redis is %s: answers are shared", "there" if was_up is None else "back")
        if was_up is not False and not up:
            log.warning("Redis is lost, and this instance is on its own: %s", why)


async def _within(seconds: float, work: asyncio.Future[Any]) -> float:
    """Wait for `work`, and return how many of the `seconds` are left; cancel it and raise TimeoutError if none are.

    They pass in slices, none of which counts for much longer than it should have been: what takes long on a crowded
    machine, where the loop itself has to wait, is not Redis.
    """
    try:
        while seconds > 0:
            began = time.monotonic()
            await asyncio.wait([work], timeout=SLICE)
            seconds -= min(time.monotonic() - began, 2 * SLICE)
            if work.done():
                return seconds
        raise TimeoutError
    finally:
        work.cancel()
