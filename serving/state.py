"""What all connections of a server share: their bounds, turns and clock.

All of this runs in the event loop's thread.
"""

import asyncio
import time
from collections import deque
from email.utils import formatdate
from operator import attrgetter
from typing import TYPE_CHECKING

from serving.interface import Dispatch, FindFastPath, MakeRejection
from serving.limits import FREED_PART, Limits
from serving.summary import Summaries
from serving.unsent import UnsentAnswers

if TYPE_CHECKING:
    from serving.connection import Connection


class ServerState:
    """What the connections of one server share."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        find_fast_path: FindFastPath,
        reject: MakeRejection,
        dispatch: Dispatch,
        limits: Limits,
    ) -> None:
        self.loop = loop
        self.reject = reject
        self.dispatch = dispatch
        self.limits = limits
        # `tick` sets these three, once below and then each second.
        # The loop's time at the last tick: exact enough for a hit's `last_progress`.
        self.now: float
        # What each head ends with: Date and Connection.
        self.tail_keep_alive: bytes
        self.tail_close: bytes
        self.closing = False  # each answer is the last one of its connection
        self.connections: set[Connection] = set()
        self.summaries = Summaries(find_fast_path, limits)
        self.unsent = UnsentAnswers(limits.max_unsent)
        self._pending = 0  # bytes of requests without an answer
        # Each read is copied out of it at once.
        self.buffer = memoryview(bytearray(limits.max_read))
        self._delayed: deque[Connection] = deque()  # those that wait for their turn
        self._delayed_since = 0.0
        self._has_newcomers = False
        self.tick()

    def tick(self) -> None:
        """Set the Date of the answers, and disconnect clients that take too long.

        This happens once a second.
        """
        tick_seconds = self.limits.tick_seconds
        self.loop.call_later(tick_seconds - time.time() % tick_seconds, self.tick)
        date = f"Date: {formatdate(usegmt=True)}"
        self.tail_keep_alive = f"{date}\r\nConnection: keep-alive\r\n\r\n".encode()
        self.tail_close = f"{date}\r\nConnection: close\r\n\r\n".encode()
        self.now = self.loop.time()
        for connection in list(self.connections):
            connection.enforce_timeouts(self.now)

    def admit(self, connection: "Connection") -> bool:
        """Add a connection, and return whether there is room for it.

        To make room, those that have been idle longest are closed.
        """
        self._has_newcomers = True
        most = self.limits.max_connections
        if len(self.connections) >= most:
            idle = [each for each in self.connections if each.idle]
            idle.sort(key=attrgetter("last_progress"))
            for each in idle[: most // FREED_PART + 1]:
                each.transport.close()
                self.connections.discard(each)
        self.connections.add(connection)
        return len(self.connections) <= most

    @property
    def is_overrun(self) -> bool:
        """Whether there are too many connections even to tell them so."""
        most = self.limits.max_connections
        return len(self.connections) > most + most // FREED_PART + 1

    def count_pending(self, difference: int) -> None:
        """Count bytes of requests that have no answer yet.

        If they are too many, the requests that have been incomplete longest are
        rejected.
        """
        self._pending += difference
        max_pending = self.limits.max_pending
        if difference <= 0 or self._pending <= max_pending:
            return
        enough = max_pending - max_pending // FREED_PART
        unfinished = [each for each in self.connections if each.is_incomplete]
        unfinished.sort(key=attrgetter("last_progress"))
        for each in unfinished:
            each.give_up_reading()
            if self._pending <= enough:
                break

    def has_room_for(self, size: int) -> bool:
        """Whether a request that takes `size` bytes may wait for a worker."""
        return self._pending + size <= self.limits.max_pending

    def delay(self, connection: "Connection") -> None:
        """Let a connection go on in a later turn."""
        if not self._delayed:
            self._delayed_since = self.loop.time()
            self.loop.call_soon(self._run_delayed)
        self._delayed.append(connection)

    def _run_delayed(self) -> None:
        # uvloop accepts one connection a turn, so newcomers get in as fast as turns are
        # short.
        waited = self.loop.time() - self._delayed_since
        if self._has_newcomers and waited < self.limits.yield_seconds:
            self._has_newcomers = False
            self.loop.call_soon(self._run_delayed)
            return
        self._has_newcomers = False
        connections = self._delayed
        self._delayed = deque()
        for connection in connections:
            self.loop.call_soon(connection.advance)
