"""The server: one process, an event loop for all connections, and a pool of threads for
a WSGI app.
"""

import asyncio
import logging
import os
import signal
import socket
import struct
from array import array
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any

from serving.connection import Connection, FindFastPath, MakeRejection, ServerState
from serving.wsgi import App, bridge

try:
    from uvloop import new_event_loop
except ImportError:  # it does not exist for Windows
    from asyncio import new_event_loop  # type: ignore[assignment]

_BACKLOG = 1024
_GRACE_SECONDS = (
    0.05  # for handshakes and requests that are on their way while the server stops
)
log = logging.getLogger("c42c")


class Server:
    """Listens on `host` and `port` from the beginning, and serves once `serve` is
    called.

    Raises OSError, with a reason to print, if it can't listen there. Use it in the main
    thread: it handles signals.
    """

    def __init__(self, host: str, port: int) -> None:
        self._listener = listen(host, port)
        self.address: tuple[str, int] = self._listener.getsockname()[:2]
        self._runner = asyncio.Runner(loop_factory=new_event_loop)
        self.loop = self._runner.get_loop()
        self.stopping = False
        self._told = asyncio.Event()
        for signum in (
            signal.SIGTERM,
            signal.SIGINT,
        ):  # the loop's own handlers would miss a signal before it runs
            signal.signal(signum, self._stop)

    def serve(
        self,
        app: App,
        immediate: FindFastPath,
        reject: MakeRejection,
        threads: int,
        drain: float,
        patience: float,
        **hub: Any,
    ) -> None:
        """Serve until SIGTERM or Ctrl-C. `app` answers, in `threads` threads, what has
        no immediate answer.

        After the signal, requests are taken for `drain` more seconds; then the listener
        closes, and active requests have `patience` seconds to finish. A second signal
        ends it at once, with exit status 1.
        """
        pool = ThreadPoolExecutor(threads, thread_name_prefix="c42c-worker")
        work = bridge(app, self.address, self.loop, pool)
        shared = ServerState(
            self.loop, immediate, reject, work, room=_raise_file_limit() // 2, **hub
        )  # half for the app
        with self._runner:
            self._runner.run(self._serve(shared, drain, patience))
        pool.shutdown(wait=False, cancel_futures=True)

    def _stop(self, *_: object) -> None:
        if self.stopping:
            logging.shutdown()  # writes the last lines of the log
            os._exit(1)
        self.stopping = True
        self.loop.call_soon_threadsafe(self._told.set)

    async def _serve(self, hub: ServerState, drain: float, patience: float) -> None:
        connect = partial(Connection, hub)
        server = await self.loop.create_server(
            connect, sock=self._listener.dup(), backlog=_BACKLOG
        )
        await self._told.wait()
        log.info(
            "stopping: waiting up to %g s for active requests to finish",
            drain + patience,
        )
        await asyncio.sleep(drain)
        _drop_handshakes(self._listener)
        await asyncio.sleep(_GRACE_SECONDS)  # those under way end meanwhile
        server.close()
        await _accept_waiting(self._listener, connect)
        self._listener.close()
        hub.closing = True
        end = self.loop.time() + patience
        while hub.connections and self.loop.time() < end:
            await asyncio.sleep(_GRACE_SECONDS)
            for connection in hub.connections:
                if connection.idle:
                    connection.transport.close()
        if hub.connections:
            log.warning("gave up on %d connections", len(hub.connections))
        for connection in hub.connections:
            connection.transport.abort()
        log.info("stopped")


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens at the first address of `host`.

    Raise OSError, with a reason, if it can't.
    """
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[
        0
    ]
    try:
        listener = socket.create_server(address, family=family, backlog=_BACKLOG)
    except OSError as error:
        raise OSError(
            error.errno, os.strerror(error.errno or 0)
        ) from None  # the caller knows the address
    listener.setblocking(False)
    return listener


async def _accept_waiting(
    listener: socket.socket, connect: Callable[[], asyncio.BaseProtocol]
) -> None:
    """Accept everybody who has connected."""
    with suppress(OSError):
        while True:
            await asyncio.get_running_loop().connect_accepted_socket(
                connect, listener.accept()[0]
            )


def _drop_handshakes(listener: socket.socket) -> None:
    """Have Linux drop new connections: a client that connects just before the listener
    closes would be cut off.
    """
    # A program for the packet filter, see bpf(4): load byte 13, the TCP flags; if it
    # has SYN, drop the packet.
    program = array(
        "B",
        struct.pack(
            "HxxI HBBI HxxI HxxI", 0x30, 13, 0x45, 0, 1, 2, 0x06, 0, 0x06, 0xFFFFFFFF
        ),
    )
    with suppress(OSError):  # it is not Linux, or a sandbox; 26 is SO_ATTACH_FILTER
        listener.setsockopt(
            socket.SOL_SOCKET, 26, struct.pack("HL", 4, program.buffer_info()[0])
        )


def _raise_file_limit() -> int:
    """Allow as many open files as the system does, and return how many."""
    try:
        import resource
    except ImportError:  # it does not exist for Windows
        return 512
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # macOS rejects its own limit
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        return hard
    return soft
