"""Renders what the cache found, and errors, as HTTP.

All functions are pure.

Sources: RFC 9110 (conditional requests, Retry-After), RFC 9111 (Cache-Control), RFC
9211 (Cache-Status), RFC 8259 (JSON), the Fetch standard (CORS). docs/design.md says why
`max-age` is what is left, without `Age`.
"""

import json
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from werkzeug.http import parse_etags

from answers.value import JSON, StoredAnswer, encode, envelope, make_etag, phrase
from cache import FAULT, NEGATIVE, OK, PAUSED, Found

NOSNIFF = ("X-Content-Type-Options", "nosniff")
NO_STORE = ("Cache-Control", "no-store")
SOON = ("Retry-After", "1")  # of errors that have nothing to do with a load
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


class Response(NamedTuple):
    """An answer as HTTP has it."""

    status: str  # code and reason phrase
    headers: Headers
    body: bytes  # even for HEAD


def render(found: Found, condition: str | None) -> Response:
    """Make the response for one event; `condition` is the request's If-None-Match.

    Of what changes with time, it depends on `int(found.ttl)` alone: see `answers.hits`.
    """
    stored = StoredAnswer(*found.value)
    headers = [NOSNIFF, *_cache_headers([found], stored.upstream_status)]
    if _is_fault(found):
        headers.append(("Retry-After", str(_retry_after(found, stored))))
    if stored.request_id:
        headers.append(("X-Request-ID", stored.request_id))
    return _complete(stored, headers, condition)


def render_many(found: Mapping[str, Found], condition: str | None) -> Response:
    """Make the response for a list.

    It expires with its first part, and has the bytes of each event's own route.
    """
    data = []
    errors = {}
    for event_id, part in found.items():
        stored = StoredAnswer(*part.value)
        if stored.status == 200:
            data.append(stored.body)
        else:
            errors[event_id] = _list_error(part, stored)
    body = b'{"meta_data":{"count":%d},"data":[%b],"errors":%b}' % (
        len(data),
        b",".join(data),
        encode(errors),
    )
    headers = [NOSNIFF, *_cache_headers(found.values())]
    stored = StoredAnswer(body, 200, JSON, make_etag(body))
    return _complete(stored, headers, condition)


def error(status: int, message: str, *headers: tuple[str, str]) -> Response:
    """Make the response for an error that isn't an event's; `headers` are added."""
    stored = StoredAnswer(envelope(status, message), status, JSON, etag="")
    return _complete(stored, [NOSNIFF, NO_STORE, *headers], None)


def cors(origins: frozenset[str], origin: str, method: str) -> Headers:
    """Return the headers that let pages of `origins` read an answer and its timing.

    `*` stands for all origins. The rules are those of the Fetch and Resource Timing
    standards.
    """
    headers: Headers = []
    allowed = origin
    if "*" in origins:
        allowed = "*"
    elif origins:
        headers.append(("Vary", "Origin"))
    if allowed in origins:
        headers.append(("Access-Control-Allow-Origin", allowed))
        headers.append(_EXPOSED)
        headers.append(("Timing-Allow-Origin", allowed))
        if method == "OPTIONS":
            headers.extend(_PREFLIGHT)
    return headers


def status_line(status: int) -> str:
    """Return a status with its reason phrase."""
    return f"{status} {phrase(status)}"


def _complete(
    stored: StoredAnswer, headers: Headers, condition: str | None
) -> Response:
    """Add the headers of the body, or make it a 304 if the client has this body.

    RFC 9110, 13.1.2 and 15.4.5.
    """
    if stored.status == 200:
        headers.append(("ETag", stored.etag))
        if condition and parse_etags(condition).contains_weak(stored.etag[1:-1]):
            return Response(status_line(304), headers, b"")
    content = [
        ("Content-Type", stored.content_type),
        ("Content-Length", str(len(stored.body))),
    ]
    return Response(status_line(stored.status), content + headers, stored.body)


def _cache_headers(parts: Collection[Found], upstream_status: int = 0) -> Headers:
    """Return Cache-Control and Cache-Status.

    The first says for how many seconds clients may keep an answer, the second how it
    came about.
    """
    sources = set()
    all_kept = True
    lasting = True
    ttl = min(part.ttl for part in parts)
    for part in parts:
        sources.add(_source(part))
        if not part.is_kept:
            all_kept = False
        if part.kind not in (OK, NEGATIVE):
            lasting = False
    left = max(0, int(ttl))
    cache_control = NO_STORE
    if lasting and ttl > 0:
        cache_control = ("Cache-Control", f"max-age={left}")
    cache_status = _cache_status(sources, upstream_status, all_kept, left)
    return [cache_control, ("Cache-Status", cache_status)]


def _source(found: Found) -> str:
    """Return where an answer came from.

    This is the cache's word for it, or "paused" if a pause kept Calendar42 from being
    asked.
    """
    if found.kind != PAUSED or found.source == "hit":
        return found.source
    if StoredAnswer(*found.value).upstream_status:
        return found.source  # it was asked, and asked for the pause
    return "paused"


def _cache_status(
    sources: set[str], upstream_status: int, all_kept: bool, left: int
) -> str:
    """Return the value of Cache-Status (RFC 9211, 2).

    `fwd` is only for requests that went on to Calendar42.
    """
    if sources == {"hit"}:
        return f"c42c; hit; ttl={left}"
    if sources <= {"hit", "paused"}:
        return f"c42c; detail=paused; ttl={left}"
    loaded_here = "miss" in sources
    waited = "collapsed" in sources or "awaited" in sources
    from_redis = "shared" in sources or "awaited" in sources
    said = ["c42c"]
    if "hit" in sources:
        said.append("fwd=partial")
    else:
        said.append("fwd=miss")
    if waited and not loaded_here:
        said.append("collapsed")
    if upstream_status and not from_redis:
        said.append(f"fwd-status={upstream_status}")
    if from_redis and not loaded_here:
        said.append("detail=shared")
    if all_kept:
        said.append("stored")
        said.append(f"ttl={left}")
    return "; ".join(said)


def _is_fault(found: Found) -> bool:
    """Whether it is worth asking again soon."""
    return found.kind in (FAULT, PAUSED)


def _retry_after(found: Found, stored: StoredAnswer) -> int:
    """Return how many seconds to wait before asking again makes sense.

    Then c42c would ask again, or later if Calendar42 wants to be asked later. Part of a
    second counts as a whole one.
    """
    return max(0, int(found.ttl)) + 1 + stored.extra_wait


def _list_error(found: Found, stored: StoredAnswer) -> dict[str, Any]:
    """Return what a list says of an event's error.

    It is the content of the error's envelope and, for a fault, what the headers of the
    event's own route say.
    """
    content = _read_envelope(stored)
    said: dict[str, Any] = {
        "status_code": stored.status,
        "message": content["message"],
        "code": content["code"],
    }
    if _is_fault(found):
        said["retry_after"] = _retry_after(found, stored)
        if stored.request_id:
            said["request_id"] = stored.request_id
    return said


def _read_envelope(stored: StoredAnswer) -> dict[str, Any]:
    """Return the content of an error's envelope, or of one made for it."""
    content: dict[str, Any]
    if stored.content_type == JSON:
        # The thread that loaded it could read it, but may have had more stack left.
        with suppress(RecursionError):
            content = json.loads(stored.body)["error"]
            return content
    replacement = envelope(stored.status, f"Calendar42 answered {stored.status}")
    content = json.loads(replacement)["error"]
    return content
