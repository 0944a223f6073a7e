"""Runs the server: one process, with an event loop and a pool of threads.

The loop has all connections, the threads run a WSGI app.
"""

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial

from serving import system
from serving.connection import Connection
from serving.interface import FindFastPath, MakeRejection
from serving.limits import Limits
from serving.state import ServerState
from serving.wsgi import App, bridge

try:
    from uvloop import new_event_loop
except ImportError:  # it does not exist for Windows
    from asyncio import new_event_loop  # type: ignore[assignment]

_STOPPING_SIGNALS = ("SIGTERM", "SIGINT")
_IGNORED_SIGNALS = ("SIGHUP", "SIGUSR1", "SIGUSR2")  # Windows has none of them
# How long the server waits for a request that may be on its way while it stops.
_SETTLE_SECONDS = 0.5
_STEP_SECONDS = 0.05  # between two looks at who is left

log = logging.getLogger("c42c")


class Server:
    """Listens from the beginning, and serves once `serve` is called.

    It listens on the sockets that systemd has passed, if there are any; otherwise on
    all addresses of `host`. Raises OSError, with a reason to print, if it can't.

    Use it in the main thread: it handles signals.
    """

    def __init__(self, host: str, port: int) -> None:
        self._listeners = system.inherited_listeners(os.environ)
        self.is_inherited = bool(self._listeners)
        if not self.is_inherited:
            self._listeners = system.listen(host, port)
        self.address: tuple[str, int] = self._listeners[0].getsockname()[:2]
        self._runner = asyncio.Runner(loop_factory=new_event_loop)
        self.loop = self._runner.get_loop()
        self.stopping = False
        self._told_to_stop = asyncio.Event()
        # The loop's own handlers would miss a signal before it runs.
        for name in _STOPPING_SIGNALS:
            signal.signal(getattr(signal, name), self._stop)
        for name in _IGNORED_SIGNALS:
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), self._ignore)

    def serve(
        self,
        app: App,
        *,
        find_fast_path: FindFastPath,
        reject: MakeRejection,
        threads: int,
        drain: float,
        patience: float,
        limits: Limits | None = None,
    ) -> None:
        """Serve until SIGTERM or Ctrl-C.

        `app` answers, in `threads` threads, what has no fast path.

        After the signal, requests are taken for `drain` more seconds; then nothing more
        is accepted, and active requests have `patience` seconds to finish. A second
        signal ends the process at once, with exit status 1.
        """
        limits = limits or Limits()
        most = system.raise_file_limit() // 2  # the other half is for the app
        limits = replace(limits, max_connections=min(limits.max_connections, most))
        pool = ThreadPoolExecutor(threads, thread_name_prefix="c42c-worker")
        state = ServerState(
            self.loop,
            find_fast_path,
            reject,
            bridge(app, self.address, self.loop, pool),
            limits,
        )
        with self._runner:
            self._runner.run(self._serve(state, drain, patience))
        pool.shutdown(wait=False, cancel_futures=True)

    # Signal handlers. They run between any two steps of the main thread, so the loop
    # does the rest.

    def _stop(self, *_: object) -> None:
        if self.stopping:
            # Not `logging.shutdown()`: handlers of others may wait for a stuck stderr.
            for handler in logging.getLogger().handlers:
                handler.flush()
            os._exit(1)
        self.stopping = True
        self._call_in_loop(self._told_to_stop.set)

    def _ignore(self, signum: int, _: object) -> None:
        name = signal.Signals(signum).name
        self._call_in_loop(partial(log.info, "%s changes nothing", name))

    def _call_in_loop(self, callback: Callable[[], object]) -> None:
        with suppress(RuntimeError):  # the loop is closed: this is the end
            self.loop.call_soon_threadsafe(callback)

    # In the event loop

    async def _serve(self, state: ServerState, drain: float, patience: float) -> None:
        connect = partial(Connection, state)
        servers = [
            await self.loop.create_server(
                connect, sock=listener.dup(), backlog=system.BACKLOG
            )
            for listener in self._listeners
        ]
        await self._told_to_stop.wait()
        log.info(
            "stopping: waiting up to %g s for active requests to finish",
            drain + patience,
        )
        await asyncio.sleep(drain)
        for server in servers:
            server.close()
        await self._close_listeners(connect)
        state.closing = True
        await self._finish(state, patience)
        log.info("stopped")

    async def _close_listeners(self, connect: Callable[[], Connection]) -> None:
        for listener in self._listeners:
            if not self.is_inherited:
                await _accept_waiting(listener, connect)
            listener.close()

    async def _finish(self, state: ServerState, patience: float) -> None:
        """Wait for active requests, and close all connections."""
        end = self.loop.time() + patience
        while state.connections and self.loop.time() < end:
            # First, so that all that has been sent is read.
            await asyncio.sleep(_STEP_SECONDS)
            for connection in list(state.connections):
                is_recent = connection.was_active_within(_SETTLE_SECONDS)
                if connection.idle and not is_recent:
                    connection.transport.close()
        if state.connections:
            log.warning("closed %d unfinished connections", len(state.connections))
        for connection in list(state.connections):
            connection.transport.abort()


async def _accept_waiting(
    listener: socket.socket, connect: Callable[[], asyncio.BaseProtocol]
) -> None:
    """Accept everybody who has connected. Otherwise they would be cut off."""
    loop = asyncio.get_running_loop()
    # There is nobody left: the event loop has made the listener non-blocking.
    with suppress(OSError):
        while True:
            client, _ = listener.accept()
            await loop.connect_accepted_socket(connect, client)
