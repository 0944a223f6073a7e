"""The bridge to a WSGI app (PEP 3333): one request in a worker thread, its answer back to the event loop."""

import asyncio
import io
import logging
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from serving.connection import Answer
from serving.request import Request

log = logging.getLogger("c42c")

App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class Bridge:
    """Has `app` answer requests in `threads` threads, which are started as they are needed.

    Whatever the app raises becomes the answer `refusal(500, …)` and a line in the log.
    """

    def __init__(
        self,
        app: App,
        *,
        address: tuple[str, int],
        loop: asyncio.AbstractEventLoop,
        refusal: Callable[[int, str], Answer],
        threads: int,
    ) -> None:
        self._app = app
        self._address = address
        self._loop = loop
        self._refusal = refusal
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="c42c-worker")
        self.busy = 0  # requests that are not answered yet; for the event loop's thread

    def work(self, request: Request, body: bytes, client: str, done: Callable[[Answer], None]) -> None:
        """Have a request answered, and `done` called with the answer in the event loop."""
        self.busy += 1
        self._pool.submit(self._run, request, body, client, done)

    def close(self) -> None:
        """Take no more work, and let idle threads end."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _run(self, request: Request, body: bytes, client: str, done: Callable[[Answer], None]) -> None:
        try:
            answer = call(self._app, make_environ(request, body, client, self._address))
        except BaseException:
            log.exception("a request failed")
            answer = self._refusal(500, "the service failed; its log says why")
        with suppress(RuntimeError):  # the loop is closed: the server did not wait for this one
            self._loop.call_soon_threadsafe(self._done, done, answer)

    def _done(self, done: Callable[[Answer], None], answer: Answer) -> None:
        self.busy -= 1
        done(answer)


def make_environ(request: Request, body: bytes, client: str, address: tuple[str, int]) -> dict[str, Any]:
    """Return what PEP 3333 wants an app to know of a request. `address` is the server's own."""
    environ: dict[str, Any] = {
        f"HTTP_{name.upper().replace('-', '_')}": text
        for name, text in request.headers.items()
        if "_" not in name  # or X_Forwarded_For would pass for X-Forwarded-For
    }
    environ |= {
        "REQUEST_METHOD": request.method,
        "SCRIPT_NAME": "",
        "PATH_INFO": request.path,
        "QUERY_STRING": request.query,
        "SERVER_NAME": address[0],
        "SERVER_PORT": str(address[1]),
        "SERVER_PROTOCOL": request.protocol,
        "REMOTE_ADDR": client,
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(body),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    for name in "CONTENT_TYPE", "CONTENT_LENGTH":
        if (text := environ.pop(f"HTTP_{name}", None)) is not None:
            environ[name] = text
    return environ


def call(app: App, environ: dict[str, Any]) -> Answer:
    """Return the whole answer of `app`; raise what it raises, and ValueError if its answer makes no HTTP."""
    begun: tuple[str, list[tuple[str, str]]] | None = None
    body: list[bytes] = []

    def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], Any]:
        nonlocal begun
        if begun and not exc_info:  # with it, the app changes its mind: nothing is sent yet
            raise ValueError("the app began two answers")
        begun = status, list(headers)
        return body.append

    chunks = app(environ, start_response)
    try:
        body.extend(chunks)
    finally:
        if close := getattr(chunks, "close", None):
            close()
    if not begun:
        raise ValueError("the app began no answer")
    return _serialize(*begun, b"".join(body), environ["REQUEST_METHOD"])


def _serialize(status: str, headers: list[tuple[str, str]], body: bytes, method: str) -> Answer:
    if status[:3] in ("204", "304"):
        body = b""
    elif method != "HEAD":
        length = str(len(body))
        said = [text for name, text in headers if name.lower() == "content-length"]
        if said not in ([], [length]):
            raise ValueError("the app's Content-Length is not the length of its answer")
        if not said:
            headers.append(("Content-Length", length))
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {text}" for name, text in headers)]
    if any("\r" in line or "\n" in line for line in lines):
        raise ValueError("the app's headers break a line")
    return "\r\n".join([*lines, ""]).encode("latin-1"), body
