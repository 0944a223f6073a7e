"""What may go wrong on the stand-in.

A rule says to which requests it happens, and what becomes of them. A gate's condition
guards its count; a rule's `times` is guarded by the lock of the Standin that holds it.
"""

import threading
from dataclasses import KW_ONLY, dataclass, field
from http import HTTPStatus

from standin.api import Answer, Call, error


class Gate:
    """Holds the requests that come to it until it is opened; then it stays open."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._is_open = False
        self.arrived = 0  # all that have come so far

    def wait_for(self, count: int, timeout: float = 60) -> None:
        """Return once so many requests have come, or raise TimeoutError."""
        with self._changed:
            if not self._changed.wait_for(lambda: self.arrived >= count, timeout):
                raise TimeoutError(
                    f"{self.arrived} of {count} requests came to the gate"
                )

    def open(self) -> None:
        """Let everybody through, now and later."""
        with self._changed:
            self._is_open = True
            self._changed.notify_all()

    def stand(self) -> None:
        """Come to the gate, and return once it is open."""
        with self._changed:
            self.arrived += 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._is_open)


@dataclass(eq=False)
class Rule:
    """Which requests it applies to (None: any), and what happens to them.

    The fields are in the order in which it happens.
    """

    endpoint: str | None = None
    event_id: str | None = None  # named by the request, alone or in a list
    times: int | None = (
        None  # so many requests, then it is used up; None: until removed
    )
    _: KW_ONLY
    offset: int | None = None
    gate: Gate | None = None
    delay: float = 0.0  # seconds
    hang: bool = False  # never answer
    reset: bool = False  # RST instead of an answer
    status: int | None = None  # alone: with the documented envelope
    body: str | bytes | int | None = (
        None  # an int: the answer, chunked, behind so many MiB of blanks
    )
    content_type: str = "application/json"
    headers: dict[str, str | None] | None = None  # None: leave it out
    informational: int | None = None  # status of a 1xx response before the answer
    trickle_headers: float | None = (
        None  # seconds after each byte, from the status line on
    )
    trickle: float | None = None  # seconds after each byte of the body
    truncate: bool = False  # half the body under the right Content-Length, then the end
    hang_halfway: bool = False  # half the body, then nothing
    reset_halfway: bool = False  # half the body, then RST
    removed: bool = field(default=False, init=False)

    def remove(self) -> None:
        """Catch no further request; those it has caught stay caught."""
        self.removed = True

    def matches(self, call: Call) -> bool:
        """Say whether the rule is for this request."""
        return (
            not self.removed
            and self.times != 0
            and self.endpoint in (None, call.endpoint)
            and (self.event_id is None or self.event_id in call.named_ids)
            and (self.offset is None or self.offset == call.number("offset", 0))
        )

    def change(self, answer: Answer, call: Call) -> Answer:
        """Return the right answer with the rule's status and body."""
        if self.status is not None:
            is_missing = self.status == HTTPStatus.NOT_FOUND and call.named_ids
            answer = error(
                self.status,
                f"Event {call.named_ids[0]} not found" if is_missing else "",
            )
        body = self.body.encode() if isinstance(self.body, str) else self.body
        if answer.status in (
            204,
            304,
        ):  # these have none, and a client would take it for the next answer
            body = b""
        return Answer(
            answer.status,
            body if isinstance(body, bytes) else answer.body,
            answer.headers,
        )
