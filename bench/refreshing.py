"""Who waits when a hot answer reaches the end of its lifetime, and who gets it later.

All contenders are asked for one event at the same time, 50 times a second each, over
several lifetimes. Each has an origin of its own that takes 300 ms and writes into each
answer when it was made. An answer that was older than its lifetime when it was asked
for is past its lifetime.
"""

import asyncio
import contextlib
import json
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import httptools

from bench import contenders, machine
from bench.contenders import NGINX, VARNISH
from bench.machine import PREFIX, RunningServer

LIFETIME = 5.0  # seconds
ORIGIN_SECONDS = 0.3  # until an origin answers
WAITED = ORIGIN_SECONDS / 2  # an answer that took longer waited for the origin
PER_SECOND = 50
EVENT_ID = f"{1:032x}_14602021609581"

C42C = "c42c"
C42C_WITHOUT = "c42c, `C42_REFRESH_AHEAD=0`"
NGINX_LOCK = "nginx, `proxy_cache_lock`"
NGINX_STALE = "nginx, `proxy_cache_use_stale updating`, `proxy_cache_background_update`"
VARNISH_GRACE = "Varnish, grace"

_LOCK = "proxy_cache_lock on;"
_STALE = f"{_LOCK} proxy_cache_use_stale updating; proxy_cache_background_update on;"


class Course(NamedTuple):
    """What the clients of one contender saw."""

    name: str
    requests: int
    waited: int
    longest: float  # milliseconds from when a request was due to its answer
    late: int  # answers past their lifetime
    calls: int  # to the origin


class _Origin(ThreadingHTTPServer):
    """Answers slowly: as Calendar42 does, and with merged answers for other caches."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.port: int = self.server_address[1]
        self.calls = 0
        self.counting = threading.Lock()  # guards `calls`


class _Handler(BaseHTTPRequestHandler):
    server: _Origin
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        """Stay quiet."""

    def do_GET(self) -> None:
        if EVENT_ID not in self.path:  # a health check
            self._send(b"{}", "no-store")
            return
        with self.server.counting:
            self.server.calls += 1
        time.sleep(ORIGIN_SECONDS)
        made = str(time.monotonic())
        event: dict[str, object] = {"id": EVENT_ID, "title": made}
        if self.path.startswith(PREFIX):
            answer = event | {"names": []}
        elif "event-subscriptions" in self.path:
            answer = {"meta_data": {"count": 0}, "data": []}
        else:
            answer = {"meta_data": {"count": 1}, "data": [event]}
        self._send(json.dumps(answer).encode(), f"max-age={LIFETIME:.0f}")

    def _send(self, body: bytes, cache_control: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", cache_control)
        self.end_headers()
        self.wfile.write(body)


class _Connection(asyncio.Protocol):
    """A connection of a client, for one request at a time. httptools calls `on_…`."""

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._body = bytearray()
        self._answer: asyncio.Future[bytes]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, error: Exception | None) -> None:
        if not self._answer.done():
            self._answer.set_exception(error or ConnectionError("closed"))

    def on_body(self, data: bytes) -> None:
        self._body += data

    def on_message_complete(self) -> None:
        self._answer.set_result(bytes(self._body))

    async def get(self, path: str) -> bytes:
        self._body.clear()
        self._parser = httptools.HttpResponseParser(self)
        self._answer = asyncio.get_running_loop().create_future()
        self.transport.write(f"GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n".encode())
        return await self._answer


class _Crowd:
    """The clients of one contender."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle = list[_Connection]()
        self.waits = list[float]()
        self.late = 0

    async def ask(self, due: float) -> None:
        """Ask once, over a connection that nobody uses."""
        if self._idle:
            connection = self._idle.pop()
        else:
            loop = asyncio.get_running_loop()
            _, connection = await loop.create_connection(
                _Connection, "127.0.0.1", self._port
            )
        sent = time.monotonic()
        body = await connection.get(PREFIX + EVENT_ID)
        self.waits.append(time.monotonic() - due)
        made = float(json.loads(body)["title"])
        if sent - made > LIFETIME:
            self.late += 1
        self._idle.append(connection)

    def close(self) -> None:
        """Close the connections."""
        for connection in self._idle:
            connection.transport.close()


def measure(lifetimes: int) -> list[Course]:
    """Ask all contenders side by side for so many lifetimes."""
    courses = list[Course]()
    with contextlib.ExitStack() as stack:
        temporary = tempfile.TemporaryDirectory(prefix="c42c-bench-")
        place = Path(stack.enter_context(temporary))
        running = list(_start(place, stack))
        for _, origin, server in running:
            machine.get(server.port, PREFIX + EVENT_ID)
            origin.calls = 0
        ports = [server.port for _, _, server in running]
        crowds = asyncio.run(_ask_all(ports, lifetimes * LIFETIME))
        for (name, origin, _), crowd in zip(running, crowds, strict=True):
            course = Course(
                name,
                requests=len(crowd.waits),
                waited=sum(wait > WAITED for wait in crowd.waits),
                longest=max(crowd.waits) * 1000,
                late=crowd.late,
                calls=origin.calls,
            )
            courses.append(course)
    return courses


async def _ask_all(ports: list[int], seconds: float) -> list[_Crowd]:
    crowds = [_Crowd(port) for port in ports]
    began = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for number in range(int(seconds * PER_SECOND)):
            due = began + number / PER_SECOND
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            for crowd in crowds:
                group.create_task(crowd.ask(due))
    for crowd in crowds:
        crowd.close()
    return crowds


def _start(
    place: Path, stack: contextlib.ExitStack
) -> Iterator[tuple[str, _Origin, RunningServer]]:
    for name in (C42C, C42C_WITHOUT, NGINX_LOCK, NGINX_STALE, VARNISH_GRACE):
        program = VARNISH if name == VARNISH_GRACE else NGINX
        if name not in (C42C, C42C_WITHOUT) and program in contenders.missing():
            continue
        origin = stack.enter_context(contextlib.closing(_Serving())).origin
        if name in (C42C, C42C_WITHOUT):
            base_url = f"http://127.0.0.1:{origin.port}/api/v2/"
            percent = "10" if name == C42C else "0"
            expiry = str(LIFETIME / 60)
            service = machine.service(
                base_url, C42_EXPIRY=expiry, C42_REFRESH_AHEAD=percent
            )
            yield name, origin, stack.enter_context(service)
        else:
            options = {NGINX_LOCK: _LOCK, NGINX_STALE: _STALE}.get(name, "")
            folder = place / f"contender-{origin.port}"
            folder.mkdir()
            cache = contenders.cache(program, origin.port, folder, options)
            yield name, origin, stack.enter_context(cache)


class _Serving:
    """An origin at work in a thread."""

    def __init__(self) -> None:
        self.origin = _Origin()
        self._thread = threading.Thread(target=self.origin.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End it."""
        self.origin.shutdown()
        self.origin.server_close()
        self._thread.join()
