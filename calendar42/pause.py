"""The pause that Calendar42 asks for with a 429. `Pause._lock` guards its end."""

import logging
import threading
import time
from datetime import UTC
from email.utils import parsedate_to_datetime

LONGEST = 3600.0  # seconds: Calendar42 counts its limits by the hour

log = logging.getLogger("c42c.upstream")


class Pause:
    """A pause in all calls, for `default` seconds if Calendar42 doesn't say how long. Thread-safe."""

    def __init__(self, default: float) -> None:
        self._default = default
        self._lock = threading.Lock()
        self._until = 0.0

    @property
    def left(self) -> float:
        """The seconds until calls may be made again; 0 if there is no pause."""
        return max(0.0, self._until - time.monotonic())

    def begin(self, retry_after: str) -> None:
        """Begin the pause that a `Retry-After` asks for, or make the present one longer."""
        seconds = min(max(_seconds(retry_after, self._default), 0.0), LONGEST)
        if self.extend(time.monotonic() + seconds):  # else a concurrent call has logged it
            fields = {"pause_seconds": round(seconds)}
            log.warning("pause: Calendar42 asks for %.0f s", seconds, extra={"fields": fields})

    def extend(self, until: float) -> bool:
        """Make the pause last until then (of `time.monotonic`) at least; return whether there was none."""
        with self._lock:
            is_new = not self.left
            self._until = max(self._until, until)
        return is_new


def _seconds(retry_after: str, default: float) -> float:
    """Read seconds, or a date in one of its three forms (RFC 9110, 10.2.3 and 5.6.7)."""
    if retry_after.isascii() and retry_after.isdigit():
        return float(retry_after)
    try:
        date = parsedate_to_datetime(retry_after)
        return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - time.time()
    except (TypeError, ValueError, OverflowError):  # no date, or not a year of ours
        return default
