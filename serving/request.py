"""The head of a request, from bytes to an immutable `Request`, no more leniently than RFC 9112 allows.

llhttp (through httptools) reads the header fields. The request line is read here: llhttp would take several spaces and
HTTP/2.0 there, and no method that it doesn't know. Both agree on where a head ends, at the first empty line, because
neither takes a line that ends in a bare LF.

A body needs a Content-Length. A chunked one is refused with 411, as RFC 9112, 6.3 allows: nothing here takes a body,
and so there is only one way to say where a request ends.
"""

import re
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser

_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([!-~]+) HTTP/([0-9]\.[0-9])\r\n")
_ABSOLUTE = re.compile("(?i:https?)://([^/?]+)([^?]*)(.*)")
# Labels of at most 63 characters, or an IPv6 address, and a port; at most 255 characters in all.
_HOST = re.compile(
    r"(?=.{0,255}$)(([a-z0-9_~!$&'()*+,;=%-]{1,63}(\.|(?=:|$)))*|\[[0-9a-f:.]+\])(:[0-9]{0,5})?", re.I | re.A
)

_KNOWN_SIZE = 2048  # bytes of header fields that are remembered


class BadRequest(Exception):
    """A request that is refused with `status`, whereupon its connection is closed."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Request(NamedTuple):
    """The head of a request."""

    method: str
    path: str  # decoded, a character for each byte, as in WSGI
    query: str
    protocol: str  # HTTP/1.0 or HTTP/1.1
    headers: Mapping[str, str]  # by name in lower case; what came under one name several times is joined by commas
    length: int  # of the body, in bytes
    connection: str  # what the answer's Connection header says: nothing, "close" or "keep-alive"


def read_line(head: bytes | bytearray) -> re.Match[bytes]:
    """Match the request line of a head that may be incomplete; raise `BadRequest` if it can't become a request."""
    line = _LINE.match(head)
    if not line:
        raise BadRequest(400, "the request line is malformed")
    if line[3] not in (b"1.0", b"1.1"):
        raise BadRequest(505, "only HTTP/1.1 and HTTP/1.0 are supported")
    if head.count(b"\n") != head.count(b"\r\n"):
        raise BadRequest(400, "a header line ends in a bare LF")
    return line


def parse(head: bytes) -> Request:
    """Return the request that `head`, with its empty line, is; raise `BadRequest` if it leaves any doubt."""
    line = read_line(head)
    method, target, version = (part.decode() for part in line.groups())
    fields = head[line.end() :]
    read = _read_known_fields if len(fields) <= _KNOWN_SIZE else _read_fields
    headers, length, connection = read(fields, version)
    path, query, host = _split_target(method, target)
    if host and "host" in headers:
        headers = {**headers, "host": host}
    return Request(method, path, query, f"HTTP/{version}", headers, length, connection)


def _split_target(method: str, target: str) -> tuple[str, str, str]:
    """Return path, query, and the host of an absolute target, which replaces the Host header (RFC 9112, 3.2.2)."""
    host = ""
    if target == "*" and method == "OPTIONS":
        return "/", "", host
    if not target.startswith("/"):
        absolute = _ABSOLUTE.fullmatch(target)
        if not absolute:
            raise BadRequest(400, "the target is neither a path nor an http address")
        host = _check_host(absolute[1])
        target = (absolute[2] or "/") + absolute[3]
    path, _, query = target.partition("?")
    return unquote_to_bytes(path).decode("latin-1"), query, host


class _Fields(dict[str, list[str]]):
    def on_header(self, name: bytes, value: bytes) -> None:
        self.setdefault(name.decode().lower(), []).append(value.strip(b" \t").decode("latin-1"))


def _read_fields(fields: bytes, version: str) -> tuple[Mapping[str, str], int, str]:
    """Return what the header fields of a request are and say: headers, length and connection, as in `Request`."""
    found = _Fields()
    try:
        with suppress(HttpParserUpgrade):  # nobody has to switch protocols (RFC 9110, 7.8)
            HttpRequestParser(found).feed_data(b"GET / HTTP/1.1\r\n" + fields)
    except HttpParserError as error:
        raise BadRequest(400, f"a header field is malformed: {error}") from None
    headers = {name: ", ".join(values) for name, values in found.items()}
    if "host" in headers or version != "1.0":  # RFC 9112, 3.2; two of them are none
        _check_host(headers.get("host"))
    return headers, _length(headers, version), _connection(headers, version)


# A browser sends the same header fields with whatever it asks for.
_read_known_fields = lru_cache(1024)(_read_fields)


def _check_host(host: str | None) -> str:
    if host is None or not _HOST.fullmatch(host):
        raise BadRequest(400, "the request needs one valid Host header")
    return host


def _length(headers: Mapping[str, str], version: str) -> int:
    coding = headers.get("transfer-encoding")
    if coding is None:
        return int(headers.get("content-length", 0))
    if version == "1.0":
        raise BadRequest(400, "HTTP/1.0 has no Transfer-Encoding")
    if coding.lower() == "chunked":
        raise BadRequest(411, "a body needs a Content-Length")
    raise BadRequest(501, "this Transfer-Encoding is not supported")


def _connection(headers: Mapping[str, str], version: str) -> str:
    wishes = {wish.strip(" \t").lower() for wish in headers.get("connection", "").split(",")}
    if "close" in wishes:
        return "close"
    if version == "1.0":
        return "keep-alive" if "keep-alive" in wishes else "close"
    return ""
