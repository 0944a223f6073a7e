"""What the client sends, and how it treats whatever comes back.

How an answer is read off a socket is in `tests/transport/`, and what is read out of
its JSON in `tests/test_payload.py`.
"""

import gzip
import json
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest

import c42client
import cache
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
from standin import DEMO_EVENTS, Gate, Standin
from tests.client.callers import (
    ENDPOINTS,
    Make,
    connect,
    failure,
    fetch,
    fetch_list,
    rows,
)
from tests.fixtures import (
    PATIENCE,
    TOKEN,
    at_once,
    given_time,
    new_events,
    new_id,
    no_descriptors,
    until,
)

# What is sent


def test_headers(make: Make, upstream: Standin) -> None:
    """Both calls carry the documented headers and the token, and no cookies."""
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
    connect(client, upstream)
    for name in ("empty", "mixed", "duplicates"):
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
    """A refusal that asking again won't change is passed through, and is definite."""
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
    """An error about the token or in the upstream is passed through, and is a fault.

    It may come from either call.
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
    """An unusable answer is a 502 and a fault, from either call.

    It may be incomplete, no JSON, too large or a redirect.
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
    """Replies that are being read at the same time take limited memory together.

    What exceeds it is a fault of c42c, and what others held is there again when they
    end.
    """
    monkeypatch.setattr(c42client, "MAX_BODIES", 18 * 2**20)
    client = make()
    *slow, large = new_events(upstream, 4)
    for event_id in slow:
        upstream.rule("events", event_id, body=7, hang_halfway=True)
    upstream.rule("events", large, body=7)
    with ThreadPoolExecutor() as pool:
        waiting = [pool.submit(failure, client, event_id, 5) for event_id in slow]
        errors = sorted((one.result() for one in waiting), key=attrgetter("status"))
    statuses = [error.status for error in errors]
    assert statuses[0] == 503, "several may exceed it at once"
    assert set(statuses) <= {503, 504}
    error = errors[0]
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
    """Anything but a list of the events asked for, each with an id, is a 502.

    So no event gets another's title.
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


def test_what_is_read_leniently(make: Make, upstream: Standin) -> None:
    """Unused fields may hold anything, NaN included.

    gzip, a byte order mark and 7 MiB of blanks are accepted, too.
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
    """If both calls fail, the event call's error is the answer, even if it's later."""
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
    upstream.rule("event-subscriptions", trickle_headers=0.5)
    client = make()
    for _ in range(20):
        assert failure(client, DEMO_EVENTS["unknown"], 3).status == 404
    # The one for events is kept, unless the last of these calls went over it.
    until(lambda: upstream.connections <= 1, patience=PATIENCE / 2)


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize(
    "fault", [{"hang": True}, {"trickle_headers": 0.5}], ids=["hang", "trickle"]
)
def test_time_out(
    make: Make, upstream: Standin, endpoint: str, fault: dict[str, Any]
) -> None:
    """Nothing that the upstream does holds a call beyond the deadline.

    The message says what the time-out is.
    """
    upstream.rule(endpoint, **fault)

    def check(seconds: float) -> None:
        asked = time.monotonic()
        error = failure(make(timeout=12.5), DEMO_EVENTS["plain"], seconds)
        assert time.monotonic() - asked >= seconds
        assert isinstance(error, TimedOut)
        assert (error.status, error.kind, error.upstream_status, error.endpoint) == (
            504,
            "fault",
            0,
            endpoint,
        )
        assert str(error) == "Calendar42 did not answer within 12.5 seconds"

    given_time(check)


@pytest.mark.parametrize(("usual", "private"), [(1.5, False), (2.5, True)])
def test_little_time(
    make: Make, upstream: Standin, usual: float, private: bool
) -> None:
    """A time-out is private if the load had less than half of its usual time."""
    upstream.rule(hang=True)

    def check(seconds: float) -> None:
        client = make(timeout=usual * seconds)
        assert failure(client, DEMO_EVENTS["plain"], seconds).private == private

    given_time(check)


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
    """An upstream that can't be reached is a 502.

    Nothing may listen there, its name may be impossible, or it may not speak TLS.
    """
    calls: list[CallRecord] = []
    port = upstream.base_url.split(":")[2].split("/")[0]
    error = failure(
        make(base_url=base_url.format(port=port), on_call=calls.append),
        DEMO_EVENTS["plain"],
        PATIENCE,  # a name server may take some seconds
    )
    assert (error.status, error.upstream_status) == (502, 0)
    until(lambda: calls)


def test_no_descriptors(
    make: Make, upstream: Standin, caplog: pytest.LogCaptureFixture
) -> None:
    """If no file descriptor is left, the answer is a 503, which is a fault of ours.

    An error in the log names the limit.
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


# Pauses


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_pause(make: Make, upstream: Standin, endpoint: str) -> None:
    """After a 429, from either call, nothing is asked for any event."""
    # The other call has ended by then: in the pause, it wouldn't be made.
    gate = Gate()
    client = make(pause=Pause(60), on_call=lambda call: gate.open())
    upstream.rule(endpoint, gate=gate, status=429, body="slow down")
    error = failure(client, DEMO_EVENTS["plain"])
    assert isinstance(error, Paused)
    assert (error.status, error.kind, error.upstream_status, error.body) == (
        429,
        "paused",
        429,
        b"slow down",
    )
    assert (30 < error.retry_after <= 60, error.endpoint) == (True, endpoint)
    assert str(error) == "Calendar42 asked for a pause"
    upstream.clear_rules()
    error = failure(client, DEMO_EVENTS["empty"])
    assert (error.status, error.kind, error.upstream_status, error.body) == (
        429,
        "paused",
        0,
        b"",
    )
    assert (30 < error.retry_after <= 60, str(error)) == (
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
    """A pause is logged as one warning, however many loads it stops.

    None of these is logged as a fault.
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
    """A 429 begins the pause when it comes, even if the other call isn't answered."""
    pause, gate, other_gate = Pause(6), Gate(), Gate()
    upstream.rule("events", gate=gate)
    upstream.rule(
        "event-subscriptions",
        gate=other_gate,
        status=429,
        headers={"Retry-After": "30"},
    )
    with ThreadPoolExecutor() as pool:
        failing = pool.submit(failure, make(pause=pause), DEMO_EVENTS["plain"])
        gate.wait_for(1)
        other_gate.open()
        until(lambda: pause.left > 0)
        assert not failing.done()
        gate.open()
        assert failing.result().status == 429
