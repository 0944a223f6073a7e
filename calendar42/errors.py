"""Why there is no answer for an event.

C42Error          there is no answer; says what the client is told
├── Rejected      the upstream answered with an error, which is passed through
├── Paused        the upstream asked for a pause (429), now or a while ago
├── Missing       the event is deleted or unknown
├── TimedOut      no full answer came in time
├── Unusable      no answer came, or one that can't be understood
│   └── TooLarge  more came than is read
├── Exhausted     no file descriptor is left for a call: our fault
└── ListFailed    a list failed as a whole
"""

from calendar42 import EVENTS

# Refusals that asking again soon would not change.
_DEFINITE = frozenset(range(400, 500)) - {401, 403, 408, 429}


class C42Error(Exception):
    """There is no answer. The client is told `status`, and `body` if there is one, or else the message.

    `endpoint` is where it was found. `upstream_status` is what the upstream answered with, 0 if it gave no whole
    answer. `retry_after` is in seconds; 0: not known. `definite` says that asking again soon would not change it;
    otherwise it is a fault. `of_list` says that a list failed as a whole, which says nothing about this event.
    """

    of_list = False

    def __init__(
        self,
        endpoint: str,
        status: int,
        message: str,
        upstream_status: int,
        body: bytes = b"",
        retry_after: float = 0.0,
    ) -> None:
        super().__init__(message)
        self.endpoint = endpoint
        self.status = status
        self.upstream_status = upstream_status
        self.body = body
        self.retry_after = retry_after
        self.definite = status in _DEFINITE


class Rejected(C42Error):
    """The upstream answered with an error, which is passed through."""

    def __init__(self, endpoint: str, status: int, body: bytes) -> None:
        super().__init__(endpoint, status, f"Calendar42 answered {status}", status, body)


class Paused(C42Error):
    """The upstream asked for a pause (429), now or a while ago; no call is made until it is over."""

    def __init__(self, endpoint: str, left: float, upstream_status: int = 0, body: bytes = b"") -> None:
        super().__init__(endpoint, 429, "Calendar42 asked for a pause", upstream_status, body, max(left, 1.0))


class Missing(C42Error):
    """The event is deleted or unknown."""

    def __init__(self, message: str) -> None:
        super().__init__(EVENTS, 404, message, 200)


class TimedOut(C42Error):
    """No full answer came within `timeout` seconds."""

    def __init__(self, endpoint: str, timeout: float) -> None:
        super().__init__(endpoint, 504, f"Calendar42 did not answer within {timeout:g} seconds", 0)


class Unusable(C42Error):
    """No answer came, or one that can't be understood."""

    def __init__(self, endpoint: str, what: str, upstream_status: int = 200) -> None:
        super().__init__(endpoint, 502, f"Calendar42 {what}", upstream_status)


class TooLarge(Unusable):
    """More came than is read."""


class Exhausted(C42Error):
    """No file descriptor is left for a call: our fault."""

    def __init__(self, endpoint: str) -> None:
        message = "c42c has reached its limit of open files (ulimit -n, LimitNOFILE) and can't call Calendar42"
        super().__init__(endpoint, 503, message, 0, retry_after=1.0)


class ListFailed(C42Error):
    """A list failed as a whole, which says nothing about any one event in it."""

    of_list = True

    def __init__(self, why: C42Error) -> None:
        super().__init__(why.endpoint, why.status, str(why), why.upstream_status, why.body, why.retry_after)
        self.definite = False
