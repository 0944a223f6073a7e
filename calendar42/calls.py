"""One call to Calendar42, and what its answer means: the README's table, row by row.

Every call carries the token; it is removed from whatever comes back and is passed on.
"""

import html
import json
import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import unquote

from calendar42.errors import C42Error, Exhausted, Paused, TimedOut, TooLarge
from calendar42.pause import Pause
from calendar42.transport import Answer, Transport

MAX_BODY = 8 * 2**20  # bytes of one answer
MAX_ERROR_BODY = 64 * 2**10  # bytes of an error that are passed through


class Call(NamedTuple):
    """One call to the upstream that has ended."""

    endpoint: str  # "events" or "event-subscriptions"
    status: int  # 0: no whole answer came
    seconds: float
    trouble: str = ""  # why no whole answer came


class Job(NamedTuple):
    """All upstream work for one answer, to be done by `deadline` (of `time.monotonic`)."""

    deadline: float
    timeout: float  # seconds: what a late answer's error says
    calls: list[Call]  # that have ended

    @property
    def left(self) -> float:
        """The seconds until the deadline."""
        return max(0.0, self.deadline - time.monotonic())

    def late(self, endpoint: str) -> TimedOut:
        """Return the error for an answer that didn't come in time."""
        return TimedOut(endpoint, f"Calendar42 did not answer within {self.timeout:g} seconds", 504, 0)


def headers(token: str) -> dict[str, str]:
    """Return what every call sends."""
    json_type = "application/json"
    return {"Accept": json_type, "Content-Type": json_type, "Authorization": f"Token {token}"}


class Upstream:
    """Calls Calendar42 with a `token`, but not during a `pause`. `observe` is called with each `Call`.

    Any thread may use it.
    """

    def __init__(self, *, base_url: str, token: str, pause: Pause, observe: Callable[[Call], None]) -> None:
        self._token = token
        self._pause = pause
        self._observe = observe
        self._transport = Transport(base_url=base_url, headers=headers(token))

    def call(self, endpoint: str, rest: str, job: Job) -> Any:
        """Make one call and return the JSON of its answer, or raise `C42Error`."""
        if self._pause.left:
            raise self._paused(endpoint)
        if not job.left:
            raise job.late(endpoint)
        status, headers, body = self._get(endpoint, rest, job)
        if status == 429:
            self._pause.begin(headers.get("Retry-After", ""))
            raise self._paused(endpoint, status, self._error_body(body))
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
            answer = self._transport.get(f"{endpoint}/{rest}", deadline=job.deadline, limit=MAX_BODY)
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

    def blank(self, text: str) -> str:
        """Return `text` without the token."""
        return text.replace(self._token, "***")

    def close(self) -> None:
        """Close the connections that aren't in use."""
        self._transport.close()

    def _paused(self, endpoint: str, upstream_status: int = 0, body: bytes = b"") -> Paused:
        left = max(self._pause.left, 1.0)
        return Paused(endpoint, "Calendar42 asked for a pause", 429, upstream_status, body, left)

    def _error_body(self, body: bytes) -> bytes:
        """Return what is passed through of an error's body: nothing if the token is in it, however it is written."""
        said = body[: 2 * MAX_ERROR_BODY].decode("latin-1")  # a token that begins in the first half ends in the second
        leaks = self._token in said or _plain(self._token) in _plain(said)
        return b"" if leaks else body[:MAX_ERROR_BODY]


def _plain(text: str) -> str:
    """Undo what JSON, HTML and URLs do to text, several times over if need be."""
    for _ in range(5):
        text = re.sub(r"\\+u00([0-9a-fA-F]{2})", lambda match: chr(int(match[1], 16)), text)
        text = unquote(html.unescape(text))
    return text.replace("\\", "")
