"""One client's connection: HTTP/1.1 as an asyncio protocol.

All of this runs in the event loop's thread, and none of it waits. Requests are answered
in order, one at a time. A request with a fast path is answered in the turn of the loop
that read it. Any other goes to a worker thread, and nothing more of this client is
parsed until its answer is there.

A turn reads a bounded number of bytes of one client and answers a bounded number of its
requests. If it has sent more, it waits for a turn of its own, behind those who have
just connected. `serving.limits` has all the bounds.

`Connection.buffer_updated` is on the path of every hit. So it has its own short way for
the usual case, one remembered request in one read, and looks nothing up twice.
"""

import asyncio
import logging
import socket
import struct
from contextlib import suppress
from dataclasses import replace
from enum import Enum, auto
from functools import partial
from typing import cast

from serving.interface import FAILED, Serialized
from serving.request import MalformedRequest, find_end, find_origin
from serving.state import ServerState
from serving.summary import Summary

_EMPTY_LINE = b"\r\n"
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
# Larger bodies are sent in pieces, without a copy for each client.
_LARGE = 16 * 1024
_PIECE = 64 * 1024
# Bytes of a request that waits for a worker, beside its head: 2,160 as measured.
_WAITING_OVERHEAD = 2304
_RESET = struct.pack("ii", 1, 0)  # for SO_LINGER
log = logging.getLogger("c42c")


class _State(Enum):
    """What a connection is for at the moment."""

    READING = auto()  # its next request may come, or is arriving
    WORKING = auto()  # a worker has its request
    FULL = auto()  # it is one too many, and will be told so
    ENDED = auto()  # its last answer is made


# As plain names, since the hit path needs one of them.
_READING = _State.READING
_WORKING = _State.WORKING
_FULL = _State.FULL
_ENDED = _State.ENDED


class Connection(asyncio.BufferedProtocol):
    """One client."""

    __slots__ = (
        "_blocked",
        "_counted",
        "_half_closed",
        "_is_delayed",
        "_missing",
        "_request",
        "_rest",
        "_server",
        "_state",
        "_unread",
        "_unsent_size",
        "last_progress",
        "transport",
    )

    def __init__(self, server: ServerState) -> None:
        self.transport: asyncio.Transport
        # When the client connected, began a request, took data, or was answered.
        self.last_progress = server.loop.time()
        self._server = server
        self._state = _READING
        self._unread = bytearray()
        self._request: Summary | None = None  # its body is arriving
        self._missing = 0  # bytes of that body
        self._counted = 0  # bytes, as pending
        self._rest: memoryview | None = None  # of a large answer that is being sent
        self._blocked = False  # the client takes no data at the moment
        self._half_closed = False  # the client sends nothing more
        self._is_delayed = False
        self._unsent_size = 0  # at the last check

    # What the event loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        # So that `pause_writing` tells of each byte that the client doesn't take.
        self.transport.set_write_buffer_limits(high=0)
        if not self._server.admit(self):
            self._state = _FULL
            if self._server.is_overrun:
                self.transport.abort()

    def connection_lost(self, _: Exception | None) -> None:
        self._state = _ENDED
        self._release()
        self._server.connections.discard(self)

    def get_buffer(self, _: int) -> memoryview:
        return self._server.buffer

    def buffer_updated(self, size: int) -> None:
        server = self._server
        received = server.buffer[:size].tobytes()
        if self._state is _READING and not self._unread:
            request = server.summaries.by_head.get(received)
            if request is not None and self._request is None:
                self.last_progress = server.now
                data = self._answer_at_once(request)
                if data is None:
                    self._hand_to_worker(request)
                    return
                self.transport.write(data)
                # It was the last answer, the client doesn't take it, or its large body
                # is still to come.
                if self._state is not _READING or self._blocked or self._rest:
                    self._follow_up(data)
                return
        if self.idle:  # a request begins
            self.last_progress = server.loop.time()
        elif self._state is _ENDED:
            # It was only read because unread data would make the system reset the
            # connection, and the last answer could get lost.
            return
        self._unread += received
        if self._state is _FULL:
            self._reject(503, "all connections are busy")
        elif self._state is _WORKING:
            self.transport.pause_reading()
            self._count()
        elif size == server.limits.max_read:  # there may be more
            self._delay()
        else:
            self.advance()

    def eof_received(self) -> bool:
        self._half_closed = True
        # True keeps the transport open for the rest of the answer.
        return self._state is _WORKING or self._rest is not None

    def pause_writing(self) -> None:
        self._blocked = True
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self._blocked = False
        if self._state is _ENDED and self._rest is None:
            self._server.unsent.remove(self)
            self.transport.resume_reading()
        else:
            self._delay()

    # What `ServerState` asks

    @property
    def is_incomplete(self) -> bool:
        """Whether bytes are held of a request that no worker has yet."""
        if self.transport.is_closing():
            return False
        return bool(self._unread) or self._request is not None

    @property
    def idle(self) -> bool:
        """Whether the client has nothing to wait for."""
        if not self._may_answer:
            return False
        # An empty line may come after the body of a request (RFC 9112, 2.2).
        return self._request is None and self._unread in (b"", _EMPTY_LINE)

    def was_active_within(self, seconds: float) -> bool:
        """Whether the client connected, or was answered, less than `seconds` ago.

        Then its next request may be on its way.
        """
        return self._server.loop.time() - self.last_progress < seconds

    def enforce_timeouts(self, now: float) -> None:
        """Disconnect the client if it takes too long."""
        limits = self._server.limits
        if self._blocked or self._rest is not None:
            size = self.transport.get_write_buffer_size()
            if size != self._unsent_size:
                self._unsent_size = size
                self.last_progress = now
            elif now - self.last_progress >= limits.stuck_seconds:
                self.drop()
            return
        waited = now - self.last_progress
        if self._state is _READING:
            if not self.idle:
                if waited >= limits.request_seconds:
                    self._reject(408, "the request did not arrive in time")
            elif waited >= limits.idle_seconds:
                self.transport.abort()
        elif self._state is not _WORKING and waited >= limits.linger_seconds:
            self.transport.abort()

    def give_up_reading(self) -> None:
        """Hold nothing more of what the client has sent."""
        if self._may_answer:
            self._reject(503, "too many requests are incomplete")
        else:
            self.drop()

    def drop(self) -> None:
        """Disconnect the client at once, and let go of all that is held for it."""
        self._state = _ENDED
        self._release()
        # Without a reset, the system would go on trying to send what it has.
        sock = self.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.transport.abort()

    def advance(self) -> None:
        """Go on with the last answer; then answer what has arrived.

        Stop when there is something to wait for, or when it is the turn of others.
        """
        self._is_delayed = False
        if self._rest is not None:
            self._send_rest()
        if not self._may_answer:
            return
        self._server.unsent.remove(self)
        is_done = self._answer_requests()
        self._count()
        if not self._may_answer:
            return
        if not is_done:
            self._delay()
        elif self._half_closed:
            self.transport.close()
        else:
            self.transport.resume_reading()

    # Reading

    @property
    def _may_answer(self) -> bool:
        """Whether the next request may be read and answered."""
        return self._state is _READING and not self._blocked and self._rest is None

    def _delay(self) -> None:
        """Go on in a later turn of the loop."""
        if not self._is_delayed:
            self._is_delayed = True
            self.transport.pause_reading()
            self._server.delay(self)

    def _answer_requests(self) -> bool:
        """Answer as many requests as a turn allows; return whether these were all."""
        limits = self._server.limits
        sent: list[bytes] = []
        size = 0
        is_done = False
        for_worker: Summary | None = None
        try:
            for _ in range(limits.max_requests):
                if not self._may_answer or size >= limits.max_answers:
                    break
                request = self._take()
                if request is None:
                    is_done = True
                    sent.append(self._interim_answer())
                    break
                data = self._answer_at_once(request)
                if data is None:
                    for_worker = request
                    break
                sent.append(data)
                size += len(data)
        except MalformedRequest as error:
            sent.append(self._begin_rejection(error.status, error.message))
        self._write(b"".join(sent))
        if for_worker is not None:
            self._hand_to_worker(for_worker)
        return is_done

    def _take(self) -> Summary | None:
        """Return the next request, or None if not all of it has arrived.

        Its body is discarded: no app needs one.
        """
        unread = self._unread
        if self._request is None:
            start = len(_EMPTY_LINE) if unread.startswith(_EMPTY_LINE) else 0
            end = find_end(unread, start, self._server.limits.max_head)
            if end is None:
                return None
            request = self._server.summaries.summarize(bytes(unread[start:end]))
            if request.length > self._server.limits.max_body:
                raise MalformedRequest(413, "the body is too large")
            del unread[:end]
            if request.length == 0:
                return request
            self._request = _without_fast_path(request)
            self._missing = request.length
        request = self._request
        arrived = min(self._missing, len(unread))
        del unread[:arrived]
        self._missing -= arrived
        if self._missing > 0:
            return None
        self._request = None
        return self._server.summaries.summarize(request.head)

    def _interim_answer(self) -> bytes:
        """Return what the client wants to hear before it sends the body, if it does."""
        request = self._request
        if request is None or not request.expects_continue:
            return b""
        self._request = replace(request, expects_continue=False)
        return _CONTINUE

    def _count(self) -> None:
        """Count what is held of the client's requests."""
        size = len(self._unread)
        if self._request is not None:
            size += len(self._request.head)
        difference = size - self._counted
        if difference:
            self._counted = size
            self._server.count_pending(difference)

    # Answering

    def _answer_at_once(self, request: Summary) -> bytes | None:
        """Begin the answer of the fast path. Return None if a worker is needed."""
        fast_path = request.fast_path
        if fast_path is None:
            return None
        try:
            answer = fast_path()
        except Exception:
            log.exception("a fast path failed: a worker answers the request")
            return None
        if answer is None:
            return None
        return self._begin(answer, request.keep_alive, request.method)

    def _hand_to_worker(self, request: Summary) -> None:
        """Have a worker answer a request, or reject it if too many wait for one."""
        size = len(request.head) + _WAITING_OVERHEAD
        if not self._server.has_room_for(size):
            origin = find_origin(request.head)
            answer = self._server.reject(503, "too many requests are waiting", origin)
            self._write(self._begin(answer, False, request.method))
            return
        self._state = _WORKING
        self._server.count_pending(size)
        finish = partial(self._finish, _without_fast_path(request))
        self._server.dispatch(request.head, finish)

    def _finish(self, request: Summary, answer: Serialized | None) -> None:
        """Send the answer of a worker."""
        # It held the request until now, even if the client has gone.
        self._server.count_pending(-len(request.head) - _WAITING_OVERHEAD)
        if self._state is not _WORKING:  # the client is gone
            return
        self._state = _READING
        if answer is None:
            answer = self._server.reject(500, FAILED, find_origin(request.head))
        self._write(self._begin(answer, request.keep_alive, request.method))
        self.advance()

    def _reject(self, status: int, message: str) -> None:
        self._write(self._begin_rejection(status, message))

    def _begin_rejection(self, status: int, message: str) -> bytes:
        """Begin the last answer of this connection, to what is arriving."""
        if self._request is not None:
            head: bytes | bytearray = self._request.head
        else:
            head = self._unread[: self._server.limits.max_head].lstrip(_EMPTY_LINE)
        method = head.split(b" ", 1)[0].decode("latin-1")
        answer = self._server.reject(status, message, find_origin(head))
        return self._begin(answer, False, method)

    def _begin(self, answer: Serialized, keep_alive: bool, method: str) -> bytes:
        """Return the bytes that an answer begins with, and note what comes after them.

        That is a large body, and the end of the connection if this is its last answer.
        `_follow_up` sees to both.
        """
        server = self._server
        head, body = answer
        if keep_alive and not server.closing:
            tail = server.tail_keep_alive
        else:
            tail = server.tail_close
            self._end_after_this()
        if method == "HEAD":
            return head + tail
        if len(body) > _LARGE:
            self._send_after_this(body)
            return head + tail
        return head + tail + body

    def _end_after_this(self) -> None:
        """Note that nothing comes after the answer that is being made."""
        self._state = _ENDED

    def _send_after_this(self, body: bytes) -> None:
        """Note that `body` comes after the head that is being made."""
        self._rest = memoryview(body)

    def _write(self, data: bytes) -> None:
        """Send answers.

        Then send the body of the last one if it is large, and the end if it was the
        last answer of the connection.
        """
        if data:
            self.transport.write(data)
            self.last_progress = self._server.loop.time()
        self._follow_up(data)

    def _follow_up(self, data: bytes) -> None:
        """Do what is left to do after `data` was handed to the transport."""
        if self._blocked and data:
            self.last_progress = self._server.loop.time()
            self._server.unsent.add(self, data)
            self._unsent_size = self.transport.get_write_buffer_size()
        if self._rest is not None:
            self._server.unsent.add(self, cast(bytes, self._rest.obj))
            self._send_rest()
        elif self._state is _ENDED:
            self._end()

    def _send_rest(self) -> None:
        """Send as much of a large body as the client takes."""
        while self._rest is not None and not self._blocked:
            self.transport.write(self._rest[:_PIECE])
            self.last_progress = self._server.loop.time()
            self._rest = self._rest[_PIECE:] or None
        if self._blocked:
            self._unsent_size = self.transport.get_write_buffer_size()
        else:
            self._server.unsent.remove(self)
        if self._rest is None and self._state is _ENDED:
            self._end()

    def _end(self) -> None:
        """Send nothing more."""
        self._unread.clear()
        self._request = None
        self._count()
        if self._half_closed:
            self.transport.close()
            return
        # Wait for the client to close its side: if the server closed first, the answer
        # could get lost.
        with suppress(OSError):  # the client is gone already
            self.transport.write_eof()
        if not self._blocked:
            self.transport.resume_reading()

    def _release(self) -> None:
        """Let go of all that is held for the client."""
        self._rest = None
        self._request = None
        self._unread.clear()
        self._count()
        self._server.unsent.remove(self)


def _without_fast_path(request: Summary) -> Summary:
    """Return a request that has to wait without what isn't counted.

    Its fast path may have copies of most of its head.
    """
    return replace(request, fast_path=None)
