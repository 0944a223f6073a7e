"""One call to Calendar42, and what its answer means: the README's table, row by row.

Every call has the token; whatever comes back and is passed on has it no more.
"""

import html
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from calendar42.errors import Paused, Rejected, TimedOut, Unusable
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


@dataclass(slots=True)
class Job:
    """All upstream work for one answer, to be done by `deadline` (of `time.monotonic`), after `timeout` seconds."""

    timeout: float
    deadline: float
    calls: list[Call] = field(default_factory=list)

    @property
    def left(self) -> float:
        """The seconds until the deadline."""
        return max(0.0, self.deadline - time.monotonic())


def headers(token: str) -> dict[str, str]:
    """Return what every call sends."""
    json_type = "application/json"
    return {"Accept": json_type, "Content-Type": json_type, "Authorization": f"Token {token}"}


class Upstream:
    """Calls Calendar42 with a `token`, over at most `at_once` kept-alive connections. Any thread may use it.

    No call is made during a `pause`. `observe` is called with each `Call`.
    """

    def __init__(
        self, *, base_url: str, token: str, pause: Pause, at_once: int, observe: Callable[[Call], None]
    ) -> None:
        self._token = token
        self._spellings = _spellings(token)
        self._pause = pause
        self._observe = observe
        self._transport = Transport(base_url=base_url, headers=headers(token), connections=at_once)

    def call(self, endpoint: str, rest: str, job: Job) -> Any:
        """Make one call and return the JSON of its answer; raise what else comes of it, one of `errors`."""
        if left := self._pause.left:
            raise Paused(left)
        began, status, trouble = time.monotonic(), 0, ""
        try:
            answer = self._transport.get(f"{endpoint}/{rest}", deadline=job.deadline, limit=MAX_BODY)
            status = answer.status
        except TimeoutError:
            trouble = "timed out"
            raise TimedOut(job.timeout) from None
        except ConnectionError as error:
            trouble = str(error)
            raise Unusable("could not be reached, or broke off") from None
        finally:
            call = Call(endpoint, status, time.monotonic() - began, trouble)
            job.calls.append(call)
            self._observe(call)
        if status == 429:
            self._pause.begin(answer.headers.get("Retry-After", ""))
            raise Paused(self._pause.left, self._error_body(answer), status)
        if 400 <= status <= 599:
            raise Rejected(status, self._error_body(answer))
        if status != 200:
            raise Unusable(f"answered {status}", status)
        if len(answer.body) > MAX_BODY:
            raise Unusable(f"sent more than {MAX_BODY} bytes", status)
        try:
            return json.loads(answer.body)
        except (ValueError, RecursionError):
            raise Unusable("sent no JSON", status) from None

    def blank(self, text: str) -> str:
        """Return `text` without the token."""
        return text.replace(self._token, "***")

    def close(self) -> None:
        """Let the connections go that are not in use."""
        self._transport.close()

    def _error_body(self, answer: Answer) -> bytes:
        """Return the body of an error as it may be passed through: without the token, and not too long.

        What is beyond the cut is looked at as far as a token that begins before it may reach, and no further.
        """
        slack = LONGEST_SPELLING * len(self._token)
        body = self._spellings.sub(b"***", answer.body[: MAX_ERROR_BODY + slack])
        if len(answer.body) > MAX_ERROR_BODY + slack:
            body = body[:-slack]  # where half a token may stand
        return body[:MAX_ERROR_BODY]


def _spellings(secret: str) -> re.Pattern[bytes]:
    """Match `secret` as it is, and as JSON (in JSON), HTML and URLs may write it."""

    def spelling(char: str) -> str:
        number, entity = ord(char), html.escape(char)
        backslashes = r"\\{1,16}" if char == "\\" else r"\\{0,8}" + re.escape(char)
        escaped = rf"\\{{1,8}}(?i:u00{number:02x})|&(?:#0{{0,8}}{number}|(?i:#x0{{0,8}}{number:x}));|(?i:%{number:02x})"
        return f"(?>{escaped}|{backslashes}{'|' + entity if entity != char else ''})"

    # Atomic, char by char: no body, however near to the secret, makes it try more than once.
    return re.compile("".join(map(spelling, re.sub(r"\\+", r"\\", secret))).encode())
