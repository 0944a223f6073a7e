"""Runs a WSGI app (PEP 3333) in worker threads.

Its answers go to the event loop.
"""

import asyncio
import io
import logging
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from contextlib import suppress
from contextvars import Context
from functools import partial
from typing import Any

from serving.interface import Dispatch, OnDone, Serialized, serialize
from serving.request import Request, parse

# Werkzeug would take the request for a WebSocket's, and reject it, because of Upgrade.
# The others are as meaningless to an app: they are about one connection (RFC 9110,
# 7.6.1), and this server has dealt with them.
_HOP_BY_HOP = frozenset(
    {
        "connection",
        "http2-settings",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
# The body is discarded before the app is called, so these would tell of nothing.
_ABOUT_THE_BODY = frozenset({"content-type", "content-length", "content-encoding"})

App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
log = logging.getLogger("c42c")


def bridge(
    app: App, address: tuple[str, int], loop: asyncio.AbstractEventLoop, pool: Executor
) -> Dispatch:
    """Return a function that has `app` answer a request in a thread of `pool`.

    `address` is the server's.
    """

    def answer(head: bytes, on_done: OnDone) -> None:
        answered = None
        request = parse(head)  # again: the event loop kept nothing but the head
        try:
            answered = run_app(app, make_environ(request, address))
        except BaseException:
            log.exception("unhandled exception in %s %s", request.method, request.path)
        loop.call_soon_threadsafe(on_done, answered)

    def dispatch(head: bytes, on_done: OnDone) -> None:
        # Each request has context variables of its own.
        _queue(pool, partial(Context().run, answer, head, on_done))

    pool.submit(int)  # starts the first thread
    return dispatch


def _queue(pool: Executor, call: Callable[[], object]) -> None:
    """Have a thread of `pool` make a call, even if no further thread can be started.

    `ThreadPoolExecutor.submit` queues the call, then starts a thread if none is idle.
    If that raises, because the system's limit is reached, a running thread takes the
    call. There is one: `bridge` starts it.
    """
    with suppress(RuntimeError):
        pool.submit(call)


def make_environ(request: Request, address: tuple[str, int]) -> dict[str, Any]:
    """Return the WSGI environment of a request. `address` is the server's."""
    environ: dict[str, Any] = {
        "REQUEST_METHOD": request.method,
        "SCRIPT_NAME": "",
        "PATH_INFO": request.path,
        "QUERY_STRING": request.query,
        "SERVER_NAME": address[0],
        "SERVER_PORT": str(address[1]),
        "SERVER_PROTOCOL": request.protocol,
        "CONTENT_TYPE": "",
        "CONTENT_LENGTH": "0",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    for name, text in request.headers.items():
        if name in _HOP_BY_HOP or name in _ABOUT_THE_BODY:
            continue
        if "_" not in name:  # X_A must not pass for X-A
            environ[f"HTTP_{name.upper().replace('-', '_')}"] = text
    return environ


class _Response:
    """What an app says of its answer, and writes before it returns."""

    def __init__(self) -> None:
        self.status = ""
        self.headers: list[tuple[str, str]] = []
        self.chunks: list[bytes] = []

    def start(
        self, status: str, headers: list[tuple[str, str]], _: object = None
    ) -> Callable[[bytes], None]:
        """Take status and headers.

        Nothing was sent yet, so `exc_info`, with which an app may replace them, needs
        no special treatment.
        """
        self.status = status
        self.headers = headers
        return self.chunks.append


def run_app(app: App, environ: dict[str, Any]) -> Serialized:
    """Return the whole answer of `app`, with a Content-Length if HTTP requires one."""
    response = _Response()
    result = app(environ, response.start)
    try:
        response.chunks.extend(result)
    finally:
        close = getattr(result, "close", None)
        if close is not None:
            close()
    if not response.status:
        raise RuntimeError("the app did not call start_response")
    body = b"".join(response.chunks)
    # The server adds a Date of its own.
    headers = [field for field in response.headers if field[0].lower() != "date"]
    if response.status[:3] in ("204", "304"):
        body = b""
    elif environ["REQUEST_METHOD"] != "HEAD":
        names = {name.lower() for name, _ in headers}
        if "content-length" not in names:
            headers.append(("Content-Length", str(len(body))))
    return serialize(response.status, headers, body)
