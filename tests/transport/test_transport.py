"""One call over a real socket: proxies, and which connections are used again."""

import contextlib
import random
import socket
import ssl
import threading
import time

import pytest

from c42client import Client
from calendar42 import wire
from calendar42.calls import Attempt, CallRecord, Pause
from calendar42.errors import Paused, TimedOut
from tests.client.callers import failure
from tests.fixtures import PATIENCE, at_once
from tests.transport.upstreams import (
    OTHER,
    REPLY,
    Fickle,
    Make,
    Proxied,
    Scripted,
    Trickle,
    ask,
    no_reply,
)

# Proxies


@pytest.mark.parametrize("proxy", ["http://{}", "{}", "http://me:%3Fsecret@{}"])
def test_proxy(scripted: Scripted, make: Make, proxied: Proxied, proxy: str) -> None:
    """A call goes through the environment's proxy, with the proxy's credentials."""
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


def test_tunnel(
    scripted: Scripted,
    make: Make,
    proxied: Proxied,
    trusted: ssl.SSLContext,
) -> None:
    """TLS goes through a tunnel, so that the proxy sees no headers.

    The certificate must be the upstream's.
    """

    def shake_hands(sock: socket.socket) -> None:
        sock.sendall(b"HTTP/1.1 200\r\nVia: a proxy\r\n\r\n")
        with trusted.wrap_socket(sock, server_side=True) as secure:
            script.serve(secure, REPLY)

    script = scripted([shake_hands])
    proxied(script.base_url)
    assert ask(make("https://localhost/")).body == b"{}"
    assert script.requests[0].startswith(b"CONNECT localhost:443 HTTP/1.")
    assert b"x-sent" not in script.requests[0]
    assert script.requests[1].startswith(b"GET / HTTP/1.1\r\nHost: localhost\r\n")


def test_a_proxy_that_is_reached_over_tls(
    scripted: Scripted,
    make: Make,
    proxied: Proxied,
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
    proxied: Proxied,
    trusted: ssl.SSLContext,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """If the certificate at the end of a tunnel is another's, the call fails.

    Nothing is logged as a bug.
    """

    def shake_hands(sock: socket.socket) -> None:
        sock.sendall(b"HTTP/1.1 200\r\n\r\n")
        with contextlib.suppress(OSError):
            trusted.wrap_socket(sock, server_side=True).close()

    proxied(scripted([shake_hands]).base_url)
    with no_reply(r"^certificate: "):
        ask(make("https://upstream.invalid/"))
    assert not caplog.records


def test_no_tunnel(scripted: Scripted, make: Make, proxied: Proxied) -> None:
    """A proxy that refuses the tunnel is a fault, and gets no token."""
    script = scripted([b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n"])
    proxied(script.base_url)
    with no_reply(r"^the proxy refuses the tunnel$"):
        ask(make("https://upstream.invalid/"))
    assert b"x-sent" not in script.requests[0]


@pytest.mark.parametrize("drip", [b"", b"X: 1\r\n"])
def test_a_proxy_that_hangs(
    scripted: Scripted, make: Make, proxied: Proxied, drip: bytes
) -> None:
    """A proxy that sends no whole answer is let go, even if it goes on sending."""
    first = b"HTTP/1.1 200 OK\r\n" if drip else b""
    proxy = Trickle(first, [drip] * 500)
    proxied(scripted([proxy]).base_url)
    with pytest.raises(TimedOut):
        ask(make("https://upstream.invalid/"), seconds=1)
    assert proxy.client_hung_up.wait(PATIENCE)


@pytest.mark.parametrize(
    "proxy",
    [
        "http:///x",
        "http://me:secret@127.0.0.1:99999",
        "foo://127.0.0.1:1",
        "http://u:s3cret@",
    ],
)
def test_a_proxy_that_is_none(make: Make, proxied: Proxied, proxy: str) -> None:
    """An invalid proxy address in the environment is a fault, and isn't shown."""
    proxied(proxy)
    with no_reply(r"^the proxy that the environment names can't be used$"):
        ask(make("http://upstream.invalid/"))


def test_no_proxy(client_of: Make, proxied: Proxied) -> None:
    """An upstream that NO_PROXY names is called directly."""
    proxied("http://127.0.0.1:1")
    assert ask(client_of([REPLY])).body == b"{}"


# Which connections are used again


def test_a_kept_connection_that_was_closed(scripted: Scripted, make: Make) -> None:
    """A kept connection that the upstream has closed is replaced by a new one.

    The request is sent once.
    """
    script = scripted([REPLY], [REPLY, OTHER])
    client = make(script.base_url)
    assert ask(client).body == b"{}"
    assert script.ended.acquire(timeout=PATIENCE)
    assert [ask(client).body for _ in range(2)] == [b"{}", b"[1]"]
    assert len(script.requests) == 3


def troubles(calls: list[CallRecord]) -> list[tuple[int, bool]]:
    """Return status, and whether there was trouble, of the calls for events."""
    events = [call for call in calls if call.endpoint == "events"]
    return [(call.status, bool(call.trouble)) for call in events]


def test_a_kept_connection_that_closes_upon_the_request(make: Make) -> None:
    """A call whose kept connection closes without a byte is made again, over a new one.

    Both are counted and timed.
    """
    calls: list[CallRecord] = []
    with Fickle(lambda is_first: is_first) as upstream:
        client = make(upstream.base_url, on_call=calls.append)
        assert [failure(client).status for _ in range(5)] == [404] * 5
        client.calls.close(wait=True)
    assert len(calls) == len(upstream.requests)
    repeated = [call for call in calls if call.trouble]
    assert len(repeated) >= 4
    assert all(call.status == 0 and call.seconds > 0 for call in repeated)


def call(client: Client) -> None:
    """Make one call as loads do, but alone: it goes over a kept connection."""
    attempt = Attempt(time.monotonic() + PATIENCE)
    client.calls.begin("events", "E/", attempt, lambda data: None).wait()


def test_a_call_is_repeated_once(make: Make) -> None:
    """If the new connection closes too, that is a fault, without a third call.

    This holds for any number of kept connections.
    """
    calls: list[CallRecord] = []
    sound = threading.Event()
    sound.set()
    together = threading.Barrier(8)  # so that each call has a connection of its own

    def answers(is_first: bool) -> bool:
        if sound.is_set():
            together.wait(PATIENCE)
        return sound.is_set()

    with Fickle(answers) as upstream:
        client = make(upstream.base_url, on_call=calls.append)
        at_once(*[lambda: ask(client)] * 8)
        calls.clear()
        sound.clear()
        with no_reply(r"^sent no whole answer$"):
            call(client)
        client.calls.close(wait=True)
    assert troubles(calls) == [(0, True), (0, True)]


def test_no_call_is_repeated_in_a_pause(make: Make) -> None:
    """If a pause has begun when a kept connection closes, the call isn't repeated."""
    pause = Pause(6)

    def answers(is_first: bool) -> bool:
        if not is_first:
            pause.begin("60")
        return is_first

    with Fickle(answers) as upstream:
        client = make(upstream.base_url, pause=pause)
        assert ask(client).status == 404
        with pytest.raises(Paused):
            call(client)
        client.calls.close(wait=True)
    assert len(upstream.requests) == 2


def test_a_new_connection_that_closes(make: Make) -> None:
    """A new connection that closes without an answer is a fault: no second try."""
    calls: list[CallRecord] = []
    with Fickle(lambda is_first: False) as upstream:
        client = make(upstream.base_url, on_call=calls.append)
        assert failure(client).status == 502
        client.calls.close(wait=True)
    assert troubles(calls) == [(0, True)]


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "TLS"])
def test_an_upstream_that_closes_at_random(
    make: Make, trusted: ssl.SSLContext, secure: bool
) -> None:
    """An upstream that closes kept connections whenever it likes causes no fault."""
    rng = random.Random(42)

    def keeps_answering(is_first: bool) -> bool:
        return is_first or rng.random() < 0.5

    with Fickle(keeps_answering, trusted if secure else None) as upstream:
        client = make(upstream.base_url)

        def some_loads() -> set[int]:
            return {failure(client).status for _ in range(25)}

        assert at_once(*[some_loads] * 6) == [{404}] * 6
        client.calls.close(wait=True)


def test_an_old_connection(
    scripted: Scripted, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that is older than a minute isn't used again.

    The name may have another address by now.
    """
    script = scripted([REPLY, REPLY, REPLY], [OTHER])
    client = make(script.base_url)
    assert [ask(client).body for _ in range(2)] == [b"{}", b"{}"]
    monkeypatch.setattr(wire, "MAX_AGE", 0.0)
    assert ask(client).body == b"[1]"


def test_close(scripted: Scripted, make: Make) -> None:
    """Closing closes kept connections at once.

    Those of active calls are closed after their replies.
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
