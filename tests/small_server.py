"""The server with a small app behind it.

`C42_PORT=... python -m tests.small_server '{"option": value}'` runs it. Options are
those of `Server.serve` and the names of `Limits`; `"uvloop": false` for asyncio's own
loop; `"files": 300` for a system that allows no more open files; `"rounds": 20` to
serve 20 times, starting again on SIGHUP after each stop.
"""

import dataclasses
import json
import logging
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from answers.value import envelope
from serving.interface import Serialized
from serving.limits import Limits
from serving.request import Request

LARGE = b"x" * 2**20


def reject(status: int, message: str, origin: str) -> Serialized:
    """Return an error in the envelope."""
    body = envelope(status, message)
    return b"HTTP/1.1 %d Rejected\r\nContent-Length: %d\r\n" % (status, len(body)), body


class SmallApp:
    """Answers what is below /hit/ in the event loop, and the rest in a worker."""

    def __init__(self) -> None:
        self._gate = threading.Event()
        self._waiting = 0
        self._lock = threading.Lock()  # guards _waiting

    def find_fast_path(self, request: Request) -> Callable[[], Serialized] | None:
        """Return the fast path of a hit."""
        if not request.path.startswith("/hit/"):
            return None
        body = LARGE if request.path == "/hit/large" else request.path.encode()
        return lambda: (b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n" % len(body), body)

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """Answer a miss with its path, or raise.

        /gate is answered once /open was asked for.
        """
        path = environ["PATH_INFO"]
        if path == "/raise":
            raise ZeroDivisionError
        if path == "/exit":
            sys.exit("the app wants to end")
        if path == "/open":
            self._gate.set()
        if path == "/gate":
            with self._lock:
                self._waiting += 1
                logging.info("%d are waiting", self._waiting)
            self._gate.wait(30)
        if path == "/sleep":
            time.sleep(0.01)
        start_response("200 OK", [("Content-Type", "text/plain")])
        if path == "/raise-late":
            return (bytes(1 // 0) for _ in range(1))
        return [path.encode()]


def main(options: str) -> None:
    """Serve until told to stop."""
    given = json.loads(options)
    if files := given.pop("files", None):
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    if not given.pop("uvloop", True):
        # As if it were not installed.
        sys.modules["uvloop"] = None  # type: ignore[assignment]
    from serving.server import Server

    limits = {
        each.name: given.pop(each.name)
        for each in dataclasses.fields(Limits)
        if each.name in given
    }
    logging.basicConfig(level="INFO")
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])
    rounds, app = given.pop("rounds", 1), SmallApp()
    settings = {
        "threads": 64,
        "drain": 0,
        "patience": 10,
        "find_fast_path": app.find_fast_path,
        "reject": reject,
        "limits": Limits(**limits),
        **given,
    }
    for number in range(1, rounds + 1):
        server = Server("127.0.0.1", int(os.environ["C42_PORT"]))
        logging.info("serving with %s", type(server.loop).__module__)
        server.serve(app, **settings)
        logging.info("round %d of %d is over", number, rounds)
        if number < rounds:
            signal.sigwait([signal.SIGHUP])


if __name__ == "__main__":
    main(sys.argv[1])
    logging.shutdown()
    os._exit(0)  # as main.py does
