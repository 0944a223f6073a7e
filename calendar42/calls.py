"""Makes one call to Calendar42 and interprets the answer, row by row as in the README's table.

No call is made during the pause that a 429 asks for. The token, which every call carries, is redacted in whatever is
passed on.
"""

import html
import json
import logging
import re
import threading
import time
from collections.abc import Callable
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple
from urllib.parse import unquote

from calendar42.errors import C42Error, Exhausted, Paused, TimedOut, TooLarge
from calendar42.transport import Answer, Transport

MAX_BODY = 8 * 2**20  # bytes of one answer
MAX_ERROR_BODY = 64 * 2**10  # bytes of an error that are passed through
LONGEST = 3600.0  # seconds of a pause: Calendar42 counts its limits by the hour
PAUSED = "Calendar42 asked for a pause"

log = logging.getLogger("c42c.upstream")


class Call(NamedTuple):
    """A finished call to Calendar42."""

    endpoint: str  # "events" or "event-subscriptions"
    status: int  # 0: no whole answer came
    seconds: float
    trouble: str = ""  # why no whole answer came


class Job(NamedTuple):
    """The calls for one answer, to be finished by `deadline` (of `time.monotonic`)."""

    deadline: float
    timeout: float  # seconds, for the error message
    calls: list[Call]  # finished so far

    @property
    def left(self) -> float:
        """The seconds until the deadline."""
        return max(0.0, self.deadline - time.monotonic())

    def late(self, endpoint: str) -> TimedOut:
        """Return the error for an answer that didn't come in time."""
        return TimedOut(endpoint, f"Calendar42 did not answer within {self.timeout:g} seconds", 504, 0)


class Pause:
    """A pause in all calls, for `default` seconds if Calendar42 doesn't say how long. Thread-safe."""

    def __init__(self, default: float) -> None:
        self._default = default
        self._lock = threading.Lock()  # guards `_until`
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


class Upstream:
    """Calls Calendar42 with a `token`, but not during a `pause`. `observe` is called with each `Call`. Thread-safe."""

    def __init__(
        self, *, base_url: str, token: str, connections: int, pause: Pause, observe: Callable[[Call], None]
    ) -> None:
        self.transport = Transport(base_url=base_url, token=token, connections=connections)
        self._token = token
        self._pause = pause
        self._observe = observe

    def call(self, endpoint: str, rest: str, job: Job) -> Any:
        """Make one call and return the JSON of its answer, or raise `C42Error`."""
        if left := self._pause.left:
            raise Paused(endpoint, PAUSED, 429, 0, retry_after=left)
        if not job.left:
            raise job.late(endpoint)
        status, headers, body = self._get(endpoint, rest, job)
        if status == 429:
            self._pause.begin(headers.get("Retry-After", ""))
            raise Paused(endpoint, PAUSED, 429, 429, self._error_body(body), max(self._pause.left, 0.001))
        if 400 <= status <= 599:
            raise C42Error(endpoint, f"Calendar42 answered {status}", status, status, self._error_body(body))
        if status != 200:
            raise C42Error(endpoint, f"Calendar42 answered {status}", 502, status)
        if len(body) > MAX_BODY:
            raise TooLarge(endpoint, f"Calendar42 sent more than {MAX_BODY} bytes")
        try:
            return json.loads(body)
        except (ValueError, RecursionError):
            raise C42Error(endpoint, "Calendar42 sent no JSON") from None

    def _get(self, endpoint: str, rest: str, job: Job) -> Answer:
        began, status, trouble = time.monotonic(), 0, ""
        try:
            answer = self.transport.get(f"{endpoint}/{rest}", deadline=job.deadline, limit=MAX_BODY)
            status = answer.status
        except TimeoutError:
            trouble = "timed out"
            raise job.late(endpoint) from None
        except ConnectionError as error:
            trouble = str(error)
            raise C42Error(endpoint, "Calendar42 could not be reached, or broke off", 502, 0) from None
        except OSError as error:
            trouble = error.strerror or ""
            message = "c42c has reached its limit of open files (ulimit -n, LimitNOFILE) and can't call Calendar42"
            raise Exhausted(endpoint, message, 503, 0, retry_after=1.0) from None
        finally:
            call = Call(endpoint, status, time.monotonic() - began, trouble)
            job.calls.append(call)
            self._observe(call)
        return answer

    def redact(self, text: str) -> str:
        """Return `text` without the token."""
        return text.replace(self._token, "***")

    def _error_body(self, body: bytes) -> bytes:
        """Return the part of an error's body to pass through: nothing if it contains the token in any spelling."""
        said = body[: 2 * MAX_ERROR_BODY].decode("latin-1")  # the second half may hold the end of a token
        try:
            leaks = self._token in said or _plain(self._token) in _plain(said)
        except ValueError:  # an HTML reference to a number with thousands of digits
            leaks = True
        return b"" if leaks else body[:MAX_ERROR_BODY]


def _seconds(retry_after: str, default: float) -> float:
    """Read seconds, or a date in one of its three forms (RFC 9110, 10.2.3 and 5.6.7)."""
    if retry_after.isascii() and retry_after.isdigit():
        return float(retry_after)
    try:
        date = parsedate_to_datetime(retry_after)
        return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - time.time()
    except (TypeError, ValueError, OverflowError):  # not a date, or a year out of Python's range
        return default


def _plain(text: str) -> str:
    """Undo escaping in JSON, HTML and URLs, even if nested."""
    for _ in range(5):
        text = re.sub(r"(?<!\\)\\+u00([0-9a-fA-F]{2})", lambda match: chr(int(match[1], 16)), text)
        text = unquote(html.unescape(text))
    return text.replace("\\", "")
