"""One GET over a real socket: which answers are accepted, and which connections are
used again.
"""

import asyncio
import contextlib
import errno
import gc
import gzip
import logging
import os
import resource
import socket
import ssl
import struct
import subprocess
import threading
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any, cast

import pytest

import calendar42.transport
from calendar42.transport import Reply, Transport
from tests.fixtures import PATIENCE, until

LIMIT = 1000
REPLY = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
OTHER = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n[1]"

Sent = bytes | Callable[[socket.socket], None]
Serve = Callable[..., str]


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
        self.base_url = f"{scheme}://{host}:{self._listener.getsockname()[1]}/"

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
def transport() -> Iterator[Callable[[str], Transport]]:
    """Give a test a way to make transports: `transport(base_url)`."""
    with contextlib.ExitStack() as stack:

        def make(base_url: str) -> Transport:
            return stack.enter_context(
                contextlib.closing(Transport(base_url=base_url, token="x-sent"))
            )

        yield make


Scripted = Callable[..., Script]
MakeTransport = Callable[[str], Transport]


def ask(transport: Transport, path: str = "", seconds: float = PATIENCE) -> Reply:
    """Get `path`."""
    call = transport.get(path, deadline=time.monotonic() + seconds, limit=LIMIT)
    return cast(Reply, transport.begin(call).result())


def answer(body: bytes, *headers: bytes, status: bytes = b"200 OK") -> bytes:
    """Return an answer as it is on the wire."""
    return b"\r\n".join(
        [b"HTTP/1.1 " + status, b"Content-Length: %d" % len(body), *headers, b"", body]
    )


def chunked(*chunks: bytes, trailer: bytes = b"") -> bytes:
    """Return an answer in chunks."""
    body = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in (*chunks, b""))
    return (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        + body[:-2]
        + trailer
        + b"\r\n"
    )


# What is sent


def test_what_is_sent(scripted: Scripted, transport: MakeTransport) -> None:
    """A request has the given headers, accepts gzip, and its path begins with the base
    URL's.
    """
    script = scripted([REPLY])
    assert ask(transport(script.base_url + "api/"), "events/?ids=[a,b]") == (
        200,
        {"content-length": "2"},
        b"{}",
    )
    line, *headers = script.requests[0].decode().rstrip().split("\r\n")
    assert line == "GET /api/events/?ids=%5Ba,b%5D HTTP/1.1"
    json_type = {"Accept: application/json", "Content-Type: application/json"}
    assert {"Authorization: Token x-sent", "Accept-Encoding: gzip", *json_type} < set(
        headers
    )
    assert {
        header.partition(":")[0] for header in headers if header not in json_type
    } == {
        "Host",
        "User-Agent",
        "Authorization",
        "Accept-Encoding",
    }


@pytest.fixture
def proxied(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Give a test a way to name a proxy in the environment."""

    def name(proxy: str) -> None:
        for scheme in "http", "https", "HTTP", "HTTPS":
            monkeypatch.setenv(
                f"{scheme}_proxy" if scheme.islower() else f"{scheme}_PROXY", proxy
            )
        for variable in "no_proxy", "NO_PROXY":
            monkeypatch.setenv(variable, "127.0.0.1")

    return name


@pytest.mark.parametrize("proxy", ["http://{}", "{}", "http://me:%3Fsecret@{}"])
def test_proxy(
    scripted: Scripted,
    transport: MakeTransport,
    proxied: Callable[[str], None],
    proxy: str,
) -> None:
    """A call goes through the proxy that the environment names, with the credentials of
    its address.
    """
    script = scripted([REPLY, OTHER])
    proxied(proxy.format(script.base_url.split("/")[2]))
    made = transport("http://upstream.invalid/api/")
    assert [ask(made, path).body for path in ("a", "b")] == [b"{}", b"[1]"]
    for path, request in zip("ab", script.requests, strict=True):
        assert request.startswith(
            f"GET http://upstream.invalid/api/{path} HTTP/1.1\r\n".encode()
        )
        assert b"Authorization: Token x-sent" in request
        assert (b"Proxy-Authorization: Basic bWU6P3NlY3JldA==\r\n" in request) == (
            "secret" in proxy
        )


def test_tunnel(
    scripted: Scripted,
    transport: MakeTransport,
    proxied: Callable[[str], None],
    trusted: ssl.SSLContext,
) -> None:
    """TLS goes through a tunnel, so that the proxy sees no headers; the certificate
    must be the upstream's.
    """

    def shake_hands(sock: socket.socket) -> None:
        sock.sendall(b"HTTP/1.1 200\r\nVia: a proxy\r\n\r\n")
        with trusted.wrap_socket(sock, server_side=True) as secure:
            script.serve(secure, REPLY)

    script = scripted([shake_hands])
    proxied(script.base_url)
    assert ask(transport("https://localhost/")).body == b"{}"
    assert script.requests[0].startswith(b"CONNECT localhost:443 HTTP/1.")
    assert b"x-sent" not in script.requests[0]
    assert script.requests[1].startswith(b"GET / HTTP/1.1\r\nHost: localhost\r\n")


def test_tunnel_to_somebody_else(
    scripted: Scripted,
    transport: MakeTransport,
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
        ask(transport("https://upstream.invalid/"))
    assert not caplog.records


def test_no_tunnel(
    scripted: Scripted, transport: MakeTransport, proxied: Callable[[str], None]
) -> None:
    """A proxy that refuses the tunnel is a fault, and gets no token."""
    script = scripted([b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n"])
    proxied(script.base_url)
    with pytest.raises(ConnectionError, match=r"^the proxy refuses the tunnel$"):
        ask(transport("https://upstream.invalid/"))
    assert len(script.requests) == 1


@pytest.mark.parametrize("drip", [b"", b"X: 1\r\n"])
def test_a_proxy_that_hangs(
    scripted: Scripted,
    transport: MakeTransport,
    proxied: Callable[[str], None],
    drip: bytes,
) -> None:
    """A proxy that sends no whole answer is let go at the deadline, even if it goes on
    sending.
    """

    def hang(sock: socket.socket) -> None:
        sock.settimeout(0.02 if drip else PATIENCE)
        for _ in range(500):
            sock.sendall(drip)
            with contextlib.suppress(TimeoutError):
                assert sock.recv(1) == b""
                return
        raise AssertionError("it wasn't let go")

    script = scripted([hang])
    proxied(script.base_url)
    with pytest.raises(TimeoutError):
        ask(transport("https://upstream.invalid/"), seconds=0.2)
    assert script.replied.acquire(timeout=PATIENCE)


@pytest.mark.parametrize(
    "proxy",
    [
        "http:///x",
        "http://me:secret@127.0.0.1:99999",
        "foo://127.0.0.1:1",
        "https://127.0.0.1:1",
        "http://u:s3cret@",
        "socks5h://127.0.0.1:1",
    ],
)
def test_a_proxy_that_is_none(
    transport: MakeTransport, proxied: Callable[[str], None], proxy: str
) -> None:
    """An invalid proxy address in the environment is a fault, and the error doesn't
    show it.
    """
    proxied(proxy)
    with pytest.raises(
        ConnectionError, match=r"^the proxy that the environment names can't be used$"
    ):
        ask(transport("http://upstream.invalid/"))


def test_no_proxy(
    scripted: Scripted, transport: MakeTransport, proxied: Callable[[str], None]
) -> None:
    """An upstream that NO_PROXY names is called directly."""
    proxied("http://127.0.0.1:1")
    assert ask(transport(scripted([REPLY]).base_url)).body == b"{}"


# Which connections are used again


@pytest.mark.parametrize(
    "last_words", [[], [b""]], ids=["closed before", "closed upon the request"]
)
def test_a_kept_connection_that_is_closed(
    scripted: Scripted, transport: MakeTransport, last_words: list[Sent]
) -> None:
    """A kept connection that the upstream has closed, or closes upon the next request,
    is replaced by a new one.
    """
    made = transport(scripted([REPLY, *last_words], [REPLY, OTHER]).base_url)
    assert [ask(made).body for _ in range(3)] == [b"{}", b"{}", b"[1]"]


def connections() -> set[int]:
    """Return the ids of the connections in memory, of all transports."""
    gc.collect()
    kinds = [
        one
        for one in asyncio.Protocol.__subclasses__()
        if one.__module__ == "calendar42.transport"
    ]
    assert kinds
    return {id(one) for one in gc.get_objects() if type(one) in kinds}


def test_an_idle_connection(
    scripted: Scripted, transport: MakeTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kept connection that isn't used is closed after a while, and takes no memory
    then; one that is in use isn't.
    """
    monkeypatch.setattr(calendar42.transport, "IDLE", 0.2)
    idle, before = threading.Event(), connections()

    def late(sock: socket.socket) -> None:
        idle.wait(0.4)
        sock.sendall(OTHER)

    def see_it_close(sock: socket.socket) -> None:
        sock.sendall(REPLY)
        sock.settimeout(PATIENCE)
        assert sock.recv(1) == b""
        idle.set()

    made = transport(scripted([REPLY, late, see_it_close], [OTHER]).base_url)
    assert [ask(made).body for _ in range(3)] == [b"{}", b"[1]", b"{}"]
    assert idle.wait(PATIENCE)
    until(lambda: not connections() - before)
    assert ask(made).body == b"[1]"


def test_a_kept_connection_is_small(
    scripted: Scripted, transport: MakeTransport
) -> None:
    """A connection that is kept doesn't keep its last answer."""
    made = transport(scripted([answer(b"x" * 2_000_000), REPLY]).base_url)
    tracemalloc.start()
    try:
        call = made.get("", deadline=time.monotonic() + PATIENCE, limit=2_000_000)
        assert len(made.begin(call).result().body) == 2_000_000
        assert tracemalloc.get_traced_memory()[0] < 1_000_000
    finally:
        tracemalloc.stop()
    assert ask(made).body == b"{}"


def test_small_chunks(scripted: Scripted, transport: MakeTransport) -> None:
    """A body may come in the smallest chunks, which take more bytes than what is in
    them.
    """

    def send(sock: socket.socket) -> None:
        reply = chunked(*[b"x"] * 30_000)
        for start in range(0, len(reply), 10_000):
            sock.sendall(reply[start : start + 10_000])

    made = transport(scripted([send]).base_url)
    call = made.get("", deadline=time.monotonic() + PATIENCE, limit=30_000)
    assert made.begin(call).result().body == b"x" * 30_000


def test_a_new_connection_that_is_closed(
    scripted: Scripted, transport: MakeTransport
) -> None:
    """A new connection that is closed without an answer is a fault, and isn't tried
    again.
    """
    script = scripted([b""])
    with pytest.raises(ConnectionError, match=r"^sent no whole answer$"):
        ask(transport(script.base_url))
    assert len(script.requests) == 1


def test_a_connection_made_anew_is_new(
    scripted: Scripted, transport: MakeTransport
) -> None:
    """A connection that replaces a closed one is a new one: if it fails too, that is a
    fault.
    """
    script = scripted([REPLY], [b""])
    made = transport(script.base_url)
    assert ask(made).body == b"{}"
    with pytest.raises(ConnectionError):
        ask(made)
    assert len(script.requests) == 2


def test_close(scripted: Scripted) -> None:
    """Closing closes kept connections at once, and those of active calls after their
    answers.
    """

    def close_and_reply(sock: socket.socket) -> None:
        for _ in range(
            1000
            # Only the first counts; further ones would most likely come while it waits for
            # this call.
        ):
            made.close()
        sock.sendall(REPLY)

    kept, active = scripted([REPLY, REPLY]), scripted([close_and_reply, REPLY])
    made = Transport(base_url=kept.base_url, token="x-sent")
    assert ask(made).body == b"{}"
    made.close()
    kept.end()
    made = Transport(base_url=active.base_url, token="x-sent")
    assert ask(made).body == b"{}"
    active.end()


def test_cancel(scripted: Scripted) -> None:
    """A call that is cancelled ends after the delay; with a transport that is closed,
    nothing happens.
    """
    ended, threads = threading.Event(), set(threading.enumerate())
    made = Transport(
        base_url=scripted([lambda _: ended.wait(PATIENCE) and None]).base_url,
        token="x-sent",
    )
    call = made.begin(made.get("", deadline=time.monotonic() + PATIENCE, limit=LIMIT))
    began = time.monotonic()
    made.cancel(call, 0.2)
    with pytest.raises(CancelledError):
        call.result(PATIENCE)
    assert time.monotonic() - began >= 0.2
    ended.set()
    made.close()
    for thread in set(threading.enumerate()) - threads:
        if thread.name == "c42c-upstream":
            thread.join(PATIENCE)
    made.cancel(call, 0)


def test_a_handshake_that_breaks_off(transport: MakeTransport) -> None:
    """If the upstream hangs up during the TLS handshake, the reason says so."""

    def hang_up() -> None:
        with listener.accept()[0] as sock:
            sock.recv(65536)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=hang_up)
        thread.start()
        with pytest.raises(ConnectionError, match=r"^broke off$"):
            ask(transport(f"https://127.0.0.1:{listener.getsockname()[1]}/"))
        thread.join()


WHOLE = {
    "length": (REPLY, b"{}"),
    "empty": (answer(b""), b""),
    "204": (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
    "304": (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n", b""),
    "chunked": (chunked(b"[1,", b"2]"), b"[1,2]"),
    "trailer": (chunked(b"{}", trailer=b"X-Sum: 1\r\n"), b"{}"),
    "gzip": (answer(gzip.compress(b"{}"), b"Content-Encoding: gzip"), b"{}"),
    "x-gzip": (answer(gzip.compress(b"{}"), b"Content-Encoding: X-GZIP"), b"{}"),
    "identity": (answer(b"{}", b"Content-Encoding: identity"), b"{}"),
    "no gzip needed": (answer(b"", b"Content-Encoding: gzip"), b""),
    "longest": (answer(b"x" * LIMIT), b"x" * LIMIT),
    "longest gzip": (answer(gzip.compress(b"x" * LIMIT), b"Content-Encoding: gzip"), b"x" * LIMIT),
    "103 first": (b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + REPLY, b"{}"),
    "all kinds first": (b"".join(b"HTTP/1.1 %d X\r\n\r\n" % code for code in (100, 102, 103, 199)) + REPLY, b"{}"),
    "103 with a length": (b"HTTP/1.1 103 Early Hints\r\nContent-Length: 9\r\n\r\n" + REPLY, b"{}"),
    "chunked 103": (b"HTTP/1.1 103 Early Hints\r\nTransfer-Encoding: chunked\r\n\r\n" + REPLY, b"{}"),
    "many 103s": (b"HTTP/1.1 103 Early Hints\r\n\r\n" * 90 + REPLY, b"{}"),
    "closing 103": (b"HTTP/1.1 103 Early Hints\r\nConnection: close\r\n\r\n" + REPLY, b"{}"),
    "blank after the coding": (answer(gzip.compress(b"{}"), b"Content-Encoding: gzip "), b"{}"),
    "coding in a trailer": (chunked(b"{}", trailer=b"Content-Encoding: gzip\r\n"), b"{}"),
}  # fmt: skip


@pytest.mark.parametrize(("reply", "body"), WHOLE.values(), ids=WHOLE)
def test_whole_answers(
    scripted: Scripted, transport: MakeTransport, reply: bytes, body: bytes
) -> None:
    """A whole answer is read to its end and not beyond, informational ones before it
    are skipped, and then the same connection has the next answer."""
    made = transport(scripted([reply, OTHER]).base_url)
    assert [ask(made).body for _ in range(2)] == [body, b"[1]"]


@pytest.mark.parametrize(
    "first", ["length", "empty", "204", "chunked", "gzip", "103 first"]
)
@pytest.mark.parametrize("extra", [b"x", OTHER, b"HTTP/1.1 103 Early Hints\r\n\r\n"])
@pytest.mark.parametrize("later", [False, True])
def test_more_than_the_answer(
    scripted: Scripted, transport: MakeTransport, first: str, extra: bytes, later: bool
) -> None:
    """A connection that carried more than the answer isn't used again: the rest would
    be taken for the next answer.
    """
    reply, body = WHOLE[first]

    def send(sock: socket.socket) -> None:
        if not later:
            sock.sendall(reply + extra)
            return
        sock.sendall(reply)
        received.wait(PATIENCE)
        sock.sendall(extra)

    received = threading.Event()
    script = scripted(
        [send, b'HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n["wrong"]'], [OTHER]
    )
    made = transport(script.base_url)
    assert ask(made).body == body
    received.set()
    assert script.replied.acquire(timeout=PATIENCE)
    assert ask(made).body == b"[1]"


@pytest.mark.parametrize(
    "first", ["length", "empty", "204", "chunked", "gzip", "103 first"]
)
def test_a_blank_line_after_the_answer(
    scripted: Scripted, transport: MakeTransport, first: str
) -> None:
    """A blank line after an answer, as some servers send, isn't taken for the next one."""
    reply, body = WHOLE[first]
    made = transport(scripted([reply + b"\r\n", OTHER]).base_url)
    assert [ask(made).body for _ in range(2)] == [body, b"[1]"]


def test_more_than_a_long_answer(scripted: Scripted, transport: MakeTransport) -> None:
    """What follows an answer that fills the buffer is noticed too."""
    script = scripted([answer(b"x" * LIMIT) + b"y" * 200_000], [OTHER])
    made = transport(script.base_url)
    assert ask(made).body == b"x" * LIMIT
    assert ask(made).body == b"[1]"


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_an_answer_that_ends_with_the_connection(
    scripted: Scripted, transport: MakeTransport, version: bytes
) -> None:
    """An answer that doesn't say how long it is ends with its connection."""
    made = transport(
        scripted([b"HTTP/" + version + b" 200 OK\r\n\r\n{}"], [OTHER]).base_url
    )
    assert [ask(made).body for _ in range(2)] == [b"{}", b"[1]"]


@pytest.mark.parametrize(
    "reply",
    [
        answer(b"x" * 200_000),
        chunked(*[b"x" * 900] * 100),
        b"HTTP/1.0 200 OK\r\n\r\n" + b"x" * 2000,
    ],
)
def test_limit(scripted: Scripted, transport: MakeTransport, reply: bytes) -> None:
    """A body is read up to its limit and one byte more, and then the connection isn't
    used again.
    """
    made = transport(scripted([reply], [OTHER]).base_url)
    assert ask(made).body == b"x" * (LIMIT + 1)
    assert ask(made).body == b"[1]"


def test_gzip_bomb(scripted: Scripted, transport: MakeTransport) -> None:
    """No more than the limit and one byte is unpacked of what 64 KiB of gzip hold."""
    bomb = gzip.compress(b"x" * 60_000_000)
    script = scripted([answer(bomb, b"Content-Encoding: gzip")])
    tracemalloc.start()
    try:
        assert ask(transport(script.base_url)).body == b"x" * (LIMIT + 1)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


# What is no answer

HTTP = b"HTTP/1.1 200 OK\r\n"
NOT_WHOLE, INVALID = "sent no whole answer", "sent an invalid answer"
BROKEN = {
    "no HTTP": (b"hello\r\n\r\n", INVALID),
    "zeros": (b"\x00" * 100 + b"\r\n", INVALID),
    "nothing": (b"", NOT_WHOLE),
    "long status line": (b"HTTP/1.1 200 " + b"a" * 70_000, INVALID),
    "no status": (b"HTTP/1.1 abc OK\r\n\r\n", INVALID),
    "low status": (b"HTTP/1.1 099 Low\r\n\r\n", INVALID),
    "version": (b"HTTP/9.9 200 OK\r\n\r\n", INVALID),
    "long header": (HTTP + b"X-Long: " + b"a" * 70_000 + b"\r\n\r\n", INVALID),
    "many headers": (HTTP + b"X-Many: 1\r\n" * 7000 + b"\r\n", INVALID),
    "no chunk": (HTTP + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", INVALID),
    "cut": (HTTP + b"Content-Length: 5\r\n\r\n{}", NOT_WHOLE),
    "cut chunk": (HTTP + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{}", NOT_WHOLE),
    "101": (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n" + REPLY, INVALID),
    "101 after 103": (b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 101 Switching\r\n\r\n", INVALID),
    "103 alone": (b"HTTP/1.1 103 Early Hints\r\n\r\n", NOT_WHOLE),
    "endless 103": (b"HTTP/1.1 103 Early Hints\r\n\r\n" * 3000, INVALID),
    "no gzip": (answer(b"{}", b"Content-Encoding: gzip"), INVALID),
    "zlib's form": (answer(zlib.compress(b"{}"), b"Content-Encoding: gzip"), INVALID),
    "half a gzip": (answer(gzip.compress(b"{}")[:-1], b"Content-Encoding: gzip"), INVALID),
    "two gzips": (answer(gzip.compress(b"{") + gzip.compress(b"}"), b"Content-Encoding: gzip"), INVALID),
    "no coding that was asked for": (answer(b"{}", b"Content-Encoding: br"), INVALID),
}  # fmt: skip


@pytest.mark.parametrize(("reply", "why"), BROKEN.values(), ids=BROKEN)
def test_no_answer(
    scripted: Scripted, transport: MakeTransport, reply: bytes, why: str
) -> None:
    """An answer that isn't HTTP, breaks off or can't be unpacked is a fault, and its
    connection isn't used again.
    """
    made = transport(scripted([reply], [OTHER]).base_url)
    with pytest.raises(ConnectionError) as raised:
        ask(made)
    assert str(raised.value) == why
    assert ask(made).body == b"[1]"


MALFORMED = [
    HTTP + b"Content-Length: 2\r\nSECRET\r\n\r\n{}",
    HTTP + b"SECRET header: x\r\nContent-Length: 2\r\n\r\n{}",
    HTTP + b": SECRET\r\n\r\n{}",
    HTTP + b" SECRET\r\n\r\n{}",
    HTTP
    + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\nX: SECRET\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    b"HTTP/1.1 200 SECRET\r\nContent-Length: 2\r\n\r\n{}",
    b"HTTP/1.1 SECRET\r\n\r\n",
    HTTP + b"Content-Length: SECRET\r\n\r\n{}",
    HTTP + b"Transfer-Encoding: chunked\r\n\r\nSECRET\r\n",
    answer(b"SECRET", b"Content-Encoding: gzip"),
    b"SECRET",
]


@pytest.mark.parametrize("reply", MALFORMED)
def test_nothing_that_came_is_logged(
    scripted: Scripted,
    transport: MakeTransport,
    caplog: pytest.LogCaptureFixture,
    reply: bytes,
) -> None:
    """No part of an answer gets into the log, or into the reason that is given, at
    whatever level.
    """
    caplog.set_level(logging.DEBUG)
    script, said = scripted([reply]), ""
    try:
        ask(transport(script.base_url))
    except OSError as error:
        said = str(error)
    assert "SECRET" not in caplog.text + said


# Time


SLOW = HTTP + b"Content-Length: 999\r\n\r\n" + b"x" * 999


@pytest.mark.parametrize(
    "at_once", [0, 9, 25, 50], ids=["at all", "status", "headers", "body"]
)
def test_deadline(scripted: Scripted, transport: MakeTransport, at_once: int) -> None:
    """An answer that trickles in is cut off at the deadline, whichever part has
    arrived.
    """
    ended, sent = threading.Event(), list[int]()

    def trickle(sock: socket.socket) -> None:
        sock.sendall(SLOW[:at_once])
        for byte in SLOW[at_once:]:
            if ended.wait(0.02):
                break
            sock.sendall(bytes([byte]))
            sent.append(byte)

    made = transport(scripted([trickle]).base_url)
    with pytest.raises(TimeoutError):
        ask(made, seconds=0.2)
    ended.set()
    assert len(sent) < 100


def test_a_pause_in_an_answer_ends_at_the_deadline(
    scripted: Scripted, transport: MakeTransport
) -> None:
    """An answer that begins late and then hangs ends at the deadline: each read has
    what is left of the time.
    """
    ended = threading.Event()

    def hang(sock: socket.socket) -> None:
        ended.wait(0.4)
        sock.sendall(SLOW[:25])
        ended.wait(PATIENCE)

    made, began = transport(scripted([hang]).base_url), time.monotonic()
    with pytest.raises(TimeoutError):
        ask(made, seconds=0.5)
    ended.set()
    assert time.monotonic() - began < 0.8


def test_no_time_left(transport: MakeTransport) -> None:
    """After the deadline no connection is made."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with pytest.raises(TimeoutError):
            ask(transport(f"http://127.0.0.1:{listener.getsockname()[1]}/"), seconds=0)
        listener.settimeout(0)
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_a_handshake_ends_at_the_deadline(transport: MakeTransport) -> None:
    """A TLS handshake that trickles in is cut off at the deadline, and the connection
    is closed.
    """
    sent = 0

    def serve(listener: socket.socket) -> None:
        nonlocal sent
        sock, _ = listener.accept()
        with sock, contextlib.suppress(ConnectionError):
            sock.sendall(b"\x16\x03\x03\x40\x00")  # 16 KiB of handshake follow
            sock.settimeout(0.02)
            while sent < 500:
                with contextlib.suppress(TimeoutError):
                    while sock.recv(65536):
                        pass
                    break
                sock.sendall(b"\x02")
                sent += 1

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        with pytest.raises(TimeoutError):
            ask(
                transport(f"https://127.0.0.1:{listener.getsockname()[1]}/"),
                seconds=0.2,
            )
        thread.join()
        assert sent < 500  # the client has closed it


def reply_once(listener: socket.socket) -> None:
    """Reply to the request of one connection."""
    sock, _ = listener.accept()
    with sock:
        sock.recv(65536)
        sock.sendall(REPLY)


def test_a_look_up_ends_at_the_deadline(
    transport: MakeTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name server that doesn't answer delays no call beyond its deadline; a late
    answer isn't used.
    """
    asked, answered, look_up = threading.Event(), threading.Event(), socket.getaddrinfo

    def slow(*args: Any, **kwargs: Any) -> Any:
        asked.set()
        answered.wait(PATIENCE)
        return look_up(*args, **kwargs)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setattr(socket, "getaddrinfo", slow)
        made = transport(f"http://localhost:{listener.getsockname()[1]}/")
        with pytest.raises(TimeoutError):
            ask(made, seconds=0.2)
        assert asked.is_set()
        answered.set()
        thread = threading.Thread(target=reply_once, args=(listener,))
        thread.start()
        assert ask(made).body == b"{}"
        thread.join()
        listener.settimeout(0)
        with pytest.raises(BlockingIOError):
            listener.accept()


# TLS, and this machine's own trouble


@pytest.fixture
def trusted(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """Return a server's side of TLS with a certificate that is trusted."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate / "fullchain.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "fullchain.pem", certificate / "privkey.pem")
    return context


def test_the_certificates_of_requests(
    scripted: Scripted,
    transport: MakeTransport,
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
    monkeypatch.setattr(calendar42.transport, "DEFAULT_CA_BUNDLE_PATH", bundle)
    assert ask(transport(script.base_url)).body == b"{}"


def test_the_system_gives_up(
    transport: MakeTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the system gives up connecting before the deadline, the upstream is
    unreachable, not late.
    """

    def give_up(*_: object) -> None:
        raise TimeoutError(errno.ETIMEDOUT, "Connection timed out")

    monkeypatch.setattr(socket.socket, "connect", give_up)
    with pytest.raises(ConnectionError, match=r"^Connection timed out$"):
        ask(transport("http://127.0.0.1:1/"))


def test_tls(
    scripted: Scripted, transport: MakeTransport, trusted: ssl.SSLContext
) -> None:
    """Over TLS too a connection is kept, is replaced when it is closed, and isn't used
    if more than the answer came.
    """
    script = scripted(
        [WHOLE["103 first"][0], answer(b"x" * 50_000)[:-49_000] + b"x"],
        [REPLY + b"x"],
        [OTHER],
        tls=trusted,
    )
    made = transport(script.base_url)
    assert [ask(made).body for _ in range(4)] == [b"{}", b"x" * 1001, b"{}", b"[1]"]


def test_a_connection_over_tls_that_is_closed(
    scripted: Scripted, transport: MakeTransport, trusted: ssl.SSLContext
) -> None:
    """Over TLS, connections that are closed in whatever way and at whatever moment are
    replaced by new ones.
    """
    closed = threading.Event()

    def close(sock: socket.socket) -> None:
        sock.sendall(REPLY)
        with contextlib.suppress(OSError):
            sock.unwrap()  # type: ignore[attr-defined]
        closed.set()

    def reset(sock: socket.socket) -> None:
        sock.sendall(REPLY)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    ends: list[Sent] = [
        close,
        reset,
        REPLY + b"x",
        answer(b"{}", b"Connection: close"),
        answer(b"x" * 2000),
        b"",
    ]
    made = transport(
        scripted(
            *[[end] for end in ends for _ in range(3)], [OTHER], tls=trusted
        ).base_url
    )
    for end in ends:
        for _ in range(3):
            with contextlib.suppress(ConnectionError):
                assert ask(made).body in (b"{}", b"x" * (LIMIT + 1)), end
            made.begin(
                asyncio.sleep(0.01)
            ).result()  # usually enough for the loop to see the connection close
    assert closed.is_set()
    assert ask(made).body == b"[1]"


def test_a_folder_of_certificates(
    scripted: Scripted,
    transport: MakeTransport,
    trusted: ssl.SSLContext,
    certificate: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The certificates may be in a folder, as OpenSSL wants it: each file's name is the
    hash of its subject.
    """
    command = [
        "openssl",
        "x509",
        "-noout",
        "-hash",
        "-in",
        str(certificate / "fullchain.pem"),
    ]
    name = subprocess.run(
        command, check=True, capture_output=True, text=True
    ).stdout.strip()
    (tmp_path / f"{name}.0").write_bytes((certificate / "fullchain.pem").read_bytes())
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path))
    assert ask(transport(scripted([REPLY], tls=trusted).base_url)).body == b"{}"


def test_an_unknown_certificate(
    scripted: Scripted, transport: MakeTransport, certificate: Path
) -> None:
    """The reason says what is wrong with a certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "fullchain.pem", certificate / "privkey.pem")
    with pytest.raises(
        ConnectionError, match=r"^certificate: self-signed certificate$"
    ):
        ask(transport(scripted([], tls=context).base_url))


@pytest.mark.parametrize(
    ("bundle", "why"),
    [
        ("missing", "^certificate bundle: no such file$"),
        ("nonsense", "no certificate or crl found"),
    ],
)
def test_an_unreadable_bundle(
    transport: MakeTransport,
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
        ask(transport(f"https://127.0.0.1:{listener.getsockname()[1]}/"))


def test_unreachable(transport: MakeTransport) -> None:
    """The reason says whether a connection was refused or a name is unknown."""
    with pytest.raises(ConnectionError, match=r"^Connection refused$"):
        ask(transport("http://127.0.0.1:1/"))
    with pytest.raises(ConnectionError, match=r"^not a host name$"):
        ask(transport(f"http://{'a' * 64}.invalid/"))
    with pytest.raises(
        ConnectionError,
        match=r"^(Name or service not known|Temporary failure in name resolution)$",
    ):
        ask(transport("http://no-such-host.invalid/"))


def test_no_address_is_reachable(
    transport: MakeTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a name has several addresses, the reason doesn't list them."""
    both = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"127.0.0.{last}", 1))
        for last in (1, 2)
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: both)
    with pytest.raises(ConnectionError, match=r"^no address of it can be reached$"):
        ask(transport("http://two.invalid/"))


@contextlib.contextmanager
def no_descriptors() -> Iterator[None]:
    """Let this process open no further file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_no_descriptors(transport: MakeTransport, host: str) -> None:
    """Running out of file descriptors is an error of its own; once there are some,
    calls work again.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        made = transport(f"http://{host}:{listener.getsockname()[1]}/")
        with (
            no_descriptors(),
            pytest.raises(OSError, match="Too many open files") as raised,
        ):
            ask(made)
        assert (type(raised.value), raised.value.errno) == (OSError, errno.EMFILE)
        thread = threading.Thread(
            target=reply_once, args=(listener,)
        )  # not earlier: it needs a descriptor to wait
        thread.start()
        assert ask(made).body == b"{}"
        thread.join()


def test_no_descriptors_for_a_look_up(transport: MakeTransport) -> None:
    """A name that can't be looked up for lack of file descriptors isn't taken for an
    unknown one.
    """
    made = transport("http://no-such-host.invalid/")
    with pytest.raises(ConnectionError):
        ask(made)
    with no_descriptors(), pytest.raises(OSError, match="Too many open files"):
        ask(made)
