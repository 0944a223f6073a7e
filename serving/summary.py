"""Summarizes requests for the event loop, and remembers some of the summaries.

Those of requests with a fast path are remembered, in a bounded number of bytes. Clients
send the same bytes again and again, and a request whose summary is remembered isn't
parsed again. A summary lacks the header fields: parsed, they take many times the bytes
of the head. The worker that needs them parses the head once more.
"""

from dataclasses import dataclass

from serving.interface import FastPath, FindFastPath
from serving.limits import Limits
from serving.request import check_head, parse

# A summary, a fast path and the headers that it has rendered: 1,160 bytes as measured.
_REMEMBERED_OVERHEAD = 1536


@dataclass(frozen=True, slots=True)
class Summary:
    """What the event loop needs of a request."""

    head: bytes
    method: str
    keep_alive: bool
    length: int  # of the body
    expects_continue: bool
    fast_path: FastPath | None


class Summaries:
    """Summarizes requests, and remembers the summaries of those that have a fast path.

    They take at most `limits.max_remembered` bytes. Then all are forgotten: those that
    are still needed are soon remembered again. Large heads aren't remembered.
    """

    def __init__(self, find_fast_path: FindFastPath, limits: Limits) -> None:
        self.by_head: dict[bytes, Summary] = {}  # those that are remembered
        self._find_fast_path = find_fast_path
        self._limits = limits
        self._bytes = 0

    def summarize(self, head: bytes) -> Summary:
        """Return what `head` asks for; raise `MalformedRequest` if it is malformed."""
        remembered = self.by_head.get(head)
        if remembered is not None:
            return remembered
        check_head(head, self._limits.max_fields)
        request = parse(head)
        fast_path = self._find_fast_path(request)
        expects = request.headers.get("expect", "").lower() == "100-continue"
        summary = Summary(
            head=head,
            method=request.method,
            keep_alive=request.keep_alive,
            length=request.length,
            expects_continue=expects and request.protocol == "HTTP/1.1",
            fast_path=fast_path,
        )
        is_usual = request.length == 0 and len(head) <= self._limits.max_remembered_head
        if fast_path is not None and is_usual:
            self._remember(summary)
        return summary

    def _remember(self, summary: Summary) -> None:
        size = len(summary.head) + _REMEMBERED_OVERHEAD
        if self._bytes + size > self._limits.max_remembered:
            self.by_head.clear()
            self._bytes = 0
        self.by_head[summary.head] = summary
        self._bytes += size
