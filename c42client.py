"""What Calendar42 says of an event: its title, and the first names of everyone who is subscribed to it.

`Client.fetch` makes both calls side by side, gets all pages, and returns the merged answer or raises a `C42Error`;
`Client.fetch_many` does it for many events at once. `python c42client.py EVENT_ID` prints the merged answer of one
event: a quick check of a token.
"""

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from calendar42 import EVENTS, SUBSCRIPTIONS, ids, payload
from calendar42.calls import Call, Job, Upstream
from calendar42.errors import C42Error, Exhausted, ListFailed, Paused, TimedOut, TooLarge, Unusable
from calendar42.pause import Pause
from calendar42.payload import Page
from operations import settings

PAGE = 100  # rows: the upstream's largest page
PAGES_AT_ONCE = 16  # of one event or list
LIST = 6500  # characters of ids in one URL: half a list of the longest ids, and less than servers take
GRACE = 0.1  # seconds: a call ends itself at the deadline; whoever waits for it stops waiting this much later

log = logging.getLogger("c42c.upstream")
Merged = dict[str, Any]
Outcome = tuple[str, Merged | C42Error]


class Client:
    """Asks Calendar42 with a `token`, on whose user's view all answers depend. Any thread may use it.

    No call is made during a `pause`. `callers` is how many threads may ask at once. `timeout` is what a late answer's
    error says. `observe` is called with each `Call`, and `observe_fault` with each fault but pauses.
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
        observe_fault: Callable[[C42Error], None] = lambda error: None,
    ) -> None:
        self._timeout = timeout
        self._observe_fault = observe_fault
        threads = callers + PAGES_AT_ONCE  # and the callers, who make calls themselves
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="c42c-upstream")
        self._upstream = Upstream(
            base_url=base_url, token=token, timeout=timeout, pause=pause, at_once=callers + threads, observe=observe
        )

    def fetch(self, event_id: str, deadline: float) -> Merged:
        """Return `{"id": …, "title": …, "names": […]}` of one event, or raise `C42Error`, by `deadline`.

        The event's own failure is the answer, at once. `deadline` is a moment of `time.monotonic`.
        """
        ((_, outcome),) = self.fetch_many([event_id], deadline)
        if isinstance(outcome, C42Error):
            raise outcome
        return outcome

    def fetch_many(self, event_ids: list[str], deadline: float) -> Iterator[Outcome]:
        """Yield, for each event, what `fetch` would return or raise, as soon as it is known.

        A list that is too large or refused is asked for again in halves, down to single events. If a list fails for
        another reason, or there is no time left, that is the outcome of each of its events.
        """
        parts = [event_ids]
        while parts:
            part = parts.pop(0)
            if len(part) > PAGE or len(",".join(part)) > LIST:
                parts = _halves(part) + parts
                continue
            job, left = Job(deadline, []), dict.fromkeys(part)
            try:
                for event_id, outcome in self._fetch(part, job):
                    del left[event_id]
                    yield event_id, _report(event_id, outcome, job)
            except C42Error as error:
                if len(part) > 1 and (error.definite or isinstance(error, TooLarge)):
                    log.info("a list of %d events failed (%s): asking for its halves", len(left), error)
                    parts = _halves(list(left)) + parts
                    continue
                self._found(error)
                own = len(part) == 1 and (part == event_ids or not isinstance(error, TimedOut))
                for event_id in left:
                    outcome = error if own or isinstance(error, Paused) else ListFailed(error)
                    yield event_id, _report(event_id, outcome, job)

    def close(self) -> None:
        """Let the connections go; calls under way end by their deadline."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._upstream.close()

    def _fetch(self, event_ids: list[str], job: Job) -> Iterator[Outcome]:
        """Yield each event with its answer or an error of its own; raise `C42Error` if a call fails."""
        rest = f"{event_ids[0]}/" if len(event_ids) == 1 else f"?ids=[{','.join(event_ids)}]&limit={PAGE}"
        first = self._pool.submit(self._page, event_ids, 0, job)
        try:
            events = payload.events(self._upstream.call(EVENTS, rest, job))
            answers: dict[str, Merged] = {}
            for event_id in event_ids:
                try:
                    title = payload.title(events, event_id, event_ids)
                except C42Error as error:
                    self._found(error)
                    yield event_id, error
                else:
                    answers[event_id] = {"id": event_id, "title": title and self._upstream.blank(title), "names": []}
            known = [event_id for event_id in event_ids if event_id in events]
            if answers and known == event_ids:
                self._add_names(answers, known, self._result(first, job), job)
            elif answers:  # an id that the upstream can't read may have turned its filter off
                self._add_names(answers, known, self._page(known, 0, job), job)
            yield from answers.items()
        finally:
            first.cancel()

    def _add_names(self, answers: dict[str, Merged], event_ids: list[str], page: Page, job: Job) -> None:
        """Add the names of all subscriptions, given the first page; if they move between pages, read them again."""
        names = payload.join(self._pages(event_ids, page, job))
        if names is None and page.total > PAGE:
            names = payload.join(self._pages(event_ids, self._page(event_ids, 0, job), job))
        if names is None:
            raise Unusable(SUBSCRIPTIONS, "sent subscriptions that don't add up")
        for event_id, name in names:
            if event_id in answers:  # not deleted
                answers[event_id]["names"].append(self._upstream.blank(name))

    def _pages(self, event_ids: list[str], first: Page, job: Job) -> list[Page]:
        """Return all pages, of which some are read at a time."""
        pages = [first]
        offsets = range(PAGE, first.total, PAGE)
        for start in range(0, len(offsets), PAGES_AT_ONCE):
            some = [self._pool.submit(self._page, event_ids, at, job) for at in offsets[start:][:PAGES_AT_ONCE]]
            try:
                pages += [self._result(page, job) for page in some]
            finally:
                for page in some:
                    page.cancel()
        return pages

    def _page(self, event_ids: list[str], offset: int, job: Job) -> Page:
        rest = f"?event_ids=[{','.join(event_ids)}]&limit={PAGE}&offset={offset}"
        return payload.page(self._upstream.call(SUBSCRIPTIONS, rest, job), event_ids)

    def _result(self, page: Future[Page], job: Job) -> Page:
        try:
            return page.result(max(0.0, job.deadline - time.monotonic()) + GRACE)
        except TimeoutError:
            raise TimedOut(SUBSCRIPTIONS, self._timeout) from None

    def _found(self, error: C42Error) -> None:
        if not error.definite and not isinstance(error, Paused):
            self._observe_fault(error)


def _halves(event_ids: list[str]) -> list[list[str]]:
    middle = (len(event_ids) + 1) // 2
    return [half for half in (event_ids[:middle], event_ids[middle:]) if half]


def _report(event_id: str, outcome: Merged | C42Error, job: Job) -> Merged | C42Error:
    """Log how a load ended, and return the outcome."""
    level, kind, status, names = logging.INFO, "ok", 200, None
    if not isinstance(outcome, C42Error):
        names = len(outcome["names"])
        remark = f"{names} names"
    else:
        kind, status, remark = "negative" if outcome.definite else "fault", outcome.status, str(outcome)
        if isinstance(outcome, Paused):  # the pause has a line of its own
            level = logging.INFO if outcome.upstream_status else logging.DEBUG
        elif not outcome.definite:
            level = logging.ERROR if isinstance(outcome, Exhausted) else logging.WARNING
    if log.isEnabledFor(level):
        calls = list(job.calls)
        shown = ", ".join(f"{call.endpoint} {call.seconds * 1000:.0f} ms {call.trouble}".strip() for call in calls)
        fields = {"event": event_id, "outcome": kind, "status": status, "names": names}
        fields["calls"] = [call._asdict() | {"seconds": round(call.seconds, 4)} for call in calls]
        text = "load event=%s outcome=%s status=%d: %s (%s)"
        log.log(level, text, event_id, kind, status, remark, shown, extra={"fields": fields})
    return outcome


def main(arguments: list[str], environ: Mapping[str, str] = os.environ) -> int:
    """Print the merged answer of one event, or say on stderr what went wrong; return the exit status."""
    parser = argparse.ArgumentParser(prog="python c42client.py", description="Print an event's title and attendees.")
    parser.add_argument("event_id", metavar="EVENT_ID")
    options = parser.parse_args(arguments)
    try:
        event_id, config = ids.check(options.event_id), settings.read(environ)
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
