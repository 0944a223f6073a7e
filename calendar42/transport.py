"""One GET, whole, within a deadline.

`requests` says which URL, proxy and certificates to use. The calls go straight to the connection pool of its adapter,
since what `requests` adds to each of them costs 80 µs of CPU. Redirects aren't followed, no cookies are kept, and only
the given headers are sent: the token goes to one address, and a `.netrc` has no say.

Time-outs of `requests` and urllib3 count anew for each read. Here connecting and every read of an answer get what is
left until the deadline. A kept-alive connection that turns out to be closed is replaced. One on which something is
waiting that wasn't asked for is dropped, as it would be taken for the next answer.
"""

import contextlib
import errno
import http.client
import io
import logging
import socket
import ssl
import time
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, NamedTuple

import requests
import urllib3
from requests.adapters import HTTPAdapter

_CHUNK = 65536  # bytes
_MOST_INTERIM = 20  # informational answers to one call
_opener = ThreadPoolExecutor(64, thread_name_prefix="c42c-connect")

# urllib3 logs malformed headers, which may name people.
logging.getLogger("urllib3.connection").addFilter(lambda record: False)


class Answer(NamedTuple):
    """What came back; `body` is at most one byte longer than the limit, and is longer where it was cut there."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Transport:
    """Sends GET requests below `base_url`, with `headers`, over at most `connections` kept-alive connections."""

    def __init__(self, *, base_url: str, headers: Mapping[str, str], connections: int) -> None:
        self._base = requests.Request("GET", base_url).prepare()
        self._headers = {**headers, "Accept-Encoding": "gzip"}
        self._environment: Any = requests.Session().merge_environment_settings(base_url, {}, True, None, None)
        self._adapter: Any = HTTPAdapter(pool_connections=1, pool_maxsize=connections)

    def get(self, path: str, *, deadline: float, limit: int) -> Answer:
        """Get `path`, by `deadline` (of `time.monotonic`), with `limit` bytes of body and one more at most.

        Raises TimeoutError, ConnectionError if no whole answer comes for another reason, and OSError with EMFILE or
        ENFILE if there is no file descriptor left here.
        """
        try:
            with contextlib.closing(self._send(path, deadline)) as response:
                return Answer(response.status, response.headers, _body(response, limit))
        except (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError, ValueError) as error:
            cause = _cause(error)
            if isinstance(cause, OSError) and cause.errno in (errno.EMFILE, errno.ENFILE):
                raise OSError(cause.errno, cause.strerror) from error
            if isinstance(cause, TimeoutError) or time.monotonic() >= deadline:
                raise TimeoutError from error
            raise ConnectionError(reason(error)) from error

    def close(self) -> None:
        """Close the connections that aren't in use."""
        self._adapter.close()

    def _send(self, path: str, deadline: float) -> Any:
        pool, base_url = self._pool
        while (left := deadline - time.monotonic()) > 0:
            with contextlib.suppress(_Stale):
                return pool.urlopen(
                    "GET",
                    base_url + path,
                    headers=self._headers,
                    timeout=urllib3.Timeout(total=left),
                    assert_same_host=False,
                    preload_content=False,
                    redirect=False,
                    retries=False,
                )
        raise TimeoutError

    @cached_property
    def _pool(self) -> tuple[Any, str]:
        """The connections, and the base URL as it is written in requests: whole if they go to a proxy."""
        proxies, verify, cert = (self._environment[name] for name in ("proxies", "verify", "cert"))
        pool = self._adapter.get_connection_with_tls_context(self._base, verify, proxies, cert)
        self._adapter.cert_verify(pool, self._base.url, verify, cert)
        pool.ConnectionCls = _TLSConnection if pool.scheme == "https" else _Connection
        return pool, self._adapter.request_url(self._base, proxies)


def reason(error: BaseException) -> str:
    """Say in a few words why a call failed, and not a word of what came: it may name people."""
    cause = _cause(error)
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"certificate: {cause.verify_message}"
    if isinstance(cause, TimeoutError):
        return "timed out"
    if isinstance(cause, _Unusable):
        return str(cause)
    return cause.strerror or str(cause) if isinstance(cause, OSError) else type(cause).__name__


def _cause(error: BaseException) -> BaseException:
    cause = error
    while not isinstance(cause, _Unusable) and (earlier := cause.__cause__ or cause.__context__):
        cause = earlier
    if isinstance(cause, socket.gaierror):  # as which a lack of file descriptors shows as well
        try:
            socket.socket().close()
        except OSError as lacking:
            return lacking
    return cause


def _body(response: Any, limit: int) -> bytes:
    """Read the body, and unpack no more of it than the limit and one byte."""
    coding = response.headers.get("Content-Encoding", "identity").lower()
    if coding not in ("identity", "gzip", "x-gzip"):
        raise _Unusable("sent an encoding that was not asked for")
    gzip = None if coding == "identity" else zlib.decompressobj(16 + zlib.MAX_WBITS)
    body, whole = bytearray(), True
    while len(body) <= limit and not response.closed and (chunk := response.read(_CHUNK, decode_content=False)):
        try:
            body += gzip.decompress(chunk, limit + 1 - len(body)) if gzip else chunk
        except zlib.error:
            raise _Unusable("sent broken gzip") from None
        whole = not gzip or (gzip.eof and not gzip.unused_data)
    if not whole and len(body) <= limit:
        raise _Unusable("sent broken gzip")
    return bytes(body[: limit + 1])


class _Unusable(http.client.HTTPException):
    """What came is no answer; the text says why, and quotes nothing."""


class _Stale(Exception):
    """A connection that was used before was closed by the other side before it answered."""


class _Socket(io.RawIOBase):
    """Reads from a socket until the deadline, or until the answer has `ended`."""

    ended = False

    def __init__(self, raw: io.RawIOBase, sock: socket.socket, deadline: float) -> None:
        self._raw = raw
        self.sock = sock
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if self.ended:
            return 0
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self.sock.settimeout(left)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Reader(io.BufferedReader):
    raw: _Socket

    def close(self) -> None:
        """Shut the connection if more than the answer was read; urllib3 doesn't use it again then."""
        if not self.closed:
            self.raw.ended = True
            if self.peek(1):
                with contextlib.suppress(OSError):  # the other side was quicker
                    self.raw.sock.shutdown(socket.SHUT_RDWR)
        super().close()


class _Response(http.client.HTTPResponse):
    """urllib3 has just set the socket's time-out to what is left of the total: the deadline of all further reads."""

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        deadline = time.monotonic() + (sock.gettimeout() or 0)
        self.fp: Any = _Reader(_Socket(self.fp.detach(), sock, deadline), _CHUNK)

    def begin(self, **options: Any) -> None:
        """Skip informational answers (RFC 9110, 15.2), of which http.client skips only 100."""
        for _ in range(_MOST_INTERIM):
            self.headers: Any = None  # or http.client takes what it has for the answer
            super().begin(**options)
            if self.status >= http.HTTPStatus.OK:
                return
            if self.status == http.HTTPStatus.SWITCHING_PROTOCOLS:
                break
        raise _Unusable(f"answered {self.status}")


class _Connection(urllib3.connection.HTTPConnection):
    response_class = _Response
    _used = False

    def connect(self) -> None:
        """Connect within the time-out, which a look-up ignores, and each address and each read would have anew."""
        self._used = False
        connected = _opener.submit(super().connect)
        try:
            connected.result(self.timeout)
        except TimeoutError:
            connected.cancel()
            connected.add_done_callback(lambda _: self.close())
            raise

    def getresponse(self) -> Any:
        try:
            response = super().getresponse()
        except ConnectionError as error:
            if self._used:
                raise _Stale from error
            raise
        self._used = True
        return response


class _TLSConnection(_Connection, urllib3.connection.HTTPSConnection):
    pass
