"""Exchanges with Redis, each bounded in time.

Each runs in a thread of a small pool, and its caller waits for it for a bounded time.
That bounds all of it: looking up the name, connecting, and replies that trickle. After
a failure, Redis isn't asked for a while. Then one exchange tries again, over a new
connection.

`Link._lock` guards everything that changes.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import redis

from sharing.client import address, explain, make_client, probe

RETRY_AFTER = 5.0  # seconds after a failure
_THREADS = 8  # and at most as many connections

log = logging.getLogger("c42c.redis")
Command = tuple[Any, ...]
T = TypeVar("T")


class Unavailable(Exception):
    """Redis gave no valid reply in time, or wasn't asked."""


class Link:
    """Asks the Redis at `url`, for any thread, with at most `patience` seconds for each
    exchange, and not for `retry_after` seconds after a failure.

    Keys that begin with `prefix` are used to find out whether it works.
    """

    def __init__(
        self, url: str, *, prefix: str, patience: float, retry_after: float
    ) -> None:
        self._url = url
        self._prefix = prefix
        self._patience = patience
        self._retry_after = retry_after
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="c42c-redis")
        self._lock = threading.Lock()
        # Replaced after a failure. What is heard over an old one counts no more.
        self._client = make_client(url, patience)
        self._proven = False  # whether the client has ever worked
        self._reason = ""  # why Redis is down; empty unless it is
        self._next_try = 0.0  # while Redis is down, of `time.monotonic`

    @property
    def down(self) -> bool:
        """Whether the last exchange failed."""
        return bool(self._reason)

    def ask(self, commands: Sequence[Command], read: Callable[[list[Any]], T]) -> T:
        """Send `commands` together, and return what `read` makes of the replies.

        Raises `Unavailable`. If `read` raises, the replies were invalid.
        """
        client = self._admit()
        deadline = time.monotonic() + self._patience
        try:
            exchange = self._threads.submit(self._exchange, client, commands, deadline)
        except RuntimeError:  # the system allows no more threads
            raise Unavailable from None
        try:
            result = read(exchange.result(self._patience))
        except Exception as error:
            if exchange.cancel():  # all threads are busy
                raise Unavailable from None
            self._fail(client, explain(error))
            raise Unavailable from None
        self._succeed(client)
        return result

    def close(self) -> None:
        """Disconnect, and ask no more."""
        self._threads.shutdown(wait=False)
        self._client.connection_pool.disconnect()

    def _admit(self) -> redis.Redis:
        """Return the client, unless Redis is down and not to be tried yet."""
        with self._lock:
            if self._reason:
                now = time.monotonic()
                if now < self._next_try:
                    raise Unavailable
                self._next_try = now + self._retry_after
            return self._client

    def _exchange(
        self, client: redis.Redis, commands: Sequence[Command], deadline: float
    ) -> list[Any]:
        """Run in a thread of the pool."""
        if not self._proven:
            probe(client, self._prefix)
        if time.monotonic() >= deadline:  # nobody waits, so no lock may be taken
            raise TimeoutError
        pipeline = client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)  # type: ignore[no-untyped-call]
        return pipeline.execute()

    def _fail(self, client: redis.Redis, reason: str) -> None:
        """Begin to do without Redis, unless another exchange has found that out."""
        with self._lock:
            if client is not self._client:
                return
            is_news = reason != self._reason
            self._reason = reason
            self._next_try = time.monotonic() + self._retry_after
            self._client = make_client(self._url, self._patience)
            self._proven = False
        client.connection_pool.disconnect()  # which ends exchanges that hang
        if is_news:
            log.warning(
                "Redis at %s is lost, and this instance loads for itself: %s",
                address(client),
                reason,
            )

    def _succeed(self, client: redis.Redis) -> None:
        with self._lock:
            if client is not self._client or self._proven:
                return
            state = "there"
            if self._reason:
                state = "back"
            self._proven = True
            self._reason = ""
        log.info("Redis at %s is %s: answers are shared", address(client), state)
