"""GETs, each whole, within a deadline, on an event loop in a thread of its own.

`requests` says which proxy and certificates the environment asks for. docs/design.md
says why it makes no calls. The token goes to one address: redirects aren't followed,
and neither cookies nor a `.netrc` are used.
"""

import asyncio
import errno
import os
import socket
import ssl
import threading
import time
import zlib
from collections.abc import Coroutine, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property, partial
from typing import Any, NamedTuple, cast
from urllib.parse import quote, urlsplit

import requests
from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser
from requests.adapters import HTTPAdapter
from requests.utils import DEFAULT_CA_BUNDLE_PATH, default_user_agent, select_proxy
from urllib3.util import wait_for_read

_MOST_AROUND = 65536  # bytes of headers and informational answers
_MOST_FRAMING = 8  # bytes for each byte of the body, as in the smallest chunks
IDLE = (
    30.0  # seconds that a connection is kept: routers forget idle ones, without telling
)
_INVALID = "sent an invalid answer"


class Reply(NamedTuple):
    """What came back.

    A `body` over the limit is cut to one byte more than the limit.
    """

    status: int
    headers: Mapping[str, str]  # by lower-case name
    body: bytes


class Transport:
    """Sends GET requests below `base_url`, with the `token`, over connections that it
    keeps.
    """

    def __init__(self, *, base_url: str, token: str) -> None:
        self._base = requests.Request("GET", base_url).prepare()
        self._headers = {
            "Host": urlsplit(str(self._base.url)).netloc,
            "Authorization": f"Token {token}",
        }
        self._headers |= {
            "Accept": "application/json",
            "Content-Type": "application/json",
        }
        self._headers |= {"Accept-Encoding": "gzip", "User-Agent": default_user_agent()}
        self._kept = dict[
            _Connection, asyncio.TimerHandle
        ]()  # each until its time is over
        self._closed = False
        self._loop = asyncio.new_event_loop()
        self._loop.set_default_executor(
            ThreadPoolExecutor(64, thread_name_prefix="c42c-connect")
        )
        threading.Thread(target=self._run, name="c42c-upstream", daemon=True).start()

    def begin(self, call: Coroutine[Any, Any, Any]) -> Future[Any]:
        """Run `call`, which may wait for `get`, on the event loop.

        Any thread may do so until `close`.
        """
        return asyncio.run_coroutine_threadsafe(call, self._loop)

    def cancel(self, call: Future[Any], delay: float) -> None:
        """Cancel a call that `begin` returned, after `delay` seconds."""
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._loop.call_later, delay, call.cancel)

    async def get(self, path: str, *, deadline: float, limit: int) -> Reply:
        """Get `path` by `deadline` (of `time.monotonic`), with at most `limit` + 1
        bytes of its body.

        Raises TimeoutError, ConnectionError if no whole answer comes for another
        reason, and OSError with EMFILE or ENFILE if there is no file descriptor left
        here. `begin` runs it.
        """
        try:
            if deadline <= time.monotonic():
                raise TimeoutError
            async with asyncio.timeout_at(deadline):
                return await self._exchange(path, limit)
        except (
            OSError,
            EOFError,
            zlib.error,
            ValueError,
            asyncio.LimitOverrunError,
        ) as error:
            raise _explain(error) from error

    def close(self) -> None:
        """Close all connections, once active calls have ended."""
        if not self._closed:
            self._closed = True
            self._loop.call_soon_threadsafe(self._loop.stop)

    def _run(self) -> None:
        self._loop.run_forever()
        self._loop.run_until_complete(self._finish())
        self._loop.close()

    async def _finish(self) -> None:
        while calls := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(calls)
        for kept in self._kept:
            kept.drop()
        await asyncio.sleep(0)  # the turn in which they close

    async def _exchange(self, path: str, limit: int) -> Reply:
        """Send a request, over a kept connection if there is one, and return the
        answer.
        """
        prefix, headers = self._base.path_url, self._headers
        if (
            self._pool.proxy and self._pool.scheme == "http"
        ):  # the proxy needs the whole address
            prefix, headers = str(self._base.url), headers | self._pool.proxy_headers
        request = _serialize(f"GET {prefix}{quote(path, '/?=&,')}", headers)
        while True:
            kept = self._take()
            connection = kept or await self._connect()
            try:
                answer = await connection.ask(request, limit)
            except ConnectionError:
                if (
                    not kept or kept.received
                ):  # else it was closed at the other end just before the request came
                    raise
            else:
                self._kept[connection] = self._loop.call_later(
                    IDLE, self._drop, connection
                )
                return answer

    def _drop(self, connection: "_Connection") -> None:
        del self._kept[connection]
        connection.drop()

    def _take(self) -> "_Connection | None":
        """Return a kept connection on which nothing has arrived since its last answer,
        not even its end.
        """
        while self._kept:
            connection, expiry = self._kept.popitem()
            expiry.cancel()
            transport = connection.transport
            if not transport.is_closing() and not wait_for_read(
                transport.get_extra_info("socket"), 0
            ):
                return connection
            connection.drop()
        return None

    async def _connect(self) -> "_Connection":
        pool = self._pool
        socket.socket().close()  # raises EMFILE, which a name look-up doesn't
        if pool.proxy and pool.scheme == "https":
            return await self._open_tunnel()
        tls, server = self._tls if pool.scheme == "https" else None, pool.proxy or pool
        return (
            await self._loop.create_connection(
                _Connection, server.host, server.port, ssl=tls
            )
        )[1]

    async def _open_tunnel(self) -> "_Connection":
        """Connect to the upstream through the proxy (RFC 9110, 9.3.6)."""
        pool, connection, reader = self._pool, _Connection(), asyncio.StreamReader()
        host = (
            f"[{pool.host}]:{pool.port}"
            if ":" in pool.host
            else f"{pool.host}:{pool.port}"
        )
        protocol = partial(asyncio.StreamReaderProtocol, reader)
        tunnel, _ = await self._loop.create_connection(
            protocol, pool.proxy.host, pool.proxy.port
        )
        connection.connection_made(tunnel)
        try:
            tunnel.write(
                _serialize(f"CONNECT {host}", {"Host": host} | pool.proxy_headers)
            )
            head = await reader.readuntil(b"\r\n\r\n")
            if head[8:10] != b" 2":
                raise ConnectionError("the proxy refuses the tunnel")
            tls = await self._loop.start_tls(
                tunnel, connection, self._tls, server_hostname=pool.host
            )
        except BaseException:
            connection.drop()
            raise
        connection.connection_made(cast(asyncio.Transport, tls))
        return connection

    @cached_property
    def _pool(self) -> Any:
        """The pool that `requests` would use: it knows the proxy, and where the
        certificates are.
        """
        env = requests.Session().merge_environment_settings(
            str(self._base.url), {}, None, None, None
        )
        try:
            pool: Any = HTTPAdapter().get_connection_with_tls_context(
                self._base, env["verify"], env["proxies"]
            )
            if select_proxy(str(self._base.url), env["proxies"]) and (
                not pool.proxy or pool.proxy.scheme != "http"
            ):
                raise ValueError("only proxies that are reached by plain HTTP")
        except (ValueError, TypeError):  # whose text may have the proxy's password
            raise ConnectionError(
                "the proxy that the environment names can't be used"
            ) from None
        return pool

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        """The certificates, read once: that takes longer than many calls."""
        files, folder = self._pool.ca_certs, self._pool.ca_cert_dir
        return ssl.create_default_context(
            cafile=files if files or folder else DEFAULT_CA_BUNDLE_PATH, capath=folder
        )


class _Connection(asyncio.Protocol):
    """A connection, for one call at a time; it closes if more than its answer comes.
    httptools calls `on_…`.
    """

    def __init__(self) -> None:
        self.transport: asyncio.Transport
        self._parser = HttpResponseParser(self)
        self._parser.set_dangerous_leniencies(
            lenient_keep_alive=True
        )  # an informational answer may say "close"
        self._expect(0)
        self._whole.cancel()  # nothing is expected yet

    def _expect(self, limit: int) -> None:
        self.received = 0  # bytes
        self._limit = limit
        self._status = 0
        self._headers = dict[str, str]()
        self._body = bytearray()
        self._whole = asyncio.get_running_loop().create_future()

    async def ask(self, request: bytes, limit: int) -> Reply:
        """Send a request and return the answer; raise ConnectionError if no whole one
        comes.
        """
        self._expect(limit)
        self.transport.write(request)
        try:
            await self._whole
            return Reply(self._status, self._headers, self._unpack())
        except BaseException:
            self.drop()
            raise
        finally:
            self._body = bytearray()  # it may be large, and the connection is kept

    def _unpack(self) -> bytes:
        body, coding = (
            bytes(self._body[: self._limit + 1]),
            self._headers.get("content-encoding", "").lower(),
        )
        if body and coding in ("gzip", "x-gzip"):
            unzip = zlib.decompressobj(16 + zlib.MAX_WBITS)
            body = unzip.decompress(body, self._limit + 1)
            if len(body) <= self._limit and (unzip.unused_data or not unzip.eof):
                raise EOFError
        elif coding not in ("", "identity", "gzip", "x-gzip"):
            raise ValueError  # it wasn't asked for
        return body

    def drop(self) -> None:
        """Close the connection at once."""
        if not self.transport.is_closing():  # asyncio can't abort TLS twice
            self.transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.received += len(data)
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade):
            self._end(ConnectionError(_INVALID))
        if len(self._body) > self._limit:
            self._end()
        elif self.received > _MOST_AROUND + (1 + _MOST_FRAMING) * len(self._body):
            self._end(ConnectionError(_INVALID))

    def eof_received(self) -> None:
        if (
            self._status
            and not {"content-length", "transfer-encoding"} & self._headers.keys()
        ):  # it ends the answer
            self._end()

    def connection_lost(self, error: Exception | None) -> None:
        self._end(error or ConnectionError("sent no whole answer"))

    def _end(self, error: Exception | None = None, *, keep: bool = False) -> None:
        """End the answer, which is whole if there is no error, and the connection,
        unless it is to be kept.
        """
        if not keep:
            self.drop()
        if not self._whole.done():
            self._whole.set_exception(error) if error else self._whole.set_result(None)

    def on_message_begin(self) -> None:
        if self._whole.done():
            raise ValueError  # more than the answer came

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._status:  # else it is a trailer
            self._headers[name.decode("latin-1").lower()] = value.decode(
                "latin-1"
            ).strip(" \t")

    def on_headers_complete(self) -> None:
        """Refuse what is no status, and a 101: what follows it isn't HTTP."""
        self._status = self._parser.get_status_code()
        if self._status < 100 or self._status == 101:
            raise ValueError(_INVALID)

    def on_body(self, data: bytes) -> None:
        self._body += data

    def on_message_complete(self) -> None:
        """End the answer, or skip an informational one (RFC 9110, 15.2)."""
        if self._status < 200:
            self._status = 0
            self._headers.clear()
        else:
            self._end(keep=self._parser.should_keep_alive())


def _serialize(method_and_target: str, headers: Mapping[str, str]) -> bytes:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"{method_and_target} HTTP/1.1\r\n{lines}\r\n".encode()


def _explain(error: BaseException) -> OSError:
    """Return the error of `get` for `error`.

    It quotes nothing of what came: that may name people.
    """
    if (
        isinstance(error, TimeoutError) and not error.errno
    ):  # with one, the system gave up connecting
        return TimeoutError("timed out")
    said = str(error) or "broke off"
    if isinstance(error, ssl.SSLCertVerificationError):
        said = f"certificate: {error.verify_message}"
    elif isinstance(error, FileNotFoundError):
        said = "certificate bundle: no such file"
    elif isinstance(error, ssl.SSLError | socket.gaierror):
        said = error.strerror or said
    elif isinstance(error, OSError) and error.errno:
        said = os.strerror(error.errno)  # asyncio's text has the address
        if error.errno in (errno.EMFILE, errno.ENFILE):
            return OSError(error.errno, said)
    elif type(error) is OSError:  # it has a text from each
        said = "no address of it can be reached"
    elif not isinstance(error, ConnectionError):
        said = "not a host name" if isinstance(error, UnicodeError) else _INVALID
    return ConnectionError(said)
