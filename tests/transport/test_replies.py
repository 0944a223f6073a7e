"""Which replies are accepted, byte for byte."""

import contextlib
import gzip
import logging
import socket
import threading
import tracemalloc
import zlib

import pytest

from calendar42.errors import C42Error
from calendar42.replies import MAX_BODY
from tests.fixtures import PATIENCE
from tests.transport.upstreams import (
    HTTP,
    OTHER,
    REPLY,
    Make,
    answer,
    ask,
    chunked,
    no_reply,
)

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
    "an odd cookie": (answer(b"{}", b"Set-Cookie: a=b; Max-Age=" + b"9" * 400), b"{}"),
    "no gzip needed": (answer(b"", b"Content-Encoding: gzip"), b""),
    "100 first": (b"HTTP/1.1 100 Continue\r\n\r\n" + REPLY, b"{}"),
    "lines that end in LF": (REPLY.replace(b"\r\n", b"\n"), b"{}"),
    "blank after the chunk size": (
        HTTP + b"Transfer-Encoding: chunked\r\n\r\n2 \r\n{}\r\n0\r\n\r\n",
        b"{}",
    ),
}


@pytest.mark.parametrize(("reply", "body"), WHOLE.values(), ids=WHOLE)
def test_whole_replies(client_of: Make, reply: bytes, body: bytes) -> None:
    """A whole reply is read to its end, and not beyond.

    The same connection then has the next one.
    """
    client = client_of([reply, OTHER])
    assert [ask(client).body for _ in range(2)] == [body, b"[1]"]


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_a_reply_that_ends_with_the_connection(client_of: Make, version: bytes) -> None:
    """A reply that doesn't say how long it is ends with its connection."""
    reply = b"HTTP/" + version + b" 200 OK\r\n\r\n{}"
    client = client_of([reply], [OTHER])
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
    client_of: Make, reply: bytes, late: bytes
) -> None:
    """After anything odd, the connection isn't used again.

    What still comes would be taken for the next reply.
    """
    asked = threading.Event()

    def send(sock: socket.socket) -> None:
        sock.sendall(reply)
        asked.wait(PATIENCE)
        with contextlib.suppress(OSError):
            sock.sendall(late)

    client = client_of([send], [OTHER])
    assert ask(client).status != 0
    asked.set()
    assert ask(client).body == b"[1]"


@pytest.mark.parametrize("size", [MAX_BODY, MAX_BODY + 1])
@pytest.mark.parametrize("framing", ["length", "chunks", "gzip"])
def test_the_largest_reply(client_of: Make, framing: str, size: int) -> None:
    """A reply may have 8 MiB, unpacked; of a longer one, not much more is read."""
    body = b" " * size
    pieces = [body[start : start + 60_000] for start in range(0, size, 60_000)]
    replies = {
        "length": answer(body),
        "chunks": chunked(*pieces),
        "gzip": answer(gzip.compress(body, 1), b"Content-Encoding: gzip"),
    }
    most = MAX_BODY if size == MAX_BODY else MAX_BODY + 2**16
    read = len(ask(client_of([replies[framing]])).body)
    assert size <= read <= most


def test_gzip_bomb(client_of: Make) -> None:
    """Not much more than 8 MiB are unpacked of what 64 KiB of gzip hold."""
    bomb = gzip.compress(b"x" * 60_000_000)
    client = client_of([answer(bomb, b"Content-Encoding: gzip")])
    tracemalloc.start()
    try:
        assert MAX_BODY < len(ask(client).body) <= MAX_BODY + 2**16
        assert tracemalloc.get_traced_memory()[1] < 2 * MAX_BODY
    finally:
        tracemalloc.stop()


ENDLESS = {
    "status line": (b"HTTP/1.1 200 ", b"a"),
    "chunk size": (HTTP + b"Transfer-Encoding: chunked\r\n\r\n1;", b"a"),
    "trailers": (
        HTTP + b"Transfer-Encoding: chunked\r\n\r\n0\r\n",
        b"X: " + b"y" * 9995 + b"\r\n",  # short lines would take seconds to read
    ),
}


@pytest.mark.parametrize(("begin", "more"), ENDLESS.values(), ids=ENDLESS)
def test_what_never_ends(client_of: Make, begin: bytes, more: bytes) -> None:
    """What surrounds a body is limited too, however fast it comes."""

    def send(sock: socket.socket) -> None:
        sock.sendall(begin)
        with contextlib.suppress(ConnectionError):
            while True:
                sock.sendall(more * (10_000 // len(more)))

    with no_reply(r"^sent an invalid answer$"):
        ask(client_of([send]))


LENGTHS = ["2, 2", "2, 3", "2 0", ",", "+2", "-2", "0_2"]
LENGTHS += ["2\r\nContent-Length: 2", "2\r\nContent-Length: 3"]
INVALID = {
    "no HTTP": b"hello\r\n\r\n",
    "zeros": b"\x00" * 100 + b"\r\n",
    "no status": b"HTTP/1.1 abc OK\r\n\r\n",
    "low status": b"HTTP/1.1 099 Low\r\n\r\n",
    "version": b"HTTP/9.9 200 OK\r\n\r\n",
    "long header": HTTP + b"X-Long: " + b"a" * 70_000 + b"\r\n\r\n",
    "many headers": HTTP + b"X-Many: 1\r\n" * 7000 + b"\r\n",
    "a negative chunk": HTTP + b"Transfer-Encoding: chunked\r\n\r\n-2\r\n{}",
    "no chunk": HTTP + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    "parameters out of order": answer(b"", b"Content-Type: multipart/a; b*0=a; b*=b"),
    "no charset": answer(b"", b"Content-Type: multipart/a; boundary*=undefined''%41"),
    "no gzip": answer(b"{}", b"Content-Encoding: gzip"),
    "zlib's form": answer(zlib.compress(b"{}"), b"Content-Encoding: gzip"),
    **{
        f"length {length!r}": HTTP + f"Content-Length: {length}\r\n\r\n{{}} ".encode()
        for length in LENGTHS
    },
}
NOT_WHOLE = {
    "nothing": b"",
    "cut": HTTP + b"Content-Length: 5\r\n\r\n{}",
    "cut chunk": HTTP + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{}",
}
BROKEN = INVALID | NOT_WHOLE


@pytest.mark.parametrize("name", BROKEN)
def test_no_reply(client_of: Make, name: str) -> None:
    """A reply that isn't HTTP, breaks off or can't be unpacked is a fault.

    Its connection isn't used again.
    """
    client = client_of([BROKEN[name]], [OTHER])
    why = "sent an invalid answer" if name in INVALID else "sent no whole answer"
    with no_reply(f"^{why}$"):
        ask(client)
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
    client_of: Make, caplog: pytest.LogCaptureFixture, reply: bytes
) -> None:
    """No part of a reply gets into the log, or into the reason that is given.

    This holds at any level of the log.
    """
    caplog.set_level(logging.DEBUG)
    client = client_of([reply])
    said = ""
    try:
        ask(client)
    except C42Error as error:
        said = f"{error} {error.trouble}"
    assert "SECRET" not in caplog.text + said
