"""What one answer looks like as HTTP: its bytes, its headers, conditional requests, CORS and errors.

Sources: RFC 9110 (conditional requests, Retry-After), RFC 9111 (Cache-Control), RFC 9211 (Cache-Status), RFC 8259
(JSON), the Fetch standard (CORS).

`max-age` is what is left of an answer's life, and there is no `Age`: c42c is the origin of its answers, and too many
clients take no `Age` off `max-age`.
"""

import json
import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from werkzeug.http import parse_etags

from answers.value import (
    JSON,
    Parts,
    encode,
    envelope,
    error_code,
    make_etag,
    phrase,
)
from cache import NEGATIVE, OK, Found

NOSNIFF = ("X-Content-Type-Options", "nosniff")
NO_STORE = ("Cache-Control", "no-store")
ROUNDING = 1e-6  # seconds; a lifetime that was added to a moment and taken off again may be less than it was
_EXPOSED = ("Access-Control-Expose-Headers", "Cache-Status, ETag, Retry-After, X-Request-ID")
_PREFLIGHT = [
    ("Access-Control-Allow-Methods", "GET, HEAD"),
    ("Access-Control-Allow-Headers", "*"),
    ("Access-Control-Max-Age", "600"),
]

Headers = list[tuple[str, str]]
Response = tuple[str, Headers, bytes]  # status line, headers, and the body, also if HEAD will not send it


def render(found: Found, condition: str | None) -> Response:
    """Make the response of what the cache gave; `condition` is the request's If-None-Match."""
    value = Parts._make(found.value)
    asked = value.upstream_status and found.result not in ("shared", "awaited")
    forwarded = f"; fwd-status={value.upstream_status}" if asked else ""
    headers = _freshness({_source(found)}, forwarded, found.kind in (OK, NEGATIVE), found.kept, found.ttl)
    if value.retry_after:
        headers.append(("Retry-After", str(max(1, math.ceil(max(value.retry_after - found.age, found.ttl))))))
    etag = value.etag if value.status == HTTPStatus.OK else ""
    return _complete(value.status, value.content_type, value.body, headers, etag, condition)


def render_many(found: Mapping[str, Found], condition: str | None) -> Response:
    """Make the response of what the cache gave for a list of events, which others may keep as long as all of it.

    Each element is byte for byte what the route of one event answers.
    """
    data, errors = [], {}
    for event_id, part in found.items():
        value = Parts._make(part.value)
        if value.status == HTTPStatus.OK:
            data.append(value.body)
        else:
            errors[event_id] = _error_of(value.status, value.body)
    count = encode({"count": len(data)})
    body = b'{"meta_data":%b,"data":[%b],"errors":%b}' % (count, b",".join(data), encode(errors))
    lasting = all(part.kind in (OK, NEGATIVE) for part in found.values())
    kept = all(part.kept for part in found.values())
    ttl = min(part.ttl for part in found.values())
    headers = _freshness(set(map(_source, found.values())), "", lasting, kept, ttl)
    return _complete(HTTPStatus.OK, JSON, body, headers, make_etag(body), condition)


def error(status: int, message: str, headers: Headers) -> Response:
    """Make the response of an error that no load has to do with; `headers` come on top."""
    return _complete(status, JSON, envelope(status, message), [NOSNIFF, NO_STORE, *headers], "", None)


def serialize(status: str, headers: Headers) -> bytes:
    """Return status line and header lines as they go over the wire, each with its CRLF."""
    return f"HTTP/1.1 {status}\r\n".encode() + serialize_headers(headers)


def serialize_headers(headers: Headers) -> bytes:
    """Return header lines as they go over the wire, each with its CRLF."""
    return "".join(f"{name}: {text}\r\n" for name, text in headers).encode("latin-1")


def cors(origins: frozenset[str], origin: str, method: str) -> Headers:
    """Return the headers that let a browser hand an answer to a page of one of `origins` (`*`: of any).

    Source: the Fetch standard. No credentials are ever asked for, so the star may stand for everybody.
    """
    if not origins:
        return []
    anybody = "*" in origins
    origin = "*" if anybody else origin
    headers = [] if anybody else [("Vary", "Origin")]
    if origin in origins:
        headers += [("Access-Control-Allow-Origin", origin), _EXPOSED]
        if method == "OPTIONS":
            headers += _PREFLIGHT
    return headers


def _complete(
    status: int, content_type: str, body: bytes, headers: Headers, etag: str, condition: str | None
) -> Response:
    """Add what depends on the body; make a 304 of it if the client has it already (RFC 9110, 13.1.2 and 15.4.5)."""
    if etag:
        headers.append(("ETag", etag))
        if condition and parse_etags(condition).contains_weak(etag[1:-1]):
            return "304 Not Modified", headers, b""
    return f"{status} {phrase(status)}", [*_content(content_type, len(body)), *headers], body


def seconds_left(ttl: float) -> int:
    """Return how long an answer may be kept, in whole seconds."""
    return max(0, int(ttl + ROUNDING))


def _content(content_type: str, length: int) -> Headers:
    return [("Content-Type", content_type), ("Content-Length", str(length))]


def _freshness(sources: set[str], forwarded: str, lasting: bool, kept: bool, ttl: float) -> Headers:
    """Say how an answer came about and how long it may be kept: in whole seconds, rounded down."""
    left = seconds_left(ttl)
    cache_control = ("Cache-Control", f"max-age={left}") if lasting and ttl > 0 else NO_STORE
    return [NOSNIFF, cache_control, ("Cache-Status", _cache_status(sources, forwarded, kept, left))]


def _error_of(status: int, body: bytes) -> dict[str, Any]:
    """Return what stands in an error's envelope, whether it is the upstream's or our own."""
    try:
        said = json.loads(body)["error"]
        return {"status_code": status, "message": str(said["message"]), "code": str(said["code"])}
    except (ValueError, RecursionError, LookupError, TypeError):
        return {"status_code": status, "message": f"Calendar42 answered {status}", "code": error_code(status)}


def _source(found: Found) -> str:
    """Return the result, or "paused" where no call was made, which a 429 of our own tells."""
    value = Parts._make(found.value)
    asked = found.result == "hit" or value.status != HTTPStatus.TOO_MANY_REQUESTS or value.upstream_status
    return found.result if asked else "paused"


def _cache_status(sources: set[str], forwarded: str, kept: bool, left: int) -> str:
    """Say how the cache came by an answer (RFC 9211, 2); `fwd` is only for what went on to the upstream."""
    freshness = f"; ttl={left}"
    if sources == {"hit"}:
        return f"c42c; hit{freshness}"
    if sources <= {"hit", "paused"}:
        return f"c42c; detail=paused{freshness}"
    how = "partial" if "hit" in sources else "miss"
    if "miss" not in sources:
        collapsed = "; collapsed" if sources & {"collapsed", "awaited"} else ""
        forwarded = collapsed + forwarded + ("; detail=shared" if sources & {"shared", "awaited"} else "")
    return f"c42c; fwd={how}{forwarded}" + (f"; stored{freshness}" if kept else "")
