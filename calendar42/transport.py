"""One GET, whole, within a deadline, over connections that are kept for the next one.

The time-outs of `requests` and urllib3 count anew for each read, so a byte now and then holds a caller for ever. They
also take an informational answer for the answer, and reuse a connection on which more has come. Since changing that
means overriding their internals, this uses sockets, and llhttp (httptools) to parse what comes. `requests` says which
proxy and which certificates the environment asks for; a proxy has to speak plain HTTP and to allow tunnels.

Redirects aren't followed, and neither cookies nor a `.netrc` are used: the token goes to one address.
"""

import contextlib
import errno
import http.client
import socket
import ssl
import time
import zlib
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

import httptools
import requests
from requests.utils import DEFAULT_CA_BUNDLE_PATH, select_proxy
from urllib3.util import wait_for_read

_CHUNK = 65536  # bytes
_MOST_AROUND = 65536  # bytes that may come besides the body: headers, informational answers, the framing of chunks
_LENGTHS = {"content-length", "transfer-encoding"}
_opener = ThreadPoolExecutor(64, thread_name_prefix="c42c-connect")


class Answer(NamedTuple):
    """What came back; `body` is at most one byte longer than the limit, and is longer if it was cut there."""

    status: int
    headers: Mapping[str, str]  # by names in lower case
    body: bytes


class Transport:
    """Sends GET requests below `base_url`, with `headers` and no others. Any thread may use it."""

    def __init__(self, *, base_url: str, headers: Mapping[str, str]) -> None:
        url = requests.Request("GET", base_url).prepare().url or ""
        environment = requests.Session().merge_environment_settings(url, {}, True, None, None)
        self._upstream = urlsplit(url)
        self._proxy = select_proxy(url, environment["proxies"]) or ""
        self._bundle = environment["verify"]
        sent = {"Host": self._upstream.netloc, **headers, "Accept-Encoding": "gzip"}
        self._headers = "".join(f"{name}: {value}\r\n" for name, value in sent.items())
        self._idle = deque[socket.socket]()
        self._is_closed = False

    def get(self, path: str, *, deadline: float, limit: int) -> Answer:
        """Get `path` by `deadline` (of `time.monotonic`), with `limit` bytes of body and one more at most.

        Raises TimeoutError, ConnectionError if no whole answer comes for another reason, and OSError with EMFILE or
        ENFILE if there is no file descriptor left here.
        """
        target = self._upstream.path + quote(path, safe="/?=&,")
        try:
            return self._exchange(f"GET {target} HTTP/1.1\r\n{self._headers}\r\n".encode("latin-1"), deadline, limit)
        except (OSError, ValueError) as error:
            if isinstance(error, socket.gaierror):
                socket.socket().close()  # a look-up doesn't say that there is no file descriptor left, but this does
            if isinstance(error, TimeoutError) or getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE):
                raise
            raise ConnectionError(reason(error)) from error

    def close(self) -> None:
        """Close the connections that aren't in use, and the others after that."""
        self._is_closed = True
        while self._idle:
            self._idle.pop().close()

    def _exchange(self, request: bytes, deadline: float, limit: int) -> Answer:
        while True:
            kept, reply = self._kept(), _Reply(limit)
            sock = kept or self._connect(deadline)
            try:
                sock.settimeout(_left(deadline))
                sock.sendall(request)
                return reply.read(sock, deadline)
            except ConnectionError:
                if not kept or reply.received:  # else it was closed at the other end just before the request came
                    raise
            finally:
                if reply.is_last or self._is_closed:
                    sock.close()
                else:
                    self._idle.append(sock)

    def _kept(self) -> socket.socket | None:
        """Return a kept connection on which nothing has come since: neither its end nor what wasn't asked for."""
        with contextlib.suppress(IndexError):
            while wait_for_read(sock := self._idle.pop(), timeout=0):
                sock.close()
            return sock
        return None

    def _connect(self, deadline: float) -> socket.socket:
        """Connect in another thread: looking up a name takes no time-out, and shaking hands takes one per read."""
        connecting = _opener.submit(self._open, _left(deadline))
        try:
            return connecting.result(_left(deadline))
        except TimeoutError:
            if not connecting.cancel():
                connecting.add_done_callback(_close)
            raise

    def _open(self, timeout: float) -> socket.socket:
        server = urlsplit("//" + self._proxy.rpartition("//")[2]) if self._proxy else self._upstream
        port = server.port or (443 if server.scheme == "https" else 80)
        is_tls = self._upstream.scheme == "https"
        kind = partial(http.client.HTTPSConnection, context=self._tls) if is_tls else http.client.HTTPConnection
        connection = kind(server.hostname or "", port, timeout=timeout)
        if self._proxy:
            headers = requests.adapters.HTTPAdapter().proxy_headers(self._proxy)
            connection.set_tunnel(self._upstream.netloc, headers=headers)
        connection.connect()
        sock: socket.socket = connection.sock
        return sock

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        bundle = Path(self._bundle if isinstance(self._bundle, str) else DEFAULT_CA_BUNDLE_PATH)
        try:
            where: dict[str, Any] = {"capath" if bundle.is_dir() else "cafile": bundle}
            return ssl.create_default_context(**where)
        except OSError as error:
            raise ConnectionError(f"{bundle}: {error.strerror}") from None


class _Reply:
    """An answer as it comes. httptools calls the `on_…` methods."""

    def __init__(self, limit: int) -> None:
        self.received = 0  # bytes
        self.is_last = True  # on its connection
        self._limit = limit
        self._status = 0
        self._headers: dict[str, str] = {}
        self._body = bytearray()
        self._is_whole = False
        self._parser = httptools.HttpResponseParser(self)

    def read(self, sock: socket.socket, deadline: float) -> Answer:
        """Return the answer, unpacked."""
        while not self._is_whole and len(self._body) <= self._limit:
            sock.settimeout(_left(deadline))
            data = sock.recv(_CHUNK)
            self._parse(data)
            if not data:  # the end of the connection, and of an answer that doesn't say how long it is
                self._is_whole = bool(self._status) and not self._headers.keys() & _LENGTHS
            if not self._is_whole and (not data or self.received - len(self._body) > _MOST_AROUND):
                raise ConnectionError("sent no whole answer")
        body = bytes(self._body[: self._limit + 1])
        if body and self._headers.get("content-encoding", "").lower() in ("gzip", "x-gzip"):
            try:
                body = zlib.decompressobj(16 + zlib.MAX_WBITS).decompress(body, self._limit + 1)
            except zlib.error:
                raise ConnectionError("sent broken gzip") from None
        return Answer(self._status, self._headers, body)

    def _parse(self, data: bytes) -> None:
        self.received += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.is_last = True
            if not self._is_whole:
                raise ConnectionError("sent no HTTP") from None

    def on_message_begin(self) -> None:
        if self._is_whole:
            raise ValueError  # more than the answer: don't parse it

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self._status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        """End the answer, unless it is informational (RFC 9110, 15.2). A 101 is not: what follows isn't HTTP."""
        if self._status >= 200 or self._status == 101:
            self._is_whole = True
            self.is_last = not self._parser.should_keep_alive()
        else:
            self._status = 0
            self._headers.clear()


def reason(error: BaseException) -> str:
    """Say in a few words why a call failed, and not a word of what came: it may name people."""
    cause = error
    while earlier := cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__):
        cause = earlier
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"certificate: {cause.verify_message}"
    return cause.strerror or str(cause) or "timed out" if isinstance(cause, OSError) else type(cause).__name__


def _left(deadline: float) -> float:
    """Return the seconds until `deadline`; raise TimeoutError if there are none."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _close(late: Future[socket.socket]) -> None:
    if not late.exception():
        late.result().close()
