"""Granian, as this service wants it: one address, one kind of log, and an end that comes.

A parent process looks after the process that serves, and starts another one if it dies.
Told to stop, by SIGTERM or Ctrl-C, they take no new connections and finish what is under way; what is not done after
`C42_TIMEOUT` and a second is killed, and the second signal kills at once. A byte that all processes share says so from
the signal on, before anything else happens.
"""

import errno
import logging
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.sharedctypes import RawValue
from typing import Any

from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.log import LogLevels
from granian.server import Server

from operations.settings import Settings

BACKLOG = 1024
CONNECTIONS = 65536  # at once; idle ones cost little, and none may keep another out
HEADER_TIMEOUT = 10_000  # milliseconds for a request's header

log = logging.getLogger("c42c")


class _Server(Server):  # type: ignore[misc, valid-type]  # one of two classes, by the kind of Python
    stopping: Any

    def signal_handler_interrupt(self, *args: Any, **kwargs: Any) -> None:
        if os.getpid() != self.pid:  # the serving process, forked a moment ago, which has no handler of its own yet
            if signal.SIGTERM in args:  # from the parent: a Ctrl-C the parent has got as well
                os._exit(0)
            return
        if self.interrupt_signal:
            for worker in self.wrks:
                worker.kill()
            os._exit(1)
        self.stopping.value = 1
        super().signal_handler_interrupt(*args, **kwargs)

    def shutdown(self, exit_code: int = 0) -> None:
        log.info("stopping: what is under way has %g s to finish", self.workers_kill_timeout)
        try:
            super().shutdown(exit_code)
        finally:
            log.info("stopped")


def url(config: Settings) -> str:
    """Return the address where the service listens, as people write it."""
    host = f"[{config.host}]" if ":" in config.host else config.host
    return f"http://{host}:{config.port}"


def find_address(host: str, port: int) -> str:
    """Return the IP address of `host`, since Granian takes no names.

    Raises OSError where nothing can listen there: Granian would share the port with whoever has it.
    """
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except UnicodeError:  # an empty label, or one that is too long
        raise OSError(errno.EINVAL, "not a host name") from None
    with socket.socket(family, kind, proto) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(1)
    return str(address[0])


def depend_on_parent() -> None:
    """Leave stopping to the parent: take no Ctrl-C from the terminal, and end when the parent has ended.

    Any thread may be given a SIGTERM, and Python's handlers run in the main one, which Granian puts to sleep: now and
    then it would never hear of it. So all threads leave it to one that waits for it, and calls Granian's handler.
    """

    def watch(parent: multiprocessing.process.BaseProcess) -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)

    def stop() -> None:
        signal.sigwait({signal.SIGTERM})
        while (handler := signal.getsignal(signal.SIGTERM)) == inherited:
            time.sleep(0.01)  # Granian is starting
        assert callable(handler)
        handler(signal.SIGTERM, None)

    if parent := multiprocessing.parent_process():
        os.setpgrp()
        inherited = signal.getsignal(signal.SIGTERM)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=stop, name="c42c-stop", daemon=True).start()
        threading.Thread(target=watch, args=(parent,), name="c42c-parent", daemon=True).start()


def serve(build: Callable[[Any], Any], config: Settings, address: str) -> int:
    """Serve the WSGI app that `build` makes at `address` until told to stop; return the exit status.

    `build` is called in the serving process, with an object whose `value` is true from when it is told to stop.
    """
    granian = _Server(
        "c42c",
        address,
        config.port,
        interface=Interfaces.WSGI,
        http=HTTPModes.http1,
        http1_settings=HTTP1Settings(header_read_timeout=HEADER_TIMEOUT),
        websockets=False,
        workers=1,
        blocking_threads=config.threads,
        backlog=BACKLOG,
        backpressure=CONNECTIONS,
        log_level=LogLevels.error,
        log_dictconfig={"loggers": {"_granian": {"handlers": [], "propagate": True}}},
        workers_kill_timeout=config.timeout + 1,
        respawn_failed_workers=True,
    )
    granian.stopping = RawValue("b", 0)
    try:
        granian.serve(target_loader=partial(build, granian.stopping), wrap_loader=False)
    except SystemExit as end:
        return int(end.code or 0)
    return 0
