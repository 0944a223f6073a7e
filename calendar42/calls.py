"""What is known of calls to Calendar42, and the pause in them that it may ask for."""

import logging
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import NamedTuple

from werkzeug.http import parse_date

from calendar42 import Endpoint

MAX_PAUSE = 3600.0  # seconds of a pause: Calendar42 counts its limits by the hour
log = logging.getLogger("c42c.upstream")


class CallRecord(NamedTuple):
    """A call to Calendar42 that has ended."""

    endpoint: Endpoint
    status: int  # 0: no whole reply came
    seconds: float
    trouble: str = ""  # why no whole reply came

    def __str__(self) -> str:
        return f"{self.endpoint} {self.seconds * 1000:.0f} ms {self.trouble}".strip()


@dataclass
class Attempt:
    """The calls that are made together, for one answer or one list of them.

    Times are those of `time.monotonic`.
    """

    deadline: float
    refresh: bool = False  # of answers that are still valid
    began: float = field(default_factory=time.monotonic)
    calls: list[CallRecord] = field(default_factory=list)  # that have ended


class Pause:
    """A pause in all calls, for `default` seconds if Calendar42 doesn't say how long.

    Thread-safe.
    """

    def __init__(self, default: float) -> None:
        self._default = default
        self._lock = threading.Lock()  # guards `_until`
        self._until = 0.0

    @property
    def left(self) -> float:
        """The seconds until calls may be made again; 0 if there is no pause."""
        return max(0.0, self._until - time.monotonic())

    def begin(self, retry_after: str) -> None:
        """Begin the pause that a `Retry-After` asks for, or prolong the present one."""
        seconds = read_retry_after(retry_after, self._default)
        is_new = self.extend(time.monotonic() + seconds)
        if is_new:  # else a concurrent call has logged it
            fields = {"pause_seconds": round(seconds)}
            log.warning(
                "pause: Calendar42 asks for %.0f s", seconds, extra={"fields": fields}
            )

    def extend(self, until: float) -> bool:
        """Make the pause last at least until then, a moment of `time.monotonic`.

        Returns whether there was none.
        """
        with self._lock:
            is_new = not self.left
            self._until = max(self._until, until)
        return is_new


def read_retry_after(text: str, default: float) -> float:
    """Return the seconds that a `Retry-After` asks for (RFC 9110, 10.2.3).

    They are `default` if it says nothing, and `MAX_PAUSE` at most.
    """
    seconds = default
    date = read_date(text)
    if text.isascii() and text.isdigit():
        seconds = float(text)
    elif date:
        seconds = (date - datetime.now(UTC)).total_seconds()
    return min(max(seconds, 0.0), MAX_PAUSE)


def read_date(text: str) -> datetime | None:
    """Return a date in one of its three forms (RFC 9110, 5.6.7), else None."""
    with suppress(OverflowError):  # a year or a time zone of twenty digits
        return parse_date(text)
    return None
