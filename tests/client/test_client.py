"""What the client sends, and how it treats whatever comes back.

How an answer is read off a socket is in `tests/transport/`, and what is read out of
its JSON in `tests/test_payload.py`.
"""

import gzip
import json
import logging
import time
from collections.abc import Callable
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
    Paused,
    TimedOut,
    TooLarge,
)
from standin import DEMO_EVENTS, Gate, Standin
from tests.client.callers import (
    ENDPOINTS,
    PLAIN,
    Make,
    check_error,
    check_exhausted,
    failure,
    fetch,
    fetch_list,
    rows,
)
from tests.fixtures import PATIENCE, TOKEN, at_once, given_time, new_events, until

# What is sent


def test_requests(make: Make, upstream: Standin) -> None:
    """Both calls have the documented address, headers and token, and no cookies."""
    client = make()
    upstream.rule(headers={"Set-Cookie": "session=1; Path=/"})
    fetch(client)
    upstream.reset_counts()
    event_id = DEMO_EVENTS["empty"]
    fetch(client, event_id)
    assert sorted(target for _, target, _ in upstream.requests) == [
        f"/api/v2/event-subscriptions/?event_ids=%5B{event_id}%5D&limit=100&offset=0",
        f"/api/v2/events/{event_id}/",
    ]
    expected = {
        "Host": upstream.base_url.split("/")[2],
        "Accept": "application/json",
        "Content-Type": "application/json",
        "Authorization": f"Token {TOKEN}",
        "Accept-Encoding": "gzip",
    }
    for _, _, headers in upstream.requests:
        assert expected.items() <= headers.items()
        assert "Cookie" not in headers


def test_connections(make: Make, upstream: Standin) -> None:
    """Callers have both of their calls under way at once.

    Later calls go over the same connections.
    """
    client = make()
    gate = Gate()
    upstream.rule(gate=gate)
    with ThreadPoolExecutor(5) as pool:
        events = pool.map(fetch, [client] * 5)
        gate.wait_for(10)
        gate.open()
        assert len(list(events)) == 5
    for _ in range(2):
        at_once(*[partial(fetch, client)] * 5)
    assert (upstream.calls(), upstream.connections) == (30, 10)


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
    fetch(make())
    for _, _, headers in upstream.requests:
        assert headers["Authorization"] == f"Token {TOKEN}"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_redirects_are_not_followed(
    make: Make, upstream: Standin, endpoint: str, status: int
) -> None:
    """A redirect is a 502: the token goes to no other address."""
    with Standin(token=TOKEN) as other:
        location = f"{other.base_url}events/{PLAIN}/"
        upstream.rule(endpoint, status=status, headers={"Location": location})
        error = failure(make())
        check_error(error, status=502, upstream_status=status, kind="fault")
        assert other.calls() == 0


# What comes back: the README's table; `test_fault_matrix.py` has all of it, through the
# cache

DEFINITE = [400, 402, 404, 406, 409, 428, 430, 499]
PASSING = [401, 403, 407, 408, 421, 425, 500, 599]


@pytest.mark.parametrize("status", DEFINITE + PASSING)
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_errors_are_passed_through(
    make: Make, upstream: Standin, endpoint: str, status: int
) -> None:
    """An error is passed through as it is, from either call.

    It's definite if asking again won't change it, and else a fault.
    """
    upstream.rule(endpoint, status=status, body="  why: \u00e9\n")
    error = failure(make())
    check_error(
        error,
        status=status,
        upstream_status=status,
        kind="negative" if status in DEFINITE else "fault",
        endpoint=endpoint,
        message=f"Calendar42 answered {status}",
        body="  why: \u00e9\n".encode(),
        private=False,
    )
    assert repr(error.retry_after) == "0.0"  # Redis wants a float


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
    assert failure(make()).retry_after == seconds


NO_JSON = {
    "blank": b" \n",
    "half": b'{"data": [',
    "two": b'{"data": []}{"data": []}',
    "nested objects": b'{"a":' * 200_000,
    "huge number": b'{"meta_data": {"count": 1%b}, "data": []}' % (b"0" * 5000),
}
UNUSABLE: dict[str, tuple[dict[str, Any], int, str]] = {
    "reset": ({"reset": True}, 0, "could not be reached, or broke off"),
    "too large": ({"body": b" " * 8_388_609}, 200, "sent more than 8388608 bytes"),
    **{
        f"{status}": ({"status": status}, status, f"answered {status}")
        for status in (201, 204, 206, 300, 304, 399, 600, 999)
    },
    **{name: ({"body": body}, 200, "sent no JSON") for name, body in NO_JSON.items()},
}


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize(("fault", "status", "what"), UNUSABLE.values(), ids=UNUSABLE)
def test_unusable_answers(
    make: Make,
    upstream: Standin,
    endpoint: str,
    fault: dict[str, Any],
    status: int,
    what: str,
) -> None:
    """An unusable answer is a 502 and a fault, from either call.

    It may be incomplete, no JSON, too large or a redirect.
    """
    upstream.rule(endpoint, **fault)
    check_error(
        failure(make()),
        TooLarge if "more than" in what else C42Error,
        status=502,
        upstream_status=status,
        kind="fault",
        endpoint=endpoint,
        message=f"Calendar42 {what}",
        body=b"",
    )


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
    loads = [partial(failure, client, event_id, 5) for event_id in slow]
    errors = sorted(at_once(*loads), key=attrgetter("status"))
    check_exhausted(
        errors[0],  # several may exceed it at once
        "c42c is reading too many large replies of Calendar42 at once",
        "No buffer space available",
    )
    assert {error.status for error in errors} <= {503, 504}
    assert fetch(client, large).title


@pytest.mark.parametrize(
    ("event", "status", "message"),
    [
        ("unknown", 404, "Calendar42 answered 404"),
        ("deleted", 200, "the event is deleted"),
        ("nodata", 200, "the event is deleted"),
    ],
)
def test_a_missing_event(
    make: Make, upstream: Standin, event: str, status: int, message: str
) -> None:
    """An event that is unknown, removed or without data is a definite 404.

    The other call isn't waited for.
    """
    gate = Gate()
    upstream.rule("event-subscriptions", gate=gate)
    check_error(
        failure(make(), DEMO_EVENTS[event]),
        status=404,
        upstream_status=status,
        kind="negative",
        endpoint="events",
        message=message,
    )
    gate.open()


LENIENT: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "byte order mark": lambda body: b"\xef\xbb\xbf" + body,
    "gzip": gzip.compress,
    "8 MiB": lambda body: body.ljust(8_388_608),
}


@pytest.mark.parametrize("change", LENIENT.values(), ids=LENIENT)
def test_what_is_read_leniently(
    make: Make, upstream: Standin, change: Callable[[bytes], bytes]
) -> None:
    """Unused fields may hold anything, NaN included.

    gzip, a byte order mark and up to 8 MiB are accepted, too.
    """
    (event_id,) = new_events(upstream, 1)
    odd: dict[str, Any] = {"start": float("nan"), "length": 10**300, "data": [[[]]]}
    event = odd | {"id": event_id, "title": "", "permission": None}
    row = odd | {"subscriber": {"first_name": "A", "tags": [[]]}}
    bodies = json.dumps({"data": [event]}).encode(), rows(event_id, 1, row)
    headers = {"Content-Encoding": "gzip"} if change is gzip.compress else {}
    for endpoint, body in zip(ENDPOINTS, bodies, strict=True):
        upstream.rule(
            endpoint, body=change(body), headers=headers, content_type="text/plain"
        )
    assert fetch(make(), event_id) == (event_id, "", ["A"])


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

    assert failure(make(on_call=opened)).status == 403
    assert ended == [500, 403]


# Time


def test_calls_end_by_their_deadline(make: Make, upstream: Standin) -> None:
    """A call whose answer isn't needed any more ends by its deadline."""
    upstream.rule("event-subscriptions", trickle_headers=0.5)
    client = make()
    for _ in range(20):
        assert failure(client, DEMO_EVENTS["unknown"], 3).status == 404
    # The one for events is kept, unless the last of these calls went over it.
    until(lambda: upstream.connections <= 1, patience=PATIENCE / 2)


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize(("usual", "private"), [(1.5, False), (2.5, True)])
def test_time_out(
    make: Make, upstream: Standin, endpoint: str, usual: float, private: bool
) -> None:
    """If a call isn't answered, the error comes at the deadline.

    It says what the usual time is, and is private if the load had less than half of it.
    """
    upstream.rule(endpoint, hang=True)

    def check(seconds: float) -> None:
        timeout = usual * seconds
        asked = time.monotonic()
        error = failure(make(timeout=timeout), seconds=seconds)
        assert time.monotonic() - asked >= seconds
        check_error(
            error,
            TimedOut,
            status=504,
            upstream_status=0,
            kind="fault",
            endpoint=endpoint,
            message=f"Calendar42 did not answer within {timeout:g} seconds",
            private=private,
        )

    given_time(check)


# Pauses


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_pause(make: Make, upstream: Standin, endpoint: str) -> None:
    """After a 429, from either call, nothing is asked for any event."""
    # The other call has ended by then: in the pause, it wouldn't be made.
    gate = Gate()
    client = make(on_call=lambda call: gate.open())
    upstream.rule(endpoint, gate=gate, status=429, body="slow down")
    first = failure(client)
    check_error(first, Paused, upstream_status=429, body=b"slow down")
    assert first.endpoint == endpoint
    second = failure(client, DEMO_EVENTS["empty"])
    check_error(second, Paused, upstream_status=0, body=b"")
    for error in first, second:
        message = "Calendar42 asked for a pause"
        check_error(error, Paused, status=429, kind="paused", message=message)
        assert 30 < error.retry_after <= 60
    assert upstream.calls(event_id=DEMO_EVENTS["empty"]) == 0


def test_the_shortest_pause(make: Make, upstream: Standin) -> None:
    """A `Retry-After` of 0 is passed on, and begins no pause."""
    upstream.rule("events", status=429, headers={"Retry-After": "0"})
    client = make()
    for _ in range(2):
        assert 0 < failure(client).retry_after < 1
    assert upstream.calls("events", PLAIN) == 2


def test_pause_ends(make: Make, upstream: Standin) -> None:
    """When the pause is over, events are loaded again."""
    pause = Pause(0.05)
    client = make(pause=pause)
    upstream.rule("events", times=1, status=429)
    assert isinstance(failure(client), Paused)
    until(lambda: not pause.left)
    assert fetch(client, DEMO_EVENTS["mixed"]).names == ["API", "Tess", "Bram"]


def test_a_pause_is_one_line_in_the_log(
    make: Make, upstream: Standin, caplog: pytest.LogCaptureFixture
) -> None:
    """A pause is logged as one warning, however many loads it stops.

    None of these is logged as a fault.
    """
    client = make()
    upstream.rule("events", status=429, headers={"Retry-After": "30"})
    with caplog.at_level(logging.DEBUG, logger="c42c"):
        failure(client)
        failure(client)
        fetch_list(client, new_events(upstream, 3))
    (record,) = caplog.records
    assert record.getMessage() == "pause: Calendar42 asks for 30 s"
    assert (record.name, record.levelno) == ("c42c.upstream", logging.WARNING)
    assert vars(record)["fields"] == {"pause_seconds": 30}
