"""Runs a WSGI app (PEP 3333) in worker threads, and hands its answers to the event
loop.
"""

import asyncio
import io
import logging
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from contextlib import suppress
from typing import Any

from serving.connection import Dispatch, OnDone, Serialized, serialize
from serving.request import Request

log = logging.getLogger("c42c")
App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def bridge(
    app: App, address: tuple[str, int], loop: asyncio.AbstractEventLoop, pool: Executor
) -> Dispatch:
    """Return a function that has `app` answer a request in a thread of `pool`.

    `address` is the server's.
    """

    def run(request: Request, body: bytes, done: OnDone) -> None:
        answer = None
        try:
            answer = call(app, make_environ(request, body, address))
        except BaseException:
            log.exception("a request failed")
        loop.call_soon_threadsafe(done, answer)

    def work(request: Request, body: bytes, done: OnDone) -> None:
        with suppress(
            RuntimeError
            # No further thread can be started, but the request waits for one that is there.
        ):
            pool.submit(run, request, body, done)

    pool.submit(int)  # starts the first thread
    return work


def make_environ(
    request: Request, body: bytes, address: tuple[str, int]
) -> dict[str, Any]:
    """Return the WSGI environment of a request. `address` is the server's."""
    environ: dict[str, Any] = {
        f"HTTP_{name.upper().replace('-', '_')}": text
        for name, text in request.headers.items()
        if "_" not in name
        and name not in ("content-type", "content-length")  # X_A must not pass for X-A
    }
    return environ | {
        "REQUEST_METHOD": request.method,
        "SCRIPT_NAME": "",
        "PATH_INFO": request.path,
        "QUERY_STRING": request.query,
        "SERVER_NAME": address[0],
        "SERVER_PORT": str(address[1]),
        "SERVER_PROTOCOL": request.protocol,
        "CONTENT_TYPE": request.headers.get("content-type", ""),
        "CONTENT_LENGTH": str(request.length),
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(body),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }


def call(app: App, environ: dict[str, Any]) -> Serialized:
    """Return the whole answer of `app`, with a Content-Length where HTTP requires one."""
    began, chunks = list[Any](), list[bytes]()

    def start_response(*status_and_headers: Any) -> Callable[[bytes], None]:
        began[:] = status_and_headers[
            :2
        ]  # nothing was sent yet, so exc_info needs no special treatment
        return chunks.append

    result = app(environ, start_response)
    try:
        chunks.extend(result)
    finally:
        if close := getattr(result, "close", None):
            close()
    status, headers = began
    headers = [
        field for field in headers if field[0].lower() != "date"
    ]  # the server adds one
    body = b"".join(chunks)
    if status[:3] in ("204", "304"):
        body = b""
    elif environ["REQUEST_METHOD"] != "HEAD" and not any(
        name.lower() == "content-length" for name, _ in headers
    ):
        headers = [*headers, ("Content-Length", str(len(body)))]
    return serialize(status, headers, body)
