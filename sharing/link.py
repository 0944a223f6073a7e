"""A connection to Redis, on an event loop, that keeps nobody waiting.

Threads hand over commands; what comes while an exchange is under way goes out together in the next one. A Redis that
answers wrongly, or lets one caller's patience run out, is lost: the connection is dropped, with all that was still to
be read, and from then on nobody waits. It is tried again every few seconds. An exchange over a connection that Redis
has closed is repeated over a new one, so commands must bear that. All state is the loop's; threads only read `up`.
"""

import asyncio
import contextlib
import logging
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import redis
from redis.asyncio import ConnectionPool

from calendar42.transport import reason

PATIENCE = 0.25  # seconds that an answer may wait for Redis, in all
CONNECT = 1.0  # seconds for name look-up, connection, handshake and answer together, when nobody waits
QUICK = 0.08  # seconds: a Redis that was lost and takes longer for one small answer is not back
PROBE_EVERY = 5.0  # seconds
AT_ONCE = 64  # callers whose commands go out together
SLICE = 0.01  # seconds
HELD_UP = 5.0  # seconds that a thread waits for a loop that is held up

log = logging.getLogger("c42c.redis")

Command = tuple[Any, ...]


class Lost(Exception):
    """Redis gave no right answer in time, or did not lately and is not asked."""


@dataclass
class _Ask:
    commands: Sequence[Command]
    patience: float  # seconds left of it
    replies: Future[list[Any]] = field(default_factory=Future)  # none: Redis is lost


class Link:
    """Asks the Redis at `url` from any thread, on `loop`, or on one in a thread of its own.

    Redis is there if it answers the command `probe` with `right`. What `regular` returns is sent every `beat` seconds;
    nobody gets the answers. `look_up` is `socket.getaddrinfo`.
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
        look_up: Callable[[str, int], Any] = socket.getaddrinfo,
    ) -> None:
        pool: Any = ConnectionPool.from_url(url, protocol=2, socket_timeout=None)
        self._connection = pool.make_connection()
        self._probe, self._right, self._probe_every = probe, right, probe_every
        self._regular, self._beat = regular, beat
        self._look_up, self._looks_up = look_up, ThreadPoolExecutor(1, "c42c-redis-host")
        self._asks = deque[_Ask]()
        self._more = asyncio.Event()
        self.up: bool | None = None  # whether Redis is asked at present; None: not known yet
        if not loop:
            loop = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="c42c-redis", daemon=True).start()
        self._loop = loop
        self._running = asyncio.run_coroutine_threadsafe(self._run(), loop)

    def ask(self, commands: Sequence[Command], patience: float) -> tuple[list[Any], float]:
        """Return what Redis answers to all `commands`, and what is left of `patience`, in seconds; or raise Lost."""
        ask = _Ask(commands, patience)
        if self.up is not False and patience > 0:
            self._loop.call_soon_threadsafe(self._take, ask)
            with contextlib.suppress(TimeoutError):
                if replies := ask.replies.result(patience + HELD_UP):
                    return replies, ask.patience
        raise Lost

    def lose(self, why: str) -> None:
        """Ask no more until a try shows that Redis is back."""
        self._loop.call_soon_threadsafe(self._lose, why)

    def close(self) -> None:
        """Ask no more, and let the connection go."""
        self._running.cancel()

    async def _run(self) -> None:
        try:
            await asyncio.gather(self._serve(), self._keep())
        finally:
            self.up = False
            await self._connection.disconnect(nowait=True)

    def _take(self, ask: _Ask) -> None:
        self._asks.append(ask)
        self._more.set()

    async def _serve(self) -> None:
        while True:
            if not self._asks:
                self._more.clear()
                await self._more.wait()
            asks = [self._asks.popleft() for _ in range(min(AT_ONCE, len(self._asks)))]
            replies: list[Any] = []
            try:
                replies = await self._exchange(asks)
            except Exception as error:  # whatever redis-py makes of what it reads
                self._lose(reason(error))
            finally:
                if not replies:
                    asks += self._asks
                    self._asks.clear()
                for ask in asks:
                    ask.replies.set_result(replies[: len(ask.commands)])
                    del replies[: len(ask.commands)]

    async def _exchange(self, asks: list[_Ask]) -> list[Any]:
        """Return what Redis answers to all; raise TimeoutError once anybody has run out of patience.

        A slice of the time hardly counts for more than it should have been: if the loop itself had to wait, as it does
        on a crowded machine, that's not Redis.
        """
        exchange = asyncio.ensure_future(self._send([command for ask in asks for command in ask.commands]))
        try:
            while all(ask.patience > 0 for ask in (*asks, *self._asks)):
                began = time.monotonic()
                await asyncio.wait([exchange], timeout=SLICE)
                spent = min(time.monotonic() - began, 2 * SLICE)
                for ask in (*asks, *self._asks):
                    ask.patience -= spent
                if exchange.done():
                    return exchange.result()
            raise TimeoutError
        finally:
            exchange.cancel()

    async def _send(self, commands: Sequence[Command]) -> list[Any]:
        connection = self._connection
        was_connected = connection.is_connected
        try:
            if not was_connected and (host := getattr(connection, "host", None)):
                # A look-up can't be cancelled, and the loop can't be closed before its own end. So redis-py makes
                # one, when it connects, only after one in another thread has succeeded.
                await self._loop.run_in_executor(self._looks_up, self._look_up, host, connection.port)
            await connection.send_packed_command(connection.pack_commands(commands))
            return [await connection.read_response() for _ in commands]
        except BaseException as error:
            await connection.disconnect(nowait=True)
            if was_connected and isinstance(error, redis.ConnectionError):
                return await self._send(commands)
            raise

    async def _keep(self) -> None:
        """Try Redis every few seconds, and send in between what is sent regularly."""
        try_at = 0.0
        while True:
            if time.monotonic() >= try_at:
                try_at = time.monotonic() + self._probe_every
                await self._try()
            elif self.up and (commands := self._regular()):
                self._take(_Ask(commands, PATIENCE))
            await asyncio.sleep(self._beat)

    async def _try(self) -> None:
        if self.up is False:
            await self._connection.disconnect(nowait=True)
        for _ in range(2):  # the first may have to connect
            probe = _Ask([self._probe], CONNECT)
            self._take(probe)
            replies = await asyncio.wrap_future(probe.replies)
        if replies and replies != [self._right]:
            self._lose("it answers nonsense")
        elif replies and (self.up is not False or probe.patience >= CONNECT - QUICK):
            if not self.up:
                log.info("Redis is %s: answers are shared", "there" if self.up is None else "back")
            self.up = True

    def _lose(self, why: str) -> None:
        if self.up is not False:
            log.warning("Redis is lost, and this instance is on its own: %s", why)
        self.up = False
