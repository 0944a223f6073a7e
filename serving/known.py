"""What the event loop needs to know of a request, remembered in a bounded number of
bytes: clients send the same bytes again and again.
"""

from collections.abc import Callable
from typing import NamedTuple

from serving.limits import Limits
from serving.request import Request, check_head, parse

# Status line and header lines, each with its CRLF; and the body.
Serialized = tuple[bytes, bytes]
# Answers one particular request, or returns None if that needs a worker.
FastPath = Callable[[], Serialized | None]
# Finds the fast path of a request, if it has one. A fast path is remembered for as long
# as its request is: it must hold no more than it needs, and not the request itself.
FindFastPath = Callable[[Request], FastPath | None]

# A tuple, a fast path and the headers that it has rendered: 1,160 bytes as measured.
_REMEMBERED_OVERHEAD = 1536


class Arrival(NamedTuple):
    """A request that has arrived.

    Its header fields are not here: parsed, they take many times the bytes of the head.
    """

    head: bytes
    method: str
    keep_alive: bool
    length: int  # of the body
    expects_continue: bool
    fast_path: FastPath | None


class KnownRequests:
    """Turns heads into arrivals, and remembers those that have a fast path.

    What is remembered takes at most `limits.max_known` bytes. Then all is forgotten:
    what still comes is soon known again. Large heads aren't remembered.
    """

    def __init__(self, find_fast_path: FindFastPath, limits: Limits) -> None:
        self.arrivals: dict[bytes, Arrival] = {}  # by head
        self._find_fast_path = find_fast_path
        self._limits = limits
        self._bytes = 0

    def recognize(self, head: bytes) -> Arrival:
        """Return what `head` asks for; raise `MalformedRequest` if it is malformed."""
        known = self.arrivals.get(head)
        if known is not None:
            return known
        check_head(head, self._limits.max_fields)
        request = parse(head)
        fast_path = self._find_fast_path(request)
        expects = request.headers.get("expect", "").lower() == "100-continue"
        arrival = Arrival(
            head=head,
            method=request.method,
            keep_alive=request.keep_alive,
            length=request.length,
            expects_continue=expects and request.protocol == "HTTP/1.1",
            fast_path=fast_path,
        )
        is_usual = request.length == 0 and len(head) <= self._limits.max_known_head
        if fast_path is not None and is_usual:
            self._remember(arrival)
        return arrival

    def _remember(self, arrival: Arrival) -> None:
        size = len(arrival.head) + _REMEMBERED_OVERHEAD
        if self._bytes + size > self._limits.max_known:
            self.arrivals.clear()
            self._bytes = 0
        self.arrivals[arrival.head] = arrival
        self._bytes += size
