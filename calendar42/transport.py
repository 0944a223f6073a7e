"""One GET, whole, within a deadline.

`requests` says which proxy and which certificates the environment asks for, and makes a pool of connections. The calls
go straight to that pool, because `requests` would make each cost half as much again.

The time-outs of `requests` and urllib3 start again with each read, http.client skips no informational answer but 100,
and urllib3 doesn't notice that more than the answer has been read. `_Connection` does better. Redirects aren't
followed, and neither cookies nor a `.netrc` are used: the token goes to one address.
"""

import contextlib
import errno
import http.client
import io
import logging
import socket
import ssl
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, NamedTuple, cast

import requests
import urllib3
from requests.adapters import HTTPAdapter

_CHUNK = 65536  # bytes
_ONCE: Any = {"retries": False, "redirect": False, "assert_same_host": False, "preload_content": False}
_MOST_INTERIM = 100  # informational answers to one call
_opener = ThreadPoolExecutor(64, thread_name_prefix="c42c-connect")

logging.getLogger("urllib3.connection").disabled = True  # it quotes malformed headers, which may name people


class Answer(NamedTuple):
    """What came back. A `body` over the limit is cut to one byte more than the limit."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Transport:
    """Sends GET requests below `base_url`, with the `token`, and keeps `connections` of them. Any thread may use it."""

    def __init__(self, *, base_url: str, token: str, connections: int = 1) -> None:
        self._base = requests.Request("GET", base_url).prepare()
        self._headers = {"Authorization": f"Token {token}", "Accept-Encoding": "gzip"}
        self._headers |= {"Accept": "application/json", "Content-Type": "application/json"}
        self._adapter = HTTPAdapter(pool_connections=1, pool_maxsize=connections)

    @cached_property
    def _pool(self) -> urllib3.HTTPConnectionPool:
        env = requests.Session().merge_environment_settings(str(self._base.url), {}, None, None, None)
        try:
            pool = self._adapter.get_connection_with_tls_context(self._base, env["verify"], env["proxies"])
        except ValueError:  # whose text may have the proxy's password
            raise ConnectionError("the proxy that the environment names can't be used") from None
        pool = cast(urllib3.HTTPConnectionPool, pool)
        pool.headers = self._headers
        pool.ConnectionCls = _TLSConnection if pool.scheme == "https" else _Connection
        return pool

    def get(self, path: str, *, deadline: float, limit: int) -> Answer:
        """Get `path` by `deadline` (of `time.monotonic`), with at most `limit` + 1 bytes of its body.

        Raises TimeoutError, ConnectionError if no whole answer comes for another reason, and OSError with EMFILE or
        ENFILE if there is no file descriptor left here.
        """
        try:
            while (left := deadline - time.monotonic()) > 0:
                with contextlib.suppress(_Stale):
                    return self._send(path, left, limit)
            raise TimeoutError
        except (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError, ValueError) as error:
            cause = _cause(error)
            if isinstance(cause, socket.gaierror):
                socket.socket().close()  # getaddrinfo hides EMFILE, and this raises it
            if isinstance(cause, OSError) and cause.errno in (errno.EMFILE, errno.ENFILE):
                raise OSError(cause.errno, cause.strerror) from error
            if isinstance(cause, TimeoutError) or time.monotonic() >= deadline:
                raise TimeoutError from error
            raise ConnectionError(reason(error)) from error

    def close(self) -> None:
        """Close all connections; those in use, after their answers."""
        with contextlib.suppress(ConnectionError):  # if the proxy can't be used, there are none
            self._pool.close()

    def _send(self, path: str, seconds: float, limit: int) -> Answer:
        pool, timeout = self._pool, urllib3.Timeout(total=seconds)
        is_forwarded = pool.proxy and pool.scheme == "http"  # by a proxy, which needs the whole address
        prefix = self._base.url if is_forwarded else self._base.path_url
        with contextlib.closing(pool.urlopen("GET", f"{prefix}{path}", timeout=timeout, **_ONCE)) as response:
            return Answer(response.status, response.headers, response.read(limit + 1, decode_content=True))


def reason(error: BaseException) -> str:
    """Say briefly why a call failed, and quote nothing of what came: it may name people."""
    cause = _cause(error)
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"certificate: {cause.verify_message}"
    if isinstance(cause, FileNotFoundError):
        return "certificate bundle: no such file"
    if isinstance(cause, OSError):
        return cause.strerror or str(cause) or "timed out"
    return "sent no whole answer" if isinstance(cause, http.client.IncompleteRead) else "sent an invalid answer"


def _cause(error: BaseException) -> BaseException:
    while earlier := error.__cause__ or (None if error.__suppress_context__ else error.__context__):
        error = earlier
    return error


class _Stale(Exception):
    """A kept connection was closed at the other end just before the request came."""


class _Stream(io.RawIOBase):
    """Reads from a socket until the deadline, or until the answer has `ended`."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket) -> None:
        self.sock = sock
        self.ended = False
        self._raw = raw
        self._deadline = time.monotonic() + (sock.gettimeout() or 0)  # urllib3 has just set what is left in all

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
        super().close()  # so that it counts as closed


class _Reader(io.BufferedReader):
    raw: _Stream

    def close(self) -> None:
        """Shut the connection if more than the answer was read, so that urllib3 doesn't use it again."""
        if not self.closed:
            self.raw.ended = True
            if self.peek():
                with contextlib.suppress(OSError):  # the other end was quicker
                    self.raw.sock.shutdown(socket.SHUT_RDWR)
        super().close()


class _Response(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp: Any = _Reader(_Stream(self.fp.detach(), sock), _CHUNK)

    def begin(self, **options: Any) -> None:
        """Skip informational answers (RFC 9110, 15.2), but not a 101: what follows that isn't HTTP."""
        for _ in range(_MOST_INTERIM):
            self.headers: Any = None  # http.client only reads an answer while this is None
            super().begin(**options)
            if self.status >= http.HTTPStatus.OK:
                return
            if self.status == http.HTTPStatus.SWITCHING_PROTOCOLS:
                break
        raise http.client.UnknownProtocol(str(self.status))


class _Connection(urllib3.connection.HTTPConnection):
    response_class = _Response
    _used = False

    def connect(self) -> None:
        """Connect in another thread: a name look-up has no time-out, and a TLS handshake only one per read."""
        self._used = False
        connecting = _opener.submit(super().connect)
        try:
            connecting.result(self.timeout)
        except TimeoutError:
            if not connecting.cancel():
                connecting.add_done_callback(lambda _: self.close())
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
