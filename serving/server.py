"""The server: one process, an event loop with all connections, and a pool of threads for a WSGI app.

Told to stop by SIGTERM or Ctrl-C, it goes on taking requests for the time to drain, then closes the listener, finishes
what is under way, and ends. A second signal ends it at once, with exit status 1.
"""

import asyncio
import contextlib
import errno
import heapq
import logging
import math
import os
import signal
import socket
import struct
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from serving.connection import Connection, Hub, Immediate, Limits, Refusal
from serving.wsgi import App, Bridge

_BACKLOG = 1024
_ACCEPTED_PER_TURN = 64
_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_RETRY_SECONDS = 0.1  # until there may be room for a connection
_IDLE_SECONDS = 1.0  # before a connection makes room for another: the request may be on its way
_HANDSHAKE_SECONDS = 0.01  # for those that are connecting when the listener is closed
_LAST_SECONDS = 0.1  # for requests that were on their way when the listener was closed
_POLL_SECONDS = 0.02

log = logging.getLogger("c42c")


class Server:
    """Listens on `host` and `port` from the beginning, and serves once `serve` is called.

    Raises OSError, with a reason to print, if it can't listen there. To be used in the main thread: it handles signals.
    """

    def __init__(self, host: str, port: int, limits: Limits | None = None) -> None:
        self._limits = limits or Limits()
        self._listener = listen(host, port)
        self._runner = asyncio.Runner(loop_factory=_new_loop)
        self.loop = self._runner.get_loop()
        self.stopping = False
        self._told = asyncio.Event()
        self._connecting: set[asyncio.Task[None]] = set()
        for signum in signal.SIGTERM, signal.SIGINT:  # the loop's own handlers would miss those before it runs
            signal.signal(signum, lambda *_: self.loop.call_soon_threadsafe(self._stop))

    def serve(
        self, app: App, *, immediate: Immediate, refusal: Refusal, threads: int, drain: float, patience: float
    ) -> None:
        """Serve until told to stop.

        `immediate` answers a request in the event loop if it can do so without waiting; `app` answers all others, in
        one of `threads` threads; `refusal` makes the answer of a refused request. After the signal, requests are taken
        for `drain` seconds more, and then have `patience` seconds to finish.
        """
        address = self._listener.getsockname()[:2]
        pool = ThreadPoolExecutor(threads, thread_name_prefix="c42c-worker")
        bridge = Bridge(app=app, address=address, loop=self.loop, pool=pool, refusal=refusal)
        self._hub = Hub(loop=self.loop, immediate=immediate, refusal=refusal, work=bridge.work, limits=self._limits)
        files = _raise_file_limit()
        self._room = files - min(2 * threads + 64, files // 2)  # each thread may need two files of its own
        with self._runner:
            self._runner.run(self._serve(drain, patience))
        pool.shutdown(wait=False, cancel_futures=True)

    def _stop(self) -> None:
        if self.stopping:
            os._exit(1)
        self.stopping = True
        self._told.set()

    async def _serve(self, drain: float, patience: float) -> None:
        self._tick()
        self._listen_on()
        await self._told.wait()
        log.info("stopping: waiting up to %g s for active requests to finish", drain + patience)
        await asyncio.sleep(drain)
        if sys.platform == "linux":
            _drop_handshakes(self._listener)
        await asyncio.sleep(_HANDSHAKE_SECONDS)
        self.loop.remove_reader(self._listener)
        self._accept(_BACKLOG)  # whoever has connected is served
        self._listener.close()
        self._hub.closing = True
        end = self.loop.time() + patience
        await asyncio.sleep(_LAST_SECONDS)
        while (self._hub.connections or self._connecting) and self.loop.time() < end:
            for connection in self._hub.connections:
                if connection.idle_since is not None:
                    connection.close()
            await asyncio.sleep(_POLL_SECONDS)
        if self._hub.connections:
            log.warning("gave up on %d connections", len(self._hub.connections))
        for connection in self._hub.connections:
            connection.close(now=True)
        log.info("stopped")

    def _tick(self) -> None:
        interval = self._limits.tick_seconds
        self.loop.call_later(interval - time.time() % interval, self._tick)
        self._hub.tick()

    def _listen_on(self) -> None:
        if self._listener.fileno() >= 0:  # not closed meanwhile
            self.loop.add_reader(self._listener, self._accept, _ACCEPTED_PER_TURN)

    def _accept(self, most: int) -> None:
        for _ in range(most):
            try:
                self._make_room()
                sock, address = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _NO_ROOM:
                    self.loop.remove_reader(self._listener)
                    self.loop.call_later(_RETRY_SECONDS, self._listen_on)
                    return
                continue  # the client is gone already
            task = self.loop.create_task(self._connect(sock, address[0]))
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)

    async def _connect(self, sock: socket.socket, client: str) -> None:
        try:
            sock.setblocking(False)
            await self.loop.connect_accepted_socket(partial(Connection, self._hub, client), sock)
        except OSError:  # the client is gone already
            sock.close()

    def _make_room(self) -> None:
        """At the limit, close a sixteenth of the connections, those idle longest; raise OSError if none is idle."""
        connections = self._hub.connections
        if len(connections) + len(self._connecting) < self._room:
            return
        latest = self.loop.time() - _IDLE_SECONDS
        idle = [(since, id(one), one) for one in connections if (since := one.idle_since or math.inf) < latest]
        if not idle:
            raise OSError(errno.EMFILE, "all connections are busy")
        for _, _, one in heapq.nsmallest(self._room // 16 + 1, idle):
            one.close(now=True)
            connections.discard(one)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens at the first address of `host`; raise OSError, with a reason, if none can."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except UnicodeError:  # an empty label, or one that is too long
        raise OSError(errno.EINVAL, "not a host name") from None
    listener = socket.socket(family, kind, proto)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, os.name == "posix")
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # its connections inherit it
        listener.bind(address)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


def _drop_handshakes(listener: socket.socket) -> None:
    """Have Linux ignore whoever wants to connect from now on, so that nobody just has when the listener is closed."""
    import ctypes

    # A program for the packet filter (bpf(4)): drop the packet if its TCP flags, byte 13, have SYN.
    program = [(0x30, 0, 0, 13), (0x45, 0, 1, 2), (0x06, 0, 0, 0), (0x06, 0, 0, 2**32 - 1)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in program))
    with contextlib.suppress(OSError):
        listener.setsockopt(socket.SOL_SOCKET, 26, struct.pack("HL", len(program), ctypes.addressof(code)))


def _new_loop() -> asyncio.AbstractEventLoop:
    with contextlib.suppress(ImportError):  # it does not exist for Windows
        import uvloop

        return uvloop.new_event_loop()
    return asyncio.SelectorEventLoop()


def _raise_file_limit() -> int:
    """Allow as many open files as the system does, and return how many."""
    try:
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (ImportError, OSError, ValueError):  # Windows, and macOS, which promises more than it gives
        return 512
    return hard if hard != resource.RLIM_INFINITY else 2**20
