"""What Calendar42 says of an event: its title, and the first names of all who are subscribed to it.

`Client.fetch` asks for both side by side, gets all pages and returns the merged answer, or raises one of `errors`;
`Client.fetch_many` does it for many events at once. `python c42client.py EVENT_ID` prints the merged answer of one
event: the quick check of a token.
"""

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from cache import FAULT, NEGATIVE, OK
from calendar42 import ids, payload
from calendar42.calls import Call, Job, Upstream
from calendar42.errors import C42Error, Paused, TimedOut, Unknown, Unusable
from calendar42.pause import Pause
from operations import settings

PAGE = 100  # rows: the upstream's largest page
PAGES_AT_ONCE = 16
LIST = 6000  # characters of ids in one URL: a hundred of the usual ids, and less than servers take
GRACE = 0.1  # seconds: a call ends itself at the deadline; whoever waits for it stops waiting this much later

log = logging.getLogger("c42c.upstream")
T = TypeVar("T")
Merged = dict[str, Any]


class Client:
    """Asks Calendar42 with a `token`, on whose user's view all answers depend. Any thread may use it.

    `timeout` is in seconds, for all work of one answer together. No call is made during a `pause`. `callers` is how
    many threads may ask at once. `observe` is called with each `Call`, and `observe_fault` with each fault and the
    endpoint at which it was found.
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
        observe_fault: Callable[[str, C42Error], None] = lambda endpoint, error: None,
    ) -> None:
        self._timeout = timeout
        self._observe_fault = observe_fault
        at_once = 2 * callers + PAGES_AT_ONCE
        self._upstream = Upstream(base_url=base_url, token=token, pause=pause, at_once=at_once, observe=observe)
        self._pool = ThreadPoolExecutor(at_once, thread_name_prefix="c42c-upstream")

    def fetch(self, event_id: str, deadline: float) -> Merged:
        """Return `{"id": …, "title": …, "names": […]}` of one event, or raise `C42Error`, by `deadline`.

        The event's own failure is the answer, at once. `deadline` is a moment of `time.monotonic`.
        """
        job = Job(self._timeout, deadline)
        event = self._pool.submit(self._upstream.call, "events", f"{event_id}/", job)
        page = self._pool.submit(self._page, [event_id], 0, job)
        endpoint = "events"
        try:
            events = payload.events(self._result(event, job))
            if events and event_id not in events:
                raise Unusable("sent another event", 200)
            answer = self._answer(event_id, events.get(event_id))
            endpoint = "event-subscriptions"
            answer["names"] = [name for _, name in self._names([event_id], page, job)]
        except C42Error as error:
            self._found(endpoint, error)
            _log(event_id, error, job)
            raise
        finally:
            event.cancel()
            page.cancel()
        _log(event_id, answer, job)
        return answer

    def fetch_many(self, event_ids: list[str], deadline: float) -> Iterator[tuple[str, Merged | C42Error]]:
        """Yield, for each of many events, what `fetch` would return or raise, with as few calls as there can be."""
        job = Job(self._timeout, deadline)
        for part in _parts(event_ids):
            for event_id, outcome in self._fetch_part(part, job).items():
                _log(event_id, outcome, job)
                yield event_id, outcome

    def _fetch_part(self, event_ids: list[str], job: Job) -> dict[str, Merged | C42Error]:
        listed = self._pool.submit(self._upstream.call, "events", f"?ids=[{','.join(event_ids)}]&limit={PAGE}", job)
        page = self._pool.submit(self._page, event_ids, 0, job)
        answers: dict[str, Merged] = {}
        errors: dict[str, C42Error] = {}
        endpoint = "events"
        try:
            events = payload.events(self._result(listed, job))
            known = [event_id for event_id in event_ids if event_id in events]
            for event_id in event_ids:
                try:
                    if event_id not in events:  # left out; but a list with other events is not the list asked for
                        raise Unknown(event_id) if len(events) == len(known) else Unusable("sent other events", 200)
                    answers[event_id] = self._answer(event_id, events[event_id])
                except C42Error as error:
                    self._found(endpoint, error)
                    errors[event_id] = error
            endpoint = "event-subscriptions"
            if answers and len(known) < len(event_ids):  # an id that the upstream can't read may turn its filter off
                page.cancel()
                page = self._pool.submit(self._page, known, 0, job)
            for event_id, name in self._names(known, page, job) if answers else ():
                if event_id in answers:
                    answers[event_id]["names"].append(name)
        except C42Error as error:
            error.definite = False  # it is the list that was refused, which says nothing definite of any one event
            error.of_list = not isinstance(error, Paused)  # a pause holds for every event
            self._found(endpoint, error)
            return {**dict.fromkeys(event_ids, error), **errors}
        finally:
            listed.cancel()
            page.cancel()
        return {**answers, **errors}

    def close(self) -> None:
        """Let the connections go; calls under way end by their deadline."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._upstream.close()

    def _found(self, endpoint: str, error: C42Error) -> None:
        if not error.definite:
            self._observe_fault(endpoint, error)

    def _answer(self, event_id: str, event: Any) -> Merged:
        title = payload.title(event)
        return {"id": event_id, "title": title and self._upstream.blank(title), "names": []}

    def _names(self, event_ids: list[str], first: Future[payload.Page], job: Job) -> list[tuple[str, str]]:
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
        return [(event_id, self._upstream.blank(name)) for event_id, name in names]

    def _page(self, event_ids: list[str], offset: int, job: Job) -> payload.Page:
        rest = f"?event_ids=[{','.join(event_ids)}]&limit={PAGE}&offset={offset}"
        return payload.page(self._upstream.call("event-subscriptions", rest, job), event_ids)

    def _result(self, future: Future[T], job: Job) -> T:
        try:
            return future.result(job.left + GRACE)
        except TimeoutError:
            raise TimedOut(job.timeout) from None


def _parts(event_ids: list[str]) -> Iterator[list[str]]:
    """Cut a list of ids so that each part fits into one URL and one page."""
    part: list[str] = []
    for event_id in event_ids:
        if part and (len(part) == PAGE or len(",".join([*part, event_id])) > LIST):
            yield part
            part = []
        part.append(event_id)
    if part:
        yield part


def _log(event_id: str, outcome: Merged | C42Error, job: Job) -> None:
    names = None
    if isinstance(outcome, C42Error):
        kind, status, remark = NEGATIVE if outcome.definite else FAULT, outcome.status, str(outcome)
    else:
        names = len(outcome["names"])
        kind, status, remark = OK, 200, f"{names} names"
    calls = list(job.calls)
    shown = ", ".join(f"{call.endpoint} {call.seconds * 1000:.0f} ms {call.trouble}".strip() for call in calls)
    fields = {"event": event_id, "outcome": kind, "status": status, "names": names}
    fields["calls"] = [call._asdict() | {"seconds": round(call.seconds, 4)} for call in calls]
    text = "load event=%s outcome=%s status=%d: %s (%s)"
    level = logging.WARNING if kind == FAULT else logging.INFO
    log.log(level, text, event_id, kind, status, remark, shown, extra={"fields": fields})


def main(arguments: list[str], environ: Mapping[str, str] = os.environ) -> int:
    """Print the merged answer of one event, or say on stderr what went wrong; return the exit status."""
    if len(arguments) != 1:
        print("usage: python c42client.py EVENT_ID", file=sys.stderr)
        return 2
    try:
        event_id, config = ids.check(arguments[0]), settings.read(environ)
    except (ids.BadIds, settings.SettingsError) as error:
        print(error, file=sys.stderr)
        return 2
    pause = Pause(config.fault_expiry)
    client = Client(base_url=config.base_url, token=config.token, timeout=config.timeout, pause=pause)
    try:
        print(json.dumps(client.fetch(event_id, time.monotonic() + config.timeout), ensure_ascii=False))
    except C42Error as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        client.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
