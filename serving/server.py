"""The server: one process, an event loop with all connections, and a pool of threads for a WSGI app.

Told to stop by SIGTERM or Ctrl-C, it goes on taking requests for the time to drain, then closes the listener, finishes
what is under way, and ends. A second signal ends it at once, with exit status 1.
"""

import asyncio
import contextlib
import errno
import heapq
import logging
import os
import signal
import socket
import time
from collections.abc import Callable
from functools import partial

from serving.connection import Answer, Connection, Hub, Limits
from serving.request import Request
from serving.wsgi import App, Bridge

_BACKLOG = 1024
_ACCEPTED_PER_TURN = 64
_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_RETRY_SECONDS = 0.1  # until there may be room for a connection
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
        for signum in signal.SIGTERM, signal.SIGINT:  # the loop's own handlers would miss those before it runs
            signal.signal(signum, lambda *_: self.loop.call_soon_threadsafe(self._stop))

    def serve(
        self,
        app: App,
        *,
        immediate: Callable[[Request], Answer | None],
        refusal: Callable[[int, str], Answer],
        threads: int,
        drain: float,
        patience: float,
    ) -> None:
        """Serve until told to stop.

        `immediate` answers a request in the event loop if it can do so without waiting; `app` answers all others, in
        one of `threads` threads. `refusal` makes the answer of a refused request from status and message. Requests are
        still taken for `drain` seconds after the signal, and have `patience` seconds more to finish.
        """
        host, port = self._listener.getsockname()[:2]
        bridge = Bridge(app, address=(host, port), loop=self.loop, refusal=refusal, threads=threads)
        hub = Hub(loop=self.loop, immediate=immediate, refusal=refusal, work=bridge.work, limits=self._limits)
        files = _raise_file_limit()
        room = files - min(2 * threads + 64, files // 2)  # each thread may need two files of its own
        with self._runner:
            self._runner.run(self._serve(hub, bridge, _Acceptor(hub, self._listener, room), drain, patience))

    def _stop(self) -> None:
        if self.stopping:
            os._exit(1)
        self.stopping = True
        self._told.set()

    async def _serve(self, hub: Hub, bridge: Bridge, acceptor: "_Acceptor", drain: float, patience: float) -> None:
        self._tick(hub)
        acceptor.start()
        await self._told.wait()
        log.info("stopping: waiting up to %g s for active requests to finish", drain + patience)
        await asyncio.sleep(drain)
        acceptor.stop()
        hub.closing = True
        end = self.loop.time() + patience
        await asyncio.sleep(_LAST_SECONDS)
        while (hub.connections or acceptor.connecting or bridge.busy) and self.loop.time() < end:
            for connection in hub.connections:
                if connection.idle_since is not None:
                    connection.close()
            await asyncio.sleep(_POLL_SECONDS)
        if bridge.busy:
            log.warning("gave up on %d requests", bridge.busy)
        for connection in hub.connections:
            connection.abort()
        bridge.close()
        log.info("stopped")

    def _tick(self, hub: Hub) -> None:
        interval = self._limits.tick_seconds
        self.loop.call_later(interval - time.time() % interval, self._tick, hub)
        hub.tick()


class _Acceptor:
    """Accepts connections, at most `room` at a time: idle ones are closed to make room for new ones."""

    def __init__(self, hub: Hub, listener: socket.socket, room: int) -> None:
        self._hub = hub
        self._listener = listener
        self._room = room
        self.connecting: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        if self._listener.fileno() >= 0:  # not closed meanwhile
            self._hub.loop.add_reader(self._listener, self._accept, _ACCEPTED_PER_TURN)

    def stop(self) -> None:
        """Accept who has connected so far, and close the listener."""
        self._hub.loop.remove_reader(self._listener)
        self._accept(_BACKLOG)
        self._listener.close()

    def _accept(self, most: int) -> None:
        loop = self._hub.loop
        for _ in range(most):
            try:
                self._make_room()
                sock, address = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _NO_ROOM:
                    loop.remove_reader(self._listener)
                    loop.call_later(_RETRY_SECONDS, self.start)
                    return
                continue  # the client is gone already
            task = loop.create_task(self._connect(sock, address[0]))
            self.connecting.add(task)
            task.add_done_callback(self.connecting.discard)

    async def _connect(self, sock: socket.socket, client: str) -> None:
        try:
            sock.setblocking(False)
            await self._hub.loop.connect_accepted_socket(partial(Connection, self._hub, client), sock)
        except OSError:  # the client is gone already
            sock.close()

    def _make_room(self) -> None:
        """Close some connections that were idle longest if there are too many; raise OSError if none is idle."""
        connections = self._hub.connections
        if len(connections) + len(self.connecting) < self._room:
            return
        idle = [(one.idle_since, id(one), one) for one in connections if one.idle_since is not None]
        if not idle:
            raise OSError(errno.EMFILE, "all connections are busy")
        for _, _, one in heapq.nsmallest(self._room // 16 + 1, idle):
            one.abort()
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


def _new_loop() -> asyncio.AbstractEventLoop:
    with contextlib.suppress(ImportError):  # not for every platform
        import uvloop

        return uvloop.new_event_loop()
    return asyncio.SelectorEventLoop()


def _raise_file_limit() -> int:
    """Allow as many open files as the system does, and return how many that are."""
    try:
        import resource
    except ImportError:  # Windows
        return 512  # what its select() takes
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # macOS has a lower limit than it says
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft if soft != resource.RLIM_INFINITY else 2**20
