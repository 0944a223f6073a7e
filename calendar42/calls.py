"""One call to Calendar42, and what its answer means: the README's table, row by row.

Every call carries the token; it is blanked out of whatever comes back and is passed on.
"""

import html
import json
import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import unquote

from calendar42.errors import Exhausted, Paused, Rejected, TimedOut, TooLarge, Unusable
from calendar42.pause import Pause
from calendar42.transport import Answer, Transport

MAX_BODY = 8 * 2**20  # bytes of one answer
MAX_ERROR_BODY = 64 * 2**10  # bytes that are passed through of an error
LONGEST_SPELLING = 24  # bytes, of one character of the token


class Call(NamedTuple):
    """One call to the upstream that has ended."""

    endpoint: str  # "events" or "event-subscriptions"
    status: int  # 0 where no whole answer came
    seconds: float
    trouble: str = ""  # what kept the answer from coming


class Job(NamedTuple):
    """All upstream work for one answer, to be done by `deadline` (of `time.monotonic`)."""

    deadline: float
    calls: list[Call]  # that have ended


def headers(token: str) -> dict[str, str]:
    """Return what every call sends."""
    json_type = "application/json"
    return {"Accept": json_type, "Content-Type": json_type, "Authorization": f"Token {token}"}


class Upstream:
    """Calls Calendar42 with a `token`, over at most `at_once` kept-alive connections. Any thread may use it.

    No call is made during a `pause`. `observe` is called with each `Call`. `timeout` is what clients are told.
    """

    def __init__(
        self,
        *,
        base_url: str,
        token: str,
        timeout: float,
        pause: Pause,
        at_once: int,
        observe: Callable[[Call], None],
    ) -> None:
        self._token = token
        self._timeout = timeout
        self._pause = pause
        self._observe = observe
        self._transport = Transport(base_url=base_url, headers=headers(token), connections=at_once)

    def call(self, endpoint: str, rest: str, job: Job) -> Any:
        """Make one call and return the JSON of its answer; raise what else comes of it, one of `errors`."""
        if left := self._pause.left:
            raise Paused(endpoint, left)
        if time.monotonic() >= job.deadline:
            raise TimedOut(endpoint, self._timeout)
        answer = self._get(endpoint, rest, job)
        status = answer.status
        if status == 429:
            self._pause.begin(answer.headers.get("Retry-After", ""))
            raise Paused(endpoint, self._pause.left, status, self._error_body(answer.body))
        if 400 <= status <= 599:
            raise Rejected(endpoint, status, self._error_body(answer.body))
        if status != 200:
            raise Unusable(endpoint, f"answered {status}", status)
        if len(answer.body) > MAX_BODY:
            raise TooLarge(endpoint, f"sent more than {MAX_BODY} bytes")
        try:
            return json.loads(answer.body)
        except (ValueError, RecursionError):
            raise Unusable(endpoint, "sent no JSON") from None

    def _get(self, endpoint: str, rest: str, job: Job) -> Answer:
        began, status, trouble = time.monotonic(), 0, ""
        try:
            answer = self._transport.get(f"{endpoint}/{rest}", deadline=job.deadline, limit=MAX_BODY)
            status = answer.status
        except TimeoutError:
            trouble = "timed out"
            raise TimedOut(endpoint, self._timeout) from None
        except ConnectionError as error:
            trouble = str(error)
            raise Unusable(endpoint, "could not be reached, or broke off", 0) from None
        except OSError as error:
            trouble = error.strerror or ""
            raise Exhausted(endpoint) from None
        finally:
            call = Call(endpoint, status, time.monotonic() - began, trouble)
            job.calls.append(call)
            self._observe(call)
        return answer

    def blank(self, text: str) -> str:
        """Return `text` without the token."""
        return text.replace(self._token, "***")

    def close(self) -> None:
        """Let the connections go that are not in use."""
        self._transport.close()

    def _error_body(self, body: bytes) -> bytes:
        """Return the body of an error as it may be passed through: at most 64 KiB, and nothing if the token is in it.

        It is searched as far as a token that begins in these 64 KiB can reach.
        """
        searched = body[: MAX_ERROR_BODY + LONGEST_SPELLING * len(self._token)]
        readings = _readings(searched.decode("latin-1"))
        has_token = any(token in reading for token in _readings(self._token) for reading in readings)
        return b"" if has_token else body[:MAX_ERROR_BODY]


def _readings(text: str) -> set[str]:
    """Return what a text says if it is read as it is, and as JSON (in JSON), HTML and a URL; without backslashes."""
    from_json = re.sub(r"\\+u00([0-9a-fA-F]{2})", lambda match: chr(int(match[1], 16)), text)
    from_html = html.unescape(from_json)
    return {reading.replace("\\", "") for reading in (text, from_json, from_html, unquote(from_html))}
