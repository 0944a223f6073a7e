"""What the cache and Redis keep of an answer.

That is the bytes of its body, and what its headers are made from.
"""

import http.client
import json
import re
from hashlib import blake2b
from typing import Any, NamedTuple, cast

from cache import Loaded
from calendar42.errors import C42Error
from calendar42.payload import Event

JSON = "application/json"
_DIGEST = 16  # bytes
# As RFC 9110 has them; older versions of Python have other names for the last four.
_PHRASES = http.client.responses | {
    413: "Content Too Large",
    414: "URI Too Long",
    416: "Range Not Satisfiable",
    422: "Unprocessable Content",
}
# What the cache keeps is a plain tuple; `StoredAnswer(*value)` reads it.
StoredTuple = tuple[Any, ...]


class StoredAnswer(NamedTuple):
    """What is kept of an answer."""

    body: bytes
    status: int
    content_type: str
    etag: str
    upstream_status: int = 0  # 0: Calendar42 sent no whole answer
    # Whole seconds that Calendar42 asked to wait, beyond this answer's lifetime.
    extra_wait: int = 0
    request_id: str = ""  # the log tells under it how an error came about


def success(event: Event) -> StoredTuple:
    """Return what is kept of an event."""
    body = encode(event._asdict())
    stored = StoredAnswer(
        body=body,
        status=200,
        content_type=JSON,
        etag=make_etag(body),
        upstream_status=200,
    )
    return tuple(stored)


def failure(
    error: C42Error, *, extra_wait: int = 0, request_id: str = ""
) -> StoredTuple:
    """Return what is kept of an error.

    The body is Calendar42's, or the envelope if there is none. Errors are sent without
    their ETag, by which hits tell whether the answer has changed.
    """
    body = error.body or envelope(error.status, str(error))
    stored = StoredAnswer(
        body=body,
        status=error.status,
        content_type=_content_type(body),
        etag=make_etag(body),
        upstream_status=error.upstream_status,
        extra_wait=extra_wait,
        request_id=request_id,
    )
    return tuple(stored)


def pack(loaded: Loaded) -> bytes:
    """Return an answer as Redis keeps it, without its birth.

    First comes a digest of all that follows, then a line of JSON, then the body.
    """
    body, *parts = cast(StoredTuple, loaded.value)
    head = json.dumps([loaded.kind, loaded.lifetime, *parts])
    rest = b"%b\n%b" % (head.encode(), body)
    return _digest(rest) + rest


def unpack(packed: bytes) -> Loaded:
    """Return the answer that `pack` was given, without its birth.

    Raises ValueError for any other bytes.
    """
    rest = packed[_DIGEST:]
    if packed[:_DIGEST] != _digest(rest):
        raise ValueError("not a packed answer")
    head, _, body = rest.partition(b"\n")
    kind, lifetime, *parts = json.loads(head)
    return Loaded((body, *parts), kind, lifetime)


def envelope(status: int, message: str) -> bytes:
    """Return an error in Calendar42's form, which c42c uses for its own errors too."""
    code = re.sub("[^A-Z]", "_", phrase(status).upper().replace("'", ""))
    return encode({"error": {"status_code": status, "message": message, "code": code}})


def encode(data: Any) -> bytes:
    """Return compact JSON in UTF-8.

    Half a surrogate pair, which JSON can hold and UTF-8 can't, becomes U+FFFD.
    """
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return re.sub("[\ud800-\udfff]", "\ufffd", text).encode()


def make_etag(body: bytes) -> str:
    """Return a strong ETag: a digest of the body."""
    return f'"{blake2b(body, digest_size=12).hexdigest()}"'


def phrase(status: int) -> str:
    """Return the reason phrase of a status."""
    return _PHRASES.get(status, "Unknown")


def _digest(data: bytes) -> bytes:
    return blake2b(data, digest_size=_DIGEST).digest()


def _content_type(body: bytes) -> str:
    """Return an error's content type: JSON for the envelope, else plain text.

    So no browser ever runs its body.
    """
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return "text/plain"
    if _is_envelope(text):
        return JSON
    return "text/plain; charset=utf-8"


def _is_envelope(text: str) -> bool:
    try:
        error = json.loads(text, parse_constant=_no_constant)["error"]
        types = [type(error[name]) for name in ("status_code", "message", "code")]
    except (ValueError, RecursionError, LookupError, TypeError):
        return False
    return types == [int, str, str]


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON, though Python reads it")
