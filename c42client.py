"""What Calendar42 says of an event: its title, and the first names of all who are subscribed to it.

`Client.fetch` asks for both side by side, gets all pages and returns the merged answer, or raises one of `errors`.
`python c42client.py EVENT_ID` prints the merged answer of one event: the quick check of a token.
"""

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import extract
import settings
from errors import C42Error, Paused, Rejected, TimedOut, Unusable
from outcome import FAULT, OK
from pause import Pause
from transport import Answer, Transport

PAGE = 100  # rows: the upstream's largest page
PAGES_AT_ONCE = 16
MAX_BODY = 8 * 2**20  # bytes of one upstream answer
MAX_ERROR_BODY = 64 * 2**10  # bytes that are passed through of an error
GRACE = 0.1  # seconds: a call ends itself at the deadline; whoever waits for it stops waiting this much later

log = logging.getLogger("c42c.upstream")
T = TypeVar("T")


class Call(NamedTuple):
    """One call to the upstream that has ended."""

    endpoint: str  # "events" or "event-subscriptions"
    status: int  # 0 where no whole answer came
    seconds: float
    trouble: str = ""  # what kept the answer from coming


@dataclass(slots=True)
class _Job:
    """All upstream work for one answer."""

    deadline: float
    calls: list[Call] = field(default_factory=list)


def headers(token: str) -> dict[str, str]:
    """Return what every call sends."""
    json_type = "application/json"
    return {"Accept": json_type, "Content-Type": json_type, "Authorization": f"Token {token}"}


class Client:
    """Asks Calendar42 with a `token`, on whose user's view all answers depend. Any thread may use it.

    `timeout` is in seconds, for all work of one answer together. No call is made during a `pause`. `callers` is how
    many threads may ask at once. `observe` is called with each `Call`, and `observe_fault` with the endpoint and the
    status (0: no whole answer) of what ended the work for an answer in a fault.
    """

    def __init__(
        self,
        *,
        base_url: str,
        token: str,
        timeout: float,
        pause: Pause,
        callers: int = 1,
        observe: Callable[[Call], None] = lambda call: None,
        observe_fault: Callable[[str, int], None] = lambda endpoint, status: None,
    ) -> None:
        self._token = token
        self._timeout = timeout
        self._observe = observe
        self._observe_fault = observe_fault
        self.pause = pause
        at_once = 2 * callers + PAGES_AT_ONCE
        self._transport = Transport(base_url=base_url, headers=headers(token), connections=at_once)
        self._pool = ThreadPoolExecutor(at_once, thread_name_prefix="c42c-upstream")

    def fetch(self, event_id: str) -> dict[str, Any]:
        """Return `{"id": …, "title": …, "names": […]}` of one event, or raise `C42Error`, within the time-out.

        The event's own failure is the answer, at once, whatever its subscriptions say.
        """
        job = _Job(time.monotonic() + self._timeout)
        endpoint = "events"
        event = self._pool.submit(self._call, "events", f"{event_id}/", job)
        page = self._pool.submit(self._page, [event_id], 0, job)
        try:
            answer = self._answer(event_id, self._result(event, job))
            endpoint = "event-subscriptions"
            for _, name in self._names([event_id], page, job):
                answer["names"].append(name)
        except C42Error as error:
            _log(event_id, error.kind, error.status, job, str(error))
            if error.kind == FAULT and not (isinstance(error, Paused) and not error.upstream_status):
                self._observe_fault(endpoint, error.upstream_status)
            raise
        finally:
            event.cancel()
            page.cancel()
        _log(event_id, OK, 200, job, f"{len(answer['names'])} names", len(answer["names"]))
        return answer

    def close(self) -> None:
        """Let the connections go; calls under way end by their deadline."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._transport.close()

    def _answer(self, event_id: str, body: Any) -> dict[str, Any]:
        events = extract.events(body)
        if events and event_id not in events:
            raise Unusable("sent another event", 200)
        title = extract.title(events.get(event_id))
        return {"id": event_id, "title": title and self._blank(title), "names": []}

    def _names(self, event_ids: list[str], first: Future[extract.Page], job: _Job) -> list[tuple[str, str]]:
        """Return event id and name of all subscriptions: the first page's, then the others', some at a time."""
        total, seen, names = self._result(first, job)
        offsets = range(PAGE, total, PAGE)
        for start in range(0, len(offsets), PAGES_AT_ONCE):
            pages = [self._pool.submit(self._page, event_ids, at, job) for at in offsets[start:][:PAGES_AT_ONCE]]
            try:
                for page in [self._result(future, job) for future in pages]:
                    seen += page.rows
                    names += page.names
            finally:
                for future in pages:
                    future.cancel()
        if seen < total:
            raise Unusable("sent fewer subscriptions than it has", 200)
        return [(event_id, self._blank(name)) for event_id, name in names]

    def _page(self, event_ids: list[str], offset: int, job: _Job) -> extract.Page:
        rest = f"?event_ids=[{','.join(event_ids)}]&limit={PAGE}&offset={offset}"
        return extract.page(self._call("event-subscriptions", rest, job), event_ids)

    def _result(self, future: Future[T], job: _Job) -> T:
        try:
            return future.result(max(0.0, job.deadline + GRACE - time.monotonic()))
        except TimeoutError:
            raise TimedOut(self._timeout) from None

    def _call(self, endpoint: str, rest: str, job: _Job) -> Any:
        """Make one call and return the JSON of its answer; raise whatever else comes of it."""
        if left := self.pause.left:
            raise Paused(left)
        began, status, trouble = time.monotonic(), 0, ""
        try:
            answer = self._transport.get(f"{endpoint}/{rest}", deadline=job.deadline, limit=MAX_BODY)
            status = answer.status
        except TimeoutError:
            trouble = "timed out"
            raise TimedOut(self._timeout) from None
        except ConnectionError as error:
            trouble = str(error)
            raise Unusable("could not be reached, or broke off") from None
        finally:
            call = Call(endpoint, status, time.monotonic() - began, trouble)
            job.calls.append(call)
            self._observe(call)
        if status == 429:
            self.pause.begin(answer.headers.get("Retry-After", ""))
            raise Paused(self.pause.left, self._error_body(answer), status)
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

    def _error_body(self, answer: Answer) -> bytes:
        """Return the body of an error as it may be passed through: without the token, however JSON writes it."""
        body = answer.body.replace(self._token.encode(), b"***")
        try:
            text = json.dumps(json.loads(body), ensure_ascii=False)
            if (token := json.dumps(self._token)[1:-1]) in text:
                body = text.replace(token, "***").encode()
        except (ValueError, RecursionError):
            pass  # no JSON
        return body[:MAX_ERROR_BODY]

    def _blank(self, text: str) -> str:
        return text.replace(self._token, "***")


def _log(event_id: str, outcome: str, status: int, job: _Job, remark: str, names: int | None = None) -> None:
    level = logging.WARNING if outcome == FAULT else logging.INFO
    calls = list(job.calls)
    shown = ", ".join(f"{call.endpoint} {call.seconds * 1000:.0f} ms {call.trouble}".strip() for call in calls)
    fields = {"event": event_id, "outcome": outcome, "status": status, "names": names}
    fields["calls"] = [call._asdict() | {"seconds": round(call.seconds, 4)} for call in calls]
    text = "load event=%s outcome=%s status=%d: %s (%s)"
    log.log(level, text, event_id, outcome, status, remark, shown, extra={"fields": fields})


def main(arguments: list[str], environ: Mapping[str, str] = os.environ) -> int:
    """Print the merged answer of one event, or say on stderr what went wrong; return the exit status."""
    if len(arguments) != 1:
        print("usage: python c42client.py EVENT_ID", file=sys.stderr)
        return 2
    try:
        config = settings.read(environ)
    except settings.SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    client = Client(
        base_url=config.base_url, token=config.token, timeout=config.timeout, pause=Pause(config.fault_expiry)
    )
    try:
        print(json.dumps(client.fetch(arguments[0]), ensure_ascii=False))
    except C42Error as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        client.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
