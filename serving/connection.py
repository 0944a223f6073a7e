"""One client's connection: HTTP/1.1 as an asyncio protocol.

Requests are answered in order, one at a time. All of this runs in the event loop's
thread. An immediate answer is sent in the turn that read its request. Any other request
goes to a worker thread, and nothing more is parsed from this client until its answer is
there. A turn reads at most 16 KiB from one client, so that none delays the others for
long.
"""

import asyncio
import logging
import socket
import struct
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import formatdate
from functools import partial
from operator import attrgetter
from typing import cast

from serving.request import MalformedRequest, Request, find_end, parse

log = logging.getLogger("c42c")
Serialized = tuple[
    bytes, bytes
]  # status line and header lines, each with its CRLF; and the body
OnDone = Callable[
    [Serialized | None], None
]  # takes an answer, or None if the work failed
MakeRejection = Callable[
    [int, str], Serialized
]  # makes an error from a status and a message
FastPath = Callable[
    [], Serialized | None
]  # answers one particular request if it can do so without waiting
FindFastPath = Callable[[Request], FastPath | None]  # finds the shortcut of a request
Dispatch = Callable[
    [Request, bytes, OnDone], object
]  # has a request, with its body, answered by a worker
Parsed = tuple[Request, FastPath | None]

_READING, _WORKING, _ENDED = range(3)
_KNOWN_REQUESTS = 4096
_KNOWN_SIZE = 2048  # bytes
_RESET = struct.pack("ii", 1, 0)  # for SO_LINGER


def serialize(
    status: str, headers: Iterable[tuple[str, str]], body: bytes
) -> Serialized:
    """Return an answer as bytes; `status` is the code and the reason."""
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {text}" for name, text in headers), ""]
    return "\r\n".join(lines).encode("latin-1"), body


@dataclass
class ServerState:
    """What the connections of one server share, and what one client may take."""

    loop: asyncio.AbstractEventLoop
    # Called once for each distinct request; its shortcut is tried whenever that comes
    # again.
    immediate: FindFastPath
    reject: MakeRejection
    work: Dispatch  # gets the requests without an immediate answer
    room: int  # for connections
    head: int = 32 * 1024  # bytes
    body: int = 64 * 1024
    turn: int = 16 * 1024
    request_seconds: float = 10.0  # for a request, from its first byte
    idle_seconds: float = 75.0
    stuck_seconds: float = 30.0  # without taking a byte of its answer
    linger_seconds: float = 2.0  # to close its side after the last answer
    tick_seconds: float = 1.0  # between two checks of all these
    closing: bool = False  # each answer is the last one of its connection
    connections: "set[Connection]" = field(default_factory=set)
    known: dict[bytes, Parsed] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.buffer = memoryview(
            bytearray(self.turn)
        )  # shared: each read is copied out of it at once
        self.tick()

    def tick(self) -> None:
        """Once a second, set the Date of the answers, and let go of clients that take
        too long.
        """
        self.loop.call_later(
            self.tick_seconds - time.time() % self.tick_seconds, self.tick
        )
        date = f"Date: {formatdate(usegmt=True)}\r\nConnection: "
        self.tails = [
            f"{date}{connection}\r\n\r\n".encode()
            for connection in ("close", "keep-alive")
        ]
        now = self.loop.time()
        for one in list(self.connections):
            one.check(now)

    def parse(self, head: bytes) -> Parsed:
        """Parse a request, or look it up: clients send the same bytes again and again."""
        parsed = self.known.get(head)
        if parsed is None:
            request = parse(head)
            parsed = request, self.immediate(request)
            if request.length == 0 and len(head) <= _KNOWN_SIZE:
                if len(self.known) >= _KNOWN_REQUESTS:
                    self.known.clear()
                self.known[head] = parsed
        return parsed

    def admit(self, connection: "Connection") -> bool:
        """Add a connection, and return whether there is room for it once those idle
        longest are closed.
        """
        if (
            len(self.connections) >= self.room
        ):  # close a sixteenth, so that not every new connection causes a search
            idle = sorted(
                (one for one in self.connections if one.idle), key=attrgetter("since")
            )
            for one in idle[: self.room // 16 + 1]:
                one.transport.close()
                self.connections.discard(one)
        self.connections.add(connection)
        return len(self.connections) <= self.room


class Connection(asyncio.BufferedProtocol):
    """One client."""

    def __init__(self, hub: ServerState) -> None:
        self.transport: asyncio.Transport
        self.since = (
            hub.loop.time()
        )  # when the client connected, began a request, took data, or was answered
        self._hub = hub
        self._state = _READING
        self._unread = bytearray()
        self._needed = 0  # bytes of an incomplete request, once its head is there
        self._blocked = False  # the client takes no data at the moment
        self._half_closed = False  # the client sends nothing more
        self._unsent = 0  # bytes, at the last check

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        if not self._hub.admit(self):
            self._reject(503, "all connections are busy")

    def connection_lost(self, _: Exception | None) -> None:
        self._state = _ENDED
        self._hub.connections.discard(self)

    def get_buffer(self, _: int) -> memoryview:
        return self._hub.buffer

    def buffer_updated(self, size: int) -> None:
        data = self._hub.buffer[:size].tobytes()
        if self._state == _ENDED:
            # Unread data would make the system reset the connection, and the last
            # answer could get lost.
            return
        if self._state == _READING and not self._unread:
            if parsed := self._hub.known.get(data):
                self._answer(parsed, b"")
                return
            self.since = self._hub.loop.time()
        self._unread += data
        if self._state == _READING and size < self._hub.turn:
            self._advance()
        else:  # it waits for its answer, or for its next turn
            self.transport.pause_reading()
            self._hub.loop.call_soon(self._advance)

    def eof_received(self) -> bool:
        self._half_closed = True
        return self._state == _WORKING

    def pause_writing(self) -> None:
        self._blocked = True
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self._blocked = False
        self._hub.loop.call_soon(self._advance)  # rather than in the middle of a write

    @property
    def idle(self) -> bool:
        """Whether the client has nothing to wait for."""
        return (
            self._state == _READING
            and not self._unread
            and not self.transport.get_write_buffer_size()
        )

    def check(self, now: float) -> None:
        """Let go of the client if it takes too long."""
        hub, unsent = self._hub, self.transport.get_write_buffer_size()
        if unsent != self._unsent:
            self._unsent, self.since = unsent, now
        if self._state == _WORKING:
            return
        waited = now - self.since
        if unsent:
            if (
                waited >= hub.stuck_seconds
            ):  # without a reset, the system would go on trying to send it
                self.transport.get_extra_info("socket").setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, _RESET
                )
                self.transport.abort()
        elif self._state == _READING and self._unread:
            if waited >= hub.request_seconds:
                self._reject(408, "the request did not arrive in time")
        elif waited >= (
            hub.linger_seconds if self._state == _ENDED else hub.idle_seconds
        ):
            self.transport.abort()

    def _advance(self) -> None:
        """Serialized what has arrived, until there is something to wait for."""
        try:
            while (
                self._state == _READING
                and not self._blocked
                and (complete := self._take())
            ):
                self._answer(*complete)
        except MalformedRequest as error:
            self._reject(*error.args)
        if self._state != _READING or self._blocked:
            return
        if self._half_closed:
            self.transport.close()
        else:
            self.transport.resume_reading()

    def _take(self) -> tuple[Parsed, bytes] | None:
        """Return the next request and its body if all of it has arrived."""
        unread = self._unread
        if len(unread) < self._needed or not (end := find_end(unread, self._hub.head)):
            return None
        parsed = self._hub.parse(bytes(unread[:end]))
        request = parsed[0]
        if request.length > self._hub.body:
            raise MalformedRequest(413, "the body is too large")
        self._needed = end + request.length
        if len(unread) < self._needed:
            if (
                request.protocol == "HTTP/1.1"
                and request.headers.get("expect", "").lower() == "100-continue"
            ):
                self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            return None
        body = bytes(unread[end : self._needed])
        del unread[: self._needed]
        self._needed = 0
        return parsed, body

    def _answer(self, parsed: Parsed, body: bytes) -> None:
        request, shortcut = parsed
        try:
            answer = shortcut() if shortcut else None
        except Exception:
            log.exception("an immediate answer failed")
            answer = None
        if answer:
            self._send(answer, request.keep_alive, request.method)
        else:
            self._state = _WORKING
            self._hub.work(request, body, partial(self._finish, request))

    def _finish(self, request: Request, answer: Serialized | None) -> None:
        if self._state == _WORKING:  # the client is still there
            self._state = _READING
            answer = answer or self._hub.reject(
                500, "the service failed; its log says why"
            )
            self._send(answer, request.keep_alive, request.method)
            self._advance()

    def _reject(self, status: int, message: str) -> None:
        self._send(
            self._hub.reject(status, message),
            False,
            self._unread.split(b" ", 1)[0].decode("latin-1"),
        )

    def _send(self, answer: Serialized, keep_alive: bool, method: str) -> None:
        head, body = answer
        keep_alive = keep_alive and not self._hub.closing
        self.transport.write(
            head + self._hub.tails[keep_alive] + (b"" if method == "HEAD" else body)
        )
        self.since = self._hub.loop.time()
        if not keep_alive:
            self._state = _ENDED
            if self._half_closed:
                self.transport.close()
            # Wait for the client to close its side: if the server closed first, the
            # answer could get lost.
            else:
                with suppress(OSError):  # the client is gone already
                    self.transport.write_eof()
                self.transport.resume_reading()
