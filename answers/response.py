"""Answers as HTTP: status, headers, body, conditional requests, CORS and errors.

Sources: RFC 9110 (conditional requests, Retry-After), RFC 9111 (Cache-Control), RFC
9211 (Cache-Status), RFC 8259 (JSON), the Fetch standard (CORS). docs/design.md says why
`max-age` is what is left, without `Age`.
"""

import json
import math
from collections.abc import Collection, Mapping
from typing import Any

from werkzeug.http import parse_etags

from answers.value import JSON, StoredAnswer, encode, envelope, make_etag, phrase
from cache import NEGATIVE, OK, PAUSED, Found

NOSNIFF = ("X-Content-Type-Options", "nosniff")
NO_STORE = ("Cache-Control", "no-store")
_EXPOSED = (
    "Access-Control-Expose-Headers",
    "Cache-Status, ETag, Retry-After, X-Request-ID",
)
_PREFLIGHT = [
    ("Access-Control-Allow-Methods", "GET, HEAD"),
    ("Access-Control-Allow-Headers", "*"),
    ("Access-Control-Max-Age", "600"),
]

Headers = list[tuple[str, str]]
Response = tuple[
    str, Headers, bytes
]  # status and reason, headers, and the body, even for HEAD


def render(found: Found, condition: str | None) -> Response:
    """Make the response for one event; `condition` is the request's If-None-Match."""
    value = StoredAnswer(*found.value)
    headers = _describe([found], value.upstream_status)
    if value.retry_after:
        seconds = max(value.retry_after - found.age, found.ttl, 1)
        headers.append(("Retry-After", str(math.ceil(seconds))))
    return _complete(value, headers, condition)


def render_many(found: Mapping[str, Found], condition: str | None) -> Response:
    """Make the response for a list.

    It expires with its first part, and has the bytes of each event's own route.
    """
    values = {event_id: StoredAnswer(*part.value) for event_id, part in found.items()}
    data = [value.body for value in values.values() if value.status == 200]
    errors = {
        event_id: _error(value)
        for event_id, value in values.items()
        if value.status != 200
    }
    body = b'{"meta_data":{"count":%d},"data":[%b],"errors":%b}' % (
        len(data),
        b",".join(data),
        encode(errors),
    )
    return _complete(
        StoredAnswer(body, 200, JSON, make_etag(body)),
        _describe(found.values()),
        condition,
    )


def error(status: int, message: str, *headers: tuple[str, str]) -> Response:
    """Make the response for an error that isn't an event's; `headers` are added."""
    return _complete(
        StoredAnswer(envelope(status, message), status, JSON),
        [NOSNIFF, NO_STORE, *headers],
        None,
    )


def cors(origins: frozenset[str], origin: str, method: str) -> Headers:
    """Return the headers that let pages of `origins` read an answer (Fetch standard);
    `*` stands for all origins.
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


def _complete(value: StoredAnswer, headers: Headers, condition: str | None) -> Response:
    """Add the headers of the body, or make it a 304 if the client has the body (RFC
    9110, 13.1.2 and 15.4.5).
    """
    if value.status == 200:
        headers.append(("ETag", value.etag))
        if condition and parse_etags(condition).contains_weak(value.etag[1:-1]):
            return "304 Not Modified", headers, b""
    content = [
        ("Content-Type", value.content_type),
        ("Content-Length", str(len(value.body))),
    ]
    return f"{value.status} {phrase(value.status)}", content + headers, value.body


def _describe(parts: Collection[Found], upstream_status: int = 0) -> Headers:
    """Return the headers that say how an answer came about, and for how many seconds
    clients may keep it.
    """
    ttl = min(part.ttl for part in parts)
    lasting = ttl > 0 and all(part.kind in (OK, NEGATIVE) for part in parts)
    left = max(0, int(ttl))
    cache_status = _cache_status(
        set(map(_came, parts)),
        upstream_status,
        all(part.stored for part in parts),
        left,
    )
    return [
        NOSNIFF,
        ("Cache-Control", f"max-age={left}") if lasting else NO_STORE,
        ("Cache-Status", cache_status),
    ]


def _came(found: Found) -> str:
    """Return the cache's result, or "paused" if a pause kept the upstream from being
    called.
    """
    asked = (
        found.kind != PAUSED
        or found.source == "hit"
        or StoredAnswer(*found.value).upstream_status
    )
    return found.source if asked else "paused"


def _cache_status(
    results: set[str], upstream_status: int, kept: bool, left: int
) -> str:
    """Return Cache-Status (RFC 9211, 2); `fwd` is only for requests that went on to the
    upstream.
    """
    if results == {"hit"}:
        return f"c42c; hit; ttl={left}"
    if results <= {"hit", "paused"}:
        return f"c42c; detail=paused; ttl={left}"
    said = ["c42c", "fwd=partial" if "hit" in results else "fwd=miss"]
    shared = results & {"shared", "awaited"}
    if results & {"collapsed", "awaited"} and "miss" not in results:
        said.append("collapsed")
    if upstream_status and not shared:
        said.append(f"fwd-status={upstream_status}")
    if shared and "miss" not in results:
        said.append("detail=shared")
    if kept:
        said += ["stored", f"ttl={left}"]
    return "; ".join(said)


def _error(value: StoredAnswer) -> dict[str, Any]:
    """Return the content of an error's envelope, the upstream's or our own."""
    is_envelope = value.content_type == JSON
    body = (
        value.body
        if is_envelope
        else envelope(value.status, f"Calendar42 answered {value.status}")
    )
    said = json.loads(body)["error"]
    return {
        "status_code": value.status,
        "message": said["message"],
        "code": said["code"],
    }
