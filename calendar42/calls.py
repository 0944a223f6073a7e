"""Makes one call to Calendar42, unless there is a pause, and interprets the answer as
the README's table says.
"""

import html
import json
import logging
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, NamedTuple
from urllib.parse import unquote

from werkzeug.http import parse_date

from calendar42.errors import C42Error, Exhausted, Paused, TimedOut, TooLarge
from calendar42.transport import Reply, Transport

MAX_BODY = 8 * 2**20  # bytes of one answer
MAX_ERROR_BODY = 64 * 2**10  # bytes of an error that are passed through
# Seconds that callers wait beyond the deadline, and that calls go on when nobody waits
# for them.
GRACE = 0.5
MAX_PAUSE = 3600.0  # seconds of a pause: Calendar42 counts its limits by the hour
PAUSE_MESSAGE = "Calendar42 asked for a pause"
log = logging.getLogger("c42c.upstream")


class CallRecord(NamedTuple):
    """A finished call to Calendar42."""

    endpoint: str  # "events" or "event-subscriptions"
    status: int  # 0: no whole answer came
    seconds: float
    trouble: str = ""  # why no whole answer came


class Attempt(NamedTuple):
    """The calls for one answer, to be finished by `deadline`; times are those of
    `time.monotonic`.
    """

    began: float
    deadline: float
    calls: list[CallRecord]  # finished so far
    futures: list[Future[Reply]]  # of all calls


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
        """Begin the pause that a `Retry-After` asks for, or make the present one
        longer.
        """
        seconds = min(max(_seconds(retry_after, self._default), 0.0), MAX_PAUSE)
        if self.extend(
            time.monotonic() + seconds
        ):  # else a concurrent call has logged it
            fields = {"pause_seconds": round(seconds)}
            log.warning(
                "pause: Calendar42 asks for %.0f s", seconds, extra={"fields": fields}
            )

    def extend(self, until: float) -> bool:
        """Make the pause last until then (of `time.monotonic`) at least; return whether
        there was none.
        """
        with self._lock:
            is_new = not self.left
            self._until = max(self._until, until)
        return is_new


class Upstream:
    """Calls Calendar42, except in a `pause`.

    Thread-safe. `timeout` is the usual time for a load, in seconds.
    """

    def __init__(
        self,
        *,
        base_url: str,
        token: str,
        timeout: float,
        pause: Pause,
        observe: Callable[[CallRecord], None],
    ) -> None:
        self.transport = Transport(base_url=base_url, token=token)
        self._token, self._timeout, self._pause, self._observe = (
            token,
            timeout,
            pause,
            observe,
        )

    def begin(self, endpoint: str, rest: str, job: Attempt) -> Callable[[], Any]:
        """Begin a call; return a function that waits for its end and returns the JSON,
        or raises `C42Error`.
        """
        call = self.transport.begin(self._call(endpoint, rest, job, time.monotonic()))
        job.futures.append(call)
        return lambda: self._finish(endpoint, call, job)

    def abandon(self, job: Attempt) -> None:
        """Cancel a job's active calls after `GRACE`: most end before, so connections
        are kept and a 429 is seen.
        """
        for call in job.futures:
            if not call.done():
                self.transport.cancel(call, GRACE)

    async def _call(
        self, endpoint: str, rest: str, job: Attempt, began: float
    ) -> Reply:
        """Make a call, and begin the pause that its answer asks for."""
        if left := self._pause.left:
            raise Paused(endpoint, PAUSE_MESSAGE, 429, 0, retry_after=left)
        if began >= job.deadline:
            raise self._late(endpoint, job)
        status, trouble = 0, ""
        try:
            answer = await self.transport.get(
                f"{endpoint}/{rest}", deadline=job.deadline, limit=MAX_BODY
            )
            status = answer.status
        except OSError as error:
            trouble = error.strerror or str(error)
            if isinstance(error, TimeoutError):
                raise self._late(endpoint, job) from None
            if isinstance(error, ConnectionError):
                raise C42Error(
                    endpoint, "Calendar42 could not be reached, or broke off", 502, 0
                ) from None
            message = "c42c has reached its limit of open files (ulimit -n, LimitNOFILE) and can't call Calendar42"
            raise Exhausted(endpoint, message, 503, 0, retry_after=1.0) from None
        finally:
            call = CallRecord(endpoint, status, time.monotonic() - began, trouble)
            job.calls.append(call)
            self._observe(call)
        if status == 429:
            self._pause.begin(answer.headers.get("retry-after", ""))
        return answer

    def _finish(self, endpoint: str, call: Future[Reply], job: Attempt) -> Any:
        """Wait for a call; return the JSON of its answer, or raise what it means."""
        try:
            status, _, body = call.result(
                max(0.0, job.deadline - time.monotonic()) + GRACE
            )
        except TimeoutError:  # the transport was closed meanwhile
            raise self._late(endpoint, job) from None
        if status == 429:
            raise Paused(
                endpoint,
                PAUSE_MESSAGE,
                429,
                429,
                self._error_body(body),
                max(self._pause.left, 0.001),
            )
        if 400 <= status <= 599:
            raise C42Error(
                endpoint,
                f"Calendar42 answered {status}",
                status,
                status,
                self._error_body(body),
            )
        if status != 200:
            raise C42Error(endpoint, f"Calendar42 answered {status}", 502, status)
        if len(body) > MAX_BODY:
            raise TooLarge(endpoint, f"Calendar42 sent more than {MAX_BODY} bytes")
        try:
            return json.loads(body)
        except (ValueError, RecursionError):
            raise C42Error(endpoint, "Calendar42 sent no JSON") from None

    def _late(self, endpoint: str, job: Attempt) -> TimedOut:
        message = f"Calendar42 did not answer within {self._timeout:g} seconds"
        return TimedOut(
            endpoint,
            message,
            504,
            0,
            private=job.deadline - job.began < self._timeout / 2,
        )

    def redact(self, text: str) -> str:
        """Return `text` without the token."""
        return text.replace(self._token, "***")

    def _error_body(self, body: bytes) -> bytes:
        """Return the part of an error's body to pass through: nothing if it contains
        the token, or an escaped one.
        """
        # The second half may hold the end of a token. In UTF-16, a token has a NUL
        # beside each character.
        said = body[: 2 * MAX_ERROR_BODY].decode("latin-1").replace("\0", "")
        with suppress(
            ValueError
            # An HTML reference to a number with thousands of digits: it may hide the token.
        ):
            if self._token not in said and _plain(self._token) not in _plain(said):
                return body[:MAX_ERROR_BODY]
        return b""


def _seconds(retry_after: str, default: float) -> float:
    """Read seconds, or a date (RFC 9110, 10.2.3)."""
    if retry_after.isascii() and retry_after.isdigit():
        return float(retry_after)
    date = read_date(retry_after)
    return (date - datetime.now(UTC)).total_seconds() if date else default


def read_date(text: str) -> datetime | None:
    """Read a date in one of its three forms (RFC 9110, 5.6.7); return None if it isn't
    one.
    """
    with suppress(OverflowError):  # a year or a time zone of twenty digits
        return parse_date(text)
    return None


def _plain(text: str) -> str:
    """Undo escaping in JSON, HTML and URLs, even if nested."""
    for _ in range(5):
        text = re.sub(
            r"(?<!\\)\\+u00([0-9a-fA-F]{2})", lambda match: chr(int(match[1], 16)), text
        )
        text = unquote(html.unescape(text))
    return text.replace("\\", "")
