"""Hits, answered in the event loop: routing, request and response objects of Flask cost ten times what a hit does.

What is answered here is the same, byte for byte, as what the route would answer.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Protocol

from answers import EVENTS, response
from cache import Cache, Found

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


def immediate(cache: Cache, origins: frozenset[str], served: Counter[str]) -> Callable[[Request], Answer | None]:
    """Return a function that answers a request if it is a hit, and returns None for any other.

    `origins` are those of `response.cors`; `served` counts the answers by status, in the event loop's thread.
    """
    skip = len(PREFIX)

    def answer(request: Request) -> Answer | None:
        if not request.path.startswith(PREFIX) or request.method not in ("GET", "HEAD"):
            return None
        hit = cache.get(request.path[skip:].removesuffix("/"))
        if hit is None:
            return None
        status, headers, body = response.render(Found(*hit, "hit", True), request.headers.get("if-none-match"))
        headers += response.cors(origins, request.headers.get("origin", ""), request.method)
        served[status[:3]] += 1
        return response.serialize(status, headers), body

    return answer
