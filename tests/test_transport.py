"""One call over a real socket: which replies are accepted, which connections are used
again, and when a call ends.
"""

import contextlib
import errno
import gzip
import logging
import os
import random
import signal
import socket
import ssl
import subprocess
import threading
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests.adapters

from c42client import Calls, Client
from calendar42 import wire
from calendar42.calls import CallRecord, Pause
from calendar42.errors import C42Error, Exhausted, Paused, TimedOut
from calendar42.replies import MAX_BODY, Reply
from tests.fixtures import PATIENCE, Start, at_once, no_descriptors, until

REPLY = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
OTHER = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n[1]"

Sent = bytes | Callable[[socket.socket], None]


class Script:
    """Serves one connection after the other, a reply to each request; then it closes
    the connection.
    """

    def __init__(
        self, connections: tuple[list[Sent], ...], tls: ssl.SSLContext | None = None
    ) -> None:
        self.requests: list[bytes] = []
        self.replied = threading.Semaphore(0)
        self._connections = connections
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        scheme, host = ("https", "localhost") if tls else ("http", "127.0.0.1")
        self.port = self._listener.getsockname()[1]
        self.base_url = f"{scheme}://{host}:{self.port}/"

    def _serve(self) -> None:
        for replies in self._connections:
            sock, _ = self._listener.accept()
            with sock, contextlib.suppress(ConnectionError, ssl.SSLError):
                secure = (
                    self._tls.wrap_socket(sock, server_side=True) if self._tls else sock
                )
                with secure:
                    for reply in replies:
                        self.serve(secure, reply)

    def serve(self, sock: socket.socket, reply: Sent) -> None:
        """Wait for a request, and reply to it."""
        request = b""
        while b"\r\n\r\n" not in request:
            data = sock.recv(65536)
            if not data:
                raise ConnectionError("the client has gone")
            request += data
        self.requests.append(request)
        if isinstance(reply, bytes):
            sock.sendall(reply)
        else:
            reply(sock)
        self.replied.release()

    def end(self) -> None:
        """Check that every connection was made."""
        self._thread.join(PATIENCE)
        self._listener.close()
        assert not self._thread.is_alive(), (
            "fewer connections came than are in the script"
        )


@pytest.fixture
def scripted() -> Iterator[Callable[..., Script]]:
    """Give a test a way to serve a script: `scripted([b"HTTP/1.1 …"])`; each list is
    one connection.
    """
    scripts: list[Script] = []

    def serve(*connections: list[Sent], tls: ssl.SSLContext | None = None) -> Script:
        scripts.append(Script(connections, tls))
        return scripts[-1]

    yield serve
    for script in scripts:
        script.end()


@pytest.fixture
def make() -> Iterator[Callable[..., Client]]:
    """Give a test a way to make clients: `make(base_url)`."""
    with contextlib.ExitStack() as stack:

        def client(base_url: str, **options: Any) -> Client:
            usual: dict[str, Any] = {
                "timeout": PATIENCE,
                "pause": Pause(6),
                "on_call": lambda call: None,
            }
            on_fault = options.pop("on_fault", lambda error: None)
            calls = Calls(base_url=base_url, token="x-sent", **usual | options)
            stack.callback(calls.close)
            return Client(calls, on_fault)

        yield client


Scripted = Callable[..., Script]
Make = Callable[..., Client]


def ask(client: Client, path: str = "", seconds: float = PATIENCE) -> Reply:
    """Get `path`, which takes exactly one request."""
    return client.calls.ask(path, time.monotonic() + seconds)


def load(client: Client, seconds: float = PATIENCE) -> C42Error:
    """Load an event, and return why that fails."""
    ((_, outcome),) = client.fetch(["E"], time.monotonic() + seconds)
    assert isinstance(outcome, C42Error)
    return outcome


def answer(body: bytes, *headers: bytes, status: bytes = b"200 OK") -> bytes:
    """Return a reply as it is on the wire."""
    return b"\r\n".join(
        [b"HTTP/1.1 " + status, b"Content-Length: %d" % len(body), *headers, b"", body]
    )


def chunked(*chunks: bytes, trailer: bytes = b"") -> bytes:
    """Return a reply in chunks."""
    body = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in (*chunks, b""))
    return (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        + body[:-2]
        + trailer
        + b"\r\n"
    )


# What is sent


def test_what_is_sent(scripted: Scripted, make: Make) -> None:
    """A request has the documented headers, accepts gzip, and its path begins with the
    base URL's.
    """
    script = scripted([REPLY])
    assert ask(make(script.base_url + "api/"), "events/?ids=[a,b]").body == b"{}"
    line, *headers = script.requests[0].decode().rstrip().split("\r\n")
    assert line == "GET /api/events/?ids=%5Ba,b%5D HTTP/1.1"
    assert {
        f"Host: 127.0.0.1:{script.port}",
        "Accept: application/json",
        "Content-Type: application/json",
        "Authorization: Token x-sent",
        "Accept-Encoding: gzip",
    } < set(headers)


@pytest.fixture
def proxied(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Give a test a way to name a proxy in the environment."""

    def name(proxy: str) -> None:
        for scheme in "http", "https":
            monkeypatch.setenv(f"{scheme}_proxy", proxy)
            monkeypatch.setenv(f"{scheme.upper()}_PROXY", proxy)
        for variable in "no_proxy", "NO_PROXY":
            monkeypatch.setenv(variable, "127.0.0.1")

    return name


@pytest.mark.parametrize("proxy", ["http://{}", "{}", "http://me:%3Fsecret@{}"])
def test_proxy(
    scripted: Scripted, make: Make, proxied: Callable[[str], None], proxy: str
) -> None:
    """A call goes through the proxy that the environment names, with the credentials of
    its address.
    """
    script = scripted([REPLY, OTHER])
    proxied(proxy.format(f"127.0.0.1:{script.port}"))
    client = make("http://upstream.invalid/api/")
    assert [ask(client, path).body for path in ("a", "b")] == [b"{}", b"[1]"]
    for path, request in zip("ab", script.requests, strict=True):
        assert request.startswith(
            f"GET http://upstream.invalid/api/{path} HTTP/1.1\r\n".encode()
        )
        assert b"Authorization: Token x-sent" in request
        assert (b"Proxy-Authorization: Basic bWU6P3NlY3JldA==\r\n" in request) == (
            "secret" in proxy
        )


def tunnel(script: Callable[[], Script], trusted: ssl.SSLContext) -> Sent:
    """Return the proxy's side of a tunnel, at whose end is the upstream."""

    def shake_hands(sock: socket.socket) -> None:
        sock.sendall(b"HTTP/1.1 200\r\nVia: a proxy\r\n\r\n")
        with trusted.wrap_socket(sock, server_side=True) as secure:
            script().serve(secure, REPLY)

    return shake_hands


def test_tunnel(
    scripted: Scripted,
    make: Make,
    proxied: Callable[[str], None],
    trusted: ssl.SSLContext,
) -> None:
    """TLS goes through a tunnel, so that the proxy sees no headers; the certificate
    must be the upstream's.
    """
    script = scripted([tunnel(lambda: script, trusted)])
    proxied(script.base_url)
    assert ask(make("https://localhost/")).body == b"{}"
    assert script.requests[0].startswith(b"CONNECT localhost:443 HTTP/1.")
    assert b"x-sent" not in script.requests[0]
    assert script.requests[1].startswith(b"GET / HTTP/1.1\r\nHost: localhost\r\n")


def test_a_proxy_that_is_reached_over_tls(
    scripted: Scripted,
    make: Make,
    proxied: Callable[[str], None],
    trusted: ssl.SSLContext,
) -> None:
    """A proxy may be reached over TLS, and the upstream's TLS goes inside that."""
    upstream = scripted([REPLY, OTHER], tls=trusted)

    def relay(sock: socket.socket) -> None:
        sock.sendall(b"HTTP/1.1 200\r\n\r\n")
        with socket.create_connection(("127.0.0.1", upstream.port)) as end:
            thread = threading.Thread(target=copy, args=(end, sock))
            thread.start()
            copy(sock, end)
            thread.join()

    proxy = scripted([relay], tls=trusted)
    proxied(f"https://localhost:{proxy.port}")
    client = make(f"https://localhost:{upstream.port}/")
    assert [ask(client).body for _ in range(2)] == [b"{}", b"[1]"]
    assert proxy.requests[0].startswith(b"CONNECT localhost:")
    client.calls.close()


def copy(source: socket.socket, target: socket.socket) -> None:
    """Pass on what comes, and its end."""
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


def test_tunnel_to_somebody_else(
    scripted: Scripted,
    make: Make,
    proxied: Callable[[str], None],
    trusted: ssl.SSLContext,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """If the certificate at the end of a tunnel is another's, the call fails, and
    nothing is logged as a bug.
    """

    def shake_hands(sock: socket.socket) -> None:
        sock.sendall(b"HTTP/1.1 200\r\n\r\n")
        with contextlib.suppress(OSError):
            trusted.wrap_socket(sock, server_side=True).close()

    proxied(scripted([shake_hands]).base_url)
    with pytest.raises(ConnectionError, match=r"^certificate: "):
        ask(make("https://upstream.invalid/"))
    assert not caplog.records


def test_no_tunnel(
    scripted: Scripted, make: Make, proxied: Callable[[str], None]
) -> None:
    """A proxy that refuses the tunnel is a fault, and gets no token."""
    script = scripted([b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n"])
    proxied(script.base_url)
    with pytest.raises(ConnectionError, match=r"^the proxy refuses the tunnel$"):
        ask(make("https://upstream.invalid/"))
    assert b"x-sent" not in script.requests[0]


@pytest.mark.parametrize("drip", [b"", b"X: 1\r\n"])
def test_a_proxy_that_hangs(
    scripted: Scripted, make: Make, proxied: Callable[[str], None], drip: bytes
) -> None:
    """A proxy that sends no whole answer is let go, even if it goes on sending."""

    let_go = threading.Event()

    def hang(sock: socket.socket) -> None:
        sock.sendall(drip and b"HTTP/1.1 200 OK\r\n")
        sock.settimeout(0.02 if drip else PATIENCE)
        with contextlib.suppress(ConnectionError):
            for _ in range(500):
                sock.sendall(drip)
                with contextlib.suppress(TimeoutError):
                    assert sock.recv(1) == b""
                    break
            else:
                return
        let_go.set()

    script = scripted([hang])
    proxied(script.base_url)
    with pytest.raises(TimeoutError):
        ask(make("https://upstream.invalid/"), seconds=0.2)
    assert let_go.wait(PATIENCE)


@pytest.mark.parametrize(
    "proxy",
    [
        "http:///x",
        "http://me:secret@127.0.0.1:99999",
        "foo://127.0.0.1:1",
        "http://u:s3cret@",
    ],
)
def test_a_proxy_that_is_none(
    make: Make, proxied: Callable[[str], None], proxy: str
) -> None:
    """An invalid proxy address in the environment is a fault, and the error doesn't
    show it.
    """
    proxied(proxy)
    with pytest.raises(
        ConnectionError, match=r"^the proxy that the environment names can't be used$"
    ):
        ask(make("http://upstream.invalid/"))


def test_no_proxy(
    scripted: Scripted, make: Make, proxied: Callable[[str], None]
) -> None:
    """An upstream that NO_PROXY names is called directly."""
    proxied("http://127.0.0.1:1")
    assert ask(make(scripted([REPLY]).base_url)).body == b"{}"


# Which connections are used again


def test_a_kept_connection_that_was_closed(scripted: Scripted, make: Make) -> None:
    """A kept connection that the upstream has closed is replaced by a new one, and the
    request is sent once.
    """
    script = scripted([REPLY], [REPLY, OTHER])
    client = make(script.base_url)
    assert ask(client).body == b"{}"
    assert script.replied.acquire(timeout=PATIENCE)
    time.sleep(0.05)  # the end of the connection arrives
    assert [ask(client).body for _ in range(2)] == [b"{}", b"[1]"]
    assert len(script.requests) == 3


def events_only(records: list[CallRecord]) -> list[tuple[int, bool]]:
    """Return status, and whether there was trouble, of the calls for events."""
    return [
        (call.status, bool(call.trouble))
        for call in records
        if call.endpoint == "events"
    ]


def test_a_kept_connection_that_closes_upon_the_request(make: Make) -> None:
    """A call over a kept connection that closes without a byte is made once more, over
    a new one; both are counted and timed.
    """
    records: list[CallRecord] = []
    with Fickle(lambda is_first: is_first) as upstream:
        client = make(upstream.base_url, on_call=records.append)
        assert [load(client).status for _ in range(5)] == [404] * 5
        client.calls.close(wait=True)
        assert len(records) == upstream.requests
    repeated = [call for call in records if call.trouble]
    assert len(repeated) >= 4
    assert all(call.status == 0 and call.seconds > 0 for call in repeated)


def test_a_call_is_repeated_once(make: Make) -> None:
    """If the new connection closes too, that is a fault: there is no third call,
    however many connections are kept.
    """
    records: list[CallRecord] = []
    sound = threading.Event()
    sound.set()
    with Fickle(lambda is_first: sound.is_set()) as upstream:
        client = make(upstream.base_url, on_call=records.append)
        at_once(*[lambda: ask(client)] * 8)  # these aren't recorded
        sound.clear()
        error = load(client)
        client.calls.close(wait=True)
    assert (error.status, error.upstream_status, error.kind) == (502, 0, "fault")
    assert events_only(records) == [(0, True), (0, True)]


def test_a_new_connection_that_closes(make: Make) -> None:
    """A new connection that closes without an answer is a fault: no second try."""
    records: list[CallRecord] = []
    with Fickle(lambda is_first: False) as upstream:
        client = make(upstream.base_url, on_call=records.append)
        assert load(client).status == 502
        client.calls.close(wait=True)
    assert events_only(records) == [(0, True)]


class Fickle:
    """Answers each request with 404, or closes the connection instead.

    `answers` is told whether the request is the first on its connection. Close clients
    before this ends: it waits until they have closed their connections.
    """

    def __init__(
        self,
        answers: Callable[[bool], bool],
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._answers = answers
        self._tls = tls
        self.requests = 0
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        scheme = "https" if tls else "http"
        self.base_url = f"{scheme}://localhost:{self._listener.getsockname()[1]}/"
        self._threads = [threading.Thread(target=self._accept)]
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> "Fickle":
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        self._listener.close()
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                self._sockets.append(sock)
                self._threads.append(threading.Thread(target=self._serve, args=(sock,)))
                self._threads[-1].start()

    def _serve(self, sock: socket.socket) -> None:
        is_first = True
        with sock, contextlib.suppress(OSError):
            if self._tls:
                sock = self._tls.wrap_socket(sock, server_side=True)
                self._sockets.append(sock)
            with sock:
                while sock.recv(65536):
                    self.requests += 1
                    if not self._answers(is_first):
                        return
                    sock.sendall(answer(b"{}", status=b"404 Not Found"))
                    is_first = False


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "TLS"])
def test_an_upstream_that_closes_at_random(
    make: Make, trusted: ssl.SSLContext, secure: bool
) -> None:
    """An upstream that closes kept connections whenever it likes causes no fault."""
    rng = random.Random(42)
    faults: list[C42Error] = []

    def keeps_answering(is_first: bool) -> bool:
        return is_first or rng.random() < 0.5

    with Fickle(keeps_answering, trusted if secure else None) as upstream:
        client = make(upstream.base_url, on_fault=faults.append)

        def some_loads() -> None:
            for _ in range(25):
                load(client)

        at_once(*[some_loads] * 6)
        client.calls.close(wait=True)
    assert faults == []


def test_an_old_connection(
    scripted: Scripted, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that is older than a minute isn't used again: the name may have
    another address by now.
    """
    script = scripted([REPLY, REPLY, REPLY], [OTHER])
    client = make(script.base_url)
    assert [ask(client).body for _ in range(2)] == [b"{}", b"{}"]
    monkeypatch.setattr(wire, "MAX_AGE", 0.0)
    with contextlib.suppress(ConnectionError):
        assert ask(client).body == b"[1]"


def test_close(scripted: Scripted, make: Make) -> None:
    """Closing closes kept connections at once, and those of active calls after their
    replies.
    """

    def close_and_reply(sock: socket.socket) -> None:
        for _ in range(1000):
            client.calls.close()
        sock.sendall(REPLY)

    kept = scripted([REPLY, REPLY])
    client = make(kept.base_url)
    assert ask(client).body == b"{}"
    client.calls.close()
    kept.end()
    active = scripted([close_and_reply, REPLY])
    client = make(active.base_url)
    assert ask(client).body == b"{}"
    active.end()


# Which replies are accepted

WHOLE = {
    "length": (REPLY, b"{}"),
    "empty": (answer(b""), b""),
    "chunked": (chunked(b"[1,", b"2]"), b"[1,2]"),
    "trailer": (chunked(b"{}", trailer=b"X-Sum: 1\r\n"), b"{}"),
    "gzip": (answer(gzip.compress(b"{}"), b"Content-Encoding: gzip"), b"{}"),
    "x-gzip": (answer(gzip.compress(b"{}"), b"Content-Encoding: X-GZIP"), b"{}"),
    "gzip in members": (
        answer(gzip.compress(b"{") + gzip.compress(b"}"), b"Content-Encoding: gzip"),
        b"{}",
    ),
    "identity": (answer(b"{}", b"Content-Encoding: identity"), b"{}"),
    "no gzip needed": (answer(b"", b"Content-Encoding: gzip"), b""),
    "100 first": (b"HTTP/1.1 100 Continue\r\n\r\n" + REPLY, b"{}"),
    "lines that end in LF": (REPLY.replace(b"\r\n", b"\n"), b"{}"),
    "blank after the chunk size": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2 \r\n{}\r\n0\r\n\r\n",
        b"{}",
    ),
}


@pytest.mark.parametrize(("reply", "body"), WHOLE.values(), ids=WHOLE)
def test_whole_replies(
    scripted: Scripted, make: Make, reply: bytes, body: bytes
) -> None:
    """A whole reply is read to its end and not beyond, and then the same connection has
    the next one.
    """
    client = make(scripted([reply, OTHER]).base_url)
    assert [ask(client).body for _ in range(2)] == [body, b"[1]"]


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_a_reply_that_ends_with_the_connection(
    scripted: Scripted, make: Make, version: bytes
) -> None:
    """A reply that doesn't say how long it is ends with its connection."""
    reply = b"HTTP/" + version + b" 200 OK\r\n\r\n{}"
    client = make(scripted([reply], [OTHER]).base_url)
    assert [ask(client).body for _ in range(2)] == [b"{}", b"[1]"]


ODD: dict[str, bytes] = {
    "103": b"HTTP/1.1 103 Early Hints\r\n\r\n",
    "101": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
    "redirect": b"HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 99999\r\n\r\n",
    "204": b"HTTP/1.1 204 No Content\r\n\r\n",
    "more than the reply": REPLY + b"x" * 200_000,
    "a long error": answer(b"x" * 200_000, status=b"500 Internal Server Error"),
}


@pytest.mark.parametrize("reply", ODD.values(), ids=ODD)
@pytest.mark.parametrize("late", [b"", REPLY], ids=["alone", "with a late reply"])
def test_a_connection_with_an_odd_reply_is_not_used_again(
    scripted: Scripted, make: Make, reply: bytes, late: bytes
) -> None:
    """After anything odd, the connection isn't used again: what still comes would be
    taken for the next reply.
    """
    asked = threading.Event()

    def send(sock: socket.socket) -> None:
        sock.sendall(reply)
        asked.wait(PATIENCE)
        with contextlib.suppress(OSError):
            sock.sendall(late)

    client = make(scripted([send], [OTHER]).base_url)
    assert ask(client).status != 0
    asked.set()
    assert ask(client).body == b"[1]"


@pytest.mark.parametrize("size", [MAX_BODY, MAX_BODY + 1])
@pytest.mark.parametrize("framing", ["length", "chunks", "gzip"])
def test_the_largest_reply(
    scripted: Scripted, make: Make, framing: str, size: int
) -> None:
    """A reply may have 8 MiB, unpacked; of a longer one, not much more is read."""
    body = b" " * size
    if framing == "length":
        reply = answer(body)
    elif framing == "gzip":
        reply = answer(gzip.compress(body, 1), b"Content-Encoding: gzip")
    else:
        pieces = [body[start : start + 60_000] for start in range(0, size, 60_000)]
        reply = chunked(*pieces)
    read = len(ask(make(scripted([reply]).base_url)).body)
    assert read == size if size == MAX_BODY else MAX_BODY < read <= MAX_BODY + 2**16


def test_gzip_bomb(scripted: Scripted, make: Make) -> None:
    """Not much more than 8 MiB are unpacked of what 64 KiB of gzip hold."""
    bomb = gzip.compress(b"x" * 60_000_000)
    script = scripted([answer(bomb, b"Content-Encoding: gzip")])
    client = make(script.base_url)
    tracemalloc.start()
    try:
        assert MAX_BODY < len(ask(client).body) <= MAX_BODY + 2**16
        assert tracemalloc.get_traced_memory()[1] < 2 * MAX_BODY
    finally:
        tracemalloc.stop()


ENDLESS = {
    "status line": (b"HTTP/1.1 200 ", b"a"),
    "chunk size": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;", b"a"),
    "trailers": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n",
        b"X: " + b"y" * 9995 + b"\r\n",  # short lines would take seconds to read
    ),
}


@pytest.mark.parametrize(("begin", "more"), ENDLESS.values(), ids=ENDLESS)
def test_what_never_ends(
    scripted: Scripted, make: Make, begin: bytes, more: bytes
) -> None:
    """What surrounds a body is limited too, however fast it comes."""

    def send(sock: socket.socket) -> None:
        sock.sendall(begin)
        with contextlib.suppress(ConnectionError):
            while True:
                sock.sendall(more * (10_000 // len(more)))

    with pytest.raises(ConnectionError, match=r"^sent an invalid answer$"):
        ask(make(scripted([send]).base_url))


HTTP = b"HTTP/1.1 200 OK\r\n"
NOT_WHOLE, INVALID = "sent no whole answer", "sent an invalid answer"
BROKEN = {
    "no HTTP": (b"hello\r\n\r\n", INVALID),
    "zeros": (b"\x00" * 100 + b"\r\n", INVALID),
    "nothing": (b"", NOT_WHOLE),
    "no status": (b"HTTP/1.1 abc OK\r\n\r\n", INVALID),
    "low status": (b"HTTP/1.1 099 Low\r\n\r\n", INVALID),
    "version": (b"HTTP/9.9 200 OK\r\n\r\n", INVALID),
    "long header": (HTTP + b"X-Long: " + b"a" * 70_000 + b"\r\n\r\n", INVALID),
    "many headers": (HTTP + b"X-Many: 1\r\n" * 7000 + b"\r\n", INVALID),
    "two lengths": (
        HTTP + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{} ",
        INVALID,
    ),
    "the same length twice": (answer(b"{}", b"Content-Length: 2"), INVALID),
    "the same length twice in a line": (
        HTTP + b"Content-Length: 2, 2\r\n\r\n{}",
        INVALID,
    ),
    "two lengths in a line": (HTTP + b"Content-Length: 2, 3\r\n\r\n{} ", INVALID),
    "a length with a blank": (HTTP + b"Content-Length: 2 0\r\n\r\n{} ", INVALID),
    "a list of no lengths": (HTTP + b"Content-Length: ,\r\n\r\n{} ", INVALID),
    "a signed length": (HTTP + b"Content-Length: +2\r\n\r\n{}", INVALID),
    "a negative length": (HTTP + b"Content-Length: -2\r\n\r\n{}", INVALID),
    "a length with an underscore": (HTTP + b"Content-Length: 0_2\r\n\r\n{}", INVALID),
    "a negative chunk": (HTTP + b"Transfer-Encoding: chunked\r\n\r\n-2\r\n{}", INVALID),
    "no chunk": (HTTP + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", INVALID),
    "cut": (HTTP + b"Content-Length: 5\r\n\r\n{}", NOT_WHOLE),
    "cut chunk": (HTTP + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{}", NOT_WHOLE),
    "no gzip": (answer(b"{}", b"Content-Encoding: gzip"), INVALID),
    "zlib's form": (answer(zlib.compress(b"{}"), b"Content-Encoding: gzip"), INVALID),
}


@pytest.mark.parametrize(("reply", "why"), BROKEN.values(), ids=BROKEN)
def test_no_reply(scripted: Scripted, make: Make, reply: bytes, why: str) -> None:
    """A reply that isn't HTTP, breaks off or can't be unpacked is a fault, and its
    connection isn't used again.
    """
    client = make(scripted([reply], [OTHER]).base_url)
    with pytest.raises(ConnectionError) as raised:
        ask(client)
    assert str(raised.value) == why
    assert ask(client).body == b"[1]"


MALFORMED = [
    HTTP + b"Content-Length: 2\r\nSECRET\r\n\r\n{}",
    HTTP + b"SECRET header: x\r\nContent-Length: 2\r\n\r\n{}",
    HTTP + b": SECRET\r\n\r\n{}",
    HTTP + b" SECRET\r\n\r\n{}",
    b"HTTP/1.1 200 SECRET\r\nContent-Length: 2\r\n\r\n{}",
    b"HTTP/1.1 SECRET\r\n\r\n",
    HTTP + b"Content-Length: SECRET\r\n\r\n{}",
    HTTP + b"Transfer-Encoding: chunked\r\n\r\nSECRET\r\n",
    answer(b"SECRET", b"Content-Encoding: gzip"),
    b"SECRET",
]


@pytest.mark.parametrize("reply", MALFORMED)
def test_nothing_that_came_is_logged(
    scripted: Scripted, make: Make, caplog: pytest.LogCaptureFixture, reply: bytes
) -> None:
    """No part of a reply gets into the log, or into the reason that is given, at
    whatever level.
    """
    caplog.set_level(logging.DEBUG)
    client = make(scripted([reply]).base_url)
    said = ""
    try:
        ask(client)
    except OSError as error:
        said = str(error)
    assert "SECRET" not in caplog.text + said


# Time


SLOW = HTTP + b"Content-Length: 999\r\n\r\n" + b"x" * 999
SLOW_CHUNKS = chunked(*[b"x"] * 200)


@pytest.mark.parametrize(
    ("reply", "at_once"),
    [(SLOW, 0), (SLOW, 9), (SLOW, 25), (SLOW, 50), (SLOW_CHUNKS, 50)],
    ids=["at all", "status", "headers", "body", "chunks"],
)
def test_deadline(scripted: Scripted, make: Make, reply: bytes, at_once: int) -> None:
    """A reply that trickles in is cut off at the deadline, whatever has arrived."""
    ended = threading.Event()
    sent: list[int] = []

    def trickle(sock: socket.socket) -> None:
        sock.sendall(reply[:at_once])
        for byte in reply[at_once:]:
            if ended.wait(0.02):
                break
            sock.sendall(bytes([byte]))
            sent.append(byte)

    client = make(scripted([trickle]).base_url)
    with pytest.raises(TimeoutError):
        ask(client, seconds=0.2)
    ended.set()
    assert len(sent) < 100


def test_a_reply_that_begins_late_and_hangs(scripted: Scripted, make: Make) -> None:
    """Each read has what is left of the time."""
    ended = threading.Event()

    def hang(sock: socket.socket) -> None:
        ended.wait(0.4)
        sock.sendall(SLOW[:25])
        ended.wait(PATIENCE)

    client = make(scripted([hang]).base_url)
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        ask(client, seconds=0.5)
    ended.set()
    assert time.monotonic() - began < 0.8


def test_no_time_left(make: Make) -> None:
    """After the deadline no connection is made."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = make(f"http://127.0.0.1:{listener.getsockname()[1]}/")
        assert isinstance(load(client, seconds=0), TimedOut)
        listener.settimeout(0)
        with pytest.raises(BlockingIOError):
            listener.accept()


@pytest.mark.parametrize("drip", [b"", b"\x02"], ids=["hangs", "trickles"])
def test_a_handshake_ends_at_the_deadline(make: Make, drip: bytes) -> None:
    """A TLS handshake that trickles in has all of the time, is cut off at the deadline,
    and the connection is closed.
    """
    closed = threading.Event()

    def serve(listener: socket.socket) -> None:
        sock, _ = listener.accept()
        with sock, contextlib.suppress(ConnectionError):
            sock.sendall(b"\x16\x03\x03\x40\x00")  # 16 KiB of handshake follow
            sock.settimeout(0.02)
            for _ in range(500):
                with contextlib.suppress(TimeoutError):
                    while sock.recv(65536):
                        pass
                    break
                sock.sendall(drip)
            else:
                return
        closed.set()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            ask(make(f"https://127.0.0.1:{listener.getsockname()[1]}/"), seconds=0.4)
        assert time.monotonic() - began >= 0.4
        thread.join()
    assert closed.is_set()


def test_a_look_up_ends_at_the_deadline(
    scripted: Scripted, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name server that doesn't answer delays no caller beyond the deadline; when it
    does answer, no late request is sent.
    """
    answered = threading.Event()
    looked_up = threading.Event()
    look_up = socket.getaddrinfo

    def slow(*args: Any, **kwargs: Any) -> Any:
        answered.wait(PATIENCE)
        looked_up.set()
        return look_up(*args, **kwargs)

    script = scripted([REPLY], [REPLY], [REPLY])
    url = f"http://localhost:{script.port}/"
    client = make(url)
    with monkeypatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", slow)
        error = load(client, seconds=0.2)
        assert isinstance(error, TimedOut)
        answered.set()
        client.calls.close(wait=True)
    assert looked_up.is_set()
    assert script.requests == []
    with contextlib.suppress(ConnectionError):
        ask(make(url))
    while len(script.requests) < 1:
        ask(make(url))


@contextlib.contextmanager
def dropping() -> Iterator[int]:
    """Listen on a port of 127.0.0.2 that drops the packets of whoever connects."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.2", 0))
        listener.listen(0)
        for _ in range(3):  # which fill its backlog
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


def test_a_first_address_that_drops_packets(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Connecting to one address takes a third of the time at most, so that a name with
    a dead first address works.
    """
    with dropping() as port, socket.socket() as listener:
        listener.bind(("127.0.0.1", port))
        listener.listen()
        addresses = [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"127.0.0.{last}", port))
            for last in (2, 1)
        ]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: addresses)
        thread = threading.Thread(target=reply_once, args=(listener,))
        thread.start()
        assert ask(make(f"http://two.invalid:{port}/"), seconds=3).body == b"{}"
        thread.join()


def test_an_address_that_drops_packets(make: Make) -> None:
    """An upstream that can't be connected to is unreachable, not late."""
    with (
        dropping() as port,
        pytest.raises(ConnectionError, match=r"^timed out while connecting$"),
    ):
        ask(make(f"http://127.0.0.2:{port}/"), seconds=0.9)


def reply_once(listener: socket.socket) -> None:
    """Reply to the request of one connection."""
    sock, _ = listener.accept()
    with sock:
        sock.recv(65536)
        sock.sendall(REPLY)


@pytest.mark.parametrize(
    "body",
    [
        b"Content-Length: 99\r\n\r\n{}",
        b"Content-Length: 2\r\nContent-Encoding: gzip\r\n\r\n{}",
        b"Transfer-Encoding: chunked\r\n\r\nzz",
        b"Content-Length: SECRET\r\n\r\n{}",
        b"Content-Length: 99999\r\n\r\n" + b"x" * 99_999,
    ],
    ids=["cut", "not gzip", "no chunk", "no length", "long"],
)
def test_a_429_with_a_broken_body(make: Make, scripted: Scripted, body: bytes) -> None:
    """A 429 is a pause, whatever becomes of its body: no event is asked for."""
    reply = b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 30\r\n" + body
    script = scripted([reply])
    client = make(script.base_url)
    assert ask(client).status == 429
    error = load(client)
    assert isinstance(error, Paused)
    assert 29 < error.retry_after <= 30
    assert len(script.requests) == 1


def test_a_429_whose_length_is_none(make: Make, scripted: Scripted) -> None:
    """Nobody waits for the body of a 429 that doesn't say where it ends."""
    reply = b"HTTP/1.1 429 Slow down\r\nContent-Length: many\r\n\r\n"
    client = make(scripted([reply, OTHER], [OTHER]).base_url)
    assert ask(client, seconds=2).status == 429
    assert ask(client, seconds=2).body == b"[1]"


def test_a_429_begins_its_pause_before_its_body(make: Make, scripted: Scripted) -> None:
    """A pause begins as soon as the status and the headers of a 429 are there."""
    pause = Pause(6)
    ended = threading.Event()

    def hang(sock: socket.socket) -> None:
        sock.sendall(b"HTTP/1.1 429 Slow down\r\nRetry-After: 30\r\n")
        sock.sendall(b"Content-Length: 99\r\n\r\nx")
        ended.wait(PATIENCE)

    client = make(scripted([hang]).base_url, pause=pause)
    asking = threading.Thread(target=ask, args=(client,))
    asking.start()
    until(lambda: pause.left > 29)
    assert asking.is_alive()
    ended.set()
    asking.join()


# TLS, and this machine's own trouble


@pytest.fixture
def trusted(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """Return a server's side of TLS with a certificate that is trusted."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate / "fullchain.pem"))
    return server_side(certificate)


def server_side(certificate: Path) -> ssl.SSLContext:
    """Return a server's side of TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "fullchain.pem", certificate / "privkey.pem")
    return context


def test_tls(scripted: Scripted, make: Make, trusted: ssl.SSLContext) -> None:
    """Over TLS too a connection is kept, is replaced when it is closed, and isn't used
    after an odd reply.
    """
    script = scripted([REPLY, OTHER], [ODD["103"] + REPLY], [OTHER], tls=trusted)
    client = make(script.base_url)
    statuses = [ask(client).status for _ in range(2)]
    until(lambda: script.replied.acquire(blocking=False))
    time.sleep(0.05)  # the end of the connection arrives
    statuses += [ask(client).status for _ in range(2)]
    assert statuses == [200, 200, 103, 200]


def test_certificates_are_read_once(
    make: Make, trusted: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All connections share one set of certificates, however many are made at once."""
    read: list[int] = []
    load_locations = ssl.SSLContext.load_verify_locations

    def count(context: ssl.SSLContext, *args: Any, **kwargs: Any) -> None:
        read.append(id(context))
        load_locations(context, *args, **kwargs)

    monkeypatch.setattr(ssl.SSLContext, "load_verify_locations", count)
    wire._read_certificates.cache_clear()
    with Fickle(lambda is_first: True, trusted) as upstream:
        client = make(upstream.base_url)
        at_once(*[lambda: load(client)] * 8)
        client.calls.close(wait=True)
    assert len(read) == 1


def test_the_certificates_of_requests(
    scripted: Scripted,
    make: Make,
    trusted: ssl.SSLContext,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If the environment names no certificates, those that `requests` brings along
    count.
    """
    script = scripted([REPLY], tls=trusted)
    bundle = os.environ["REQUESTS_CA_BUNDLE"]
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    monkeypatch.delenv("CURL_CA_BUNDLE", raising=False)
    monkeypatch.setattr(requests.adapters, "DEFAULT_CA_BUNDLE_PATH", bundle)
    assert ask(make(script.base_url)).body == b"{}"


def test_a_folder_of_certificates(
    scripted: Scripted,
    make: Make,
    trusted: ssl.SSLContext,
    certificate: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The certificates may be in a folder, as OpenSSL wants it: each file's name is the
    hash of its subject.
    """
    pem = certificate / "fullchain.pem"
    command = ["openssl", "x509", "-noout", "-hash", "-in", str(pem)]
    hashed = subprocess.run(command, check=True, capture_output=True, text=True)
    (tmp_path / f"{hashed.stdout.strip()}.0").write_bytes(pem.read_bytes())
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path))
    assert ask(make(scripted([REPLY], tls=trusted).base_url)).body == b"{}"


def test_an_unknown_certificate(
    scripted: Scripted, make: Make, certificate: Path
) -> None:
    """The reason says what is wrong with a certificate."""
    script = scripted([], tls=server_side(certificate))
    with pytest.raises(
        ConnectionError, match=r"^certificate: self-signed certificate$"
    ):
        ask(make(script.base_url))


@pytest.mark.parametrize(
    ("bundle", "why"),
    [
        ("missing", "^certificate bundle: no such file$"),
        ("nonsense", "no certificate or crl found"),
    ],
)
def test_an_unreadable_bundle(
    make: Make,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    bundle: str,
    why: str,
) -> None:
    """A missing or invalid certificate bundle is a fault, and the reason says so."""
    (tmp_path / "nonsense").write_text("no certificates")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / bundle))
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        pytest.raises(ConnectionError, match=why),
    ):
        ask(make(f"https://127.0.0.1:{listener.getsockname()[1]}/"))


def test_a_handshake_that_breaks_off(make: Make) -> None:
    """If the upstream hangs up during the TLS handshake, the reason says so."""

    def hang_up() -> None:
        with listener.accept()[0] as sock:
            sock.recv(65536)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=hang_up)
        thread.start()
        with pytest.raises(ConnectionError, match=r"^broke off$"):
            ask(make(f"https://127.0.0.1:{listener.getsockname()[1]}/"))
        thread.join()


def test_unreachable(make: Make) -> None:
    """The reason says whether a connection was refused or a name is unknown."""
    with pytest.raises(ConnectionError, match=r"^Connection refused$"):
        ask(make("http://127.0.0.1:1/"))
    with pytest.raises(ConnectionError, match=r"^not a host name$"):
        ask(make(f"http://{'a' * 64}.invalid/"))
    with pytest.raises(
        ConnectionError,
        match=r"^(Name or service not known|Temporary failure in name resolution)$",
    ):
        ask(make("http://no-such-host.invalid/"))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "no-such-host.invalid"])
def test_no_descriptors(make: Make, host: str) -> None:
    """Running out of file descriptors is an error of its own, even while a name is
    looked up; once there are some, calls work again.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = make(f"http://{host}:{listener.getsockname()[1]}/")
        with (
            no_descriptors(),
            pytest.raises(OSError, match="Too many open files") as raised,
        ):
            ask(client)
        assert (type(raised.value), raised.value.errno) == (OSError, errno.EMFILE)
        if host.endswith(".invalid"):
            return
        # Not earlier: it needs a descriptor to wait.
        thread = threading.Thread(target=reply_once, args=(listener,))
        thread.start()
        assert ask(client).body == b"{}"
        thread.join()


def test_no_threads(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If the system allows no more threads, that is an error of c42c that says so, and
    the call isn't made later.
    """

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    records: list[CallRecord] = []
    client = make("http://127.0.0.1:1/", on_call=records.append)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        error = load(client)
    assert isinstance(error, Exhausted)
    assert str(error) == "c42c can't start another thread (ulimit -u, TasksMax)"
    assert (error.status, error.kind, error.retry_after) == (503, "fault", 1.0)
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert records == []


# A name server that hangs, when the service is to stop


@pytest.mark.parametrize("signals", [1, 2])
def test_stops_while_a_name_server_hangs(
    start: Start, hanging_names: str, signals: int
) -> None:
    """SIGTERM ends the service in time while a name is being looked up, and a second
    one ends it at once.
    """
    service = start(
        C42_BASE_URL="http://hanging.invalid/",
        C42_TIMEOUT="1" if signals == 1 else "600",
        PYTHONPATH=hanging_names,
    )
    with service.connect() as client:
        client.sendall(
            b"GET /events-with-subscriptions/E HTTP/1.1\r\nHost: c42c\r\n\r\n"
        )
        until(lambda: "looking up" in service.log)
        if signals == 1:
            assert service.stop() == 0
            assert client.recv(65536).startswith(b"HTTP/1.1 504 ")
        else:
            service.process.send_signal(signal.SIGTERM)
            until(lambda: "stopping" in service.log)
            service.process.send_signal(signal.SIGTERM)
            service.process.wait(PATIENCE)
