"""One GET, whole, within a deadline, in two steps: a thread can send several before it reads the first answer.

`requests` says which proxy and which certificates the environment asks for, and urllib3 makes the connections. A call
of `requests` itself sends and waits in one step, and takes half as much CPU again.

The time-outs of `requests` and urllib3 start again with each read, http.client skips no informational answer but 100,
and urllib3 doesn't notice that more than the answer has been read. `_Response` does better. Redirects aren't
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
from collections import deque
from collections.abc import Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, NamedTuple, TypeVar, cast

import requests
import urllib3
from requests.adapters import HTTPAdapter

_CHUNK = 65536  # bytes
_MOST_INTERIM = 100  # informational answers to one call
_opener = ThreadPoolExecutor(64, thread_name_prefix="c42c-connect")

logging.getLogger("urllib3.connection").disabled = True  # it quotes malformed headers, which may name people

T = TypeVar("T")
Steps = Generator[None, None, T]  # a call in two steps or more: it yields once it is sent, and returns its result


def finish(steps: Steps[T]) -> T:
    """Run the remaining steps of a call, and return its result."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return cast(T, end.value)


class Answer(NamedTuple):
    """What came back; `body` is at most one byte longer than the limit, and is longer if it was cut there."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Transport:
    """Sends GET requests below `base_url`, with the `token`. Any thread may use it."""

    def __init__(self, *, base_url: str, token: str) -> None:
        self._base = requests.Request("GET", base_url).prepare()
        self._headers = {"Authorization": f"Token {token}", "Accept-Encoding": "gzip"}
        self._headers |= {"Accept": "application/json", "Content-Type": "application/json"}
        self._kept = deque[_Connection]()  # connections to use again
        self._closed = False

    @cached_property
    def _pool(self) -> urllib3.HTTPConnectionPool:
        env = requests.Session().merge_environment_settings(str(self._base.url), {}, None, None, None)
        try:
            pool = HTTPAdapter().get_connection_with_tls_context(self._base, env["verify"], env["proxies"])
        except ValueError:  # whose text may have the proxy's password
            raise ConnectionError("the proxy that the environment names can't be used") from None
        pool = cast(urllib3.HTTPConnectionPool, pool)
        pool.ConnectionCls = _TLSConnection if pool.scheme == "https" else _Connection
        return pool

    def begin(self, path: str, *, deadline: float, limit: int) -> Steps[Answer]:
        """Send a request for `path`, yield, and return the answer by `deadline` (of `time.monotonic`).

        Of the body, `limit` bytes and one more are read at most. Raises TimeoutError, ConnectionError if no whole
        answer comes for another reason, and OSError with EMFILE or ENFILE if there is no file descriptor left here.
        """
        try:
            while kept := self._take():
                with contextlib.suppress(ConnectionError):  # closed at the other end just before the request came
                    return (yield from self._exchange(kept, path, deadline, limit))
            new = cast(_Connection, self._pool._new_conn())
            return (yield from self._exchange(new, path, deadline, limit))
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
        """Close all connections, those in use after their answers."""
        self._closed = True
        while self._kept:
            self._kept.pop().close()

    def _take(self) -> "_Connection | None":
        """Return a kept connection on which nothing has happened since; close the others."""
        with contextlib.suppress(IndexError):
            while not (connection := self._kept.pop()).is_connected:
                connection.close()
            return connection
        return None

    def _exchange(self, connection: "_Connection", path: str, deadline: float, limit: int) -> Steps[Answer]:
        sending = None
        try:
            connection.timeout = _left(deadline)
            if connection.is_closed:  # looking up a name takes no time-out, and shaking hands takes one per read
                sending = _opener.submit(self._send, connection, path, deadline)
            else:
                self._send(connection, path, deadline)
            yield
            if sending:
                sending.result(_left(deadline))
            connection.timeout = _left(deadline)
            with contextlib.closing(connection.getresponse()) as response:
                answer = Answer(response.status, response.headers, response.read(limit + 1, decode_content=True))
        except BaseException:
            if not sending:
                connection.close()
            elif not sending.cancel():
                sending.add_done_callback(lambda _: connection.close())
            raise
        if len(answer.body) > limit or self._closed:
            connection.close()
        else:
            self._kept.append(connection)
        return answer

    def _send(self, connection: "_Connection", path: str, deadline: float) -> None:
        pool, prefix, headers = self._pool, self._base.path_url, self._headers
        if pool.proxy and pool.scheme == "http":  # the proxy needs the whole address
            prefix, headers = str(self._base.url), {**headers, **pool.proxy_headers}
        if connection.is_closed and pool.proxy:
            pool._prepare_proxy(connection)  # connects if there is to be a tunnel
        if connection.is_closed:
            connection.connect()
        connection.timeout = _left(deadline)
        connection.request("GET", f"{prefix}{path}", headers=headers, preload_content=False)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def reason(error: BaseException) -> str:
    """Say in a few words why a call failed, and not a word of what came: it may name people."""
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
        self.sock.settimeout(_left(self._deadline))
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


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
            self.headers: Any = None  # or http.client takes what it has for the answer
            super().begin(**options)
            if self.status >= http.HTTPStatus.OK:
                return
            if self.status == http.HTTPStatus.SWITCHING_PROTOCOLS:
                break
        raise http.client.UnknownProtocol(str(self.status))


class _Connection(urllib3.connection.HTTPConnection):
    response_class = _Response


class _TLSConnection(_Connection, urllib3.connection.HTTPSConnection):
    pass
