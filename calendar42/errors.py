"""Why there is no answer of an event.

C42Error         there is no answer; says what the client is told
├── Rejected     the upstream answered with an error, which is passed through
├── Paused       the upstream asked for a pause (429), now or a while ago
├── Unknown      the upstream left the event out of a list
├── Deleted      the event is there no more
├── TimedOut     no full answer within the time-out
└── Unusable     no answer, or one that can't be understood
"""

# Refusals that asking again soon would not change.
_DEFINITE = frozenset(range(400, 500)) - {401, 403, 408, 429}


class C42Error(Exception):
    """There is no answer. The client is told `status`, and `body` where there is one, or else the message.

    `upstream_status` is the status that the upstream answered with, 0 where it gave no whole answer. `definite`
    says that asking again soon would not change it; otherwise it is a fault. `of_list` says that a list of events
    failed as a whole, which says nothing about this event.
    """

    def __init__(self, status: int, message: str, upstream_status: int = 0) -> None:
        super().__init__(message)
        self.status = status
        self.upstream_status = upstream_status
        self.body = b""
        self.retry_after = 0.0  # seconds
        self.definite = status in _DEFINITE
        self.of_list = False


class Rejected(C42Error):
    """The upstream answered with an error, which is passed through."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(status, f"Calendar42 answered {status}", status)
        self.body = body


class Paused(C42Error):
    """The upstream asked for a pause (429), now or a while ago; no call is made until it is over."""

    def __init__(self, retry_after: float, body: bytes = b"", upstream_status: int = 0) -> None:
        super().__init__(429, "Calendar42 asked for a pause", upstream_status)
        self.body = body
        self.retry_after = max(retry_after, 1.0)  # whoever is told to wait is told how long, in whole seconds


class Unknown(C42Error):
    """The upstream left the event out of a list: it does not know it. Said in its own words."""

    def __init__(self, event_id: str) -> None:
        super().__init__(404, f"Event {event_id} not found", 200)


class Deleted(C42Error):
    """The event is there no more."""

    def __init__(self) -> None:
        super().__init__(404, "the event is deleted", 200)


class TimedOut(C42Error):
    """No full answer came within the time-out."""

    def __init__(self, timeout: float) -> None:
        super().__init__(504, f"Calendar42 did not answer within {timeout:g} seconds")


class Unusable(C42Error):
    """No answer came, or one that can't be understood."""

    def __init__(self, message: str, upstream_status: int = 0) -> None:
        super().__init__(502, f"Calendar42 {message}", upstream_status)
