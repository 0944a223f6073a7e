"""Parses the head of a request into an immutable `Request`, no more leniently than RFC
9112 allows.

llhttp (through httptools) parses the header fields. The request line is parsed here:
llhttp would accept HTTP/2.0 and repeated spaces, and reject methods that it doesn't
know. Both agree that a head ends at the first empty line, because neither accepts a
line that ends in a bare LF. A chunked body is rejected with 411, as RFC 9112, 6.3
allows: with only one way to find the end of a body, a proxy can't disagree about where
that is.
"""

import re
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser

_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([!-~]+) HTTP/([0-9]\.[0-9])\r\n")
_TARGET = re.compile(r"(?!\?)(?:https?://([^/?]+))?(/[^?]*)?(?:\?(.*))?", re.I)
# Labels of at most 63 characters, or an IPv6 address, and a port; at most 255
# characters in all.
_HOST = re.compile(
    r"(?=.{0,255}$)(([\w-]{1,63}(\.|(?=:|$)))*|\[[0-9a-f:.]+\])(:\d{0,5})?", re.A | re.I
)


class MalformedRequest(Exception):
    """Rejects a request, with a status and a message. Its connection is closed."""


class Request(NamedTuple):
    """The head of a request."""

    method: str
    path: str  # decoded, one character for each byte, as in WSGI
    query: str
    protocol: str  # HTTP/1.0 or HTTP/1.1
    headers: Mapping[
        str, str
    ]  # by lower-case name; the values of a repeated name are joined by commas
    length: int  # of the body, in bytes
    keep_alive: bool


def find_end(data: bytearray, limit: int) -> int | None:
    """Return the head's length, None if it is incomplete; raise `MalformedRequest` if
    it exceeds `limit` or can't be a head.
    """
    start, end, _ = data[:limit].partition(b"\r\n\r\n")
    if end:
        return len(start) + len(end)
    if b"\n" in start or start[:1] == b"\x16":  # the first byte of TLS
        _match_line(start)
    if len(start) == limit:
        raise MalformedRequest(
            431 if b"\n" in start else 414, "request line and headers are too large"
        )
    return None


def parse(head: bytes) -> Request:
    """Parse a complete head.

    Raise `MalformedRequest` if it is malformed or ambiguous.
    """
    line = _match_line(head)
    method, target, version = (part.decode() for part in line.groups())
    located = _TARGET.fullmatch("/" if (method, target) == ("OPTIONS", "*") else target)
    if not located:
        raise MalformedRequest(400, "the target is neither a path nor an http address")
    host, path, query = located.groups("")
    headers, length, keep_alive = _parse_fields(head[line.end() :], version)
    if host:  # it replaces the Host header (RFC 9112, 3.2.2)
        headers = {**headers, "host": _check_host(host)}
    path = unquote_to_bytes(path or "/").decode("latin-1")
    return Request(method, path, query, f"HTTP/{version}", headers, length, keep_alive)


def _match_line(head: bytes | bytearray) -> re.Match[bytes]:
    line = _LINE.match(head)
    if not line:
        raise MalformedRequest(400, "the request line is malformed")
    if line[3] not in (b"1.0", b"1.1"):
        raise MalformedRequest(505, "only HTTP/1.1 and HTTP/1.0 are supported")
    if head.count(b"\n") != head.count(b"\r\n"):
        raise MalformedRequest(400, "a header line ends in a bare LF")
    return line


class _Fields(dict[str, list[str]]):
    """Collects the header fields that llhttp finds."""

    def on_header(self, name: bytes, value: bytes) -> None:
        self.setdefault(name.decode().lower(), []).append(
            value.strip(b" \t").decode("latin-1")
        )


@lru_cache(256)  # a browser sends the same fields with all of its requests
def _parse_fields(fields: bytes, version: str) -> tuple[Mapping[str, str], int, bool]:
    """Return the headers, length and keep_alive of a `Request`."""
    found = _Fields()
    try:
        with suppress(HttpParserUpgrade):  # an Upgrade may be ignored (RFC 9110, 7.8)
            HttpRequestParser(found).feed_data(b"GET / HTTP/1.1\r\n" + fields)
    except HttpParserError as error:
        raise MalformedRequest(400, f"a header field is malformed: {error}") from None
    headers = {name: ", ".join(values) for name, values in found.items()}
    if "transfer-encoding" in headers:
        raise MalformedRequest(
            411, "a body needs a Content-Length, and no Transfer-Encoding"
        )
    if (
        "host" in headers or version == "1.1"
    ):  # RFC 9112, 3.2; two Hosts, joined by a comma and a space, are invalid
        _check_host(headers.get("host"))
    options = {
        option.strip(" \t").lower()
        for option in headers.get("connection", "").split(",")
    }
    keep_alive = "close" not in options and (
        version == "1.1" or "keep-alive" in options
    )
    return headers, int(headers.get("content-length", 0)), keep_alive


def _check_host(host: str | None) -> str:
    if host is None or not _HOST.fullmatch(host):
        raise MalformedRequest(400, "the request needs one valid Host header")
    return host
