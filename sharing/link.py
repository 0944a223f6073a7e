"""Exchanges with Redis, each bounded in time.

Each runs in a thread of a small pool, and its caller waits for it for a bounded time.
That bounds all of it: looking up the name, connecting, and replies that trickle. After
a failure, Redis isn't asked for a while. Then one exchange tries again, over a new
connection.

`Link._lock` guards every change.
"""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import redis

from sharing.client import address, make_client, patience, probe, reason_for

RETRY_AFTER = 5.0  # seconds after a failure
THREADS = 32  # and at most as many connections

log = logging.getLogger("c42c.redis")
T = TypeVar("T")


class Link:
    """Asks the Redis at `url`, for any thread.

    After a failure, it doesn't ask for `retry_after` seconds. The log says whether
    Redis is there. Raises ValueError for an invalid URL.
    """

    def __init__(self, url: str, *, retry_after: float = RETRY_AFTER) -> None:
        self._url = url
        self._retry_after = retry_after
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="c42c-redis")
        self._lock = threading.Lock()
        # Replaced after a failure. What is heard over an old one counts no more.
        self._client = make_client(url)
        # Why Redis is lost; empty while it works, None until that is known.
        self.reason: str | None = None
        self._next_try = 0.0  # while Redis is lost, of `time.monotonic`

    def ask(self, question: Callable[[redis.Redis], T]) -> T | None:
        """Call `question` with a client of Redis, and return what it returns.

        It runs in a thread of the pool. If it raises or takes too long, Redis is lost.
        Return None then, and while Redis isn't asked.
        """
        client = self._admit()
        if client is None:
            return None
        try:
            exchange = self._threads.submit(self._exchange, client, question)
            answer = exchange.result(patience(client))
        except Exception as error:
            self._note(client, reason_for(error))
            return None
        self._note(client, "")
        return answer

    def _admit(self) -> redis.Redis | None:
        """Return the client, unless Redis is lost and it is too early to try again."""
        with self._lock:
            if self.reason:
                now = time.monotonic()
                if now < self._next_try:
                    return None
                self._next_try = now + self._retry_after
            return self._client

    def _exchange(self, client: redis.Redis, question: Callable[[redis.Redis], T]) -> T:
        """Run in a thread of the pool, maybe when nobody waits for it any more.

        Then its client has been replaced, and it may take no lock.
        """
        if client is self._client and self.reason != "":
            probe(client)  # before anything depends on it
        if client is not self._client:  # perhaps since the probe began
            raise TimeoutError
        return question(client)

    def _note(self, client: redis.Redis, reason: str) -> None:
        """Note how an exchange ended, unless its client has been replaced."""
        with self._lock:
            if client is not self._client:
                return
            before = self.reason
            self.reason = reason
            if reason:
                self._next_try = time.monotonic() + self._retry_after
                self._client = make_client(self._url)
        if reason:
            client.connection_pool.disconnect()  # which ends exchanges that hang
        if reason == before:
            return
        where = address(client)
        if reason:
            log.warning(
                "Redis at %s is lost, and this instance loads for itself: %s",
                where,
                reason,
            )
        else:
            log.info("Redis at %s is there: answers are shared", where)
