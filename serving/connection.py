"""One client's connection: HTTP/1.1 as an asyncio protocol.

Requests are answered in order, one at a time. A request that has an immediate answer gets it in the turn of the event
loop that read it. Any other is handed to a worker, and nothing further is taken from this client until its answer is
there. A turn takes at most 16 KiB from one client, so that no client holds up the others.

All of this runs in the thread of the event loop.
"""

import asyncio
import logging
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import formatdate
from functools import partial
from typing import cast

from serving.request import BadRequest, Request, parse, read_line

log = logging.getLogger("c42c")

Answer = tuple[bytes, bytes]  # status line and header lines, each with its CRLF; and the body
Refusal = Callable[[int, str], Answer]  # of status and message
Shortcut = Callable[[], Answer | None]  # answers a certain request without waiting, if it can
Immediate = Callable[[Request], Shortcut | None]  # finds the shortcut of a request
Parsed = tuple[Request, Shortcut | None]

_HEAD, _BODY, _WORKING, _ENDING, _LOST = range(5)
_KNOWN_REQUESTS = 4096
_KNOWN_SIZE = 2048  # bytes


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one client may take, in bytes and seconds."""

    head: int = 32 * 1024
    body: int = 64 * 1024
    turn: int = 16 * 1024
    request_seconds: float = 10.0  # for a head, from its first byte, and again for its body
    idle_seconds: float = 75.0
    stuck_seconds: float = 30.0  # without taking a byte of its answer
    linger_seconds: float = 2.0  # to close its side after the last answer
    tick_seconds: float = 1.0  # between two looks at all of these


@dataclass(kw_only=True)
class Hub:
    """What the connections of one server share.

    `immediate` is asked once for each distinct request; its shortcut is tried whenever that comes. `work` has any other
    request answered: it gets the request, its body, the client's address, and what to call with the answer.
    """

    loop: asyncio.AbstractEventLoop
    immediate: Immediate
    refusal: Refusal
    work: Callable[[Request, bytes, str, Callable[[Answer], None]], None]
    limits: Limits
    closing: bool = False  # each answer is the last of its connection
    connections: "set[Connection]" = field(default_factory=set)
    known: dict[bytes, Parsed] = field(default_factory=dict)
    tails: dict[str, bytes] = field(default_factory=dict)  # the end of an answer's header, by its Connection

    def __post_init__(self) -> None:
        self.buffer = memoryview(bytearray(self.limits.turn))  # one for all: what was read is taken out at once
        self.tick()

    def tick(self) -> None:
        """Set the answers' clock, and let go of clients that took too long. To be called about once a second."""
        date = f"Date: {formatdate(usegmt=True)}\r\n"
        self.tails[""] = f"{date}\r\n".encode()
        for connection in "close", "keep-alive":
            self.tails[connection] = f"{date}Connection: {connection}\r\n\r\n".encode()
        now = self.loop.time()
        for one in list(self.connections):
            one.check(now)

    def parse(self, head: bytes) -> Parsed:
        """Parse a request, or recognize the bytes of an earlier one: clients send the same again and again."""
        parsed = self.known.get(head)
        if parsed is None:
            request = parse(head)
            parsed = request, self.immediate(request)
            if request.length == 0 and len(head) <= _KNOWN_SIZE:
                if len(self.known) >= _KNOWN_REQUESTS:
                    self.known.clear()
                self.known[head] = parsed
        return parsed


class Connection(asyncio.BufferedProtocol):
    """One client."""

    def __init__(self, hub: Hub, client: str) -> None:
        self._hub = hub
        self._client = client
        self._transport = cast(asyncio.Transport, None)
        self._state = _HEAD
        self._unread = bytearray()
        self._checked = 0  # bytes of an incomplete head that were looked at
        self._parsed: Parsed | None = None  # a request whose body is incomplete
        self._blocked = False  # the client takes nothing at the moment
        self._half_closed = False  # the client sends nothing more
        self._since = hub.loop.time()  # it is idle, sends a head or a body, or lingers
        self._unsent = 0
        self._unsent_since = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._hub.connections.add(self)

    def connection_lost(self, _: Exception | None) -> None:
        self._state = _LOST
        self._hub.connections.discard(self)

    def get_buffer(self, _: int) -> memoryview:
        return self._hub.buffer

    def buffer_updated(self, size: int) -> None:
        data = self._hub.buffer[:size].tobytes()
        if self._state == _HEAD and not self._unread:
            if parsed := self._hub.known.get(data):
                self._answer(parsed, b"")
                return
            self._since = self._hub.loop.time()
        if self._state == _ENDING:
            return  # what is sent after the last answer has to be read, or the client could not read that
        self._unread += data
        if self._state == _WORKING:
            self._transport.pause_reading()
        elif size == self._hub.limits.turn:  # there may be more: others come first
            self._transport.pause_reading()
            self._hub.loop.call_soon(self._advance)
        else:
            self._advance()

    def eof_received(self) -> bool:
        self._half_closed = True
        return self._state == _WORKING

    def pause_writing(self) -> None:
        self._blocked = True
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._blocked = False
        self._hub.loop.call_soon(self._advance)  # rather than in the middle of a write

    @property
    def idle_since(self) -> float | None:
        """The moment since when the client has nothing to wait for, on the loop's clock; None if it has."""
        busy = self._state != _HEAD or self._unread or self._transport.get_write_buffer_size()
        return None if busy else self._since

    def close(self, *, now: bool = False) -> None:
        """Close the connection, once what was written is sent or else `now`."""
        self._transport.abort() if now else self._transport.close()

    def check(self, now: float) -> None:
        """Let go of the client if it takes too long."""
        limits, waited = self._hub.limits, now - self._since
        unsent = self._transport.get_write_buffer_size()
        if unsent != self._unsent:
            self._unsent, self._unsent_since = unsent, now
        if unsent:
            self._since = now
            if now - self._unsent_since >= limits.stuck_seconds:
                reset = struct.pack("ii", 1, 0)  # or the system would go on trying to send
                self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
                self._transport.abort()
        elif self._state == _ENDING:
            if waited >= limits.linger_seconds:
                self._transport.abort()
        elif self._state == _BODY or (self._state == _HEAD and self._unread):
            if waited >= limits.request_seconds:
                self._refuse(BadRequest(408, "the request did not arrive in time"))
        elif self._state == _HEAD and waited >= limits.idle_seconds:
            self._transport.close()

    def _advance(self) -> None:
        """Answer what has arrived, until there is something to wait for."""
        try:
            while self._state < _WORKING and not self._blocked and (complete := self._take()):
                self._answer(*complete)
        except BadRequest as error:
            self._refuse(error)
        if self._state >= _WORKING or self._blocked:
            return
        if self._half_closed:
            self._transport.close()
        else:
            self._transport.resume_reading()

    def _take(self) -> tuple[Parsed, bytes] | None:
        """Return the next request and its body if all of it has arrived."""
        parsed = self._parsed or self._take_head()
        if not parsed or len(self._unread) < parsed[0].length:
            self._parsed = parsed
            return None
        length = parsed[0].length
        body = bytes(self._unread[:length])
        del self._unread[:length]
        self._state, self._parsed = _HEAD, None
        return parsed, body

    def _take_head(self) -> Parsed | None:
        limits, unread = self._hub.limits, self._unread
        end = unread.find(b"\r\n\r\n", max(0, self._checked - 3), limits.head) + 4
        if end < 4:
            if unread.find(b"\n", self._checked, limits.head) >= 0:
                read_line(unread[: limits.head])
            if len(unread) >= limits.head:
                raise BadRequest(
                    431 if b"\n" in unread[: limits.head] else 414, "request line and headers are too large"
                )
            self._checked = len(unread)
            return None
        request, shortcut = self._hub.parse(bytes(unread[:end]))
        del unread[:end]
        self._checked = 0
        if request.length > limits.body:
            raise BadRequest(413, "the body is too large")
        if len(unread) < request.length:
            self._state, self._since = _BODY, self._hub.loop.time()
            if request.protocol == "HTTP/1.1" and request.headers.get("expect", "").lower() == "100-continue":
                self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return request, shortcut

    def _answer(self, parsed: Parsed, body: bytes) -> None:
        request, shortcut = parsed
        try:
            answer = shortcut() if shortcut else None
        except Exception:
            log.exception("a request failed")
            answer = self._hub.refusal(500, "the service failed; its log says why")
        if answer:
            self._send(request, answer)
        else:
            self._state = _WORKING
            self._hub.work(request, body, self._client, partial(self._finish, request))

    def _finish(self, request: Request, answer: Answer) -> None:
        if self._state == _WORKING:  # the client is still there
            self._state = _HEAD
            self._send(request, answer)
            self._advance()

    def _send(self, request: Request, answer: Answer) -> None:
        head, body = answer
        connection = "close" if self._hub.closing else request.connection
        if request.method == "HEAD":
            body = b""
        self._transport.write(head + self._hub.tails[connection] + body)
        self._since = self._hub.loop.time()
        if connection == "close":
            self._end()

    def _refuse(self, error: BadRequest) -> None:
        head, body = self._hub.refusal(error.status, str(error))
        self._transport.write(head + self._hub.tails["close"] + body)
        self._end()

    def _end(self) -> None:
        """Send nothing more, and wait for the client to close its side, so that it gets to read the last answer."""
        self._state, self._since = _ENDING, self._hub.loop.time()
        self._unread.clear()
        if self._half_closed:
            self._transport.close()
            return
        with suppress(OSError):  # it is gone already
            self._transport.write_eof()
        self._transport.resume_reading()
