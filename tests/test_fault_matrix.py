"""What comes out of each thing that can go wrong with a call to Calendar42.

These are the rows of the design's table. Each is tried at each of the two calls, for a
single event and for a list, all four at once, each in a service of its own. Most rows
share these four services. Moving pages are in `tests/client/`.
"""

import gzip
import json
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial
from http import HTTPStatus
from pathlib import Path
from socket import SHUT_WR, create_server, socket
from typing import Any

import pytest

from standin import Standin
from tests.fixtures import Inside, MakeInside, at_once, listed, new_events
from tests.reading import lifetime

ENDPOINTS = ("events", "event-subscriptions")
EXPIRY, FAULT_EXPIRY = 252.0, 6.0  # seconds: the defaults
BAD_GATEWAY, GATEWAY_TIMEOUT = 502, 504

FAULTS: dict[str, dict[str, Any]] = {
    "reset before the headers": {"reset": True},
    "reset in the body": {"reset_halfway": True},
    "cut short": {"truncate": True},
    "less than its length": {"headers": {"Content-Length": "9"}},
    "chunked garbage": {
        "body": "garbage\r\n",
        "headers": {"Transfer-Encoding": "chunked", "Content-Length": None},
    },
    "not gzip": {"headers": {"Content-Encoding": "gzip"}},
    "gzip bomb": {
        "body": gzip.compress(b" " * 2**24),
        "headers": {"Content-Encoding": "gzip"},
    },
    "8 MiB and more": {"body": 8},
    **{
        f"status {status} first": {"informational": status}
        for status in (101, 102, 103)
    },
    "HTML": {"body": "<html></html>", "content_type": "text/html"},
    "empty": {"body": ""},
    "no UTF-8": {"body": b'{"data": ["\xff"]}'},
    "nested": {"body": "[" * 100_000},
    "no number as its length": {"headers": {"Content-Length": "nine"}},
    **{
        f"status {status}": {"status": status}
        for status in (201, 202, 206, 300, 301, 302, 303, 304, 307, 308)
    },
    **{
        f"shape {shape}": {"body": shape}
        for shape in (
            "null",
            "true",
            "42",
            '"data"',
            "[]",
            "{}",
            '{"data": null}',
            '{"data": {}}',
            '{"data": "events"}',
            '{"data": [null]}',
            '{"data": [1]}',
            '{"data": [[]]}',
        )
    },
}
FAULTS_OF_EVENTS: dict[str, dict[str, Any]] = {
    "another event": {
        "body": '{"data": [{"id": "another", "title": "Not asked for"}]}'
    },
    "no id": {"body": '{"data": [{"title": "Whose?"}]}'},
}
FAULTS_OF_SUBSCRIPTIONS: dict[str, dict[str, Any]] = {
    "no count": {"body": '{"meta_data": {}, "data": []}'},
    "a count that is not a number": {
        "body": '{"meta_data": {"count": "2"}, "data": []}'
    },
    "a negative count": {"body": '{"meta_data": {"count": -1}, "data": []}'},
    "more than 100,000": {"body": '{"meta_data": {"count": 100001}, "data": []}'},
    "fewer than counted": {"body": '{"meta_data": {"count": 3}, "data": []}'},
    "a name that is not text": {
        "body": '{"meta_data": {"count": 1}, "data": '
        '[{"event_id": "%s", "subscriber": {"first_name": 1}}]}'
    },
}
HANGS: dict[str, dict[str, Any]] = {
    "hang before the headers": {"hang": True},
    "hang in the body": {"hang_halfway": True},
    "too late": {"delay": 4.0},
    "trickle of headers": {"trickle_headers": 0.05},
    "trickle of the body": {"trickle": 0.05},
    "more than it sends": {"headers": {"Content-Length": "99999"}},
    "a chunk without an end": {
        "body": "ff\r\n{",
        "headers": {"Transfer-Encoding": "chunked", "Content-Length": None},
    },
}
TOO_LARGE = [
    FAULTS["gzip bomb"],
    FAULTS["8 MiB and more"],
    FAULTS_OF_SUBSCRIPTIONS["more than 100,000"],
]
STATUSES = sorted(
    {*(status.value for status in HTTPStatus if status >= 400), 419, 499, 520, 599}
    - {429}
)
DEFINITE = set(range(400, 500)) - {401, 403, 407, 408, 421, 425, 429}


def is_right(part: Any, event_id: str) -> bool:
    """Say whether this is the right answer for an event of `new_events`."""
    return bool(
        part
        == {
            "id": event_id,
            "title": f"Title {event_id}",
            "names": [f"{event_id} 0", f"{event_id} 1"],
        }
    )


def single(
    service: Inside,
    upstream: Standin,
    fault: dict[str, Any],
    status: int,
    kept: float,
    endpoint: str,
) -> None:
    """One event: the client gets the error, which is kept for `kept` seconds.

    Then the event is loaded again.
    """
    (event_id,) = new_events(upstream, 1)
    rule = upstream.rule(endpoint, event_id, **named(fault, event_id))
    began = time.monotonic()
    answer: Any = service.event(event_id)
    took = time.monotonic() - began
    assert (answer.status_code, answer.json["error"]["status_code"]) == (status, status)
    assert lifetime(answer) == (
        None if kept == FAULT_EXPIRY else pytest.approx(kept, abs=1)
    )
    asked = upstream.calls(endpoint, event_id)
    assert 1 <= asked <= most_calls(fault)
    assert upstream.calls(event_id=event_id) <= asked + 1
    rule.remove()
    service.clock.now += kept - 0.01
    assert service.event(event_id).data == answer.data
    assert upstream.calls(endpoint, event_id) == asked
    service.clock.now += 0.02 + took  # a fault is kept from when it was found
    assert is_right(service.event(event_id).json, event_id)
    assert upstream.calls(endpoint, event_id) == asked + 1


def in_list(
    service: Inside,
    upstream: Standin,
    fault: dict[str, Any],
    status: int,
    kept: float,
    endpoint: str,
) -> None:
    """A list: all its events have the error, which isn't cached.

    So they are loaded again at once.

    A list that is refused or too large is asked for again, an event at a time: then the
    errors are those of the events.
    """
    event_ids = new_events(upstream, 2)
    rules = [
        upstream.rule(endpoint, event_id, **named(fault, event_id))
        for event_id in event_ids
    ]
    began = time.monotonic()
    answer: Any = service.http.get(listed(event_ids))
    took = time.monotonic() - began
    assert {
        event_id: error["status_code"]
        for event_id, error in answer.json["errors"].items()
    } == dict.fromkeys(event_ids, status)
    is_split = status in DEFINITE or fault in TOO_LARGE
    assert (answer.status_code, answer.json["data"]) == (200, [])
    assert lifetime(answer) == (pytest.approx(kept, abs=1) if kept == EXPIRY else None)
    assert 1 <= upstream.calls(endpoint, event_ids[0]) - is_split <= most_calls(fault)
    for rule in rules:
        rule.remove()
    if is_split:
        service.clock.now += kept + took
    assert is_right(service.event(event_ids[0]).json, event_ids[0])
    again: Any = service.http.get(listed(event_ids))
    for part, event_id in zip(again.json["data"], event_ids, strict=True):
        assert is_right(part, event_id)


def most_calls(fault: dict[str, Any]) -> int:
    """Return how often a call may be made.

    A call that is reset on the connection that the other call has just left is made
    again.
    """
    return 2 if "reset" in fault else 1


def named(fault: dict[str, Any], event_id: str) -> dict[str, Any]:
    """Return a fault, with the event's id in its body if it needs one."""
    body = fault.get("body")
    return (
        fault | {"body": body.replace("%s", event_id)}
        if isinstance(body, str)
        else fault
    )


@pytest.fixture(scope="module")
def four(shared_upstream: Standin) -> Iterator[list[Inside]]:
    """Make four services for all tests without settings of their own or a pause."""
    services = [Inside(shared_upstream) for _ in range(4)]
    yield services
    for service in services:
        service.close()


@pytest.fixture(scope="module")
def hasty(shared_upstream: Standin) -> Iterator[list[Inside]]:
    """Make four services whose time-out is 2 s."""
    services = [Inside(shared_upstream, C42_TIMEOUT="2") for _ in range(4)]
    yield services
    for service in services:
        service.close()


def everywhere(
    services: list[Inside],
    upstream: Standin,
    fault: dict[str, Any],
    status: int,
    kept: float,
    endpoints: tuple[str, ...] = ENDPOINTS,
) -> None:
    """Try a fault at these calls, for a single event and for a list, all at once.

    Each has one of the services.
    """
    services = services.copy()
    at_once(
        *(
            partial(single, services.pop(), upstream, fault, status, kept, endpoint)
            for endpoint in endpoints
        ),
        *(
            partial(in_list, services.pop(), upstream, fault, status, kept, endpoint)
            for endpoint in endpoints
        ),
    )


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_bad_gateway(
    inside: MakeInside, four: list[Inside], upstream: Standin, fault: dict[str, Any]
) -> None:
    """An unusable answer is a 502, kept for C42_FAULT_EXPIRY.

    That is one that breaks off, is too large, redirects or has an unknown form.
    """
    # If a connection that was kept is reset, the call is made again: this takes new
    # ones.
    services = [inside() for _ in four] if "reset" in fault else four
    everywhere(services, upstream, fault, BAD_GATEWAY, FAULT_EXPIRY)


@pytest.mark.parametrize("fault", FAULTS_OF_EVENTS.values(), ids=FAULTS_OF_EVENTS)
def test_wrong_events(
    four: list[Inside], upstream: Standin, fault: dict[str, Any]
) -> None:
    """Events that nobody asked for, or without an id, are a 502."""
    everywhere(four, upstream, fault, BAD_GATEWAY, FAULT_EXPIRY, ("events",))


def test_a_wrong_title(inside: MakeInside, upstream: Standin) -> None:
    """A title that is not text is a 502, kept for C42_FAULT_EXPIRY.

    In a list, the 502 is of this event alone.
    """
    fault = {"body": '{"data": [{"id": "%s", "title": {"en": "Dinner"}}]}'}
    single(inside(), upstream, fault, BAD_GATEWAY, FAULT_EXPIRY, "events")
    service, (bad, good) = inside(), new_events(upstream, 2)
    events = [{"id": bad, "title": ["Dinner"]}, {"id": good, "title": f"Title {good}"}]
    rule = upstream.rule("events", bad, body=json.dumps({"data": events}))
    began = time.monotonic()
    answer: Any = service.http.get(listed([bad, good]))
    took = time.monotonic() - began
    assert [is_right(part, good) for part in answer.json["data"]] == [True]
    assert {
        event_id: error["status_code"]
        for event_id, error in answer.json["errors"].items()
    } == {bad: BAD_GATEWAY}
    rule.remove()
    service.clock.now += FAULT_EXPIRY - 0.01
    assert service.event(bad).status_code == BAD_GATEWAY
    service.clock.now += 0.02 + took  # a fault is kept from when it was found
    assert is_right(service.event(bad).json, bad)
    assert (upstream.calls("events", bad), upstream.calls("events", good)) == (2, 1)


@pytest.mark.parametrize(
    "fault", FAULTS_OF_SUBSCRIPTIONS.values(), ids=FAULTS_OF_SUBSCRIPTIONS
)
def test_wrong_subscriptions(
    four: list[Inside], upstream: Standin, fault: dict[str, Any]
) -> None:
    """Unreadable subscriptions are a 502, never half an answer.

    Those can't be counted, are missing, or have no readable names.
    """
    everywhere(
        four, upstream, fault, BAD_GATEWAY, FAULT_EXPIRY, ("event-subscriptions",)
    )


@pytest.mark.parametrize("fault", HANGS.values(), ids=HANGS)
def test_gateway_timeout(
    hasty: list[Inside], upstream: Standin, fault: dict[str, Any]
) -> None:
    """No full answer within C42_TIMEOUT is a 504, kept for C42_FAULT_EXPIRY."""
    everywhere(hasty, upstream, fault, GATEWAY_TIMEOUT, FAULT_EXPIRY)


@pytest.mark.parametrize("status", STATUSES)
def test_passed_through(four: list[Inside], upstream: Standin, status: int) -> None:
    """Every 4xx and 5xx is passed through.

    Definite refusals are kept for C42_EXPIRY, the others as faults.
    """
    everywhere(
        four,
        upstream,
        {"status": status},
        status,
        EXPIRY if status in DEFINITE else FAULT_EXPIRY,
    )


def http_date(seconds: float) -> str:
    """Return the date so many seconds from now, as HTTP writes it."""
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


@pytest.mark.parametrize(
    ("retry_after", "kept"),
    [
        (lambda: None, FAULT_EXPIRY),
        (lambda: "soon", FAULT_EXPIRY),
        (lambda: "0", FAULT_EXPIRY),
        (lambda: "60", 60.0),
        (lambda: "86400", EXPIRY),
        (lambda: http_date(60), 60.0),
        (lambda: http_date(-60), FAULT_EXPIRY),
    ],
    ids=["none", "nonsense", "zero", "seconds", "a day", "a date", "a past date"],
)
def test_pause(
    inside: MakeInside, upstream: Standin, retry_after: Any, kept: float
) -> None:
    """A 429 is kept until its Retry-After, between the two expiries.

    No event is asked for until then.
    """

    def check(service: Inside, endpoint: str, is_list: bool) -> None:
        first, second, other = new_events(upstream, 3)
        upstream.rule(
            endpoint, first, status=429, headers={"Retry-After": retry_after()}
        )
        began = time.monotonic()
        if is_list:
            listing: Any = service.http.get(listed([first, second]))
            errors = listing.json["errors"]
            assert {error["status_code"] for error in errors.values()} == {429}
        answer = service.event(first)
        took = time.monotonic() - began
        assert (answer.status_code, lifetime(answer)) == (429, None)
        assert 1 <= int(answer.headers["Retry-After"]) <= max(kept, 3601)
        calls = upstream.calls(endpoint, first)
        if kept > FAULT_EXPIRY:
            assert service.event(other).status_code == 429
            assert upstream.calls(event_id=other) == 0
        service.clock.now += kept - 2  # a date has whole seconds
        assert service.event(first).headers["Cache-Status"].startswith("c42c; hit")
        assert upstream.calls(endpoint, first) == calls
        service.clock.now += 3 + took  # it is kept from when it was found
        assert not service.event(first).headers["Cache-Status"].startswith("c42c; hit")

    at_once(
        *(
            partial(check, inside(), endpoint, is_list)
            for endpoint in ENDPOINTS
            for is_list in (False, True)
        )
    )


@contextmanager
def untrusted(certificate: Path) -> Iterator[str]:
    """Serve TLS with an untrusted certificate; yield the base URL."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "fullchain.pem", certificate / "privkey.pem")
    with create_server(("127.0.0.1", 0)) as listener, socket() as last:
        last.bind(("127.0.0.1", 0))

        def shake_hands() -> None:
            address = None
            while address != last.getsockname():
                connection, address = listener.accept()
                with closing(connection), suppress(OSError):  # the service refuses
                    context.wrap_socket(connection, server_side=True).close()

        thread = threading.Thread(target=shake_hands)
        thread.start()
        try:
            yield f"https://localhost:{listener.getsockname()[1]}/api/v2/"
        finally:
            # The others that have connected come before it. If they were reset, Python
            # 3.11 might leave them open.
            last.connect(listener.getsockname())
            last.shutdown(SHUT_WR)
            thread.join()


@pytest.mark.parametrize(
    "how", ["refused", "DNS failure", "not TLS", "wrong certificate"]
)
def test_unreachable(
    inside: MakeInside, upstream: Standin, certificate: Path, how: str
) -> None:
    """An upstream that can't be reached is a 502, kept for C42_FAULT_EXPIRY.

    In a list, each event has it.
    """
    with create_server(("127.0.0.1", 0)) as listener, untrusted(certificate) as tls:
        base_url = {
            "refused": f"http://127.0.0.1:{listener.getsockname()[1]}/",
            "DNS failure": "http://no-such-host.invalid/",
            "not TLS": upstream.base_url.replace("http:", "https:"),
            "wrong certificate": tls,
        }[how]
        listener.close()
        service, event_ids = inside(C42_BASE_URL=base_url), new_events(upstream, 2)
        began = time.monotonic()
        answer = service.event(event_ids[0])
        took = time.monotonic() - began
        assert (answer.status_code, lifetime(answer)) == (BAD_GATEWAY, None)
        listing = service.http.get(listed(event_ids))
        errors = {
            error["status_code"]
            for error in json.loads(listing.data)["errors"].values()
        }
        assert (errors, lifetime(listing)) == ({BAD_GATEWAY}, None)
        service.clock.now += FAULT_EXPIRY - 1
        assert (
            service.event(event_ids[0]).headers["Cache-Status"].startswith("c42c; hit")
        )
        service.clock.now += 1 + took  # a fault is kept from when it was found
        assert (
            not service.event(event_ids[0])
            .headers["Cache-Status"]
            .startswith("c42c; hit")
        )
        calls = [upstream.calls(event_id=event_id) for event_id in event_ids]
        assert calls == [0, 0]
