"""A call ends at its deadline, whatever hangs."""

import contextlib
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

from calendar42.calls import CallRecord
from calendar42.errors import Paused, TimedOut
from tests.client.callers import check_error, failure
from tests.fixtures import PATIENCE, Start, at_once, given_time, until
from tests.transport.upstreams import (
    HTTP,
    OTHER,
    Fickle,
    Make,
    Scripted,
    Trickle,
    accepting,
    ask,
    chunked,
    no_reply,
    reply_once,
)

SLOW = HTTP + b"Content-Length: 999\r\n\r\n" + b"x" * 999
SLOW_CHUNKS = chunked(*[b"x"] * 200)


@pytest.mark.parametrize(
    ("reply", "size"),
    [(SLOW, 0), (SLOW, 9), (SLOW, 25), (SLOW, 50), (SLOW_CHUNKS, 50)],
    ids=["at all", "status", "headers", "body", "chunks"],
)
def test_deadline(client_of: Make, reply: bytes, size: int) -> None:
    """A reply that trickles in is cut off at the deadline, whatever has arrived."""
    trickle = Trickle(reply[:size], [bytes([byte]) for byte in reply[size:]])
    client = client_of([trickle])
    with pytest.raises(TimedOut):
        ask(client, seconds=1)
    assert trickle.client_hung_up.wait(PATIENCE)


def test_a_reply_that_begins_late_and_hangs(client_of: Make) -> None:
    """Each read has what is left of the time."""

    def check(seconds: float) -> None:
        began = time.monotonic()
        let_go: list[float] = []

        def hang(sock: socket.socket) -> None:
            time.sleep(0.8 * seconds)
            sock.sendall(SLOW[:25])
            sock.recv(1)  # its end
            let_go.append(time.monotonic())

        client = client_of([hang])
        with pytest.raises(TimedOut):
            ask(client, seconds=seconds)
        until(lambda: let_go, patience=PATIENCE)
        assert let_go[0] - began < 1.5 * seconds

    given_time(check)


@pytest.mark.parametrize("seconds", [0, -1])
def test_no_time_left(make: Make, seconds: float) -> None:
    """After the deadline no connection is made, and no call is counted."""
    calls: list[CallRecord] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        error = failure(make(url, on_call=calls.append), seconds=seconds)
        check_error(error, TimedOut, endpoint="events", private=True)
        listener.settimeout(0)
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert calls == []


@pytest.mark.parametrize("drip", [b"", b"\x02"], ids=["hangs", "trickles"])
def test_a_handshake_ends_at_the_deadline(make: Make, drip: bytes) -> None:
    """A TLS handshake that trickles in is cut off at the deadline, not before.

    Its connection is closed.
    """
    # 16 KiB of handshake follow.
    trickle = Trickle(b"\x16\x03\x03\x40\x00", [drip] * 500)
    with accepting(trickle) as port:
        began = time.monotonic()
        with pytest.raises(TimedOut):
            ask(make(f"https://127.0.0.1:{port}/"), seconds=1)
        assert time.monotonic() - began >= 1
    assert trickle.client_hung_up.is_set()


def test_a_look_up_ends_at_the_deadline(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name server that doesn't answer delays no caller beyond the deadline.

    When it does answer, no late request is sent.
    """
    answered = threading.Event()
    looked_up = threading.Event()
    look_up = socket.getaddrinfo

    def slow(*args: Any, **kwargs: Any) -> Any:
        answered.wait(PATIENCE)
        looked_up.set()
        return look_up(*args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    with Fickle(lambda is_first: True) as upstream:
        client = make(upstream.base_url)
        assert isinstance(failure(client, seconds=1), TimedOut)
        answered.set()
        client.calls.close(wait=True)
    assert looked_up.is_set()
    assert upstream.requests == []


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
    """Connecting to one address takes a third of the time at most.

    So a name with a dead first address works.
    """
    with dropping() as port, socket.socket() as listener:
        # An earlier connection from this port may not be quite over.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen()
        addresses = [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"127.0.0.{last}", port))
            for last in (2, 1)
        ]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: addresses)
        client = make(f"http://two.invalid:{port}/")
        asking = partial(ask, client, seconds=6)
        assert at_once(asking, partial(reply_once, listener))[0].body == b"{}"


def test_an_address_that_drops_packets(make: Make) -> None:
    """An upstream that can't be connected to is unreachable, not late."""
    with (
        dropping() as port,
        no_reply(r"^timed out while connecting$"),
    ):
        ask(make(f"http://127.0.0.2:{port}/"), seconds=3)


@pytest.mark.parametrize(
    "body",
    [
        b"Content-Length: 99\r\n\r\n{}",
        b"Content-Length: 2\r\nContent-Encoding: gzip\r\n\r\n{}",
        b"Transfer-Encoding: chunked\r\n\r\nzz",
        b"Content-Length: 99999\r\n\r\n" + b"x" * 99_999,
    ],
    ids=["cut", "not gzip", "no chunk", "long"],
)
def test_a_429_with_a_broken_body(make: Make, scripted: Scripted, body: bytes) -> None:
    """A 429 is a pause, whatever becomes of its body: no event is asked for."""
    reply = b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 30\r\n" + body
    script = scripted([reply])
    client = make(script.base_url)
    assert ask(client).status == 429
    error = failure(client)
    assert isinstance(error, Paused)
    assert 15 < error.retry_after <= 30
    assert len(script.requests) == 1


@pytest.mark.parametrize(
    "length", [b"many", b"2, 2", b"2, 3", b"2\r\nContent-Length: 3"]
)
def test_a_429_whose_length_is_none(client_of: Make, length: bytes) -> None:
    """A 429 that doesn't say where its body ends is a pause.

    Nobody waits for the body.
    """
    reply = b"HTTP/1.1 429 Slow down\r\nContent-Length: " + length + b"\r\n\r\n{} "
    client = client_of([reply, OTHER], [OTHER])
    assert ask(client, seconds=10).status == 429
    assert 30 < client.calls.pause.left <= 60
    assert ask(client, seconds=10).body == b"[1]"


def test_a_429_begins_its_pause_before_its_body(client_of: Make) -> None:
    """A pause begins as soon as the status and the headers of a 429 are there."""
    ended = threading.Event()

    def hang(sock: socket.socket) -> None:
        sock.sendall(b"HTTP/1.1 429 Slow down\r\nRetry-After: 30\r\n")
        sock.sendall(b"Content-Length: 99\r\n\r\nx")
        ended.wait(PATIENCE)

    client = client_of([hang])
    pause = client.calls.pause
    with ThreadPoolExecutor() as pool:
        asking = pool.submit(ask, client)
        until(lambda: 15 < pause.left <= 30)
        assert not asking.done()
        ended.set()
        assert asking.result().status == 429


# A name server that hangs, when the service is to stop


@pytest.mark.parametrize("signals", [1, 2])
def test_stops_while_a_name_server_hangs(
    start: Start, hanging_names: str, signals: int
) -> None:
    """SIGTERM ends the service in time, even while a name is being looked up.

    A second one ends it at once.
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
