"""Gets events from Calendar42, with both calls side by side.

`python c42client.py EVENT_ID` prints one.
"""

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from typing import Any

from calendar42 import EVENTS_ENDPOINT, SUBSCRIPTIONS_ENDPOINT, ids, payload
from calendar42.calls import Attempt, Pause, Upstream
from calendar42.errors import C42Error, Exhausted, Paused, TooLarge
from calendar42.payload import Page
from operations import settings

PAGE = ids.MAX_IDS  # rows: both are the largest page of Calendar42
PAGES_AT_ONCE = 16  # of one event or list
# Characters of ids in one URL: half a list of the longest ids fits, and servers accept
# it.
MAX_URL_IDS = 6500
log = logging.getLogger("c42c.upstream")
Merged = dict[str, Any]
Outcome = tuple[str, Merged | C42Error]


class Client:
    """Gets events from `upstream`.

    Thread-safe. `observe_fault` is called with each event's fault, except pauses.
    """

    def __init__(
        self,
        upstream: Upstream,
        *,
        observe_fault: Callable[[C42Error], None] = lambda _: None,
    ) -> None:
        self._upstream = upstream
        self._observe_fault = observe_fault

    def fetch(self, event_ids: list[str], deadline: float) -> Iterator[Outcome]:
        """Yield each event with `{"id": …, "title": …, "names": […]}` or a `C42Error`,
        as soon as it is known.

        All are known by `deadline`, a moment of `time.monotonic`. If the call for
        events fails, that is known at once. A list that is too large or refused is
        asked for again in halves, down to single events. If a list fails for another
        reason, or time runs out, each of its events gets that error.
        """
        lists = [event_ids]
        while lists:
            wanted, job = lists.pop(), Attempt(time.monotonic(), deadline, [], [])
            left = dict.fromkeys(wanted)
            try:
                for event_id, outcome in self._fetch(wanted, job):
                    del left[event_id]
                    yield self._report(event_id, outcome, job)
            except C42Error as error:
                if len(wanted) > 1 and (error.definite or isinstance(error, TooLarge)):
                    log.info(
                        "a list of %d events failed (%s): asking for its halves",
                        len(left),
                        error,
                    )
                    ids_left, middle = list(left), (len(left) + 1) // 2
                    lists += filter(None, (ids_left[middle:], ids_left[:middle]))
                    continue
                private = len(wanted) > 1 and not isinstance(error, Paused)
                for event_id in left:
                    yield self._report(
                        event_id,
                        replace(error, private=True) if private else error,
                        job,
                    )
            finally:
                self._upstream.abandon(job)

    def close(self) -> None:
        """Close the connections, once active calls have ended; no further ones can be
        made.
        """
        self._upstream.transport.close()

    def _fetch(self, event_ids: list[str], job: Attempt) -> Iterator[Outcome]:
        """Yield each event with its answer or an error of its own; raise `C42Error` if
        a call fails.
        """
        if len(event_ids) > PAGE or len(",".join(event_ids)) > MAX_URL_IDS:
            raise TooLarge(EVENTS_ENDPOINT, "too many ids for one call")
        rest = (
            f"{event_ids[0]}/"
            if len(event_ids) == 1
            else f"?ids=[{','.join(event_ids)}]&limit={PAGE}"
        )
        get_events, get_page = (
            self._upstream.begin(EVENTS_ENDPOINT, rest, job),
            self._begin_page(event_ids, 0, job),
        )
        events = payload.events(get_events(), event_ids)
        answers: dict[str, Merged] = {}
        for event_id in event_ids:
            try:
                title = payload.title(events, event_id, event_ids)
                answers[event_id] = {
                    "id": event_id,
                    "title": title and self._upstream.redact(title),
                    "names": [],
                }
            except C42Error as error:
                yield event_id, error
        known = [event_id for event_id in event_ids if event_id in events]
        if answers:
            if (
                known != event_ids
            ):  # an unknown id may have made Calendar42 ignore its filter
                get_page = self._begin_page(known, 0, job)
            for event_id, name in self._names(known, get_page, job):
                if event_id in answers:  # not deleted
                    answers[event_id]["names"].append(self._upstream.redact(name))
        yield from answers.items()

    def _names(
        self, event_ids: list[str], get_page: Callable[[], Page], job: Attempt
    ) -> list[tuple[str, str]]:
        """Return the names on all pages; `get_page` gets the first.

        If they move meanwhile, read them again, once.
        """
        read_again = False
        while True:
            pages = [get_page()]
            offsets = range(PAGE, pages[0].total, PAGE)
            for start in range(0, len(offsets), PAGES_AT_ONCE):
                begun = [
                    self._begin_page(event_ids, at, job)
                    for at in offsets[start : start + PAGES_AT_ONCE]
                ]
                pages += [finish() for finish in begun]
            if (names := payload.join(pages)) is not None:
                return names
            if read_again or not offsets:
                raise C42Error(
                    SUBSCRIPTIONS_ENDPOINT,
                    "Calendar42 sent subscriptions that don't add up",
                )
            get_page, read_again = self._begin_page(event_ids, 0, job), True

    def _begin_page(
        self, event_ids: list[str], offset: int, job: Attempt
    ) -> Callable[[], Page]:
        rest = f"?event_ids=[{','.join(event_ids)}]&limit={PAGE}&offset={offset}"
        finish = self._upstream.begin(SUBSCRIPTIONS_ENDPOINT, rest, job)
        return lambda: payload.page(finish(), event_ids)

    def _report(
        self, event_id: str, outcome: Merged | C42Error, job: Attempt
    ) -> Outcome:
        """Log how a load ended, observe a fault, and return the outcome.

        A pause has a log line of its own.
        """
        if isinstance(outcome, Paused):
            return event_id, outcome
        level, kind, status, names = logging.INFO, "ok", 200, None
        if not isinstance(outcome, C42Error):
            names = len(outcome["names"])
            said = f"{names} names"
        else:
            kind, status, said = (
                "negative" if outcome.definite else "fault",
                outcome.status,
                str(outcome),
            )
            if not outcome.definite:
                level = (
                    logging.ERROR if isinstance(outcome, Exhausted) else logging.WARNING
                )
                self._observe_fault(outcome)
        calls = list(job.calls)
        shown = ", ".join(
            f"{call.endpoint} {call.seconds * 1000:.0f} ms {call.trouble}".strip()
            for call in calls
        )
        fields = {"event": event_id, "outcome": kind, "status": status, "names": names}
        fields["calls"] = [
            call._asdict() | {"seconds": round(call.seconds, 4)} for call in calls
        ]
        text = "load event=%s outcome=%s status=%d: %s (%s)"
        log.log(
            level, text, event_id, kind, status, said, shown, extra={"fields": fields}
        )
        return event_id, outcome


def main(arguments: list[str], environ: Mapping[str, str] = os.environ) -> int:
    """Print the merged answer of one event, or say on stderr what went wrong; return
    the exit status.
    """
    parser = argparse.ArgumentParser(
        prog="python c42client.py", description="Print an event's title and attendees."
    )
    parser.add_argument("event_id", metavar="EVENT_ID")
    options = parser.parse_args(arguments)
    try:
        event_id, config = ids.validate_id(options.event_id), settings.read(environ)
        url, token, timeout, pause = (
            config.base_url,
            config.token,
            config.timeout,
            Pause(config.fault_expiry),
        )
        upstream = Upstream(
            base_url=url,
            token=token,
            timeout=timeout,
            pause=pause,
            observe=lambda call: None,
        )
        with closing(Client(upstream)) as client:
            ((_, outcome),) = client.fetch([event_id], time.monotonic() + timeout)
        if isinstance(outcome, C42Error):
            raise outcome
        print(
            json.dumps(outcome, ensure_ascii=False).encode(errors="replace").decode(),
            flush=True,
        )
    except (ids.BadIds, settings.SettingsError, C42Error) as error:
        print(error, file=sys.stderr)
        return 1 if isinstance(error, C42Error) else 2
    return 0


if __name__ == "__main__":
    logging.disable()  # what goes wrong is printed
    os._exit(main(sys.argv[1:]))  # rather than wait for a name server that hangs
