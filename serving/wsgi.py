"""The bridge to a WSGI app (PEP 3333): a request in a worker thread, its answer back to the event loop."""

import asyncio
import io
import logging
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from serving.connection import Answer, Refusal
from serving.request import Request

log = logging.getLogger("c42c")

App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


@dataclass(frozen=True, kw_only=True)
class Bridge:
    """Has `app` answer requests in the threads of `pool`. Whatever it raises is logged, and answered with a 500."""

    app: App
    address: tuple[str, int]  # of the server
    loop: asyncio.AbstractEventLoop
    pool: Executor
    refusal: Refusal

    def work(self, request: Request, body: bytes, client: str, done: Callable[[Answer], None]) -> None:
        """Have a request answered, and `done` called with its answer in the event loop."""
        self.pool.submit(self._run, request, body, client, done)

    def _run(self, request: Request, body: bytes, client: str, done: Callable[[Answer], None]) -> None:
        try:
            answer = call(self.app, make_environ(request, body, client, self.address))
        except BaseException:
            log.exception("a request failed")
            answer = self.refusal(500, "the service failed; its log says why")
        with suppress(RuntimeError):  # the loop is closed: the server did not wait for this one
            self.loop.call_soon_threadsafe(done, answer)


def make_environ(request: Request, body: bytes, client: str, address: tuple[str, int]) -> dict[str, Any]:
    """Return what PEP 3333 wants an app to know of a request. `address` is the server's."""
    environ: dict[str, Any] = {
        f"HTTP_{name.upper().replace('-', '_')}": text
        for name, text in request.headers.items()
        if "_" not in name  # or X_Forwarded_For would pass for X-Forwarded-For
    }
    for name in "CONTENT_TYPE", "CONTENT_LENGTH":
        if (text := environ.pop(f"HTTP_{name}", None)) is not None:
            environ[name] = text
    return environ | {
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


def call(app: App, environ: dict[str, Any]) -> Answer:
    """Return the whole answer of `app`; raise what it raises, and ValueError if its answer is not fit for HTTP."""
    begun: tuple[str, list[tuple[str, str]]] | None = None
    body: list[bytes] = []

    def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], Any]:
        nonlocal begun
        if begun and not exc_info:  # with it, the app replaces an answer of which nothing was sent yet
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
        lengths = [text for name, text in headers if name.lower() == "content-length"]
        if not lengths:
            headers.append(("Content-Length", str(len(body))))
        elif lengths != [str(len(body))]:
            raise ValueError("the app's Content-Length is not the length of its answer")
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {text}" for name, text in headers)]
    if any("\r" in line or "\n" in line for line in lines):
        raise ValueError("the app's headers break a line")
    return "\r\n".join([*lines, ""]).encode("latin-1"), body
