"""What the tests of the transport share: upstreams that follow a script."""

import contextlib
import re
import socket
import socketserver
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from c42client import Client
from calendar42.errors import C42Error
from calendar42.replies import Reply
from tests.client.callers import Make as Make
from tests.fixtures import PATIENCE, until

HTTP = b"HTTP/1.1 200 OK\r\n"
REPLY = HTTP + b"Content-Length: 2\r\n\r\n{}"
OTHER = HTTP + b"Content-Length: 3\r\n\r\n[1]"

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
        # Connections that the clients know are over
        self.ended = threading.Semaphore(0)
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


Scripted = Callable[..., Script]  # what the fixture `scripted` gives
Proxied = Callable[[str], None]  # what the fixture `proxied` gives


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


def answer(body: bytes, *headers: bytes, status: bytes = b"200 OK") -> bytes:
    """Return a reply as it is on the wire."""
    return b"\r\n".join(
        [b"HTTP/1.1 " + status, b"Content-Length: %d" % len(body), *headers, b"", body]
    )


def chunked(*chunks: bytes, trailer: bytes = b"") -> bytes:
    """Return a reply in chunks."""
    framed = [b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks]
    body = b"".join(framed) + b"0\r\n" + trailer
    return HTTP + b"Transfer-Encoding: chunked\r\n\r\n" + body + b"\r\n"


class Trickle:
    """Sends what comes first, and then piece by piece until the client hangs up."""

    def __init__(self, first: bytes, pieces: Iterable[bytes]) -> None:
        self.client_hung_up = threading.Event()
        self._first = first
        self._pieces = pieces

    def __call__(self, sock: socket.socket) -> None:
        sock.sendall(self._first)
        sock.settimeout(0.02)
        with contextlib.suppress(ConnectionError):
            for piece in self._pieces:
                with contextlib.suppress(TimeoutError):
                    while sock.recv(65536):
                        pass
                    break
                sock.sendall(piece)
            else:
                return
        self.client_hung_up.set()


class Fickle(socketserver.ThreadingTCPServer):
    """Answers each request with 404, or closes the connection instead.

    `answers` is told whether the request is the first on its connection. Close clients
    before this ends.
    """

    request_queue_size = 512

    def __init__(
        self, answers: Callable[[bool], bool], tls: ssl.SSLContext | None = None
    ) -> None:
        super().__init__(("127.0.0.1", 0), socketserver.BaseRequestHandler)
        self.requests: list[bytes] = []
        self._answers = answers
        self._tls = tls
        self._sockets: list[socket.socket] = []
        scheme = "https" if tls else "http"
        self.base_url = f"{scheme}://localhost:{self.server_address[1]}/"

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(0.02,)).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        self.server_close()

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection; the first read shakes hands."""
        sock, address = super().get_request()
        if self._tls:
            sock = self._tls.wrap_socket(
                sock, server_side=True, do_handshake_on_connect=False
            )
        self._sockets.append(sock)
        return sock, address

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Serve one connection."""
        is_first = True
        with contextlib.suppress(OSError):
            while data := request.recv(65536):
                self.requests.append(data)
                if not self._answers(is_first):
                    return
                request.sendall(answer(b"{}", status=b"404 Not Found"))
                is_first = False


def reply_once(listener: socket.socket) -> Any:
    """Reply to the request of one connection."""
    sock, _ = listener.accept()
    with sock:
        sock.recv(65536)
        sock.sendall(REPLY)


@contextlib.contextmanager
def accepting(serve: Callable[[socket.socket], object]) -> Iterator[int]:
    """Have a thread serve one connection; yield the port."""

    def accept() -> None:
        with listener.accept()[0] as sock:
            serve(sock)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=accept)
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


def server_side(certificate: Path) -> ssl.SSLContext:
    """Return a server's side of TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "fullchain.pem", certificate / "privkey.pem")
    return context
