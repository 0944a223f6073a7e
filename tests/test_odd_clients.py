"""The service and clients that send what few send."""

import os
import re
import signal
import socket
from functools import partial

import pytest

import standin
from answers import LIST_PATH
from standin import DEMO_EVENTS, Standin
from tests.fixtures import (
    PATIENCE,
    PREFIX,
    Service,
    Start,
    at_once,
    new_id,
    receive,
    started,
    until,
)
from tests.test_serving import clean

# What a client sends about its connection, and what some frameworks act on
ODD_HEADERS = [
    b"Connection: Upgrade\r\nUpgrade: websocket",
    b"Connection: upgrade, keep-alive\r\nUpgrade: WebSocket\r\nSec-WebSocket-Key: x",
    b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk",
    b"Connection: Host",
    b"Keep-Alive: x",
    b"Proxy-Connection: close",
    b"TE: trailers, deflate;q=2",
    b"Trailer: Content-Length",
    b"Expect: something",
    b"Content-Type: multipart/form-data; boundary=",
    b"Content-Encoding: gzip",
    b"Content-Length: 0",
    b"Cookie: session=.e; =; \xff",
    b"Authorization: Basic \xff",
    b"Authorization: Digest",
    b"Range: bytes=9-1",
    b"Range: bytes=0-0",
    b"If-Range: x",
    b"If-Match: *",
    b'If-Match: "x"',
    b'If-None-Match: "x',
    b"If-None-Match: W/",
    b"If-Modified-Since: Thu, 99 Foo 99999 99:99:99 GMT",
    b"If-Modified-Since: Fri, 01 Jan 2100 00:00:00 GMT",
    b"If-Unmodified-Since: Thu, 01 Jan 1970 00:00:00 GMT",
    b"Accept: \xff;q=x",
    b"Accept-Encoding: gzip;q=9",
    b"Accept-Charset: \xff",
    b"Cache-Control: max-age=x, only-if-cached",
    b'Forwarded: for=\xff;host="',
    b"X-Forwarded-Host: a, b",
    b"X-Forwarded-For: \xff",
    b"X-Forwarded-Proto: ws",
    b"X-HTTP-Method-Override: DELETE",
    b"X-Original-URL: /metrics",
    b"X-Request-ID: \xff",
    b"Script-Name: /x",
    b"Path-Info: /x",
    b"Proxy: http://a",
    b"Date: x",
    b"Max-Forwards: 0",
    b"Origin: \xff",
    b"Referer: \xff",
    b"Host2: a",
]


@pytest.mark.parametrize("lines", ODD_HEADERS, ids=repr)
def test_odd_headers(service: Service, upstream: Standin, lines: bytes) -> None:
    """Odd headers change no answer: of a hit, a miss or any other route."""
    event_id = new_id()
    upstream.add_event(event_id, title="odd")
    target = f"{PREFIX}{event_id}".encode()
    miss = service.raw(target, b"GET", lines)
    hit = service.raw(target, b"GET", lines)
    assert (miss.status, hit.status) == (200, 200)
    assert miss.body == hit.body
    for path in (b"/livez", b"/readyz", b"/metrics", b"/", b"/status.json"):
        assert service.raw(path, b"GET", lines).status == 200
    assert service.raw(b"/nothing", b"GET", lines).status == 404


@pytest.mark.parametrize("host", [b"xn--a", b"_", b"a_b.c", b"a.", b"127.0.0.1:0", b""])
def test_odd_hosts(service: Service, upstream: Standin, host: bytes) -> None:
    """A miss and a hit are answered whatever valid Host they name."""
    event_id = new_id()
    upstream.add_event(event_id, title="odd")
    raw = f"GET {PREFIX}{event_id} HTTP/1.0\r\n".encode() + b"Host: " + host
    for _ in range(2):
        with service.connect() as sock:
            sock.sendall(raw + b"\r\n\r\n")
            assert receive(sock).status == 200


def test_padded_origins_hold_nobody_up(service: Service) -> None:
    """The origin of a malformed request is found quickly, however it is padded.

    If the time grew with the square of its length, these would take minutes.
    """
    padded = b"Origin:" + b" \t" * 16_000 + b"\xff"
    reject = partial(service.raw, b"/", b"GET", padded, b"no colon")
    for answer in at_once(*[reject] * 4):
        assert answer.status == 400


def test_idle_connections(service: Service) -> None:
    """1,200 idle connections don't keep other clients out."""
    socks: list[socket.socket] = []
    try:
        socks += [service.connect() for _ in range(1200)]
        socks[0].sendall(b"GET /nothing HTTP/1.1\r\nHost: c42c\r\n\r\n")
        assert receive(socks[0]).status == 404
        assert service.event(DEMO_EVENTS["plain"]).status_code == 200
        assert service.raw(PREFIX.encode() + b"a.b").status == 400
    finally:
        for sock in socks:
            sock.close()


def test_demo(start: Start) -> None:
    """--demo serves made-up events, whatever is set for Calendar42.

    Each of its curl lines works, and trouble shows in the status.
    """
    wrong = {"C42_TOKEN": "", "C42_TOKEN_FILE": "/nowhere", "C42_BASE_URL": "nowhere"}
    service = start("--demo", **wrong)
    lines = re.findall(r"^ +curl -i (\S+)  # (.+)$", service.log, re.M)
    answers = {
        what: service.get(address.removeprefix(service.url)) for address, what in lines
    }
    assert [answer.status_code for answer in answers.values()] == [
        200,
        200,
        200,
        404,
        404,
        200,
        500,
        429,
    ]
    assert len(answers["250 people, on three pages"].json()["names"]) == 250
    assert answers["a slow event: Calendar42 takes 3 s"].elapsed.total_seconds() >= 3
    assert set(service.get("/status.json").json()["troubles"]) == {"faults", "pause"}
    os.killpg(service.process.pid, signal.SIGINT)
    assert service.process.wait(PATIENCE) == 0
    assert clean(service.log), service.log


class StuckDemo(Service):
    """A demo whose stdout is a pipe that is full and that nobody reads."""

    program = (
        "-c",
        """
import os, runpy, sys
reader, writer = os.pipe()
os.set_blocking(writer, False)
try:
    while True:
        os.write(writer, b"-" * 4096)
except BlockingIOError:
    os.set_blocking(writer, True)
os.dup2(writer, 1)
sys.argv = ["main.py", "--demo"]
runpy.run_path("main.py", run_name="__main__")
""",
    )


def test_a_demo_prints_at_once() -> None:
    """A demo says how to try it as soon as it serves."""
    with started(Service(None, ("--demo",))) as service:
        greeting = standin.greeting(service.url, LIST_PATH)
        until(lambda: greeting in service.log, "the greeting")


def test_a_demo_that_cannot_print() -> None:
    """A demo whose stdout takes nothing serves, and ends on SIGTERM."""
    with started(StuckDemo(None)) as service:
        assert service.event(DEMO_EVENTS["plain"]).status_code == 200
        assert service.stop() == 0
