"""Answers to hits, given in the event loop: Flask's routing, request and response cost ten times as much.

They are the same as the route's answers, byte for byte.
"""

import math
from collections.abc import MutableMapping

from answers import EVENTS, response
from answers.value import Value
from cache import Cache, Found
from serving.connection import Answer, Immediate, Shortcut
from serving.request import Request

PREFIX = EVENTS + "/"


def immediate(cache: Cache, origins: frozenset[str], served: MutableMapping[bytes, int]) -> Immediate:
    """Return a function that finds the shortcut of a request, which in turn answers the request whenever it is a hit.

    A shortcut keeps its last answer, and renders it anew once a second. `origins` are those of `response.cors`;
    `served` counts the answers by status, in the event loop's thread.
    """

    def find_shortcut(request: Request) -> Shortcut | None:
        if request.method not in ("GET", "HEAD") or not request.path.startswith(PREFIX):
            return None
        key = request.path.removeprefix(PREFIX).removesuffix("/")
        condition = request.headers.get("if-none-match")
        cors = response.cors(origins, request.headers.get("origin", ""), request.method)
        get = cache.get
        rendered, seconds, answer, status = None, math.inf, (b"", b""), b""  # of the last hit

        def shortcut() -> Answer | None:
            nonlocal rendered, seconds, answer, status
            hit = get(key)
            if hit is None:
                return None
            value, _, _, ttl = hit
            if value is not rendered or not seconds <= ttl < seconds + 1:
                line, headers, body = response.render(Found(*hit, "hit", True), condition)
                answer = response.serialize((line, headers + cors, body))
                rendered, status = value, line[:3].encode()
                seconds = math.inf if Value(*value).retry_after else int(ttl)
            served[status] += 1
            return answer

        return shortcut

    return find_shortcut
