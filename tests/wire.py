"""A client's connection without sockets.

A test drives `serving.connection` turn by turn, under a clock of its own.
"""

import json
import re
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple, cast

from answers import response
from serving.connection import Connection
from serving.interface import OnDone, Serialized, serialize
from serving.limits import Limits
from serving.request import Request, parse
from serving.state import ServerState


class Received(NamedTuple):
    """A response as it came over the wire."""

    status: int
    headers: dict[str, str]
    body: bytes


def reject(status: int, message: str, origin: str) -> Serialized:
    """Return the answer to a rejected request, with the Origin that it is told.

    Apart from that, it is the service's own.
    """
    line, headers, body = response.error(status, message)
    return serialize(line, [*headers, ("X-Origin", origin)], body)


def responses(data: bytes, methods: Iterable[str] = ()) -> list[Received]:
    """Take apart what a server sent in answer to requests of these methods.

    Where the methods are at an end, they are GET.
    """
    found, asked = [], iter(methods)
    while data:
        head, end, data = data.partition(b"\r\n\r\n")
        assert end, head
        line, *lines = head.decode().split("\r\n")
        matched = re.fullmatch(r"HTTP/1\.1 (\d{3}) [\w -]+", line)
        assert matched, line
        status, headers = int(matched[1]), dict(one.split(": ", 1) for one in lines)
        assert len(headers) == len(lines), "each header once"
        bodiless = status in (100, 204, 304) or (
            status >= 200 and next(asked, "GET") == "HEAD"
        )
        length = (
            0
            if bodiless
            else int(
                {name.lower(): text for name, text in headers.items()}["content-length"]
            )
        )
        assert len(data) >= length
        found.append(Received(status, headers, data[:length]))
        data = data[length:]
    return found


class Loop:
    """Stands in for an event loop: a turn of it runs what was due at its beginning."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.later: list[Callable[[], None]] = []
        self._soon: deque[Callable[[], None]] = deque()

    def time(self) -> float:
        """Return the time, which passes when a test says so."""
        return self.now

    def call_soon(self, call: Callable[[], None]) -> None:
        """Call it in the next turn."""
        self._soon.append(call)

    def call_later(self, seconds: float, call: Callable[[], None]) -> None:
        """Keep it for `Desk.tick`, which calls it after up to a second."""
        assert 0 < seconds <= 1
        self.later.append(call)

    def turn(self) -> bool:
        """Run a turn; return whether there was anything to do."""
        due = len(self._soon)
        for _ in range(due):
            self._soon.popleft()()
        return due > 0


class Desk:
    """A server without sockets and threads.

    The fast path answers what is below `fast_below`, and a test the rest.
    `find_fast_path` takes the place of its own.
    """

    def __init__(
        self, fast_below: str = "/hit/", find_fast_path: Any = None, **limits: Any
    ) -> None:
        self.fast_below = fast_below
        self.loop = Loop()
        self.seen: list[Request] = []  # every request that was taken for one
        self.waiting: deque[tuple[Request, OnDone]] = deque()
        self.server = ServerState(
            loop=cast(Any, self.loop),
            find_fast_path=find_fast_path or self._find_fast_path,
            reject=reject,
            dispatch=self._dispatch,
            limits=Limits(**limits),
        )

    def _find_fast_path(self, request: Request) -> Callable[[], Serialized | None]:
        return partial(self._answer_at_once, request)

    def _answer_at_once(self, request: Request) -> Serialized | None:
        self.seen.append(request)
        if request.path == "/hit/broken":
            raise ZeroDivisionError
        if self.fast_below and request.path.startswith(self.fast_below):
            return self.answer_to(request)
        return None

    def _dispatch(self, head: bytes, on_done: OnDone) -> None:
        self.waiting.append((parse(head), on_done))

    @staticmethod
    def answer_to(request: Request) -> Serialized:
        """Return the answer that says what was asked for."""
        body = json.dumps([request.method, request.path, request.query]).encode()
        return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n" % len(body), body

    def finish(self, count: int = 1) -> None:
        """Answer the requests that wait longest."""
        for _ in range(count):
            request, on_done = self.waiting.popleft()
            on_done(self.answer_to(request))

    def tick(self, seconds: float) -> None:
        """Let so much time pass, and have the server notice it."""
        self.loop.now += seconds
        (tick,) = self.loop.later
        self.loop.later.clear()
        tick()


class Wire:
    """A transport and its socket.

    `send` is the client's side, the rest is what the server calls.
    """

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.received = bytearray()  # by the client
        self.stuck = False  # the client takes nothing
        self.ended = False  # the server sends nothing more
        self.closed = False
        self.aborted = False
        self.reset = False  # the client hears of an abort even if it takes no data
        self._unsent = bytearray()
        self._most_unsent = 64 * 1024  # before the server is told to pause
        self._reading = True
        self._paused_writing = False
        self._coming: deque[bytes] = deque()
        self._half_closed = False
        self._protocol = Connection(desk.server)
        self._protocol.connection_made(cast(Any, self))

    # The client's side

    def send(self, *pieces: bytes, half_close: bool = False) -> "Wire":
        """Send data, and let the server work on it.

        Each piece has a read of its own if it is small enough for one.
        """
        self._coming.extend(piece for piece in pieces if piece)
        self._half_closed |= half_close
        self.run()
        return self

    def queue(self, data: bytes) -> None:
        """Send data, and leave it to the next turns to read it."""
        self._coming.append(data)

    @property
    def untaken(self) -> int:
        """How many bytes the server has not read."""
        return sum(map(len, self._coming))

    @property
    def unsent(self) -> int:
        """How many bytes the client did not take."""
        return len(self._unsent)

    def run(self) -> None:
        """Run the loop until the server has nothing more to do by itself."""
        while self.turn():
            pass

    def settle(self) -> None:
        """Have all requests answered."""
        while self.desk.waiting:
            self.desk.finish()
            self.run()

    def turn(self) -> bool:
        """Run one turn of the loop; return whether there was anything to do."""
        worked = self.desk.loop.turn()
        while self._reading and not self.closed and (self._coming or self._half_closed):
            worked = True
            if not self._read():
                break
        return worked

    def _read(self) -> bool:
        """Read once; return whether that filled the buffer.

        If it did, libuv reads again, unless it was told to pause.
        """
        if not self._coming:
            self._half_closed = self._reading = False
            if not self._protocol.eof_received():
                self.close()
            return False
        view = self._protocol.get_buffer(-1)
        piece = self._coming.popleft()
        if piece[len(view) :]:
            self._coming.appendleft(piece[len(view) :])
        piece = piece[: len(view)]
        view[: len(piece)] = piece
        self._protocol.buffer_updated(len(piece))
        return len(piece) == len(view)

    def take(self, size: int) -> None:
        """Have a client that was stuck take so many bytes."""
        self.received += self._unsent[:size]
        del self._unsent[:size]
        if self._paused_writing and not self._unsent:
            self._paused_writing = False
            self._protocol.resume_writing()
        self._close_if_sent()

    @property
    def open(self) -> bool:
        """Whether the server would still send something."""
        return not (self.ended or self.closed)

    def answers(self, *methods: str) -> list[Received]:
        """Return what the client has received so far."""
        return responses(bytes(self.received), methods)

    # The transport

    def get_extra_info(self, name: str) -> Any:
        assert name == "socket"
        return self

    def set_write_buffer_limits(self, high: int) -> None:
        self._most_unsent = high

    def setsockopt(self, level: int, option: int, value: bytes) -> None:
        assert (level, option) == (socket.SOL_SOCKET, socket.SO_LINGER)
        self.reset = struct.unpack("ii", value) == (1, 0)

    def write(self, data: bytes | memoryview) -> None:
        assert self.open
        if not self.stuck:
            self.received += data
            return
        self._unsent += data
        if len(self._unsent) > self._most_unsent and not self._paused_writing:
            self._paused_writing = True
            self._protocol.pause_writing()

    def get_write_buffer_size(self) -> int:
        return len(self._unsent)

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        self._reading = True

    def is_reading(self) -> bool:
        return self._reading

    def write_eof(self) -> None:
        self.ended = True

    def close(self) -> None:
        self._reading, self.closed = False, True
        self._close_if_sent()

    def abort(self) -> None:
        self.aborted = True
        self._unsent.clear()
        self.close()

    def _close_if_sent(self) -> None:
        if self.closed and not self._unsent:
            self.desk.loop.call_soon(partial(self._protocol.connection_lost, None))


def splits(raw: bytes, seeds: Iterable[int] = range(3)) -> Iterator[list[bytes]]:
    """Yield ways in which `raw` may arrive: whole, byte by byte, and cut at random."""
    import random

    yield [raw]
    yield [raw[at : at + 1] for at in range(len(raw))]
    for seed in seeds:
        cuts = sorted(
            random.Random(seed).choices(range(len(raw) + 1), k=min(4, len(raw)))
        )
        yield [
            raw[begin:end]
            for begin, end in zip([0, *cuts], [*cuts, len(raw)], strict=True)
        ]
