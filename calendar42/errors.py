"""The errors of the client.

They are `C42Error`, and subclasses for those that callers handle differently.
"""

from dataclasses import dataclass
from typing import Final

from calendar42 import Endpoint

# `cache.KINDS` has the same words, and a test keeps them equal.
NEGATIVE: Final = "negative"  # a definite refusal: asking again soon changes nothing
FAULT: Final = "fault"  # something is broken: worth asking again soon
PAUSED: Final = "paused"  # Calendar42 asked for a pause

# 4xx that may end soon: they are about the token, the proxy, the connection or the
# moment, not about the event.
_PASSING = frozenset({401, 403, 407, 408, 421, 425, 429})


@dataclass(eq=False)
class C42Error(Exception):
    """There is no answer for an event.

    The defaults mean that Calendar42's reply can't be understood.
    """

    endpoint: Endpoint  # where it was found
    message: str
    status: int = 502  # what the client is told
    upstream_status: int = 200  # of Calendar42's reply; 0: no whole reply came
    body: bytes = b""  # what the client gets instead of the message
    retry_after: float = 0.0  # seconds, as Calendar42 said; 0: it didn't
    # Only for its caller: the whole list failed, or there was too little time to judge
    # the event.
    private: bool = False
    trouble: str = ""  # why no whole reply came, if the message doesn't say it

    def __str__(self) -> str:
        return self.message

    @property
    def kind(self) -> str:
        """`NEGATIVE`, `FAULT` or `PAUSED`."""
        is_refusal = 400 <= self.status < 500 and self.status not in _PASSING
        if is_refusal and not self.private:
            return NEGATIVE
        return FAULT


@dataclass(eq=False)
class Paused(C42Error):
    """Calendar42 asked for a pause (429), now or earlier.

    No calls are made until it is over.
    """

    message: str = "Calendar42 asked for a pause"
    status: int = 429
    upstream_status: int = 0

    @property
    def kind(self) -> str:
        """`PAUSED`."""
        return PAUSED


@dataclass(eq=False)
class TimedOut(C42Error):
    """No whole reply came in time."""

    status: int = 504
    upstream_status: int = 0


class TooLarge(C42Error):
    """The reply exceeds a limit."""


@dataclass(eq=False)
class Exhausted(C42Error):
    """c42c lacks something that a call needs: a file descriptor, a thread or memory."""

    status: int = 503
    upstream_status: int = 0
    retry_after: float = 1.0
