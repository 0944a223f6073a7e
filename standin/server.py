"""The stand-in's sockets.

The server counts what arrives, asks `api` for the right answer, and lets a rule spoil
it.

`Standin._lock` guards its catalogue, rules and counts; it is never held while waiting
or sending. Only the accepting thread uses the server's `connections`, and `stop` after
it has ended.
"""

import contextlib
import socket
import socketserver
import ssl
import struct
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from http.client import responses
from http.server import BaseHTTPRequestHandler
from typing import Any, Self

from standin.api import API_ROOT, Answer, Call, reply
from standin.data import Catalogue, Names
from standin.rules import Gate, Rule

_NO_RULE = Rule()
_REQUESTS_KEPT = 10_000  # so that a demo that runs for weeks does not grow
_MIB_OF_BLANKS = b"100000\r\n%b\r\n" % (b" " * 0x100000)  # one chunk of a chunked body


class Standin:
    """A Calendar42 on 127.0.0.1 from `with` or `start()` until `stop()`.

    Port 0 takes any free one. With `tls`, the context of a server, it speaks HTTPS.
    """

    def __init__(
        self,
        token: str = "demo-token",  # noqa: S107 - a demo has no secret
        port: int = 0,
        *,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.token = token
        self.stopping = threading.Event()
        self._lock = threading.Lock()
        self._catalogue = Catalogue()
        self._rules: list[Rule] = []  # newest first
        self._gates: list[Gate] = []
        self._counts: Counter[tuple[str | None, str | None]] = (
            Counter()
        )  # by endpoint, event id; None: any
        self._under_way: set[Call] = set()
        self.requests: list[
            tuple[str, str, dict[str, str]]
        ] = []  # endpoint, path with query, headers
        # Requests under way at once, from arrival to the last piece of the answer.
        self.most_at_once = 0
        self._server = _Server(self, port, tls)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.02,), daemon=True
        )
        scheme = "https" if tls else "http"
        address = f"127.0.0.1:{self._server.server_address[1]}"
        self.base_url = f"{scheme}://{address}{API_ROOT}"

    def start(self) -> Self:
        """Begin to accept; the port is taken since the constructor."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """End every connection, hung ones included.

        When this returns, no thread is left.
        """
        self.stopping.set()
        for gate in self._gates:
            gate.open()
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.end_connections()
        self._server.server_close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def calls(self, endpoint: str | None = None, event_id: str | None = None) -> int:
        """Return how many requests have arrived, failed ones included; None: any."""
        if endpoint not in (None, "events", "event-subscriptions"):
            raise ValueError(
                f"no endpoint {endpoint!r}"
            )  # rather than 0, which a test might hope for
        with self._lock:
            return self._counts[endpoint, event_id]

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return sum(thread.is_alive() for thread in self._server.connections)

    def reset_counts(self) -> None:
        """Forget all requests but those under way."""
        with self._lock:
            self._counts.clear()
            self.requests = []
            self.most_at_once = len(self._under_way)

    def add_event(
        self,
        event_id: str,
        *,
        title: str | None = "Added event",
        names: Names = (),
        **event_fields: Any,
    ) -> None:
        """Add an event with a row for each name, or replace it.

        The id may have any shape.
        """
        with self._lock:
            self._catalogue.add(event_id, title, names, **event_fields)

    def set_title(self, event_id: str, title: str | None) -> None:
        """Give a known event another title."""
        with self._lock:
            self._catalogue.events[event_id]["title"] = title

    def rule(
        self,
        endpoint: str | None = None,
        event_id: str | None = None,
        times: int | None = None,
        **fault: Any,
    ) -> Rule:
        """Spoil the answers to matching requests from now on, as `Rule` says.

        The newest rule goes first.
        """
        rule = Rule(endpoint, event_id, times, **fault)
        with self._lock:
            self._rules.insert(0, rule)
            if rule.gate:
                self._gates.append(rule.gate)
        return rule

    def clear_rules(self) -> None:
        """Remove all rules; requests that one has caught stay caught."""
        with self._lock:
            self._rules.clear()

    def arrive(self, call: Call) -> Rule:
        """Count a request, and return the rule that is for it."""
        with self._lock:
            for endpoint in {None, call.endpoint}:
                self._counts.update(
                    (endpoint, event_id) for event_id in (None, *call.named_ids)
                )
            self.requests.append((call.endpoint, call.target, call.headers))
            del self.requests[:-_REQUESTS_KEPT]
            self._under_way.add(call)
            self.most_at_once = max(self.most_at_once, len(self._under_way))
            rule = next((rule for rule in self._rules if rule.matches(call)), _NO_RULE)
            if rule.times is not None:
                rule.times -= 1
            return rule

    def leave(self, call: Call) -> None:
        """Count a request as no longer under way."""
        with self._lock:
            self._under_way.discard(call)

    def right_answer(self, call: Call) -> Answer:
        """Return the answer to a request that no rule applies to."""
        with self._lock:
            return reply(call, self._catalogue, self.token)


# Not http.server's: that one looks up its own host name on binding, which may ask a
# name server.
class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    request_queue_size = 1024

    def __init__(self, standin: Standin, port: int, tls: ssl.SSLContext | None) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.standin = standin
        self._tls = tls
        self.connections: dict[threading.Thread, socket.socket] = {}

    def get_request(self) -> tuple[socket.socket, Any]:
        sock, address = super().get_request()
        if self._tls:
            # The first read shakes hands, in the connection's own thread.
            sock = self._tls.wrap_socket(
                sock, server_side=True, do_handshake_on_connect=False
            )
        return sock, address

    def process_request(self, request: Any, client_address: Any) -> None:
        # The base class forgets daemon threads, and stop has to join them.
        thread = threading.Thread(
            target=self.process_request_thread, args=(request, client_address)
        )
        thread.daemon = True
        thread.start()
        alive = {
            thread: sock
            for thread, sock in self.connections.items()
            if thread.is_alive()
        }
        self.connections = {**alive, thread: request}

    def end_connections(self) -> None:
        for thread, sock in self.connections.items():
            with contextlib.suppress(OSError):  # most are closed by now
                sock.shutdown(socket.SHUT_RDWR)
            thread.join()

    def handle_error(self, request: Any, client_address: Any) -> None:
        # Clients that disconnect, and stopping, cause OSErrors; anything else is a bug
        # in the stand-in.
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: Any) -> None:
        """Stay quiet: `Standin.requests` has it all."""

    def do_GET(self) -> None:
        call = Call(
            self.command,
            self.path,
            {name.title(): value for name, value in self.headers.items()},
        )
        self.rfile.read(
            int(self.headers.get("Content-Length", 0))
        )  # or the body would be read as the next request
        rule = self.server.standin.arrive(call)
        try:
            if rule.gate:
                rule.gate.stand()
            self._wait(rule.delay)
            if rule.hang:
                self._wait(None)
            if rule.reset:
                self._reset()
            else:
                self._send(call, rule)
        finally:
            self.server.standin.leave(call)

    do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_GET

    def _wait(self, seconds: float | None) -> None:
        if self.server.standin.stopping.wait(seconds):
            raise ConnectionAbortedError("the stand-in is stopping")

    def _reset(self) -> None:
        self.close_connection = True
        self.connection.setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
        # It holds the socket open, and the base class would send a FIN first.
        self.rfile.close()
        self.connection.close()

    def _send(self, call: Call, rule: Rule) -> None:
        pieces = self._pieces(call, rule)
        piece = next(pieces)
        for following in pieces:
            self.wfile.write(piece)
            piece = following
        # Before the last piece: the client's next request may arrive before this thread
        # runs again.
        self.server.standin.leave(call)
        self.wfile.write(piece)

    def _pieces(self, call: Call, rule: Rule) -> Iterator[bytes]:
        answer = rule.change(self.server.standin.right_answer(call), call)
        body, mebibytes = answer.body, rule.body if isinstance(rule.body, int) else 0
        framing = (
            {"Transfer-Encoding": "chunked"}
            if mebibytes
            else {"Content-Length": str(len(body))}
        )
        headers = {
            "Content-Type": rule.content_type,
            **framing,
            **answer.headers,
            **(rule.headers or {}),
        }
        if rule.informational:
            phrase = responses.get(rule.informational, "Unknown")
            yield f"HTTP/1.1 {rule.informational} {phrase}\r\n\r\n".encode()
        head = f"HTTP/1.1 {answer.status} {responses.get(answer.status, 'Unknown')}\r\n"
        head += "".join(
            f"{name}: {value}\r\n"
            for name, value in headers.items()
            if value is not None
        )
        yield from self._paced(f"{head}\r\n".encode(), rule.trickle_headers)
        if call.method == "HEAD":
            return
        for _ in range(mebibytes):
            yield _MIB_OF_BLANKS
        if mebibytes:
            body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        half = body[: len(body) // 2]
        if rule.hang_halfway or rule.reset_halfway:
            yield from (half, b"")  # the second has the first one sent
            self._wait(None) if rule.hang_halfway else self._reset()
            return
        if rule.truncate:
            self.close_connection = True
            body = half
        yield from self._paced(
            body, rule.trickle_headers if rule.trickle is None else rule.trickle
        )

    def _paced(self, data: bytes, pause: float | None) -> Iterator[bytes]:
        if pause is None:
            yield data
            return
        for byte in data:
            yield bytes([byte])
            self._wait(pause)
