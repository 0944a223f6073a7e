"""Hits, answered in the event loop: routing, request and response objects of Flask cost ten times what a hit does.

What is answered here is the same, byte for byte, as what the route would answer.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Protocol

from answers import EVENTS, response
from cache import Cache

PREFIX = EVENTS + "/"

Answer = tuple[bytes, bytes]  # status line and header lines, each with its CRLF; and the body


class Request(Protocol):
    """What a hit needs of a request; names of headers are in lower case."""

    @property
    def method(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def headers(self) -> Mapping[str, str]: ...


def immediate(cache: Cache, origins: frozenset[str], served: Counter[bytes]) -> Callable[[Request], Answer | None]:
    """Return a function that answers a request if it is a hit, and returns None for any other.

    `origins` are those of `response.cors`; `served` counts the answers by status, in the event loop's thread.
    """
    skip = len(PREFIX)

    @lru_cache(1024)
    def cors(origin: str) -> bytes:
        return response.serialize_headers(response.cors(origins, origin, "GET"))

    def answer(request: Request) -> Answer | None:
        path, headers = request.path, request.headers
        if not path.startswith(PREFIX) or request.method not in ("GET", "HEAD"):
            return None
        hit = cache.get(path[skip:].removesuffix("/"))
        if hit is None:
            return None
        head, body = response.render_hit(hit, headers.get("if-none-match"))
        if origins:
            head += cors(headers.get("origin", ""))
        served[head[9:12]] += 1
        return head, body

    return answer
