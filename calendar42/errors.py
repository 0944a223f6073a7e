"""The errors of the client: `C42Error`, and subclasses for those that callers handle
differently.
"""

from dataclasses import dataclass

_DEFINITE = frozenset(range(400, 500)) - {
    401,
    403,
    408,
    429,
}  # refusals that asking again soon would not change


@dataclass(eq=False)
class C42Error(Exception):
    """There is no answer for an event.

    The defaults mean that Calendar42's answer can't be understood.
    """

    endpoint: str  # where it was found
    message: str
    status: int = 502  # what the client is told
    upstream_status: int = 200  # what Calendar42 answered with; 0: no whole answer came
    body: bytes = b""  # what the client gets instead of the message
    retry_after: float = 0.0  # seconds; 0: not known
    # Only for its caller: the whole list failed, or there was too little time to judge
    # the event.
    private: bool = False

    def __str__(self) -> str:
        return self.message

    @property
    def definite(self) -> bool:
        """Whether asking again soon would give the same error.

        If not, it is a fault.
        """
        return self.status in _DEFINITE and not self.private


class Paused(C42Error):
    """Calendar42 asked for a pause (429), now or earlier; no calls are made until it is
    over.
    """


class TimedOut(C42Error):
    """No whole answer came in time."""


class TooLarge(C42Error):
    """The answer exceeds a limit."""


class Exhausted(C42Error):
    """c42c has no file descriptor left for a call."""
