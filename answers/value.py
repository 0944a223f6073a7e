"""What the cache and Redis keep of an answer: the bytes of its body, and what its
headers are made from.
"""

import json
import re
from collections.abc import Mapping
from hashlib import blake2b
from http.client import responses
from typing import Any, NamedTuple, cast

from cache import Loaded
from calendar42.errors import C42Error

JSON = "application/json"
_DIGEST = 16  # bytes
StoredTuple = tuple[
    Any, ...
]  # a value as the cache keeps it, a plain tuple: `StoredAnswer(*kept)` reads it


class StoredAnswer(NamedTuple):
    """What is kept of an answer."""

    body: bytes
    status: int
    content_type: str
    etag: str = ""
    upstream_status: int = 0  # 0: none
    retry_after: float = 0.0  # seconds from its birth; 0: none


def success(answer: Mapping[str, Any]) -> StoredTuple:
    """Make the value of a merged answer."""
    body = encode(answer)
    return tuple(StoredAnswer(body, 200, JSON, make_etag(body), 200))


def failure(error: C42Error) -> StoredTuple:
    """Make the value of an error: the upstream's body, or the envelope if there is
    none.
    """
    body = error.body or envelope(error.status, str(error))
    content_type, etag = _content_type(body), make_etag(body)
    return tuple(
        StoredAnswer(
            body,
            error.status,
            content_type,
            etag,
            error.upstream_status,
            error.retry_after,
        )
    )


def pack(loaded: Loaded) -> bytes:
    """Return what Redis keeps, without the age: a digest of all that follows, a line of
    JSON, and the body.
    """
    body, *parts = cast(StoredTuple, loaded.value)
    rest = b"%b\n%b" % (
        json.dumps([loaded.kind, loaded.lifetime, *parts]).encode(),
        body,
    )
    return _digest(rest) + rest


def unpack(packed: bytes) -> Loaded:
    """Return the answer that `pack` was given, without its age; raise ValueError for
    any other bytes.
    """
    rest = packed[_DIGEST:]
    if packed[:_DIGEST] != _digest(rest):
        raise ValueError("not a packed answer")
    head, _, body = rest.partition(b"\n")
    kind, lifetime, *parts = json.loads(head)
    return Loaded((body, *parts), kind, lifetime)


def envelope(status: int, message: str) -> bytes:
    """Return an error in the upstream's form, which this service uses for its own
    errors too.
    """
    code = re.sub("[^A-Z]", "_", phrase(status).upper().replace("'", ""))
    return encode({"error": {"status_code": status, "message": message, "code": code}})


def encode(data: Any) -> bytes:
    """Return compact JSON in UTF-8; half a surrogate pair, which JSON can hold and
    UTF-8 can't, becomes U+FFFD.
    """
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return re.sub("[\ud800-\udfff]", "\ufffd", text).encode()


def make_etag(body: bytes) -> str:
    """Return a strong ETag: a digest of the body."""
    return f'"{blake2b(body, digest_size=12).hexdigest()}"'


def phrase(status: int) -> str:
    """Return the reason phrase of a status."""
    return responses.get(status, "Unknown")


def _digest(data: bytes) -> bytes:
    return blake2b(data, digest_size=_DIGEST).digest()


def _content_type(body: bytes) -> str:
    """Return an error's content type: JSON for the envelope, else plain text, so that
    no browser ever runs its body.
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
    raise ValueError(f"{name} is not JSON, though Python reads it")
