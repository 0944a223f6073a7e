"""Parses the head of a request into an immutable `Request`.

It is no more lenient than RFC 9112 allows. llhttp (through httptools) parses the header
fields. The request line is parsed here: llhttp would accept HTTP/2.0 and repeated
spaces, and reject methods that it doesn't know. Both agree that a head ends at the
first empty line, because neither accepts a line that ends in a bare LF.

A chunked body is rejected with 411, as RFC 9112, 6.3 allows: with only one way to find
the end of a body, a proxy can't disagree about where that is. Methods with small
letters are rejected too: `get` isn't GET (RFC 9110, 9.1), but some programs take it for
that.
"""

import re
from collections.abc import Mapping
from contextlib import suppress
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser

_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([!-~]+) HTTP/([0-9]\.[0-9])\r\n")
# Without a fragment (RFC 9112, 3.2): a proxy may cut it off where we would not.
_TARGET = re.compile(r"(?!\?)(?:https?://([^/?#]+))?(/[^?#]*)?(?:\?([^#]*))?", re.I)
# Labels of at most 63 characters, or an IPv6 address, and a port; at most 255
# characters in all.
_HOST = re.compile(
    r"(?=.{0,255}$)(([\w-]{1,63}(\.|(?=:|$)))*|\[[0-9a-f:.]+\])(:\d{0,5})?", re.A | re.I
)
# Nothing in it can match in two ways: that could take the square of its length.
_ORIGIN = re.compile(rb"\r\nOrigin:([\t -~]*)(?=\r\n)", re.I)


class MalformedRequest(Exception):
    """Rejects a request. Its connection is closed."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(status, message)
        self.status = status
        self.message = message


class Request(NamedTuple):
    """The head of a request."""

    method: str
    path: str  # decoded, one character for each byte, as in WSGI
    query: str
    protocol: str  # HTTP/1.0 or HTTP/1.1
    # By lower-case name. The values of a repeated name are joined by commas.
    headers: Mapping[str, str]
    length: int  # of the body, in bytes
    keep_alive: bool


class _Target(NamedTuple):
    host: str  # "" unless the target is a whole address
    path: str
    query: str


class _Fields(dict[str, list[str]]):
    """Collects the header fields that llhttp finds."""

    def on_header(self, name: bytes, value: bytes) -> None:
        text = value.strip(b" \t").decode("latin-1")
        self.setdefault(name.decode().lower(), []).append(text)


def find_end(data: bytearray, start: int, limit: int) -> int | None:
    """Return where the head ends that begins at `start`, or None if it is incomplete.

    Raise `MalformedRequest` if it is longer than `limit` or can't become a head.
    """
    stop = start + limit
    at = data.find(b"\r\n\r\n", start, stop)
    if at != -1:
        return at + 4
    has_line = data.find(b"\n", start, stop) != -1
    is_tls = data.startswith(b"\x16", start)
    if has_line or is_tls:
        _match_line(data[start:stop])
    if len(data) >= stop:
        status = 431 if has_line else 414
        raise MalformedRequest(status, "request line and headers are too large")
    return None


def check_head(head: bytes, max_fields: int) -> None:
    """Raise `MalformedRequest` if a complete head has too many header fields."""
    if head.count(b"\r\n") > max_fields + 2:  # the request line and the empty line
        raise MalformedRequest(431, "there are too many header fields")


def find_origin(data: bytes | bytearray) -> str:
    """Return the Origin header of a head, or "".

    The head may be malformed or incomplete.
    """
    found = _ORIGIN.findall(data)
    if len(found) != 1:
        return ""
    origin: bytes = found[0]
    return origin.strip(b" \t").decode()


def parse(head: bytes) -> Request:
    """Parse a complete head.

    Raise `MalformedRequest` if it is malformed or ambiguous.
    """
    line = _match_line(head)
    method = line[1].decode()
    if method != method.upper():
        raise MalformedRequest(400, "methods are case-sensitive: expected capitals")
    target = _parse_target(method, line[2].decode())
    protocol = f"HTTP/{line[3].decode()}"
    headers = _parse_fields(head[line.end() :])
    if "transfer-encoding" in headers:
        message = "a body needs a Content-Length, and no Transfer-Encoding"
        raise MalformedRequest(411, message)
    # RFC 9112, 3.2. Two Hosts, joined by a comma and a space, are invalid.
    if "host" in headers or protocol == "HTTP/1.1":
        _check_host(headers.get("host"))
    if target.host:  # it replaces the Host header (RFC 9112, 3.2.2)
        _check_host(target.host)
        headers["host"] = target.host
    return Request(
        method=method,
        path=target.path,
        query=target.query,
        protocol=protocol,
        headers=headers,
        length=int(headers.get("content-length", 0)),
        keep_alive=_keeps_alive(protocol, headers.get("connection", "")),
    )


def _match_line(head: bytes | bytearray) -> re.Match[bytes]:
    line = _LINE.match(head)
    if not line:
        raise MalformedRequest(400, "the request line is malformed")
    if line[3] not in (b"1.0", b"1.1"):
        raise MalformedRequest(505, "only HTTP/1.1 and HTTP/1.0 are supported")
    if head.count(b"\n") != head.count(b"\r\n"):
        raise MalformedRequest(400, "a header line ends in a bare LF")
    return line


def _parse_target(method: str, target: str) -> _Target:
    if method == "OPTIONS" and target == "*":
        target = "/"
    located = _TARGET.fullmatch(target)
    if not located:
        raise MalformedRequest(400, "the target is neither a path nor an http address")
    host, path, query = located.groups("")
    decoded = unquote_to_bytes(path or "/").decode("latin-1")
    return _Target(host, decoded, query)


def _parse_fields(lines: bytes) -> dict[str, str]:
    """Return the header fields by their names in lower case."""
    found = _Fields()
    try:
        with suppress(HttpParserUpgrade):  # an Upgrade may be ignored (RFC 9110, 7.8)
            HttpRequestParser(found).feed_data(b"GET / HTTP/1.1\r\n" + lines)
    except HttpParserError as error:
        raise MalformedRequest(400, f"a header field is malformed: {error}") from None
    return {name: ", ".join(values) for name, values in found.items()}


def _keeps_alive(protocol: str, connection: str) -> bool:
    """Say whether the connection goes on after the answer (RFC 9112, 9.3)."""
    options = {option.strip(" \t").lower() for option in connection.split(",")}
    if "close" in options:
        return False
    return protocol == "HTTP/1.1" or "keep-alive" in options


def _check_host(host: str | None) -> None:
    if host is None or not _HOST.fullmatch(host):
        raise MalformedRequest(400, "the request needs one valid Host header")
