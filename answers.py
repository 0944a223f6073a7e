"""What one answer looks like as HTTP: its bytes, its headers and conditional requests; the error envelope.

An answer is kept as an exact tuple of plain values, made once per load, with the bytes that will be sent:

    status, content type, body, ETag, upstream's status (0: none), Retry-After in seconds from the load's beginning

`render` makes a response of it, for the route and for the fast path alike. Sources: RFC 9110 (conditional requests,
Retry-After), RFC 9111 (Cache-Control, Age), RFC 9211 (Cache-Status), RFC 8259 (JSON).
"""

import json
import math
import re
from collections.abc import Mapping
from hashlib import blake2b
from http import HTTPStatus
from typing import Any, NamedTuple

from werkzeug.http import parse_etags

from outcome import FAULT, Found

JSON = "application/json"
_STATUS_LINES = {status.value: f"{status.value} {status.phrase}" for status in HTTPStatus}

Headers = list[tuple[str, str]]
Value = tuple[int, str, bytes, str, int, float]


class Response(NamedTuple):
    """One response, as WSGI wants it: `headers` are complete, `body` is whole also where HEAD will not send it."""

    status: str
    headers: Headers
    body: bytes


def success(answer: Mapping[str, Any]) -> Value:
    """Make the value of a merged answer."""
    return _value(200, JSON, encode(answer), 200, 0.0)


def failure(
    status: int, message: str, *, body: bytes = b"", upstream_status: int = 0, retry_after: float = 0.0
) -> Value:
    """Make the value of an error: the upstream's `body` to be passed through, or without one the envelope."""
    if not body:
        return _value(status, JSON, envelope(status, message), upstream_status, retry_after)
    return _value(status, _content_type(body), body, upstream_status, retry_after)


def envelope(status: int, message: str) -> bytes:
    """Return the upstream's own form of an error, in which this service reports its own as well."""
    return encode({"error": {"status_code": status, "message": message, "code": _phrase(status, "_").upper()}})


def encode(data: Any) -> bytes:
    """Return compact JSON in UTF-8; half a surrogate pair, which JSON can hold and UTF-8 can't, becomes U+FFFD."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return re.sub("[\ud800-\udfff]", "\ufffd", text).encode()


def render(found: Found, environ: Mapping[str, Any]) -> Response:
    """Make the response of what the cache gave, to the request of `environ`.

    What is kept for the full expiry may be kept by others until then, counted from the load: a browser takes the
    time that it waited for an answer off `max-age` by itself, and `Age` is for who did not wait for the whole load.
    """
    status, content_type, body, etag, upstream_status, retry_after = found.value
    lifetime = int(found.age + found.ttl + 1e-6)
    age = 0 if found.result == "miss" else min(math.ceil(found.age), lifetime)
    headers = [
        ("Content-Type", content_type),
        ("Content-Length", str(len(body))),
        ("X-Content-Type-Options", "nosniff"),
        ("Cache-Status", _cache_status(found, upstream_status, lifetime - age)),
    ]
    if found.kind == FAULT or found.ttl <= 0:
        headers.append(("Cache-Control", "no-store"))
    else:
        headers.append(("Cache-Control", f"max-age={lifetime}"))
        if found.result != "miss":
            headers.append(("Age", str(age)))
    if retry_after:
        headers.append(("Retry-After", str(max(1, math.ceil(max(retry_after - found.age, found.ttl))))))
    if status == HTTPStatus.OK:
        headers.append(("ETag", etag))
        if (wanted := environ.get("HTTP_IF_NONE_MATCH")) and parse_etags(wanted).contains_weak(etag[1:-1]):
            return Response("304 Not Modified", headers[2:], b"")
    return Response(_STATUS_LINES.get(status) or f"{status} Unknown", headers, body)


def error(status: int, message: str, headers: Headers) -> Response:
    """Make the response of an error that no load has to do with; `headers` come on top."""
    body = envelope(status, message)
    fixed = [
        ("Content-Type", JSON),
        ("Content-Length", str(len(body))),
        ("X-Content-Type-Options", "nosniff"),
        ("Cache-Control", "no-store"),
    ]
    return Response(f"{status} {_phrase(status)}", fixed + headers, body)


def _value(status: int, content_type: str, body: bytes, upstream_status: int, retry_after: float) -> Value:
    etag = f'"{blake2b(body, digest_size=12).hexdigest()}"'
    return (status, content_type, body, etag, upstream_status, retry_after)


def _cache_status(found: Found, upstream_status: int, ttl: int) -> str:
    if found.result == "hit":
        return f"c42c; hit; ttl={ttl}"
    forwarded = {"collapsed": "; collapsed", "shared": "; detail=shared"}.get(found.result, "")
    if upstream_status and found.result != "shared":
        forwarded += f"; fwd-status={upstream_status}"
    return f"c42c; fwd=miss{forwarded}" + (f"; stored; ttl={ttl}" if found.kept else "")


def _content_type(body: bytes) -> str:
    """Say what a passed-through body is: JSON, or text, whatever it was called; nothing that a browser would run."""
    try:
        json.loads(body.decode(), parse_constant=_no_constant)
    except UnicodeDecodeError:
        return "text/plain"
    except (ValueError, RecursionError):
        return "text/plain; charset=utf-8"
    return JSON


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON, though Python reads it")


def _phrase(status: int, space: str = " ") -> str:
    phrase = HTTPStatus(status).phrase if status in _STATUS_LINES else "Unknown"
    return phrase.replace("-", " ").replace("'", "").replace(" ", space)
