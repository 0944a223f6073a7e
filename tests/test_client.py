"""The client of Calendar42 by itself: what it sends, and how it treats whatever comes
back.

How an answer is read off a socket is in `test_transport.py`, and what is read out of
its JSON in `test_payload.py`.
"""

import contextlib
import gzip
import html
import json
import logging
import os
import re
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import c42client
import cache
from c42client import Calls, Client
from calendar42.calls import CallRecord, Pause
from calendar42.errors import (
    FAULT,
    NEGATIVE,
    PAUSED,
    C42Error,
    Exhausted,
    Paused,
    TimedOut,
    TooLarge,
)
from calendar42.payload import Event
from calendar42.replies import MAX_ERROR_BODY
from standin import DEMO_EVENTS, Gate, Standin
from tests.fixtures import TOKEN, at_once, new_events, new_id, no_descriptors, until

Make = Callable[..., Client]
ENDPOINTS = ["events", "event-subscriptions"]


@pytest.fixture
def upstream() -> Iterator[Standin]:
    """Give a test a stand-in of its own: a call that another test's client makes late
    can't reach it.
    """
    with Standin(token=TOKEN) as standin:
        yield standin


@pytest.fixture
def make(upstream: Standin) -> Iterator[Make]:
    """Give a test a way to make clients: `make(timeout=1)`."""
    with contextlib.ExitStack() as stack:

        def client(**options: Any) -> Client:
            usual: dict[str, Any] = {
                "base_url": upstream.base_url,
                "token": TOKEN,
                "timeout": 10,
                "pause": Pause(6),
                "on_call": lambda call: None,
            }
            on_fault = options.pop("on_fault", lambda error: None)
            calls = Calls(**usual | options)
            stack.callback(calls.close)
            return Client(calls, on_fault)

        yield client


def fetch(client: Client, event_id: str, seconds: float = 10.0) -> Event:
    """Return the answer, which may take so many `seconds`."""
    ((_, outcome),) = client.fetch([event_id], time.monotonic() + seconds)
    if isinstance(outcome, C42Error):
        raise outcome
    return outcome


def failure(client: Client, event_id: str, seconds: float = 10.0) -> C42Error:
    """Return why there is no answer."""
    with pytest.raises(C42Error) as raised:
        fetch(client, event_id, seconds)
    return raised.value


def fetch_list(
    client: Client, event_ids: list[str], seconds: float = 10.0
) -> dict[str, Any]:
    """Return what comes of each event of a list; each comes once."""
    outcomes = list(client.fetch(event_ids, time.monotonic() + seconds))
    assert sorted(event_id for event_id, _ in outcomes) == sorted(event_ids)
    return dict(outcomes)


# What is sent


def test_headers(make: Make, upstream: Standin) -> None:
    """Both calls carry the documented headers and the token, and nothing that an
    earlier answer set.
    """
    client = make()
    upstream.rule(headers={"Set-Cookie": "session=1; Path=/"})
    fetch(client, DEMO_EVENTS["plain"])
    upstream.reset_counts()
    fetch(client, DEMO_EVENTS["empty"])
    assert sorted(endpoint for endpoint, _, _ in upstream.requests) == sorted(ENDPOINTS)
    for _, target, headers in upstream.requests:
        assert headers["Accept"] == headers["Content-Type"] == "application/json"
        assert headers["Authorization"] == f"Token {TOKEN}"
        assert headers["Accept-Encoding"] == "gzip"
        assert "Cookie" not in headers
        assert TOKEN not in target


def test_connections_are_kept(make: Make, upstream: Standin) -> None:
    """Loads one after the other go over the same two connections."""
    client = make()
    for name in ("plain", "empty", "mixed", "duplicates"):
        fetch(client, DEMO_EVENTS[name])
    assert (upstream.calls(), upstream.connections) == (8, 2)


def test_callers_do_not_wait_for_each_other(make: Make, upstream: Standin) -> None:
    """Callers have both of their calls under way at once."""
    client, gate = make(), Gate()
    upstream.rule(gate=gate)
    threads = [
        threading.Thread(target=fetch, args=(client, DEMO_EVENTS["plain"]))
        for _ in range(5)
    ]
    for thread in threads:
        thread.start()
    gate.wait_for(10)
    gate.open()
    for thread in threads:
        thread.join()
    for _ in range(2):
        at_once(*[partial(fetch, client, DEMO_EVENTS["plain"])] * 5)
    assert upstream.connections == 10


def test_netrc_does_not_replace_the_token(
    make: Make, upstream: Standin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A .netrc doesn't change the credentials."""
    netrc = tmp_path / ".netrc"
    netrc.write_text(
        "machine 127.0.0.1\nlogin someone\npassword else\ndefault login a password b\n"
    )
    netrc.chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(netrc))
    assert fetch(make(), DEMO_EVENTS["empty"]).names == []
    assert {headers["Authorization"] for _, _, headers in upstream.requests} == {
        f"Token {TOKEN}"
    }


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_redirects_are_not_followed(
    make: Make, upstream: Standin, endpoint: str, status: int
) -> None:
    """A redirect is a 502: the token goes to no other address."""
    with Standin(token=TOKEN) as other:
        upstream.rule(
            endpoint,
            status=status,
            headers={"Location": f"{other.base_url}events/{DEMO_EVENTS['plain']}/"},
        )
        error = failure(make(), DEMO_EVENTS["plain"])
        assert (error.status, error.upstream_status, error.kind) == (
            502,
            status,
            "fault",
        )
        assert other.calls() == 0


# What comes back: the README's table; `test_fault_matrix.py` has all of it, through the
# cache


@pytest.mark.parametrize("status", [400, 402, 404, 406, 409, 428, 430, 499])
def test_definite_refusals(make: Make, upstream: Standin, status: int) -> None:
    """A refusal that asking again wouldn't change is passed through and counts as
    definite.
    """
    upstream.rule("events", status=status, body=b"  because\n")
    error = failure(make(), DEMO_EVENTS["plain"])
    assert type(error) is C42Error
    assert (error.status, error.upstream_status, error.kind, error.body) == (
        status,
        status,
        "negative",
        b"  because\n",
    )
    assert (error.endpoint, error.private, repr(error.retry_after)) == (
        "events",
        False,
        "0.0",
    )  # Redis wants a float
    assert str(error) == f"Calendar42 answered {status}"


@pytest.mark.parametrize("status", [401, 403, 407, 408, 421, 425, 500, 599])
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_faults_are_passed_through(
    make: Make, upstream: Standin, endpoint: str, status: int
) -> None:
    """An error about the token or inside the upstream is passed through, from either
    call, and is a fault.
    """
    upstream.rule(endpoint, status=status, body='{"why": "\u00e9"}')
    error = failure(make(), DEMO_EVENTS["plain"])
    assert (error.status, error.upstream_status, error.kind) == (
        status,
        status,
        "fault",
    )
    assert (error.endpoint, error.body) == (endpoint, '{"why": "\u00e9"}'.encode())


def test_kinds() -> None:
    """The client's kinds are the cache's, though neither imports the other."""
    assert {NEGATIVE, FAULT, PAUSED, cache.OK} == set(cache.KINDS)


@pytest.mark.parametrize("status", [404, 500, 503])
@pytest.mark.parametrize(
    ("said", "seconds"), [("20", 20.0), ("86400", 3600.0), ("soon", 0.0)]
)
def test_when_to_ask_again(
    make: Make, upstream: Standin, status: int, said: str, seconds: float
) -> None:
    """An error says when Calendar42 wants to be asked again, if Calendar42 does."""
    upstream.rule("events", status=status, headers={"Retry-After": said})
    assert failure(make(), DEMO_EVENTS["plain"]).retry_after == seconds


UNUSABLE: dict[str, tuple[dict[str, Any], str, int]] = {
    "reset": ({"reset": True}, "could not be reached, or broke off", 0),
    "truncated": ({"truncate": True}, "could not be reached, or broke off", 0),
    "gzip": (
        {"body": b"hello", "headers": {"Content-Encoding": "gzip"}},
        "could not be reached, or broke off",
        0,
    ),
    **{
        f"{status}": ({"status": status}, f"answered {status}", status)
        for status in (201, 204, 206, 300, 304, 399, 600, 999)
    },
    **{
        name: ({"body": body}, "sent no JSON", 200)
        for name, body in {
            "html": "<!doctype html><p>Welcome",
            "empty": b"",
            "blank": b" \n",
            "not UTF-8": b'{"data": "\xff"}',
            "half": b'{"data": [',
            "two": b'{"data": []}{"data": []}',
            "nested": b"[" * 200_000,
            "nested objects": b'{"a":' * 200_000,
            "huge number": b'{"meta_data": {"count": 1'
            + b"0" * 5000
            + b'}, "data": []}',
        }.items()
    },
    "9 MiB": ({"body": 9}, "sent more than 8388608 bytes", 200),
    "gzip bomb": (
        {"body": gzip.compress(b" " * 2**24), "headers": {"Content-Encoding": "gzip"}},
        "sent more than 8388608 bytes",
        200,
    ),
}


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize(("fault", "what", "status"), UNUSABLE.values(), ids=UNUSABLE)
def test_unusable_answers(
    make: Make,
    upstream: Standin,
    endpoint: str,
    fault: dict[str, Any],
    what: str,
    status: int,
) -> None:
    """An answer that is incomplete, not JSON, too large or a redirect is a 502 and a
    fault, from either call.
    """
    upstream.rule(endpoint, **fault)
    error = failure(make(), DEMO_EVENTS["plain"])
    assert type(error) is (TooLarge if "more than" in what else C42Error)
    assert (error.status, error.kind, error.body, error.upstream_status) == (
        502,
        "fault",
        b"",
        status,
    )
    assert (error.endpoint, str(error)) == (endpoint, f"Calendar42 {what}")


def test_limit(make: Make, upstream: Standin) -> None:
    """An answer may have 8 MiB, and not a byte more."""
    event_id = new_id()
    body = json.dumps({"data": [{"id": event_id, "title": "Long"}]}).encode()
    upstream.add_event(event_id)
    rule = upstream.rule("events", body=body.ljust(2**23))
    assert fetch(make(), event_id).title == "Long"
    rule.remove()
    upstream.rule("events", body=body.ljust(2**23 + 1))
    assert isinstance(failure(make(), event_id), TooLarge)


def test_all_replies_have_a_common_limit(
    make: Make, upstream: Standin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replies that are being read at the same time take a limited amount of memory
    together. What exceeds it is a fault of c42c, and what others held is there again
    when they end.
    """
    monkeypatch.setattr(c42client, "MAX_BODIES", 18 * 2**20)
    client = make()
    slow, large = new_events(upstream, 2), new_events(upstream, 1)[0]
    for event_id in slow:
        upstream.rule("events", event_id, body=7, hang_halfway=True)
    upstream.rule("events", large, body=7)
    error: C42Error | None = None
    with ThreadPoolExecutor() as pool:
        waiting = [pool.submit(failure, client, event_id, 3) for event_id in slow]
        while error is None and not waiting[0].done():
            with contextlib.suppress(pytest.fail.Exception):
                error = failure(client, large)
        assert [one.result().status for one in waiting] == [504, 504]
    assert isinstance(error, Exhausted)
    assert str(error) == "c42c is reading too many large replies of Calendar42 at once"
    assert (error.status, error.kind, error.retry_after) == (503, "fault", 1.0)
    assert fetch(client, large).title


@pytest.mark.parametrize(
    "body",
    [
        b'{"data": [1]}',
        b"[]",
        b'{"data": [{"id": "other"}]}',
        b'{"data": [{"title": "?"}]}',
    ],
)
def test_other_events(make: Make, upstream: Standin, body: bytes) -> None:
    """Anything but a list of the events asked for, each with an id, is a 502: no event
    gets another's title.
    """
    upstream.rule("events", body=body)
    error = failure(make(), DEMO_EVENTS["plain"])
    assert (error.status, error.endpoint, error.upstream_status) == (502, "events", 200)


def test_an_event_whose_id_is_none(make: Make, upstream: Standin) -> None:
    """An event without an id doesn't answer for the id `None`."""
    upstream.add_event("None")
    for event in {"title": "Secret"}, {"id": None, "title": "Secret"}:
        upstream.rule("events", body=json.dumps({"data": [event]}))
        assert str(failure(make(), "None")) == "Calendar42 sent an event without an id"


@pytest.mark.parametrize("event", ["deleted", "nodata"])
def test_deleted(make: Make, event: str) -> None:
    """A removed event, and one whose data is empty, is a definite 404."""
    error = failure(make(), DEMO_EVENTS[event])
    assert (error.status, error.kind, error.upstream_status, error.endpoint) == (
        404,
        "negative",
        200,
        "events",
    )
    assert str(error) == "the event is deleted"


def rows(event_id: str, count: int, *rows: Any) -> bytes:
    """Return a page of subscriptions to an event."""
    return json.dumps(
        {
            "meta_data": {"count": count},
            "data": [{"event_id": event_id, **row} for row in rows],
        }
    ).encode()


def test_what_is_read_leniently(make: Make, upstream: Standin) -> None:
    """Unused fields may hold anything, NaN included; gzip, a byte order mark and 7 MiB
    of blanks are accepted.
    """
    event_id = new_id()
    event = {
        "id": event_id,
        "title": "",
        "start": float("nan"),
        "length": 10**300,
        "permission": None,
        "data": [[[]]],
    }
    upstream.add_event(event_id)
    body = json.dumps({"data": [event]}).encode()
    ours: tuple[Any, ...] = (
        {"subscriber": {"first_name": "A"}},
        {"subscriber": None},
        {"subscriber": {}},
        {},
    )
    foreign = {"event_id": "other", "subscriber": {"first_name": 1}}
    page = rows(
        event_id,
        6,
        *ours,
        {"permission": "removed", "subscriber": {"first_name": "B"}},
        foreign,
    )
    for change in (
        lambda body: body,
        lambda body: b"\xef\xbb\xbf" + body,
        gzip.compress,
    ):
        coding = {"Content-Encoding": "gzip"} if change is gzip.compress else {}
        upstream.rule(
            "events", body=change(body), headers=coding, content_type="text/plain"
        )
        upstream.rule("event-subscriptions", body=change(page), headers=coding)
        assert fetch(make(), event_id) == (event_id, "", ["A"])
    upstream.clear_rules()
    upstream.rule(body=7)
    assert fetch(make(), DEMO_EVENTS["plain"]).names == ["API", "Arthur", "Ella"]


def test_the_events_failure_is_the_answer(make: Make, upstream: Standin) -> None:
    """If both calls fail, the answer is the event call's error, even if the other call
    fails first.
    """
    gate = Gate()
    upstream.rule("events", gate=gate, status=403)
    upstream.rule("event-subscriptions", status=500)
    ended: list[int] = []

    def opened(call: CallRecord) -> None:
        ended.append(call.status)
        if call.endpoint == "event-subscriptions":
            gate.open()

    assert failure(make(on_call=opened), DEMO_EVENTS["plain"]).status == 403
    assert ended == [500, 403]


@pytest.mark.parametrize("event", ["unknown", "deleted"])
def test_a_missing_event_does_not_wait(
    make: Make, upstream: Standin, event: str
) -> None:
    """An event that is not found or deleted is answered while the other call hangs."""
    gate = Gate()
    upstream.rule("event-subscriptions", gate=gate)
    error = failure(make(timeout=60), DEMO_EVENTS[event], 60)
    assert (error.status, error.kind) == (404, "negative")
    gate.open()


def test_calls_end_by_their_deadline(make: Make, upstream: Standin) -> None:
    """A call whose answer isn't needed any more ends by its deadline."""
    upstream.rule("event-subscriptions", trickle_headers=0.05)
    client = make()
    for _ in range(20):
        assert failure(client, DEMO_EVENTS["unknown"], 1).status == 404
    # The one for events is kept.
    until(lambda: upstream.connections == 1, patience=5)


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize(
    "fault", [{"hang": True}, {"trickle_headers": 0.05}], ids=["hang", "trickle"]
)
def test_time_out(
    make: Make, upstream: Standin, endpoint: str, fault: dict[str, Any]
) -> None:
    """Nothing that the upstream does holds a call beyond the deadline; the message says
    what the time-out is.
    """
    upstream.rule(endpoint, **fault)
    asked = time.monotonic()
    error = failure(make(timeout=12.5), DEMO_EVENTS["plain"], 0.2)
    assert time.monotonic() - asked >= 0.2
    assert isinstance(error, TimedOut)
    assert (error.status, error.kind, error.upstream_status, error.endpoint) == (
        504,
        "fault",
        0,
        endpoint,
    )
    assert str(error) == "Calendar42 did not answer within 12.5 seconds"


@pytest.mark.parametrize(("timeout", "private"), [(0.3, False), (0.5, True)])
def test_little_time(
    make: Make, upstream: Standin, timeout: float, private: bool
) -> None:
    """A time-out is private if the load had less than half of its usual time."""
    upstream.rule(hang=True)
    assert failure(make(timeout=timeout), DEMO_EVENTS["plain"], 0.2).private == private


def test_no_time_left(make: Make, upstream: Standin) -> None:
    """After the deadline, no call is made or counted."""
    calls: list[CallRecord] = []
    for seconds in 0, -1:
        error = failure(make(on_call=calls.append), DEMO_EVENTS["plain"], seconds)
        assert (type(error), error.endpoint, error.private) == (
            TimedOut,
            "events",
            True,
        )
    assert (upstream.calls(), calls) == (0, [])


@pytest.mark.parametrize(
    "base_url",
    [
        "http://127.0.0.1:1/",
        "http://no-such-host.invalid/",
        "http://no..host/",
        "https://127.0.0.1:{port}/",
    ],
)
def test_unreachable(make: Make, upstream: Standin, base_url: str) -> None:
    """An upstream that can't be reached, has no possible name, or does not speak TLS,
    is a 502.
    """
    calls: list[CallRecord] = []
    port = upstream.base_url.split(":")[2].split("/")[0]
    error = failure(
        make(base_url=base_url.format(port=port), on_call=calls.append),
        DEMO_EVENTS["plain"],
    )
    assert (error.status, error.upstream_status) == (502, 0)
    until(lambda: calls)


def test_no_descriptors(
    make: Make, upstream: Standin, caplog: pytest.LogCaptureFixture
) -> None:
    """If no file descriptor is left, that is a fault of ours: a 503, and an error in
    the log that names the limit.
    """
    faults: list[C42Error] = []
    client = make(on_fault=faults.append)
    with no_descriptors():
        error = failure(client, DEMO_EVENTS["plain"])
    assert isinstance(error, Exhausted)
    limit = "limit of open files (ulimit -n, LimitNOFILE)"
    assert str(error) == f"c42c has reached its {limit} and can't call Calendar42"
    assert (error.status, error.upstream_status, error.kind, error.retry_after) == (
        503,
        0,
        "fault",
        1,
    )
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert str(error) in record.getMessage()
    assert "Too many open files" in record.getMessage()
    assert faults == [error]
    assert fetch(client, DEMO_EVENTS["plain"]).names


# Pages


def page(event_id: str, names: list[str], offset: int) -> bytes:
    """Return a page of a list of subscriptions, whose rows keep their ids when they
    move.
    """
    return rows(
        event_id,
        len(names),
        *(
            {"id": f"{event_id}__{name}", "subscriber": {"first_name": name}}
            for name in names[offset : offset + 100]
        ),
    )


GUESTS = [f"Guest {number}" for number in range(250)]
MOVES: dict[str, tuple[list[str], list[str]]] = {
    "one at the front": (GUESTS[1:150], GUESTS[:150]),
    "one at the front, one less at the end": (GUESTS[1:151], GUESTS[:150]),
    "one less at the front": (GUESTS[:151], GUESTS[1:151]),
    "one less at the end": (GUESTS[:150], GUESTS[:149]),
    "from 150 to 250": (GUESTS[:150], GUESTS),
    "from 250 to 150": (GUESTS, GUESTS[:150]),
    "from 250 to 50": (GUESTS, GUESTS[:50]),
}


@pytest.mark.parametrize(("before", "after"), MOVES.values(), ids=MOVES)
def test_pages_that_move(
    make: Make, upstream: Standin, before: list[str], after: list[str]
) -> None:
    """A list that changes between two pages is read again, and its names are those that
    it has then.
    """
    event_id = new_id()
    upstream.add_event(event_id)
    for offset in 0, 100, 200:
        upstream.rule(
            "event-subscriptions",
            event_id,
            offset=offset,
            body=page(event_id, after, offset),
        )
    upstream.rule(
        "event-subscriptions", event_id, 1, offset=0, body=page(event_id, before, 0)
    )
    assert fetch(make(), event_id).names == after
    pages = -(-len(before) // 100), -(-len(after) // 100)
    assert upstream.calls("event-subscriptions") == sum(pages)
    assert upstream.calls("events") == 1


@pytest.mark.parametrize(("before", "after"), MOVES.values(), ids=MOVES)
def test_pages_that_move_again(
    make: Make, upstream: Standin, before: list[str], after: list[str]
) -> None:
    """A list that changes while it is read a second time is a fault: it isn't read a
    third time.
    """
    event_id = new_id()
    upstream.add_event(event_id)
    for offset, names in (0, before), (100, after), (200, after):
        upstream.rule(
            "event-subscriptions",
            event_id,
            offset=offset,
            body=page(event_id, names, offset),
        )
    error = failure(make(), event_id)
    assert str(error) == "Calendar42 sent subscriptions that don't add up"
    assert (error.status, error.endpoint, error.upstream_status) == (
        502,
        "event-subscriptions",
        200,
    )
    assert upstream.calls("event-subscriptions") == 2 * -(-len(before) // 100)


def test_moving_pages_have_one_deadline(make: Make, upstream: Standin) -> None:
    """The second reading has what is left of the time."""
    event_id = new_id()
    upstream.add_event(event_id)
    upstream.rule("event-subscriptions", event_id, offset=0, hang=True)
    upstream.rule(
        "event-subscriptions", event_id, offset=100, body=page(event_id, GUESTS, 100)
    )
    upstream.rule(
        "event-subscriptions",
        event_id,
        1,
        offset=0,
        body=page(event_id, GUESTS[:150], 0),
    )
    assert isinstance(failure(make(), event_id, 0.5), TimedOut)
    assert upstream.calls("event-subscriptions") == 3


def test_rows_without_ids(make: Make, upstream: Standin) -> None:
    """Rows without an id, and removed ones without content, count as rows, even if
    several look the same.
    """
    event_id, blank = new_id(), [{"subscriber": {"first_name": "A"}}] * 99
    upstream.add_event(event_id)
    for offset, more in (
        (0, {"permission": "removed"}),
        (100, {"id": "x", "permission": "removed"}),
    ):
        upstream.rule(
            "event-subscriptions",
            event_id,
            offset=offset,
            body=rows(event_id, 200, *blank, more),
        )
    assert fetch(make(), event_id).names == ["A"] * 198


@pytest.mark.parametrize("count", [2, 100])
def test_fewer_rows_than_promised(make: Make, upstream: Standin, count: int) -> None:
    """If there are fewer rows than `count` says, the answer is a 502; a single page
    isn't read twice.
    """
    event_id = new_id()
    upstream.add_event(event_id)
    upstream.rule(
        "event-subscriptions",
        event_id,
        body=rows(event_id, count, {"subscriber": {"first_name": "A"}}),
    )
    assert (
        str(failure(make(), event_id))
        == "Calendar42 sent subscriptions that don't add up"
    )
    assert upstream.calls("event-subscriptions") == 1


def test_closing_waits_for_no_call(make: Make, upstream: Standin) -> None:
    """A client closes at once, also twice, though Calendar42 hasn't answered yet; the
    answer comes all the same.
    """
    client, event_id, gate = make(), new_events(upstream, 1)[0], Gate()
    upstream.rule(gate=gate)
    with ThreadPoolExecutor() as pool:
        under_way = pool.submit(fetch, client, event_id)
        gate.wait_for(2)
        for _ in range(1000):
            client.calls.close()
        assert not under_way.done()
        gate.open()
        assert under_way.result().id == event_id


@pytest.mark.parametrize("count", [99, 100, 101, 200, 201])
def test_no_more_calls_than_pages(make: Make, upstream: Standin, count: int) -> None:
    """A page has a hundred rows, and no page is asked for that would be empty."""
    event_id = new_id()
    upstream.add_event(event_id, names=GUESTS[:count])
    assert fetch(make(), event_id).names == GUESTS[:count]
    assert upstream.calls("event-subscriptions") == -(-count // 100)


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        ({"status": 503}, 503),
        ({"status": 404}, 404),
        ({"reset": True}, 502),
        ({"truncate": True}, 502),
        ({"hang": True}, 504),
    ],
)
@pytest.mark.parametrize("offset", [100, 200])
def test_a_page_fails(
    make: Make, upstream: Standin, fault: dict[str, Any], status: int, offset: int
) -> None:
    """If one of many pages fails, the answer is that error."""
    upstream.rule("event-subscriptions", offset=offset, **fault)
    assert (
        failure(make(), DEMO_EVENTS["big"], 0.3 if status == 504 else 10).status
        == status
    )


def test_many_pages_at_once(make: Make, upstream: Standin) -> None:
    """Further pages are asked for side by side, and no more than sixteen of them."""
    event_id, gate = new_id(), Gate()
    upstream.add_event(event_id, names=[f"Guest {number}" for number in range(2500)])
    for number in range(1, 25):
        upstream.rule("event-subscriptions", event_id, offset=100 * number, gate=gate)
    client, answers = make(), list[Any]()
    thread = threading.Thread(target=lambda: answers.append(fetch(client, event_id)))
    thread.start()
    gate.wait_for(16)
    assert upstream.calls("event-subscriptions", event_id) == 17
    gate.open()
    thread.join()
    assert answers[0].names == [f"Guest {number}" for number in range(2500)]
    assert upstream.calls("event-subscriptions", event_id) == 25


def test_a_page_that_fails_calls_off_the_others(make: Make, upstream: Standin) -> None:
    """When a page fails, those that haven't been requested yet aren't requested."""
    event_id, gate = new_id(), Gate()
    upstream.add_event(event_id, names=[f"Guest {number}" for number in range(5000)])
    upstream.rule("event-subscriptions", event_id, status=500)
    upstream.rule("event-subscriptions", event_id, 1, offset=0)
    assert failure(make(), event_id).status == 500
    assert upstream.calls("event-subscriptions", event_id) <= 17
    gate.open()


# Lists


def test_a_list(make: Make, upstream: Standin) -> None:
    """A list costs one call to each endpoint, and each of its events has the answer
    that it would have alone.
    """
    client, (one, two) = make(), new_events(upstream, 2)
    outcomes = fetch_list(
        client,
        [
            one,
            DEMO_EVENTS["deleted"],
            two,
            DEMO_EVENTS["untitled"],
            DEMO_EVENTS["mixed"],
        ],
    )
    assert (upstream.calls("events"), upstream.calls("event-subscriptions")) == (1, 1)
    assert str(outcomes.pop(DEMO_EVENTS["deleted"])) == "the event is deleted"
    for event_id, outcome in outcomes.items():
        assert outcome == fetch(client, event_id)


def test_a_deleted_event_that_still_has_subscribers(
    make: Make, upstream: Standin
) -> None:
    """In a list, the subscriptions of a deleted event are ignored."""
    client, (deleted, other) = make(), new_events(upstream, 2)
    upstream.add_event(deleted, permission="removed", names=["Arthur"])
    outcomes = fetch_list(client, [deleted, other])
    assert outcomes[deleted].status == 404
    assert outcomes[other].names == [f"{other} 0", f"{other} 1"]


def test_unknown_events(make: Make, upstream: Standin) -> None:
    """An unknown event is a definite 404, known at once; the others' subscriptions are
    asked for again without it.
    """
    client, (one, two), unknown, gate = (
        make(),
        new_events(upstream, 2),
        new_id(),
        Gate(),
    )
    upstream.rule("event-subscriptions", gate=gate)
    outcomes = client.fetch([one, unknown, two], time.monotonic() + 10)
    event_id, error = next(outcomes)
    assert (event_id, str(error), gate.arrived <= 1) == (
        unknown,
        f"Event {unknown} not found",
        True,
    )
    gate.open()
    assert [
        (event_id, isinstance(outcome, Event)) for event_id, outcome in outcomes
    ] == [(one, True), (two, True)]
    assert any(
        f"?event_ids=%5B{one},{two}%5D" in target for _, target, _ in upstream.requests
    )


def test_only_unknown_events(make: Make, upstream: Standin) -> None:
    """If no event is known, the client doesn't wait for their subscriptions."""
    gate = Gate()
    upstream.rule("event-subscriptions", gate=gate)
    outcomes = fetch_list(make(), [new_id(), DEMO_EVENTS["deleted"], new_id()])
    assert {outcome.status for outcome in outcomes.values()} == {404}
    gate.open()


def test_a_list_that_nobody_waits_for(make: Make, upstream: Standin) -> None:
    """A caller that stops reading a list leaves only the active calls behind."""
    client, event_ids, gate = make(), new_events(upstream, 2), Gate()
    upstream.rule("event-subscriptions", gate=gate)
    outcomes = client.fetch([new_id(), *event_ids], time.monotonic() + 10)
    next(outcomes)
    outcomes.close()  # type: ignore[attr-defined]
    gate.open()
    assert fetch_list(client, event_ids).keys() == set(event_ids)


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize(
    "fault",
    [{"status": 400}, {"status": 404}, {"status": 414}, {"body": 9}],
    ids=["400", "404", "414", "9 MiB"],
)
def test_a_list_is_split(
    make: Make, upstream: Standin, endpoint: str, fault: dict[str, Any]
) -> None:
    """If one event makes its list refused or too large, the others still get their
    answers, in few calls.
    """
    faults: list[C42Error] = []
    client, event_ids = make(on_fault=faults.append), new_events(upstream, 16)
    bad = event_ids[5]
    upstream.rule(endpoint, bad, **fault)
    outcomes = fetch_list(client, event_ids)
    error = outcomes.pop(bad)
    assert (type(error), error.private) == (
        TooLarge if "body" in fault else C42Error,
        False,
    )
    assert error.kind == ("negative" if "status" in fault else "fault")
    assert error.endpoint == endpoint
    assert all(
        outcome.names == [f"{event_id} 0", f"{event_id} 1"]
        for event_id, outcome in outcomes.items()
    )
    assert (
        upstream.calls("events") == 1 + 4 * 2
    )  # the whole, and both halves of 16, 8, 4 and 2
    assert upstream.calls(event_id=bad) <= 2 * 5
    assert faults == ([error] if "body" in fault else [])


def test_too_many_subscriptions_for_a_list(make: Make, upstream: Standin) -> None:
    """A list with more than 100,000 subscriptions is read in halves."""
    client, event_ids = make(), new_events(upstream, 3)
    upstream.rule(
        "event-subscriptions", event_ids[0], 1, body=rows(event_ids[0], 100_001)
    )
    outcomes = fetch_list(client, event_ids)
    assert [outcomes[event_id].names for event_id in event_ids] == [
        [f"{one} 0", f"{one} 1"] for one in event_ids
    ]
    assert upstream.calls("events") == 3


def test_what_is_settled_is_not_asked_for_again(make: Make, upstream: Standin) -> None:
    """The halves of a list leave out what is known already."""
    client, (one, two), unknown = make(), new_events(upstream, 2), new_id()
    upstream.rule("event-subscriptions", one, 2, status=400)
    outcomes = fetch_list(client, [unknown, one, two])
    assert (str(outcomes[unknown]), type(outcomes[one]), type(outcomes[two])) == (
        f"Event {unknown} not found",
        Event,
        Event,
    )
    assert upstream.calls("events", unknown) == 1


LIST_FAULTS: dict[str, tuple[dict[str, Any], int]] = {
    "500": ({"status": 500}, 500),
    "503": ({"status": 503, "body": "down"}, 503),
    "401": ({"status": 401}, 401),
    "reset": ({"reset": True}, 502),
    "truncated": ({"truncate": True}, 502),
    "shape": ({"body": '{"data": [1]}'}, 502),
    "hang": ({"hang": True}, 504),
}


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize(("fault", "status"), LIST_FAULTS.values(), ids=LIST_FAULTS)
def test_a_list_fails(
    make: Make, upstream: Standin, endpoint: str, fault: dict[str, Any], status: int
) -> None:
    """If a list fails for another reason, all its events fail; that says nothing about
    each, and isn't retried.
    """
    faults: list[C42Error] = []
    client, event_ids, unknown = (
        make(on_fault=faults.append),
        new_events(upstream, 3),
        new_id(),
    )
    upstream.rule(endpoint, **fault)
    outcomes = fetch_list(client, [*event_ids, unknown], 0.4 if "hang" in fault else 10)
    if endpoint == "event-subscriptions":
        assert outcomes.pop(unknown).status == 404  # which its own call says
    assert {type(error) for error in outcomes.values()} == {
        TimedOut if "hang" in fault else C42Error
    }
    assert len(set(outcomes.values())) == len(outcomes)
    assert faults == list(outcomes.values())
    for error in faults:
        assert (error.status, error.private, error.kind, error.endpoint) == (
            status,
            True,
            "fault",
            endpoint,
        )
        assert (str(error), error.upstream_status) == (
            str(faults[0]),
            faults[0].upstream_status,
        )
        assert (error.body, error.retry_after) == (faults[0].body, 0)
    assert upstream.calls("events") == 1
    assert upstream.calls("event-subscriptions") <= 2 + (
        status == 502
    )  # a connection that was kept may be stale


def test_a_filter_that_is_ignored(make: Make, upstream: Standin) -> None:
    """If the upstream ignores the filter, an event missing from its answer isn't taken
    for an unknown one.
    """
    client, (known, other, foreign) = make(), new_events(upstream, 3)
    data = [{"id": event_id, "title": event_id} for event_id in (known, foreign)]
    upstream.rule("events", body=json.dumps({"data": data}))
    outcomes = fetch_list(client, [known, other])
    assert outcomes[known].title == known
    assert (outcomes[other].status, outcomes[other].private) == (502, True)


def test_a_part_of_a_list(make: Make, upstream: Standin) -> None:
    """If the upstream counts more events than it sends, those that are missing aren't
    taken for unknown ones.
    """
    known = new_events(upstream, 2)
    upstream.rule(
        "events",
        times=1,
        body=json.dumps({"meta_data": {"count": 2}, "data": [{"id": known[0]}]}),
    )
    outcomes = fetch_list(make(), known)
    assert all(isinstance(outcomes[event_id], Event) for event_id in known)
    assert upstream.calls("events") == 3


def test_a_list_runs_out_of_time(make: Make, upstream: Standin) -> None:
    """If time runs out while the parts of a list are read, that says nothing about the
    events that are left.
    """
    client, event_ids = make(), new_events(upstream, 4)
    upstream.rule("events", event_ids[1], hang=True)
    upstream.rule("events", event_ids[0], 2, status=400)
    outcomes = fetch_list(client, event_ids, 0.5)
    assert outcomes[event_ids[0]].title == f"Title {event_ids[0]}"
    for event_id in event_ids[1:]:
        assert (outcomes[event_id].status, outcomes[event_id].private) == (504, True)
    assert upstream.calls("events", event_ids[3]) == 1


def test_a_pause_holds_for_a_whole_list(make: Make, upstream: Standin) -> None:
    """A 429 to a list is a pause for each of its events, not a fault of the list."""
    client, event_ids = make(), new_events(upstream, 2)
    upstream.rule("events", status=429, body="slow down", headers={"Retry-After": "30"})
    for error in fetch_list(client, event_ids).values():
        assert isinstance(error, Paused)
        assert (error.private, error.body, error.upstream_status) == (
            False,
            b"slow down",
            429,
        )
    assert upstream.calls("events") == 1


def asked(upstream: Standin) -> list[int]:
    """Return how many ids each call for events named."""
    return [
        target.count(",") + 1
        for endpoint, target, _ in upstream.requests
        if endpoint == "events"
    ]


def test_long_lists(make: Make, upstream: Standin) -> None:
    """A call names a hundred events at most, and no more than fit into an address."""
    client = make()
    fetch_list(client, [f"{number}" for number in range(100)])
    fetch_list(client, [f"{number}" for number in range(101)])
    fetch_list(client, [f"{number:0128d}" for number in range(50)])
    fetch_list(client, [f"{number:0128d}" for number in range(51)])
    assert asked(upstream) == [100, 51, 50, 50, 26, 25]
    assert max(len(target) for _, target, _ in upstream.requests) < 8000


# Pauses


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_pause(make: Make, upstream: Standin, endpoint: str) -> None:
    """After a 429, from either call, nothing is asked for any event."""
    client = make()
    upstream.rule(endpoint, status=429, body="slow down")
    error = failure(client, DEMO_EVENTS["plain"])
    assert isinstance(error, Paused)
    assert (error.status, error.kind, error.upstream_status, error.body) == (
        429,
        "paused",
        429,
        b"slow down",
    )
    assert (5 < error.retry_after <= 6, error.endpoint) == (True, endpoint)
    assert str(error) == "Calendar42 asked for a pause"
    upstream.clear_rules()
    error = failure(client, DEMO_EVENTS["empty"])
    assert (error.status, error.kind, error.upstream_status, error.body) == (
        429,
        "paused",
        0,
        b"",
    )
    assert (5 < error.retry_after <= 6, str(error)) == (
        True,
        "Calendar42 asked for a pause",
    )
    assert upstream.calls(event_id=DEMO_EVENTS["empty"]) == 0


def test_the_shortest_pause(make: Make, upstream: Standin) -> None:
    """A `Retry-After` of 0 is passed on, and begins no pause."""
    upstream.rule("events", status=429, headers={"Retry-After": "0"})
    client = make()
    for _ in range(2):
        assert 0 < failure(client, DEMO_EVENTS["plain"]).retry_after < 1
    assert upstream.calls("events", DEMO_EVENTS["plain"]) == 2


def test_pause_ends(make: Make, upstream: Standin) -> None:
    """When the pause is over, events are loaded again."""
    pause = Pause(0.05)
    client = make(pause=pause)
    upstream.rule("events", times=1, status=429)
    assert isinstance(failure(client, DEMO_EVENTS["plain"]), Paused)
    until(lambda: not pause.left)
    assert fetch(client, DEMO_EVENTS["mixed"]).names == ["API", "Tess", "Bram"]


def test_a_pause_is_one_line_in_the_log(
    make: Make, upstream: Standin, caplog: pytest.LogCaptureFixture
) -> None:
    """A pause is logged as one warning, however many loads it stops, and none of those
    is logged as a fault.
    """
    faults: list[C42Error] = []
    client, event_ids = make(on_fault=faults.append), new_events(upstream, 3)
    upstream.rule("events", status=429, headers={"Retry-After": "30"})
    with caplog.at_level(logging.DEBUG, logger="c42c"):
        failure(client, event_ids[0])
        failure(client, event_ids[1])
        fetch_list(client, event_ids)
    assert caplog.messages == ["pause: Calendar42 asks for 30 s"]
    assert (caplog.records[0].levelno, vars(caplog.records[0])["fields"]) == (
        logging.WARNING,
        {"pause_seconds": 30},
    )
    assert caplog.records[0].name == "c42c.upstream"
    assert faults == []


def test_a_pause_begins_while_the_other_call_hangs(
    make: Make, upstream: Standin
) -> None:
    """A 429 begins the pause when it comes, even if the load's other call has no answer
    yet.
    """
    pause, gate = Pause(6), Gate()
    upstream.rule("events", gate=gate)
    upstream.rule("event-subscriptions", status=429, headers={"Retry-After": "30"})
    with ThreadPoolExecutor() as pool:
        failing = pool.submit(failure, make(pause=pause), DEMO_EVENTS["plain"])
        until(lambda: pause.left > 0)
        assert not failing.done()
        gate.open()
        assert failing.result().status == 429


# What is said of a load


def test_observed_calls(make: Make, upstream: Standin) -> None:
    """Each call that ends is observed with its endpoint, its status, its time, and what
    kept the answer from coming.
    """
    calls: list[CallRecord] = []
    client = make(on_call=calls.append)
    fetch(client, DEMO_EVENTS["plain"])
    assert sorted(call[:2] for call in calls) == [
        ("event-subscriptions", 200),
        ("events", 200),
    ]
    assert all(0 < call.seconds < 10 and call.trouble == "" for call in calls)
    calls.clear()
    upstream.rule("events", reset=True)
    failure(client, DEMO_EVENTS["plain"])
    resets = [call for call in calls if call.endpoint == "events"]
    assert len(resets) == 2  # the first went over a connection that was kept
    for call in resets:
        assert (call.status, call.trouble) == (0, "Connection reset by peer")
    calls.clear()
    upstream.rule("events", hang=True)
    failure(client, DEMO_EVENTS["plain"], 0.2)
    (call,) = [call for call in calls if call.endpoint == "events"]
    assert (call.status, call.trouble) == (0, "timed out")
    assert call.seconds >= 0.19


FOUND: list[tuple[str, dict[str, Any], bool]] = [
    ("events", {"status": 500}, True),
    ("events", {"status": 404}, False),
    ("events", {"body": '{"data": [{"id": "E", "title": 1}]}'}, True),
    ("events", {"body": '{"data": []}'}, False),
    ("events", {"reset": True}, True),
    ("event-subscriptions", {"status": 500}, True),
    ("event-subscriptions", {"status": 404}, False),
    ("event-subscriptions", {"body": '{"data": []}'}, True),
    ("event-subscriptions", {"truncate": True}, True),
]


@pytest.mark.parametrize(("endpoint", "fault", "is_fault"), FOUND)
def test_observed_faults(
    make: Make, upstream: Standin, endpoint: str, fault: dict[str, Any], is_fault: bool
) -> None:
    """Each fault is observed once, with the endpoint where it was found; a definite
    refusal isn't one.
    """
    faults: list[C42Error] = []
    upstream.add_event("E")
    upstream.rule(endpoint, **fault)
    error = failure(make(on_fault=faults.append), "E")
    assert error.endpoint == endpoint
    assert faults == ([error] if is_fault else [])


def test_log(make: Make, upstream: Standin, caplog: pytest.LogCaptureFixture) -> None:
    """Each load is one line in the log, with its outcome and the time of each call."""
    client = make()
    with caplog.at_level(logging.INFO, logger="c42c"):
        fetch(client, DEMO_EVENTS["plain"])
        failure(client, DEMO_EVENTS["deleted"])
        upstream.rule("event-subscriptions", DEMO_EVENTS["plain"], hang=True)
        failure(client, DEMO_EVENTS["plain"], 0.3)
    ok, negative, fault = caplog.records
    calls = (
        r"\((events|event-subscriptions) \d+ ms, (events|event-subscriptions) \d+ ms\)"
    )
    event_id = DEMO_EVENTS["plain"]
    assert {record.name for record in caplog.records} == {"c42c.upstream"}
    assert ok.levelno == negative.levelno == logging.INFO
    assert ok.getMessage().startswith(
        f"load event={event_id} outcome=ok status=200: 3 names (event"
    )
    fields = vars(ok)["fields"]
    assert [fields[name] for name in ("event", "outcome", "status", "names")] == [
        event_id,
        "ok",
        200,
        3,
    ]
    assert {call["endpoint"] for call in fields["calls"]} == set(ENDPOINTS)
    assert [(call["status"], call["trouble"]) for call in fields["calls"]] == [
        (200, "")
    ] * 2
    assert all(
        0 < call["seconds"] == round(call["seconds"], 4) for call in fields["calls"]
    )
    each = r"(events|event-subscriptions) \d+ ms"
    assert re.search(rf" \({each}, {each}\)$", ok.getMessage()), calls
    assert (
        " outcome=negative status=404: the event is deleted (" in negative.getMessage()
    )
    assert vars(negative)["fields"]["names"] is None
    assert fault.levelno == logging.WARNING
    assert (
        " outcome=fault status=504: "
        "Calendar42 did not answer within 10 seconds (events " in fault.getMessage()
    )
    assert vars(fault)["fields"]["outcome"] == "fault"


def test_a_refresh_is_logged_as_one(
    make: Make, upstream: Standin, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says of a load whether it was a refresh."""
    event_id = DEMO_EVENTS["plain"]
    with caplog.at_level(logging.INFO, logger="c42c"):
        list(make().fetch([event_id], time.monotonic() + 10, refresh=True))
        fetch(make(), event_id)
    assert caplog.messages[0].startswith(f"refresh event={event_id} outcome=ok ")
    assert caplog.messages[1].startswith(f"load event={event_id} outcome=ok ")
    refreshes = [vars(record)["fields"]["refresh"] for record in caplog.records]
    assert refreshes == [True, False]


def test_a_slow_load_is_a_warning(
    make: Make,
    upstream: Standin,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A load that takes more than two seconds is a warning, though all went well."""
    assert c42client.SLOW == 2
    monkeypatch.setattr(c42client, "SLOW", 0.1)
    upstream.rule("events", delay=0.2)
    fetch(make(), DEMO_EVENTS["plain"])
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert " outcome=ok " in record.getMessage()
    assert vars(record)["fields"]["seconds"] >= 0.2


def test_a_split_list_is_logged(
    make: Make, upstream: Standin, caplog: pytest.LogCaptureFixture
) -> None:
    """If a list is asked for in halves, the log says so, with the reason."""
    event_ids = new_events(upstream, 2)
    upstream.rule("events", event_ids[0], 1, status=414)
    with caplog.at_level(logging.INFO, logger="c42c"):
        fetch_list(make(), event_ids)
    assert (
        caplog.messages[0]
        == "a list of 2 events failed (Calendar42 answered 414): asking for its halves"
    )


# The token


def echoes(token: str) -> list[str | bytes]:
    """Return the token as an upstream may echo it."""
    escaped = "".join(f"\\u{ord(char):04x}" for char in token)
    some = token.replace("-", "\\u002d").replace("a", "\\u0061")
    return [
        f"Token {token} is not valid",
        json.dumps({"error": {"message": f"bad token {token}", token: [token]}}),
        f'{{"error": "{escaped}"}}',
        f'{{"error": "{some}"}}',
        f'{{"error": "{escaped.upper().replace("U", "u")}"}}',
        f'<html>not JSON: "{escaped}"',
        "".join(f"&#{ord(char)};" for char in token),
        "".join(f"&#x{ord(char):X};" for char in token),
        f"<a href='?{''.join(f'%{ord(char):02X}' for char in token)}'>",
        f"<p>{html.escape(token)}",
        json.dumps({"body": json.dumps({"token": token})}),
        json.dumps(json.dumps(json.dumps(token))),
        token.encode("utf-16"),
        f"<p>{token}".encode("utf-32-be"),
    ]


@pytest.mark.parametrize("token", [TOKEN, 'q"u/o\\t<e>&', "100%25\\u0041&amp;"])
@pytest.mark.parametrize("status", [401, 404, 429, 500])
def test_the_token_is_passed_on_in_no_error(
    make: Make, upstream: Standin, token: str, status: int
) -> None:
    """The body of an error that has the token in it, however the upstream writes it, is
    not passed on.
    """
    for body in echoes(token):
        rule = upstream.rule(status=status, body=body)
        assert failure(make(token=token), DEMO_EVENTS["plain"]).body == b"", body
        rule.remove()


@pytest.mark.parametrize(
    "before", range(MAX_ERROR_BODY - len(TOKEN) - 1, MAX_ERROR_BODY + 2, 4)
)
@pytest.mark.parametrize(
    "written",
    [TOKEN, "".join(f"\\u{ord(char):04x}" for char in TOKEN)],
    ids=["plain", "escaped"],
)
def test_token_is_not_cut_out(
    make: Make, upstream: Standin, before: int, written: str
) -> None:
    """Where a body is cut at 8 KiB, no part of the token is left at its end."""
    upstream.rule(
        "events", status=500, body=b"." * before + written.encode() + b"!" * 10
    )
    assert failure(make(), DEMO_EVENTS["plain"]).body in (b"", b"." * MAX_ERROR_BODY)


def test_a_body_without_the_token_keeps_its_bytes(
    make: Make, upstream: Standin
) -> None:
    """A body that is passed on keeps its bytes, up to 8 KiB."""
    for body in (
        b'{"a" : "\\u00e9", "a":1.0e5}\r\n',
        b"\xff\xfe\x00",
        b"\\u002d %2D &#45;",
        TOKEN[:-1].encode(),
    ):
        rule = upstream.rule("events", status=500, body=body)
        assert failure(make(), DEMO_EVENTS["plain"]).body == body
        rule.remove()
    upstream.rule("events", status=500, body=b"." * 8193)
    assert failure(make(), DEMO_EVENTS["plain"]).body == b"." * 8192


@pytest.mark.parametrize("coding", ["br", "zstd", "gzip-ish"])
def test_a_body_in_a_coding_that_nobody_asked_for(
    make: Make, upstream: Standin, coding: str
) -> None:
    """The body of an error that can't be unpacked isn't passed on: it would be noise,
    and might contain the token.
    """
    body = b"\x1b\x05\x00noise\xff"
    upstream.rule("events", status=404, body=body, headers={"Content-Encoding": coding})
    error = failure(make(), DEMO_EVENTS["plain"])
    assert (error.status, error.kind, error.body) == (404, "negative", b"")


@pytest.mark.parametrize(
    ("coding", "packed"),
    [
        ("identity", b"why"),
        ("gzip", gzip.compress(b"why", mtime=0)),
        ("X-GZip", gzip.compress(b"why", mtime=0)),
        ("deflate", zlib.compress(b"why")),
    ],
)
def test_a_body_that_can_be_unpacked(
    make: Make, upstream: Standin, coding: str, packed: bytes
) -> None:
    """The body of an error is passed on unpacked."""
    headers = {"Content-Encoding": coding}
    upstream.rule("events", status=404, body=packed, headers=headers)
    assert failure(make(), DEMO_EVENTS["plain"]).body == b"why"


def test_token_in_titles_and_names(
    make: Make, upstream: Standin, caplog: pytest.LogCaptureFixture
) -> None:
    """The token is blanked out of titles and names."""
    event_id = new_id()
    upstream.add_event(event_id, title=f"<{TOKEN}>", names=[TOKEN, f"A{TOKEN}B{TOKEN}"])
    with caplog.at_level(logging.DEBUG):
        answer = fetch(make(), event_id)
    assert answer == (event_id, "<***>", ["***", "A***B***"])
    assert TOKEN not in caplog.text


# As a program


def run(
    capsys: pytest.CaptureFixture[str], *arguments: str, **environ: str
) -> tuple[int, str, str]:
    """Run the client as a program; return its status, and what it said on stdout and
    stderr.
    """
    try:
        status = c42client.main(list(arguments), environ)
    except SystemExit as ended:
        status = int(str(ended.code))
    return status, *capsys.readouterr()


def test_program(capsys: pytest.CaptureFixture[str], upstream: Standin) -> None:
    """`python c42client.py EVENT_ID` prints the merged answer, or says in one line why
    there is none.
    """
    right = {"C42_TOKEN": TOKEN, "C42_BASE_URL": upstream.base_url}
    upstream.add_event("E", title="Caf\u00e9")
    status, said, complaint = run(capsys, "E", **right)
    assert (status, said, complaint) == (
        0,
        '{"id": "E", "title": "Caf\u00e9", "names": []}\n',
        "",
    )
    upstream.add_event("half")
    upstream.rule(
        "events", "half", body=r'{"data": [{"id": "half", "title": "\ud800x"}]}'
    )
    assert run(capsys, "half", **right) == (
        0,
        '{"id": "half", "title": "\\ud800x", "names": []}\n',
        "",
    )
    assert run(capsys, DEMO_EVENTS["unknown"], **right) == (
        1,
        "",
        "Calendar42 answered 404\n",
    )
    wrong = right | {"C42_TOKEN": "wrong-token"}
    assert run(capsys, DEMO_EVENTS["plain"], **wrong) == (
        1,
        "",
        "Calendar42 answered 401\n",
    )
    upstream.rule(hang=True)
    late = run(capsys, DEMO_EVENTS["plain"], **right, C42_TIMEOUT="0.2")
    assert late == (1, "", "Calendar42 did not answer within 0.2 seconds\n")
    status, said, complaint = run(
        capsys, DEMO_EVENTS["plain"], **right, C42_TIMEOUT="soon"
    )
    assert (status, said, complaint.count("\n"), complaint[:16]) == (
        2,
        "",
        1,
        "C42_TIMEOUT=soon",
    )
    status, said, complaint = run(capsys, DEMO_EVENTS["plain"])
    assert (status, said, complaint[:20]) == (2, "", "C42_TOKEN is missing")
    status, said, complaint = run(capsys, "a/b", **right)
    assert (status, said, complaint[:24]) == (2, "", "an event id is 1 to 128 ")


@pytest.mark.parametrize(
    ("encoding", "said"),
    [
        ("utf-8", "Caf\u00e9 \u590f"),
        ("latin-1", "Caf\\u00e9 \\u590f"),
        ("ascii", "Caf\\u00e9 \\u590f"),
    ],
)
def test_terminals(upstream: Standin, encoding: str, said: str) -> None:
    """What a terminal can't print is escaped, and the answer stays JSON."""
    upstream.add_event("E", title="Caf\u00e9 \u590f")
    environ = {"C42_TOKEN": TOKEN, "C42_BASE_URL": upstream.base_url}
    ended = subprocess.run(
        [sys.executable, c42client.__file__, "E"],
        env=os.environ | environ | {"PYTHONIOENCODING": encoding},
        check=False,
        capture_output=True,
    )
    printed = ended.stdout.decode(encoding)
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert printed == f'{{"id": "E", "title": "{said}", "names": []}}\n'
    assert json.loads(printed)["title"] == "Caf\u00e9 \u590f"


def test_usage(capsys: pytest.CaptureFixture[str], upstream: Standin) -> None:
    """`--help` says how to use it, and anything but one id is a mistake; neither asks
    for anything.
    """
    right = {"C42_TOKEN": TOKEN, "C42_BASE_URL": upstream.base_url}
    usage = "usage: python c42client.py [-h] EVENT_ID\n"
    for arguments in (), ("a", "b"), ("--other",):
        status, said, complaint = run(capsys, *arguments, **right)
        assert (status, said, complaint[: len(usage)]) == (2, "", usage)
    status, said, complaint = run(capsys, "--help", **right)
    assert (status, said[: len(usage)], complaint) == (0, usage, "")
    assert "\nPrint an event's title and attendees.\n" in said
    assert upstream.calls() == 0
    assert (
        subprocess.run(
            [sys.executable, c42client.__file__], check=False, capture_output=True
        ).returncode
        == 2
    )
    program = [sys.executable, c42client.__file__, DEMO_EVENTS["unknown"]]
    ended = subprocess.run(
        program,
        env=os.environ | right,
        check=False,
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (
        1,
        "",
        "Calendar42 answered 404\n",
    )


@pytest.mark.parametrize("body", ["&#" + "1" * 5000, "\\" * 16_000 + "x"])
def test_bodies_that_are_hard_to_read(make: Make, upstream: Standin, body: str) -> None:
    """An error's body that is hard to search for the token changes nothing about the
    error, and takes no time.
    """
    upstream.rule("events", status=502, body=body)
    began = time.process_time()
    error = failure(make(), DEMO_EVENTS["plain"])
    assert (error.status, error.upstream_status) == (502, 502)
    assert time.process_time() - began < 2
