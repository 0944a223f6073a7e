"""One GET, whole, within a deadline.

`requests` takes its time-out for each read: an upstream that sends a byte every now and then holds a call for ever,
in the header as well as in the body. Here every read of an answer gets what is left until its deadline, and an answer
is read up to a limit. Redirects are not followed, no cookies are kept, and nothing but the given headers is sent: the
token goes to one address, and a `.netrc` has no say. Proxies and certificate bundles are taken from the environment,
as `requests` does it, once. A kept-alive connection that turns out to be closed is no fault: another one is taken.
"""

import copy
import http.client
import io
import socket
import ssl
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import requests
import urllib3
from requests.adapters import HTTPAdapter

_CHUNK = 65536  # bytes


class Answer(NamedTuple):
    """What came back; `body` is at most one byte longer than the limit, and is longer where it was cut there."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Transport:
    """Sends GET requests below `base_url`, with `headers`, over at most `connections` kept-alive connections."""

    def __init__(self, *, base_url: str, headers: Mapping[str, str], connections: int) -> None:
        self._request = requests.Request("GET", base_url, headers=dict(headers)).prepare()
        self._adapter = _Adapter(pool_connections=1, pool_maxsize=connections)
        environment = requests.Session().merge_environment_settings(base_url, {}, True, None, None)
        self._options: dict[str, Any] = dict(environment)

    def get(self, path: str, *, deadline: float, limit: int) -> Answer:
        """Get `path`, by `deadline` (of `time.monotonic`), with `limit` bytes of body and one more at most.

        Raises TimeoutError, or ConnectionError where no whole answer comes for another reason.
        """
        request = copy.copy(self._request)  # its own copy() copies the headers too, which nothing changes
        request.url = f"{request.url}{path}"
        try:
            while True:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError
                try:
                    timeout: Any = urllib3.Timeout(total=left)  # requests hands it on, though its types do not say so
                    response = self._adapter.send(request, timeout=timeout, **self._options)
                except _Stale:
                    continue
                with response:
                    body = bytearray()
                    for chunk in response.iter_content(_CHUNK):
                        body += chunk
                        if len(body) > limit:
                            break
                return Answer(response.status_code, response.headers, bytes(body[: limit + 1]))
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            if time.monotonic() >= deadline or isinstance(error, requests.Timeout | TimeoutError):
                raise TimeoutError from error
            raise ConnectionError(reason(error)) from error

    def close(self) -> None:
        """Close the connections that are not in use."""
        self._adapter.close()


def reason(error: BaseException) -> str:
    """Say in a few words why a call failed, and not a word of what came: it may name people."""
    first: BaseException = error
    while chained := first.__cause__ or first.__context__:
        first = chained
    if isinstance(first, ssl.SSLCertVerificationError):
        return f"certificate: {first.verify_message}"
    if isinstance(first, TimeoutError):
        return "timed out"
    return first.strerror or type(first).__name__ if isinstance(first, OSError) else type(first).__name__


class _Stale(Exception):
    """A connection that was used before was closed by the other side before it answered."""


class _Reader(io.RawIOBase):
    """Reads from a socket, giving each read what is left until the deadline."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket, deadline: float) -> None:
        self._raw = raw
        self._sock = sock
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        self._sock.settimeout(left)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    """urllib3 has just set the socket's time-out to what is left of the total: the deadline of all further reads."""

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        deadline = time.monotonic() + (sock.gettimeout() or 0)
        self.fp = io.BufferedReader(_Reader(self.fp.detach(), sock, deadline), _CHUNK)


class _Connection(urllib3.connection.HTTPConnection):
    response_class = _Response
    _used = False

    def connect(self) -> None:
        super().connect()
        self._used = False

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


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Connection


class _TLSPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _TLSConnection


class _Adapter(HTTPAdapter):
    """Makes urllib3 use the connections above, directly and through a proxy."""

    _pool: Any = None  # of the one address that is asked; looking it up each time is a tenth of a call's CPU

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:
        pool = self._pool
        if pool is None:
            pool = self._pool = super().get_connection_with_tls_context(*args, **kwargs)
        return pool

    def close(self) -> None:
        self._pool = None
        super().close()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _Pool, "https": _TLSPool}

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(*args, **kwargs)
        manager.pool_classes_by_scheme = {"http": _Pool, "https": _TLSPool}
        return manager
