"""Answers hits in the event loop, byte for byte as the route would.

This is the hit path: `_Hits.answer` runs for every hit, which costs a thirtieth of what
the route does. So it reads what the cache and `StoredAnswer` hold by position, and
renders the headers only once a second.
"""

import math
from collections.abc import MutableMapping

from answers import EVENT_PREFIX, response
from answers.value import StoredAnswer
from cache import Cache, Found, Hit
from serving.interface import FastPath, FindFastPath, Serialized, serialize
from serving.request import Request

_BODY = StoredAnswer._fields.index("body")
_ETAG = StoredAnswer._fields.index("etag")


def fast_path_finder(
    cache: Cache, origins: frozenset[str], hits_by_status: MutableMapping[bytes, int]
) -> FindFastPath:
    """Return a function that finds the fast path of a request for one event.

    The fast path answers hits, and counts them by status in `hits_by_status`.
    """

    def find_fast_path(request: Request) -> FastPath | None:
        if request.method not in ("GET", "HEAD"):
            return None
        if not request.path.startswith(EVENT_PREFIX):
            return None
        key = request.path.removeprefix(EVENT_PREFIX).removesuffix("/")
        condition = request.headers.get("if-none-match")
        origin = request.headers.get("origin", "")
        cors = response.cors(origins, origin, request.method)
        return _Hits(cache, key, condition, cors, hits_by_status).answer

    return find_fast_path


class _Hits:
    """The hits of one particular request, which clients repeat.

    An answer's headers are the same for as long as `int(ttl)` is: they are kept until
    the second is over, or another answer is in the cache.
    """

    __slots__ = (
        "_cache",
        "_condition",
        "_cors",
        "_etag",
        "_has_body",
        "_head",
        "_hits_by_status",
        "_key",
        "_seconds",
        "_status",
    )

    def __init__(
        self,
        cache: Cache,
        key: str,
        condition: str | None,
        cors: response.Headers,
        hits_by_status: MutableMapping[bytes, int],
    ) -> None:
        self._cache = cache
        self._key = key
        self._condition = condition
        self._cors = cors
        self._hits_by_status = hits_by_status
        # Of the last hit. Each load makes an ETag of its own, so the identity of the
        # ETag tells whether it was another answer, without keeping a body in memory.
        self._etag: str | None = None  # there was none yet
        self._seconds = math.inf
        self._head = b""
        self._has_body = False
        self._status = b""

    def answer(self) -> Serialized | None:
        """Answer the request if the cache has a fresh answer."""
        hit = self._cache.get(self._key)
        if hit is None:
            return None
        value, _, _, ttl = hit
        seconds = self._seconds
        if value[_ETAG] is not self._etag or not seconds <= ttl < seconds + 1.0:
            self._render(hit)
        self._hits_by_status[self._status] += 1
        if self._has_body:
            return self._head, value[_BODY]
        return self._head, b""

    def _render(self, hit: Hit) -> None:
        value, kind, age, ttl = hit
        found = Found(value, kind, age, ttl, source="hit", is_kept=True)
        status, headers, body = response.render(found, self._condition)
        self._head, _ = serialize(status, headers + self._cors, body)
        self._etag = value[_ETAG]
        self._seconds = float(int(ttl))  # floats are compared fastest with floats
        self._has_body = bool(body)
        self._status = status[:3].encode()
