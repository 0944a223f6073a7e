"""Gets events from Calendar42 with `requests`, both calls side by side."""

import logging
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any, Generic, TypeVar

import requests
from requests.auth import AuthBase

from calendar42 import (
    EVENTS_ENDPOINT,
    SUBSCRIPTIONS_ENDPOINT,
    Endpoint,
    ids,
    payload,
)
from calendar42.calls import Attempt, CallRecord, Pause, read_retry_after
from calendar42.errors import (
    NEGATIVE,
    C42Error,
    Exhausted,
    Paused,
    TimedOut,
    TooLarge,
)
from calendar42.payload import Event, Json, Page
from calendar42.replies import MAX_BODIES, Redactor, Reply, Room, max_body, read_json
from calendar42.wire import FAILURES, Adapter, explain, this_call

PAGE = ids.MAX_IDS  # rows: both are the largest page of Calendar42
PAGES_AT_ONCE = 16  # of one event or list
# Characters of ids in one URL: half a list of the longest ids fits, and servers accept
# it.
MAX_URL_IDS = 6500
MAX_CALLS = 1024  # at once; further ones wait for a thread
SLACK = 0.25  # seconds after the deadline: calls end at it, but name look-ups don't
log = logging.getLogger("c42c.upstream")
T = TypeVar("T")
Outcome = Event | C42Error  # what came of the load of an event
OnLoad = Callable[[str, Outcome, Attempt], None]


class TokenAuth(AuthBase):
    """Sends the token as Calendar42 wants it."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Token {self._token}"
        return request


class Session(requests.Session):
    """Sends what every call sends, and keeps connections.

    The token goes to one address: redirects aren't followed, and neither cookies nor
    a `.netrc` are used.
    """

    def __init__(self, token: str) -> None:
        super().__init__()
        self.auth = TokenAuth(token)
        self.headers["Accept"] = "application/json"
        self.headers["Content-Type"] = "application/json"
        self.headers["Accept-Encoding"] = "gzip"
        adapter = Adapter()
        self.mount("http://", adapter)
        self.mount("https://", adapter)

    def get_redirect_target(self, resp: requests.Response) -> None:
        """Say that there is none: else the whole body of a redirect would be read."""


class Calls:
    """Makes single calls to Calendar42, each in a thread.

    Thread-safe. `timeout` is the usual time for a load, in seconds. `on_call` is called
    with each call that has ended, in any thread.
    """

    def __init__(
        self,
        *,
        base_url: str,
        token: str,
        timeout: float,
        pause: Pause,
        on_call: Callable[[CallRecord], None],
    ) -> None:
        self.base_url = base_url
        self.timeout = timeout
        self.pause = pause
        self.on_call = on_call
        self.redactor = Redactor(token)
        self.session = Session(token)
        self.room = Room(MAX_BODIES)
        self.threads = ThreadPoolExecutor(MAX_CALLS, thread_name_prefix="c42c-call")

    def begin(
        self, endpoint: Endpoint, rest: str, attempt: Attempt, read: Callable[[Any], T]
    ) -> "Call[T]":
        """Begin a call, whose result is what `read` makes of its JSON."""
        call = Call[T](self, endpoint, f"{endpoint}/{rest}", attempt)
        call.begin(partial(call.get, read))
        return call

    def ask(self, path: str, deadline: float) -> Reply:
        """Get `path` as it is, even in a pause.

        Raises `C42Error` if no whole reply comes by the deadline.
        """
        call = Call[Reply](self, EVENTS_ENDPOINT, path, Attempt(deadline))
        call.begin(call.send)
        return call.wait()

    def close(self, wait: bool = False) -> None:
        """Close the connections, once active calls have ended; `wait` for those.

        No further calls can be made.
        """
        self.threads.shutdown(wait=wait)
        self.session.close()


class Call(Generic[T]):
    """One of the `calls`, made in one thread for one caller, who waits for it."""

    future: Future[T]

    def __init__(
        self, calls: Calls, endpoint: Endpoint, path: str, attempt: Attempt
    ) -> None:
        self._calls = calls
        self._endpoint = endpoint
        self._path = path
        self._attempt = attempt
        self._body = bytearray()

    def begin(self, work: Callable[[], T]) -> None:
        """Have a thread do the work."""
        try:
            self.future = self._calls.threads.submit(self.run, work)
        except RuntimeError:
            # The work is queued all the same. So that it does nothing later, it's late.
            self._attempt.deadline = 0.0
            raise Exhausted(
                self._endpoint,
                "c42c can't start another thread (ulimit -u, TasksMax)",
                trouble="no thread can be started",
            ) from None

    def wait(self) -> T:
        """Return the result, or raise `C42Error`, by the deadline and `SLACK`."""
        left = self._attempt.deadline + SLACK - time.monotonic()
        try:
            return self.future.result(max(left, 0.0))
        except TimeoutError:
            raise self._late() from None

    def _late(self) -> TimedOut:
        timeout = self._calls.timeout
        had_little_time = self._attempt.deadline - self._attempt.began < timeout / 2
        return TimedOut(
            self._endpoint,
            f"Calendar42 did not answer within {timeout:g} seconds",
            private=had_little_time,  # which says nothing about the event
        )

    # What follows runs in the call's thread.

    def run(self, work: Callable[[], T]) -> T:
        """Do the work, unless it's too late, and give back what room the reply took."""
        if time.monotonic() >= self._attempt.deadline:
            raise self._late()
        try:
            return work()
        finally:
            self._calls.room.give_back(len(self._body))
            self._body = bytearray()

    def get(self, read: Callable[[Any], T]) -> T:
        """Return what `read` makes of the reply's JSON, except in a pause."""
        reply = self._get_reply()
        if 400 <= reply.status <= 599:
            raise self._refusal(reply)
        return read(read_json(self._endpoint, reply))

    def _get_reply(self) -> Reply:
        """Return the reply, over a new connection if a kept one had been closed."""
        self._check_pause()
        try:
            return self.send()
        except C42Error:
            if not this_call.was_closed_before:
                raise
        self._check_pause()  # which may have begun meanwhile
        return self.send(needs_new=True)

    def _check_pause(self) -> None:
        pause_left = self._calls.pause.left
        if pause_left:
            raise Paused(self._endpoint, retry_after=pause_left)

    def send(self, needs_new: bool = False) -> Reply:
        """Send a request and read its reply; record what became of it."""
        began = time.monotonic()
        status = 0
        trouble = ""
        this_call.begin(self._attempt.deadline, needs_new=needs_new)
        left = this_call.left
        try:
            # A name's first address may be dead. So connecting to one takes a third of
            # the time at most, and then the next address is tried.
            with self._calls.session.get(
                self._calls.base_url + self._path,
                timeout=(left / 3, left),
                allow_redirects=False,
                stream=True,
            ) as response:
                reply = self._read(response)
            status = reply.status
            return reply
        except FAILURES as error:
            if this_call.left <= 0:
                trouble = "timed out"
                raise self._late() from None
            failure = explain(self._endpoint, error)
            trouble = failure.trouble
            raise failure from None
        finally:
            seconds = round(time.monotonic() - began, 4)
            record = CallRecord(self._endpoint, status, seconds, trouble)
            self._attempt.calls.append(record)
            self._calls.on_call(record)

    def _read(self, response: requests.Response) -> Reply:
        """Read a reply.

        What isn't read to its end closes its connection: the rest would be taken for
        the next reply.
        """
        reply = Reply(response.status_code, response.headers, self._body)
        if reply.status == 429:
            self._calls.pause.begin(reply.retry_after)
        try:
            self._read_body(response)
        except FAILURES:
            if reply.status != 429:
                raise
            return reply._replace(body=b"")  # the pause holds nevertheless
        return reply

    def _read_body(self, response: requests.Response) -> None:
        limit = max_body(response.status_code)
        if limit == 0:
            return
        length = response.headers.get("Content-Length", "0")
        if not re.fullmatch("[0-9]+", length):
            raise ValueError  # `requests` would read until the connection ends
        for part in response.iter_content(65536):
            self._calls.room.take(len(part))
            self._body += part
            if len(self._body) > limit:
                return

    def _refusal(self, reply: Reply) -> C42Error:
        """Return the error that Calendar42 sent."""
        body = self._calls.redactor.error_body(reply)
        if reply.status == 429:
            retry_after = max(self._calls.pause.left, 0.001)
            return Paused(
                self._endpoint, upstream_status=429, body=body, retry_after=retry_after
            )
        return C42Error(
            self._endpoint,
            f"Calendar42 answered {reply.status}",
            status=reply.status,
            upstream_status=reply.status,
            body=body,
            retry_after=read_retry_after(reply.retry_after, 0.0),
        )


class Client:
    """Gets events from Calendar42, by the calls of `calls`.

    Thread-safe. `on_load` is called with each event, its outcome, and its attempt,
    in which some calls may still be under way.
    """

    def __init__(self, calls: Calls, on_load: OnLoad) -> None:
        self.calls = calls
        self._on_load = on_load

    def fetch(
        self, event_ids: list[str], deadline: float, refresh: bool = False
    ) -> Iterator[tuple[str, Outcome]]:
        """Yield each event, or a `C42Error`, as soon as it is known.

        All are known by `deadline`, a moment of `time.monotonic`, and `SLACK`. If the
        call for events fails, that is known at once. A list that is too large or
        refused is asked for again in halves, down to single events. If a list fails for
        another reason, or time runs out, each of its events gets that error. `refresh`
        is for the log: the events are still in the cache.
        """
        attempt = Attempt(deadline, refresh)
        missing = dict.fromkeys(event_ids)
        try:
            for event_id, outcome in self._load(event_ids, attempt):
                del missing[event_id]
                self._on_load(event_id, outcome, attempt)
                yield event_id, outcome
            return
        except C42Error as caught:
            error = caught
        left = list(missing)
        is_list = len(event_ids) > 1
        may_be_about_one = error.kind == NEGATIVE or isinstance(error, TooLarge)
        if is_list and may_be_about_one:
            line = "a list of %d events failed (%s): asking for its halves"
            log.info(line, len(event_ids), error)
            middle = (len(left) + 1) // 2
            for half in left[:middle], left[middle:]:
                if half:
                    yield from self.fetch(half, deadline, refresh)
            return
        is_private = error.private or (is_list and not isinstance(error, Paused))
        for event_id in left:
            its_error = replace(error, private=is_private)
            self._on_load(event_id, its_error, attempt)
            yield event_id, its_error

    def _load(
        self, event_ids: list[str], attempt: Attempt
    ) -> Iterator[tuple[str, Outcome]]:
        """Yield each event with its answer or an error of its own.

        Raises `C42Error` if a call fails.
        """
        if len(event_ids) > PAGE or len(",".join(event_ids)) > MAX_URL_IDS:
            raise TooLarge(EVENTS_ENDPOINT, "too many ids for one call")
        events_call = self._begin_events(event_ids, attempt)
        page_call = self._begin_page(event_ids, 0, attempt)
        events = events_call.wait()
        titles: dict[str, str | None] = {}
        for event_id in event_ids:
            try:
                titles[event_id] = payload.title(events, event_id, event_ids)
            except C42Error as error:
                yield event_id, error
        if not titles:
            return
        known = [event_id for event_id in event_ids if event_id in events]
        if known != event_ids:
            # An unknown id may have made Calendar42 ignore its filter. Nobody waits for
            # the first call any more.
            page_call = self._begin_page(known, 0, attempt)
        names = self._names(known, page_call, attempt)
        for event_id, title in titles.items():
            shown = None
            if title is not None:
                shown = self.calls.redactor.redact(title)
            yield event_id, Event(id=event_id, title=shown, names=names[event_id])

    def _names(
        self, event_ids: list[str], first: Call[Page], attempt: Attempt
    ) -> dict[str, list[str]]:
        """Return the names of each event, from all pages; `first` gets the first.

        If the list changes while it is being read, read it again, once.
        """
        pages = self._pages(event_ids, first, attempt)
        found = payload.join(pages)
        if found is None and len(pages) > 1:
            first = self._begin_page(event_ids, 0, attempt)
            found = payload.join(self._pages(event_ids, first, attempt))
        if found is None:
            message = "Calendar42 sent subscriptions that don't add up"
            raise C42Error(SUBSCRIPTIONS_ENDPOINT, message)
        names = defaultdict[str, list[str]](list)
        for event_id, name in found:
            names[event_id].append(self.calls.redactor.redact(name))
        return names

    def _pages(
        self, event_ids: list[str], first: Call[Page], attempt: Attempt
    ) -> list[Page]:
        """Return all pages, of which `first` gets the first."""
        pages = [first.wait()]
        total = pages[0].total
        size = PAGE * PAGES_AT_ONCE
        for start in range(PAGE, total, size):
            end = min(start + size, total)
            calls = [
                self._begin_page(event_ids, offset, attempt)
                for offset in range(start, end, PAGE)
            ]
            pages += [call.wait() for call in calls]
        return pages

    def _begin_events(
        self, event_ids: list[str], attempt: Attempt
    ) -> Call[dict[str, Json]]:
        """Begin the call for the events themselves."""
        if len(event_ids) == 1:
            rest = f"{event_ids[0]}/"
        else:
            rest = f"?ids=[{','.join(event_ids)}]&limit={PAGE}"
        read = partial(payload.events, asked=event_ids)
        return self.calls.begin(EVENTS_ENDPOINT, rest, attempt, read)

    def _begin_page(
        self, event_ids: list[str], offset: int, attempt: Attempt
    ) -> Call[Page]:
        """Begin the call for one page of their subscriptions."""
        rest = f"?event_ids=[{','.join(event_ids)}]&limit={PAGE}&offset={offset}"
        read = partial(payload.page, event_ids=event_ids)
        return self.calls.begin(SUBSCRIPTIONS_ENDPOINT, rest, attempt, read)
