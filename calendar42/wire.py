"""Connections for `requests` on which each call ends at its deadline.

By themselves, `requests` and urllib3 limit the time between two bytes, so an upstream
that sends a byte now and then never lets a call end. On these connections each read
has what is left of the call's time. They are also used for a minute only, share their
certificates, and tell whether a call failed because a kept connection was closed.

A call runs in one thread. `this_call` is what its connection knows of it.
"""

import errno
import functools
import http.client
import io
import logging
import os
import socket
import ssl
import threading
import time
from typing import Any

from requests import PreparedRequest
from requests.adapters import HTTPAdapter
from requests.exceptions import InvalidSchema, InvalidURL
from urllib3.connection import HTTPConnection
from urllib3.exceptions import HTTPError, LocationValueError

from calendar42 import Endpoint
from calendar42.errors import C42Error, Exhausted

# Seconds for which a connection is used: the name may get another address, and routers
# forget idle connections without telling.
MAX_AGE = 60.0
MAX_READ = 16 * 2**20  # bytes of one reply as they come, framing and headers included
MAX_KEPT = 64  # connections

# What `requests` raises; TypeError and ValueError come from odd proxy addresses.
FAILURES = (OSError, HTTPError, http.client.HTTPException, ValueError, TypeError)
_NO_FILES = (
    "c42c has reached its limit of open files (ulimit -n, LimitNOFILE) "
    "and can't call Calendar42"
)
_EXHAUSTED = {
    errno.EMFILE: _NO_FILES,
    errno.ENFILE: _NO_FILES,
    errno.ENOBUFS: "c42c is reading too many large replies of Calendar42 at once",
}
_INVALID = "sent an invalid answer"

logging.getLogger("urllib3").setLevel(logging.CRITICAL)  # its warnings quote what came


class _ThisCall(threading.local):
    """The call that this thread makes."""

    deadline = 0.0  # of `time.monotonic`
    needs_new = False  # a kept connection must not be used
    is_over_kept = False  # it went over a kept connection
    has_reply = False  # a byte has come

    def begin(self, deadline: float, *, needs_new: bool) -> None:
        """Begin a call."""
        self.deadline = deadline
        self.needs_new = needs_new
        self.is_over_kept = False
        self.has_reply = False

    @property
    def left(self) -> float:
        """The seconds until the deadline."""
        return self.deadline - time.monotonic()

    @property
    def was_closed_before(self) -> bool:
        """Whether it failed because Calendar42 had closed its kept connection."""
        return self.is_over_kept and not self.has_reply and self.left > 0


this_call = _ThisCall()


class Adapter(HTTPAdapter):
    """Gives a session such connections, direct ones or through a proxy."""

    def __init__(self) -> None:
        super().__init__(pool_maxsize=MAX_KEPT)
        self._certificates = _Certificates(ssl.PROTOCOL_TLS_CLIENT)
        self._certificates.hostname_checks_common_name = False

    def get_connection_with_tls_context(
        self, request: PreparedRequest, *args: Any, **options: Any
    ) -> Any:
        """Return the pool of connections for a request."""
        pool: Any = super().get_connection_with_tls_context(request, *args, **options)
        if str(request.url).startswith("https:"):
            pool.conn_kw["ssl_context"] = self._certificates
        if not issubclass(pool.ConnectionCls, _Connection):
            pool.ConnectionCls = _with_deadlines(pool.ConnectionCls)
        return pool


@functools.cache
def _with_deadlines(connection_class: type) -> type:
    """Return a subclass: there are such for HTTP, TLS, and each through SOCKS."""
    name = f"Deadline{connection_class.__name__}"
    return type(name, (_Connection, connection_class), {})


class _Wire(io.RawIOBase):
    """What comes over a socket, until the deadline."""

    def __init__(self, sock: socket.socket, file: io.RawIOBase) -> None:
        self._sock = sock
        self._file = file  # which keeps the socket open
        self._size = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = this_call.left
        if left <= 0:
            raise TimeoutError
        self._sock.settimeout(left)
        size = self._sock.recv_into(buffer)
        if size:
            this_call.has_reply = True
        self._size += size
        if self._size > MAX_READ:
            raise http.client.HTTPException("too long")
        return size

    def close(self) -> None:
        self._file.close()
        super().close()


class _Response(http.client.HTTPResponse):
    """Reads status line, headers, body and chunks off a `_Wire`."""

    def __init__(self, sock: socket.socket, *args: Any, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        wire = _Wire(sock, self.fp.detach())
        self.fp = io.BufferedReader(wire)

    def begin(self) -> None:
        """Read status line and headers, and leave out what its readers can't take.

        If there are several lengths, one that is no number is added, so that the body
        is rejected. urllib3 would raise for them, too early for a 429 to begin its
        pause, and too late to close the connection. An odd cookie would cause a warning
        that quotes it.
        """
        super().begin()
        lengths = ",".join(self.headers.get_all("Content-Length", []))
        if "," in lengths:
            self.headers.add_header("Content-Length", "several")
        del self.headers["Set-Cookie"]


class _Connection(HTTPConnection):
    response_class = _Response
    _made = 0.0  # of `time.monotonic`

    @property
    def is_connected(self) -> bool:
        """Whether this connection, which was kept, can be used for the call."""
        is_young = time.monotonic() < self._made + MAX_AGE
        usable = super().is_connected and is_young and not this_call.needs_new
        this_call.is_over_kept = usable
        return usable

    def connect(self) -> None:
        this_call.is_over_kept = False
        socket.socket().close()  # raises EMFILE, which a name look-up doesn't
        super().connect()
        if this_call.left <= 0:  # looking up the name may have taken any time
            raise TimeoutError
        self._made = time.monotonic()


class _Certificates(ssl.SSLContext):
    """The certificates for all connections.

    Those of one connection take 13 ms and 0.7 MiB, and `requests` reads them for each.
    """

    _lock = threading.Lock()  # guards `_are_read`
    _are_read = False

    def load_verify_locations(self, *files: Any) -> None:
        """Read the certificates, unless the first connection has done it."""
        with self._lock:
            if not self._are_read:
                super().load_verify_locations(*files)
                self._are_read = True

    def set_alpn_protocols(self, *_: Any) -> None:
        """Do nothing.

        urllib3 calls this for each connection, which can crash with a shared context
        (cpython#141012).
        """

    def wrap_socket(  # type: ignore[override]
        self, sock: socket.socket, **options: Any
    ) -> ssl.SSLSocket:
        """Shake hands by the deadline: the time-out of `sock` is that of connecting."""
        sock.settimeout(max(this_call.left, 0.001))
        return super().wrap_socket(sock, **options)


def explain(endpoint: Endpoint, error: BaseException) -> C42Error:
    """Return why this thread's call failed, though there is time left.

    The reason quotes nothing of what came: that may name people.
    """
    cause = _first_cause(error)
    if isinstance(cause, OSError) and cause.errno in _EXHAUSTED:
        message = _EXHAUSTED[cause.errno]
        return Exhausted(endpoint, message, trouble=os.strerror(cause.errno))
    return C42Error(
        endpoint,
        "Calendar42 could not be reached, or broke off",
        upstream_status=0,
        trouble=_reason(error, cause),
    )


def _first_cause(error: BaseException) -> BaseException:
    """Return what `requests` and urllib3 have wrapped."""
    while error.__context__ is not None:
        error = error.__context__
    return error


_REASONS = (
    (
        http.client.RemoteDisconnected | http.client.IncompleteRead,
        "sent no whole answer",
    ),
    (ssl.SSLEOFError | ssl.SSLZeroReturnError, "broke off"),
    (UnicodeError, "not a host name"),
    (
        # Their texts may have the proxy's password.
        InvalidSchema | InvalidURL | LocationValueError | TypeError,
        "the proxy that the environment names can't be used",
    ),
)


def _reason(error: BaseException, cause: BaseException) -> str:
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"certificate: {cause.verify_message}"
    if this_call.has_reply and isinstance(cause, ValueError | TypeError):
        return _INVALID  # before a reply, they are about addresses
    for kind, reason in _REASONS:
        if isinstance(cause, kind):
            return reason
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    if isinstance(cause, TimeoutError):
        return "timed out while connecting"
    if type(cause) is not OSError:
        return _INVALID
    if cause is error:  # urllib3 would have wrapped it
        return "certificate bundle: no such file"
    return "the proxy refuses the tunnel"
