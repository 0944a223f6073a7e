"""What the tests of the transport share: upstreams that follow a script."""

import contextlib
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from c42client import Client
from calendar42.errors import C42Error
from calendar42.replies import Reply
from tests.client.callers import Make as Make
from tests.fixtures import PATIENCE, until

REPLY = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
OTHER = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n[1]"

TCP_STATE = (socket.IPPROTO_TCP, socket.TCP_INFO, 1)
FIN_WAIT1 = 4  # the end was sent, and the other side hasn't confirmed it

Sent = bytes | Callable[[socket.socket], None]


class Script:
    """Serves one connection after the other, a reply to each request.

    Then it closes the connection.
    """

    def __init__(
        self, connections: tuple[list[Sent], ...], tls: ssl.SSLContext | None = None
    ) -> None:
        self.requests: list[bytes] = []
        self.ended = threading.Semaphore(
            0
        )  # connections that the clients know are over
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
                    self._hang_up(secure)

    def _hang_up(self, sock: socket.socket) -> None:
        """End a connection, and return when the client's system has heard of it."""
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_WR)
            until(lambda: sock.getsockopt(*TCP_STATE)[0] != FIN_WAIT1)
        self.ended.release()

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

    def end(self) -> None:
        """Check that every connection was made."""
        self._thread.join(PATIENCE)
        self._listener.close()
        assert not self._thread.is_alive(), (
            "fewer connections came than are in the script"
        )


Scripted = Callable[..., Script]


def ask(client: Client, path: str = "", seconds: float = PATIENCE) -> Reply:
    """Get `path`, which takes exactly one request."""
    return client.calls.ask(path, time.monotonic() + seconds)


@contextlib.contextmanager
def no_reply(why: str) -> Iterator[None]:
    """Expect that a call gets no whole reply, and that the reason matches `why`."""
    with pytest.raises(C42Error) as raised:
        yield
    assert (raised.value.status, raised.value.upstream_status) == (502, 0)
    assert re.search(why, raised.value.trouble)


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


HTTP = b"HTTP/1.1 200 OK\r\n"


def reply_once(listener: socket.socket) -> None:
    """Reply to the request of one connection."""
    sock, _ = listener.accept()
    with sock:
        sock.recv(65536)
        sock.sendall(REPLY)


def server_side(certificate: Path) -> ssl.SSLContext:
    """Return a server's side of TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "fullchain.pem", certificate / "privkey.pem")
    return context
