"""The value that is kept of an answer: the bytes that will be sent, and what the response says of them.

An exact tuple of plain values, made once per load:

    status, content type, body, ETag, upstream's status (0: none), Retry-After in seconds from the load's beginning

`pack` and `unpack` are its encoding for Redis: a line of JSON, then the body.
"""

import json
import math
import re
from collections.abc import Mapping
from hashlib import blake2b
from http import HTTPStatus
from typing import Any, NamedTuple, cast

from cache import KINDS, OK, Loaded

JSON = "application/json"
_PHRASES = {status.value: status.phrase for status in HTTPStatus}

Value = tuple[int, str, bytes, str, int, float]


class Parts(NamedTuple):
    """A value with names to its parts, for reading; what is kept has none, see `cache`."""

    status: int
    content_type: str
    body: bytes
    etag: str
    upstream_status: int
    retry_after: float


# Where a hit finds these in a value: an index costs it a tenth of what `Parts` would.
BODY, ETAG, RETRY_AFTER = map(Parts._fields.index, ("body", "etag", "retry_after"))


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


def pack(loaded: Loaded) -> bytes:
    """Return what Redis keeps of an answer: all but its age, which Redis tells by the time that is left of it."""
    status, _, body, etag, upstream_status, retry_after = cast(Value, loaded.value)
    head = [loaded.kind, loaded.lifetime, status, upstream_status, retry_after, etag]
    return b"%b\n%b" % (json.dumps(head).encode(), body)


def unpack(packed: bytes) -> Loaded:
    """Return the answer that `pack` was given, without its age; raise ValueError for anything that it did not make.

    The ETag, a digest of the body, shows that the body is whole. The content type is worked out again.
    """
    head, _, body = packed.partition(b"\n")
    try:
        kind, lifetime, status, upstream_status, retry_after, etag = json.loads(head)
        whole = kind in KINDS and body and etag == make_etag(body)
        numbers = type(status) is int and type(upstream_status) is int and type(lifetime) is type(retry_after) is float
        ranges = 0 < lifetime < math.inf and 0 <= retry_after < math.inf and upstream_status in range(600)
        if not (whole and numbers and ranges and (status == 200 if kind == OK else status in range(400, 600))):
            raise ValueError
    except (ValueError, TypeError, RecursionError):
        raise ValueError("not a packed answer") from None
    content_type = JSON if kind == OK else _content_type(body)
    loaded = Loaded((status, content_type, body, etag, upstream_status, retry_after), kind, lifetime)
    if pack(loaded) != packed:  # another spelling of the same
        raise ValueError("not a packed answer")
    return loaded


def envelope(status: int, message: str) -> bytes:
    """Return the upstream's own form of an error, in which this service reports its own as well."""
    return encode({"error": {"status_code": status, "message": message, "code": error_code(status)}})


def encode(data: Any) -> bytes:
    """Return compact JSON in UTF-8; half a surrogate pair, which JSON can hold and UTF-8 can't, becomes U+FFFD."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return re.sub("[\ud800-\udfff]", "\ufffd", text).encode()


def _value(status: int, content_type: str, body: bytes, upstream_status: int, retry_after: float) -> Value:
    return (status, content_type, body, make_etag(body), upstream_status, retry_after)


def make_etag(body: bytes) -> str:
    return f'"{blake2b(body, digest_size=12).hexdigest()}"'


def _content_type(body: bytes) -> str:
    """Return the content type of a passed-through body: JSON if it is an error in the envelope, plain text otherwise.

    What the upstream calls it doesn't matter, so that it sends nothing that a browser would run.
    """
    try:
        error = json.loads(body.decode(), parse_constant=_no_constant)["error"]
        types = [type(error[name]) for name in ("status_code", "message", "code")]
    except UnicodeDecodeError:
        return "text/plain"
    except (ValueError, RecursionError, LookupError, TypeError):
        types = []
    return JSON if types == [int, str, str] else "text/plain; charset=utf-8"


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON, though Python reads it")


def phrase(status: int) -> str:
    return _PHRASES.get(status, "Unknown")


def error_code(status: int) -> str:
    return re.sub("[^A-Z]", "_", phrase(status).upper().replace("'", ""))
