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
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import redis

from sharing.client import address, make_client, probe, reason_for

RETRY_AFTER = 5.0  # seconds after a failure
_THREADS = 8  # and at most as many connections

log = logging.getLogger("c42c.redis")
T = TypeVar("T")


class Unavailable(Exception):
    """Redis gave no valid reply in time, or wasn't asked. The text says why."""


class Link:
    """Asks the Redis at `url`, for any thread.

    After a failure, it doesn't ask for `retry_after` seconds. Unless it is `quiet`, the
    log says whether Redis is there. Raises ValueError for an invalid URL.
    """

    def __init__(
        self, url: str, *, retry_after: float = RETRY_AFTER, quiet: bool = False
    ) -> None:
        self._url = url
        self._retry_after = retry_after
        self._quiet = quiet
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="c42c-redis")
        self._lock = threading.Lock()
        # Replaced after a failure. What is heard over an old one counts no more.
        self._client = make_client(url)
        options = self._client.connection_pool.connection_kwargs
        self._patience = options["socket_timeout"]
        self.address = address(self._client)
        self._proven = False  # whether the client has ever worked
        self.reason = ""  # why Redis is lost; empty unless it is
        self._next_try = 0.0  # while Redis is lost, of `time.monotonic`

    def ask(self, question: Callable[[redis.Redis], T]) -> T:
        """Call `question` with a client of Redis, and return what it returns.

        Raises `Unavailable`. If `question` raises or takes too long, Redis is lost.
        """
        client = self._admit()
        try:
            exchange = self._threads.submit(self._exchange, client, question)
        except RuntimeError:
            raise Unavailable("the system allows no more threads") from None
        try:
            answer = exchange.result(self._patience)
        except Exception as error:
            if exchange.cancel():
                raise Unavailable("all threads are busy") from None
            reason = reason_for(error)
            self._on_failure(client, reason)
            raise Unavailable(reason) from None
        self._on_success(client)
        return answer

    def close(self) -> None:
        """Disconnect, and ask no more."""
        self._threads.shutdown(wait=False)
        self._client.connection_pool.disconnect()

    def _admit(self) -> redis.Redis:
        """Return the client, unless Redis is lost and it is too early to try again."""
        with self._lock:
            if self.reason:
                now = time.monotonic()
                if now < self._next_try:
                    raise Unavailable(self.reason)
                self._next_try = now + self._retry_after
            return self._client

    def _exchange(self, client: redis.Redis, question: Callable[[redis.Redis], T]) -> T:
        """Run in a thread of the pool."""
        if not self._proven:
            probe(client)
        if client is not self._client:  # nobody waits, so no lock may be taken
            raise TimeoutError
        return question(client)

    def _on_failure(self, client: redis.Redis, reason: str) -> None:
        """Begin to do without Redis, unless another exchange has found that out."""
        with self._lock:
            if client is not self._client:
                return
            is_news = reason != self.reason
            self.reason = reason
            self._next_try = time.monotonic() + self._retry_after
            self._client = make_client(self._url)
            self._proven = False
        client.connection_pool.disconnect()  # which ends exchanges that hang
        if is_news and not self._quiet:
            log.warning(
                "Redis at %s is lost, and this instance loads for itself: %s",
                self.address,
                reason,
            )

    def _on_success(self, client: redis.Redis) -> None:
        with self._lock:
            if client is not self._client or self._proven:
                return
            state = "there"
            if self.reason:
                state = "back"
            self._proven = True
            self.reason = ""
        if not self._quiet:
            log.info("Redis at %s is %s: answers are shared", self.address, state)
