"""What one answer looks like as HTTP: its bytes, its headers, conditional requests, CORS and errors.

`render` makes a response of it, for the route and for the fast path alike. Sources: RFC 9110 (conditional requests,
Retry-After), RFC 9111 (Cache-Control, Age), RFC 9211 (Cache-Status), RFC 8259 (JSON), the Fetch standard (CORS).
"""

import json
import math
from collections.abc import Mapping
from functools import lru_cache
from http import HTTPStatus
from typing import Any

from werkzeug.http import parse_etags

from answers.value import JSON, encode, envelope, error_code, make_etag, phrase
from cache import NEGATIVE, OK, Found

NOSNIFF = ("X-Content-Type-Options", "nosniff")
NO_STORE = ("Cache-Control", "no-store")
_EXPOSED = ("Access-Control-Expose-Headers", "Age, Cache-Status, ETag, Retry-After")
_PREFLIGHT = [
    ("Access-Control-Allow-Methods", "GET, HEAD"),
    ("Access-Control-Allow-Headers", "*"),
    ("Access-Control-Max-Age", "600"),
]

Headers = list[tuple[str, str]]


# One response, as WSGI wants it: status line, complete headers, and the body, which is whole also where HEAD will not
# send it. A plain tuple, as a named one costs a tenth of a hit.
Response = tuple[str, Headers, bytes]


def render(found: Found, condition: str | None) -> Response:
    """Make the response of what the cache gave; `condition` is the request's If-None-Match.

    What is kept for the full expiry may be kept by others until then, counted from the load: a browser takes the
    time that it waited for an answer off `max-age` by itself, and `Age` is for who did not wait for the whole load.
    """
    # Unpacked, and 200 as a number, since attributes of named tuples and enumerations cost a quarter of a hit.
    (status, content_type, body, etag, upstream_status, retry_after), kind, exact_age, ttl, result, kept = found
    lifetime, age = _lifetime_and_age(result, exact_age, ttl)
    if result == "hit":
        headers = [*_content(content_type, len(body)), *_hit(kind in (OK, NEGATIVE) and ttl > 0, lifetime, age)]
    else:
        headers = [*_content(content_type, len(body))]
        headers.append(("Cache-Control", f"max-age={lifetime}") if kind in (OK, NEGATIVE) and ttl > 0 else NO_STORE)
        if result != "miss":
            headers.append(("Age", str(age)))
        forwarded = f"; fwd-status={upstream_status}" if upstream_status and result not in ("shared", "awaited") else ""
        headers.append(("Cache-Status", _cache_status({_source(found)}, forwarded, kept, lifetime - age)))
    if retry_after:
        headers.append(("Retry-After", str(max(1, math.ceil(max(retry_after - exact_age, ttl))))))
    if status != 200:
        return f"{status} {phrase(status)}", headers, body
    headers.append(("ETag", etag))
    return _conditional(etag, headers, body, condition)


def render_many(found: Mapping[str, Found], condition: str | None) -> Response:
    """Make the response of what the cache gave for a list of events, which others may keep as long as all of it.

    Each element is byte for byte what the route of one event answers.
    """
    data, errors, left = [], {}, []
    for event_id, part in found.items():
        status, _, body, *_ = part.value
        if status == HTTPStatus.OK:
            data.append(body)
        else:
            errors[event_id] = _error_of(status, body)
        lifetime, age = _lifetime_and_age(part.result, part.age, part.ttl)
        left.append(lifetime - age)
    count = encode({"count": len(data)})
    body = b'{"meta_data":%b,"data":[%b],"errors":%b}' % (count, b",".join(data), encode(errors))
    headers = [*_content(JSON, len(body))]
    lasting = min(left) > 0 and all(part.kind in (OK, NEGATIVE) for part in found.values())
    headers.append(("Cache-Control", f"max-age={min(left)}") if lasting else NO_STORE)
    kept = all(part.kept for part in found.values())
    headers.append(("Cache-Status", _cache_status(set(map(_source, found.values())), "", kept, min(left))))
    etag = make_etag(body)
    headers.append(("ETag", etag))
    return _conditional(etag, headers, body, condition)


def error(status: int, message: str, headers: Headers) -> Response:
    """Make the response of an error that no load has to do with; `headers` come on top."""
    body = envelope(status, message)
    fixed = [*_content(JSON, len(body)), NO_STORE]
    return f"{status} {phrase(status)}", fixed + headers, body


def serialize(status: str, headers: Headers) -> bytes:
    """Return status line and header lines as they go over the wire, each with its CRLF."""
    return "\r\n".join([f"HTTP/1.1 {status}", *(f"{name}: {text}" for name, text in headers), ""]).encode("latin-1")


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


def _conditional(etag: str, headers: Headers, body: bytes, condition: str | None) -> Response:
    """Make a 200 of it, or a 304 where the client has it already (RFC 9110, 13.1.2 and 15.4.5)."""
    if condition and parse_etags(condition).contains_weak(etag[1:-1]):
        return "304 Not Modified", headers[2:], b""  # without type and length, the first two: it has no body
    return "200 OK", headers, body


@lru_cache(4096)
def _content(content_type: str, length: int) -> tuple[tuple[str, str], ...]:
    """Return what says of a body what it is: the same for all of one length, so made once."""
    return ("Content-Type", content_type), ("Content-Length", str(length)), NOSNIFF


@lru_cache(4096)
def _hit(lasting: bool, lifetime: int, age: int) -> tuple[tuple[str, str], ...]:
    """Return what says of a hit how long it lasts: the same for all answers of one second's age, so made once."""
    return (
        ("Cache-Control", f"max-age={lifetime}") if lasting else NO_STORE,
        ("Age", str(age)),
        ("Cache-Status", _cache_status({"hit"}, "", True, lifetime - age)),
    )


def _lifetime_and_age(result: str, age: float, ttl: float) -> tuple[int, int]:
    """Return in whole seconds how long an answer is kept in all, and how old it is, on the side of caution.

    Who waited for the whole load knows how long that took, and counts it (RFC 9111, 4.2.3).
    """
    lifetime = int(age + ttl + 1e-6)
    return lifetime, int(age) if result == "miss" else math.ceil(age)


def _error_of(status: int, body: bytes) -> dict[str, Any]:
    """Return what stands in an error's envelope, whether it is the upstream's or our own."""
    try:
        said = json.loads(body)["error"]
        return {"status_code": status, "message": str(said["message"]), "code": str(said["code"])}
    except (ValueError, RecursionError, LookupError, TypeError):
        return {"status_code": status, "message": f"Calendar42 answered {status}", "code": error_code(status)}


def _source(found: Found) -> str:
    """Return the result, or "paused" where no call was made, which a 429 of our own tells."""
    status, _, _, _, upstream_status, _ = found.value
    asked = found.result == "hit" or status != HTTPStatus.TOO_MANY_REQUESTS or upstream_status
    return found.result if asked else "paused"


def _cache_status(sources: set[str], forwarded: str, kept: bool, ttl: int) -> str:
    """Say how the cache came by an answer (RFC 9211, 2); `fwd` is only for what went on to the upstream."""
    freshness = f"; ttl={max(0, ttl)}"
    if sources == {"hit"}:
        return f"c42c; hit{freshness}"
    if sources <= {"hit", "paused"}:
        return f"c42c; detail=paused{freshness}"
    how = "partial" if "hit" in sources else "miss"
    if "miss" not in sources:
        forwarded = "; detail=shared" if sources & {"shared", "awaited"} else f"; collapsed{forwarded}"
    return f"c42c; fwd={how}{forwarded}" + (f"; stored{freshness}" if kept else "")
