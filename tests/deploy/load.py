"""Clients that ask for one event after the other while a test restarts the service."""

import itertools
import json
import threading
from collections.abc import Callable
from http.client import HTTPConnection, HTTPException
from typing import Self

from standin import Standin
from tests.fixtures import PREFIX, new_events

CLIENTS = 8
MISSES = 1000


class Load:
    """Clients that ask until the end of the block, and remember what went wrong.

    Each tenth request is for an event that is hardly ever cached. With `reconnect`, a
    client opens a new connection for each request.
    """

    def __init__(
        self,
        connect: Callable[[], HTTPConnection],
        upstream: Standin,
        *,
        reconnect: bool = False,
    ) -> None:
        self._connect = connect
        self._reconnect = reconnect
        self._hits = new_events(upstream, CLIENTS)
        self._lock = threading.Lock()  # guards `_misses`, which all clients share
        self._misses = itertools.cycle(new_events(upstream, MISSES))
        self._over = threading.Event()
        self._clients = [
            threading.Thread(target=self._ask, args=[number])
            for number in range(CLIENTS)
        ]
        self._counts = [0] * CLIENTS
        self.failures: list[str] = []

    @property
    def requests(self) -> int:
        """How many requests were made so far."""
        return sum(self._counts)

    def __enter__(self) -> Self:
        for client in self._clients:
            client.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        for client in self._clients:
            client.join()

    def _ask(self, number: int) -> None:
        connection = self._connect()
        while not self._over.is_set():
            event_id = self._next(number)
            try:
                connection.request("GET", PREFIX + event_id)
                answer = connection.getresponse()
                body = answer.read()
                if answer.status != 200 or json.loads(body)["id"] != event_id:
                    self.failures.append(f"{answer.status} {body!r}")
            except (OSError, HTTPException, ValueError) as error:
                self.failures.append(repr(error))
                connection.close()
            if self._reconnect:
                connection.close()
            self._counts[number] += 1
        connection.close()

    def _next(self, number: int) -> str:
        if self._counts[number] % 10:
            return self._hits[number]
        with self._lock:
            return next(self._misses)
