"""The service over HTTP: really started, with the stand-in of Calendar42 behind it."""

import json
import os
import select
import socket
import sys
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

try:
    import pytest
except ModuleNotFoundError:
    sys.exit("pytest is missing: pip install -r requirements.txt")

from operations import settings
from standin import DEMO_EVENTS, Gate, Standin
from tests.fixtures import (
    PATIENCE,
    PREFIX,
    TOKEN,
    MakeInside,
    Service,
    Start,
    at_once,
    envelope,
    new_id,
    receive,
    started,
)

ENDPOINTS = ("events", "event-subscriptions")


# What an answer is


def test_merges_both_calls(service: Service, upstream: Standin) -> None:
    """An answer is compact JSON: the event's id, its title and all its first names."""
    event_id = new_id()
    upstream.add_event(
        event_id, title="Dinner with the neighbours", names=["API", "Arthur", "Ella"]
    )
    answer = service.event(event_id)
    body = (
        f'{{"id":"{event_id}","title":"Dinner with the neighbours",'
        '"names":["API","Arthur","Ella"]}'
    )
    assert (answer.status_code, answer.text) == (200, body)
    assert answer.headers["Content-Type"] == "application/json"
    assert [upstream.calls(endpoint, event_id) for endpoint in ENDPOINTS] == [1, 1]


@pytest.mark.parametrize(
    ("event", "title", "names"),
    [
        ("empty", "Nobody comes to this one", []),
        ("untitled", None, ["API", "Noor"]),
        ("blanks", "Guests to be announced", ["API", "Ella", "Arthur"]),
        ("mixed", "Shared car to the office", ["API", "Tess", "Bram"]),
        ("duplicates", "Three times Anna", ["Anna", "Arthur", "Anna", "anna", "Anna"]),
    ],
)
def test_names(
    service: Service, event: str, title: str | None, names: list[str]
) -> None:
    """`names` has the event's first names in the upstream's order, with duplicates.

    Blank, null and removed ones, and those of other events, are left out. A missing
    title is null.
    """
    assert service.event(DEMO_EVENTS[event]).json() == {
        "id": DEMO_EVENTS[event],
        "title": title,
        "names": names,
    }


def test_scripts(service: Service) -> None:
    """Text of every script goes out as UTF-8, without escapes."""
    body = service.event(DEMO_EVENTS["scripts"]).content.decode()
    assert "\\u" not in body
    assert {
        "محمد",
        "李小龙",
        "👩🏽‍🚀 Zoë",
        "Zoe\u0308",
        'Pat "The Hat"',
        "Back\\slash",
    } < set(json.loads(body)["names"])


def test_all_pages(service: Service, upstream: Standin) -> None:
    """Every subscription is in the answer, in order, with one call for each page."""
    event_id, names = new_id(), [f"Guest {number}" for number in range(250)]
    upstream.add_event(event_id, names=names)
    assert service.event(event_id).json()["names"] == names
    assert [upstream.calls(endpoint, event_id) for endpoint in ENDPOINTS] == [1, 3]


def test_deleted(service: Service) -> None:
    """A deleted event is a 404."""
    assert (
        envelope(service.event(DEMO_EVENTS["deleted"]), 404) == "the event is deleted"
    )


def test_two_paths_and_head(service: Service, upstream: Standin) -> None:
    """A trailing slash and a query change nothing, and HEAD is GET without the body.

    This holds for misses, hits and errors.
    """
    event_id = new_id()
    upstream.add_event(event_id)
    missed = service.raw(f"{PREFIX}{event_id}/".encode(), b"HEAD")
    for target in (
        f"{PREFIX}{event_id}/",
        PREFIX + new_id(),
        f"{PREFIX}a.b",
        "/nothing",
    ):
        got, head = service.raw(target.encode()), service.raw(target.encode(), b"HEAD")
        assert (head.status, head.body, head.headers["Content-Length"]) == (
            got.status,
            b"",
            str(len(got.body)),
        )
        assert head.headers["Content-Type"] == got.headers["Content-Type"]
    assert missed.headers["Content-Length"] == str(len(service.event(event_id).content))
    assert (
        service.event(event_id).content
        == service.get(f"{PREFIX}{event_id}/?limit=1").content
    )
    assert upstream.calls(event_id=event_id) == 2


@pytest.fixture(scope="module")
def quiet() -> Iterator[tuple[Service, Standin]]:
    """Start a service and a stand-in where every load succeeds.

    So no late call is counted in another test.
    """
    with Standin(token=TOKEN) as upstream, started(Service(upstream)) as service:
        yield service, upstream


@pytest.mark.parametrize(
    "path",
    ["/nothing", f"{PREFIX}a/b", f"{PREFIX}/a", f"{PREFIX}a//", "/static/a", "/.."],
)
def test_unknown_path(quiet: tuple[Service, Standin], path: str) -> None:
    """An unknown path gets a 404 in the envelope, not a redirect."""
    service, upstream = quiet
    before = upstream.calls()
    envelope(service.raw(path.encode()), 404)
    assert upstream.calls() == before


@pytest.mark.parametrize("method", [b"POST", b"PUT", b"DELETE", b"PATCH", b"BREW"])
def test_wrong_method(quiet: tuple[Service, Standin], method: bytes) -> None:
    """A wrong method gets a 405 and what is allowed, even for a cached event.

    The 405 is in the envelope, and causes no call.
    """
    service, upstream = quiet
    kept, cold = DEMO_EVENTS["plain"], new_id()
    assert service.event(kept).status_code == 200
    before = upstream.calls()
    for event_id in kept, cold, cold + "/":
        answer = service.raw(
            f"{PREFIX}{event_id}".encode(), method, b"Content-Length: 0"
        )
        envelope(answer, 405)
        assert set(answer.headers["Allow"].split(", ")) == {"GET", "HEAD", "OPTIONS"}
    assert upstream.calls() == before


# One load per event


@pytest.fixture(scope="module")
def room(shared_upstream: Standin) -> Iterator[Service]:
    """Start a service where exactly 200 requests may wait for the upstream."""
    with started(
        Service(
            shared_upstream,
            C42_THREADS=str(200 + settings.RESERVED_THREADS),
            C42_TIMEOUT="30",
        )
    ) as service:
        yield service


@pytest.mark.parametrize("status", [200, 503, 404])
def test_200_callers_cause_one_load(
    room: Service, upstream: Standin, status: int
) -> None:
    """200 callers of a cold event share one call to each endpoint; more are refused."""
    event_id, warm, gate = new_id(), new_id(), Gate()
    upstream.add_event(event_id, names=["API", "Ella"])
    upstream.add_event(warm)
    assert room.event(warm).status_code == 200
    upstream.rule(
        event_id=event_id, gate=gate, status=None if status == 200 else status
    )
    socks = [room.connect() for _ in range(201)]
    for sock in socks:
        sock.sendall(f"GET {PREFIX}{event_id} HTTP/1.1\r\nHost: c42c\r\n\r\n".encode())
    # Only a request that is refused gets an answer before the gate opens, so 200 are
    # waiting now.
    (refused,), _, _ = select.select(socks, [], [], PATIENCE)
    gate.wait_for(2)
    answer = receive(refused)
    assert "too many" in envelope(answer, 503)
    assert answer.headers["Retry-After"] == "1"
    assert room.event(warm).headers["Cache-Status"].startswith("c42c; hit")
    gate.open()
    answers = [receive(sock) for sock in socks if sock is not refused]
    for sock in socks:
        sock.close()
    assert len(answers) == 200
    assert {(answer.status, answer.body) for answer in answers} == {
        (status, answers[0].body)
    }
    assert (
        sum("collapsed" in answer.headers["Cache-Status"] for answer in answers) == 199
    )
    assert [
        upstream.calls(endpoint, event_id)
        for endpoint in ("events", "event-subscriptions")
    ] == [1, 1]
    if status == 200:
        assert json.loads(answers[0].body)["names"] == ["API", "Ella"]
    assert room.event(event_id).status_code == status  # and it is kept
    assert upstream.calls(event_id=event_id) == 2


def test_slow_event_delays_no_other(service: Service, upstream: Standin) -> None:
    """While one load hangs, a cold load of another event and hits are answered."""
    slow, other, gate = new_id(), new_id(), Gate()
    upstream.add_event(slow)
    upstream.add_event(other, names=["Arthur"])
    upstream.rule(event_id=slow, gate=gate)
    with service.connect() as sock:
        sock.sendall(f"GET {PREFIX}{slow} HTTP/1.1\r\nHost: c42c\r\n\r\n".encode())
        gate.wait_for(2)
        for result in "fwd=miss", "hit":
            answer = service.event(other)
            assert (answer.status_code, answer.json()["names"]) == (200, ["Arthur"])
            assert result in answer.headers["Cache-Status"]
        assert select.select([sock], [], [], 0)[0] == []  # it hangs still
        gate.open()
        assert receive(sock).status == 200


def test_unknown_event_costs_one_load(service: Service, upstream: Standin) -> None:
    """An unknown id, asked for 1,000 times, costs one load.

    The answer is the upstream's 404 every time.
    """
    event_id = new_id()
    answers = set[tuple[int, bytes]]()
    with service.connect() as sock:
        for _ in range(1000):
            sock.sendall(
                f"GET {PREFIX}{event_id} HTTP/1.1\r\nHost: c42c\r\n\r\n".encode()
            )
            answer = receive(sock)
            answers.add((answer.status, answer.body))
    ((status, body),) = answers
    assert (status, json.loads(body)["error"]["message"]) == (
        404,
        f"Event {event_id} not found",
    )
    assert upstream.calls("events", event_id) == 1
    assert (
        upstream.calls("event-subscriptions", event_id) <= 1
    )  # 0 where the 404 was quicker than the other's start


# Expiry


@pytest.mark.parametrize(("expiry", "seconds"), [("0.05", 3.0), ("4.2", 252.0)])
@pytest.mark.parametrize("known", [True, False])
def test_expiry_is_exact(
    inside: MakeInside, upstream: Standin, expiry: str, seconds: float, known: bool
) -> None:
    """An answer, good or bad, is served until its expiry and never at it or later."""
    service, event_id = inside(C42_EXPIRY=expiry), new_id()
    if known:
        upstream.add_event(event_id, title="Old")
    began = service.clock.now
    assert service.event(event_id).status_code == (200 if known else 404)
    service.clock.now = began + seconds - 1e-6
    assert service.event(event_id).headers["Cache-Status"].startswith("c42c; hit")
    assert upstream.calls("events", event_id) == 1
    upstream.add_event(event_id, title="New")
    service.clock.now = began + seconds
    answer = service.event(event_id)
    assert (answer.status_code, answer.json["title"]) == (200, "New")
    assert upstream.calls("events", event_id) == 2


@pytest.fixture(scope="module")
def forgetful(shared_upstream: Standin) -> Iterator[Service]:
    """Start a service that keeps everything for 0.3 s, and refreshes nothing."""
    options = {"C42_EXPIRY": "0.005", "C42_REFRESH_AHEAD": "0", "C42_TIMEOUT": "30"}
    with started(Service(shared_upstream, (), **options)) as service:
        yield service


def test_expiry_in_real_time(forgetful: Service, upstream: Standin) -> None:
    """With C42_EXPIRY=0.005, an answer is kept for exactly 0.3 s."""
    event_id = new_id()
    upstream.add_event(event_id, title="Old")
    earliest = time.monotonic()
    assert forgetful.event(event_id).json()["title"] == "Old"
    latest = time.monotonic()
    upstream.set_title(event_id, "New")
    while True:
        asked = time.monotonic()
        title = forgetful.event(event_id).json()["title"]
        answered = time.monotonic()
        if title == "New":
            break
        assert asked < latest + 0.3
    assert answered >= earliest + 0.3
    assert upstream.calls("events", event_id) == 2


def test_recovers_from_a_fault(forgetful: Service, upstream: Standin) -> None:
    """A 503 is passed through and kept for C42_FAULT_EXPIRY, then loaded again."""
    event_id, body = new_id(), '{"error": {"message": "down  for maintenance"}}'
    upstream.add_event(event_id, title="Back")
    rule = upstream.rule(status=503, body=body)
    answer = forgetful.event(event_id)
    assert (answer.status_code, answer.text, answer.headers["Cache-Control"]) == (
        503,
        body,
        "no-store",
    )
    rule.remove()
    latest = time.monotonic()
    while (answer := forgetful.event(event_id)).status_code == 503:
        assert time.monotonic() < latest + PATIENCE
    assert (answer.status_code, answer.json()["title"]) == (200, "Back")
    assert upstream.calls("events", event_id) == 2


def test_fault_expiry_is_exact(inside: MakeInside, upstream: Standin) -> None:
    """A fault is kept for C42_FAULT_EXPIRY from when it was found, and no longer."""
    service, event_id = inside(C42_FAULT_EXPIRY="0.1"), new_id()
    upstream.add_event(event_id)
    rule = upstream.rule("events", event_id, truncate=True)
    asked = time.monotonic()
    assert service.event(event_id).status_code == 502
    longest = time.monotonic() - asked  # that the load took
    rule.remove()
    began = service.clock.now
    service.clock.now = began + 6 - 1e-6
    assert service.event(event_id).status_code == 502
    assert upstream.calls("events", event_id) == 1
    service.clock.now = began + 6 + longest
    assert service.event(event_id).status_code == 200


# Hostile ids

HOSTILE = [
    "..", "%2e%2e", ".", "%2E", "a,b", "a%2Cb", "a]", "%5D", "[a]", "x%3Flimit%3D1",
    "x%26limit=1", "%00", "a%00", "a%0d%0ab", "a%0a", "%0a", "a%20", "%20", "a" * 129,
    "a" * 20_000, "%FF%FE", "%ed%a0%80", "%C3%A9", "%D9%A3", "%EF%BC%A1", "%25",
    "%252e", "a%", "%zz", "a;b", "a:b", "a@b", "a.b", "*", "%2f..%2f..", "..%2f", "%5c",
    "a+b", "%e2%80%ae", "a'", "%22", "%3Cscript%3E",
]  # fmt: skip


@pytest.mark.parametrize("slash", ["", "/"])
def test_hostile_ids(quiet: tuple[Service, Standin], slash: str) -> None:
    """A malformed id is refused in the envelope, and never reaches the upstream."""
    service, upstream = quiet
    before = upstream.calls()
    for hostile in HOSTILE:
        answer = service.raw(f"{PREFIX}{hostile}{slash}".encode())
        message = envelope(
            answer, 404 if "%2f" in hostile and answer.status == 404 else 400
        )
        assert len(message) < 200, hostile
        assert answer.headers["Cache-Control"] == "no-store"
    assert upstream.calls() == before


def test_hostile_bytes(quiet: tuple[Service, Standin]) -> None:
    """Hostile bytes are refused, never reach the upstream, and harm no other client."""
    service, upstream = quiet
    before = upstream.calls()
    for target in (
        b"\xff",
        b"\xc3\xa9",
        b"a\x00b",
        b"a b",
        b"a\tb",
        b"\x7f",
        b"a" * 100_000,
    ):
        with service.connect() as sock:
            sock.sendall(
                b"GET "
                + PREFIX.encode()
                + target
                + b" HTTP/1.1\r\nHost: c42c\r\nConnection: close\r\n\r\n"
            )
            assert receive(sock).status in (400, 404, 414, 431), target
    for request in (
        b"\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET /\r\n\r\n",
        b"GET * HTTP/1.1\r\nHost: a\r\n\r\n",
    ):
        with service.connect() as sock:
            sock.sendall(request)
            sock.shutdown(socket.SHUT_WR)
            assert not sock.recv(4096).startswith(b"HTTP/1.1 2")
    assert service.raw(b"*", b"OPTIONS").status in (204, 404)
    assert upstream.calls() == before
    assert service.event(DEMO_EVENTS["plain"]).status_code == 200


def test_longest_id(service: Service, upstream: Standin) -> None:
    """An id of 128 characters is asked for."""
    upstream.add_event("a" * 128)
    assert service.event("a" * 128).json()["id"] == "a" * 128


def test_hostile_ids_are_not_kept(inside: MakeInside) -> None:
    """A malformed id leaves nothing in the cache."""
    service = inside()
    for hostile in HOSTILE:
        assert service.event(hostile).status_code in (400, 404)
    assert (len(service.cache), service.cache.snapshot().misses) == (0, 0)


# Time


def test_time_out(hasty_service: Service, upstream: Standin) -> None:
    """If the upstream hangs or trickles, a 504 comes within 0.5 s of the time-out."""
    faults: list[dict[str, Any]] = [
        {"hang": True},
        {"trickle": 0.3},
        {"trickle_headers": 0.3},
    ]

    def timed(fault: dict[str, Any]) -> float:
        event_id = new_id()
        upstream.add_event(event_id)
        upstream.rule("event-subscriptions", event_id, **fault)
        asked = time.monotonic()
        answer = hasty_service.event(event_id)
        seconds = time.monotonic() - asked
        assert envelope(answer, 504) == "Calendar42 did not answer within 2 seconds"
        assert seconds >= 2
        return seconds

    def longest() -> float:
        return max(at_once(*(partial(timed, fault) for fault in faults)))

    assert any(longest() < 2.5 for _ in range(3))  # a busy machine may be late once


def test_not_found_does_not_wait(service: Service, upstream: Standin) -> None:
    """A 404 from the event call answers at once, while the other call hangs."""
    event_id, gate = new_id(), Gate()
    upstream.rule("event-subscriptions", event_id, gate=gate)
    answer = service.event(event_id)
    assert (answer.status_code, answer.json()["error"]["message"]) == (
        404,
        f"Event {event_id} not found",
    )
    gate.open()


# Errors that are passed through, and pauses

BODIES = {
    "envelope": (
        b'{"error":  {"code": "NO", "message": "\xc3\xa9", "status_code": 500},'
        b' "x": 1}',
        "application/json",
    ),
    "other JSON": (b'{"error": "\xc3\xa9"}', "text/plain; charset=utf-8"),
    "list": (b'["error"]', "text/plain; charset=utf-8"),
    "odd status": (
        b'{"error": {"status_code": true, "message": "", "code": ""}}',
        "text/plain; charset=utf-8",
    ),
    "no message": (
        b'{"error": {"status_code": 500, "code": "NO"}}',
        "text/plain; charset=utf-8",
    ),
    "html": (b"<script>alert(1)</script>", "text/plain; charset=utf-8"),
    "NaN": (b"[NaN]", "text/plain; charset=utf-8"),
    "nested": (b"[" * 60_000, "text/plain; charset=utf-8"),
    "no text": (b"\xff\xfe<html>", "text/plain"),
    "cut": (b'["' + b"a" * 70_000 + b'"]', "text/plain; charset=utf-8"),
}


@pytest.mark.parametrize(
    ("body", "content_type"),
    [pytest.param(*case, id=name) for name, case in BODIES.items()],
)
def test_passed_through(
    service: Service, upstream: Standin, body: bytes, content_type: str
) -> None:
    """An error's body keeps its bytes, 8 KiB at most.

    It is sent as JSON if it is the envelope, and as plain text otherwise.
    """
    event_id = new_id()
    upstream.rule("events", event_id, status=422, body=body, content_type="text/html")
    for result in "fwd=miss", "hit":
        answer = service.event(event_id)
        assert (answer.status_code, answer.content) == (422, body[:8192])
        assert answer.headers["Content-Type"] == content_type
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert result in answer.headers["Cache-Status"]


def test_an_error_without_a_body(service: Service, upstream: Standin) -> None:
    """An error without a body gets the envelope, with the upstream's status."""
    event_id = new_id()
    upstream.rule("events", event_id, status=599, body=b"")
    assert envelope(service.event(event_id), 599) == "Calendar42 answered 599"


def test_only_subscriptions_fail(service: Service, upstream: Standin) -> None:
    """If only the subscriptions fail, that error is the answer, not half an event."""
    for status in 400, 404, 500:
        event_id = new_id()
        upstream.add_event(event_id)
        upstream.rule(
            "event-subscriptions", event_id, status=status, body=b'{"no": "names"}'
        )
        answer = service.event(event_id)
        assert (answer.status_code, answer.json()) == (status, {"no": "names"})


def test_half_a_surrogate(service: Service, upstream: Standin) -> None:
    """Lone surrogates become U+FFFD, rather than a failure or broken UTF-8."""
    event_id = new_id()
    upstream.add_event(event_id)
    event = {"data": [{"id": event_id, "title": "a\ud800b"}]}
    upstream.rule("events", event_id, body=json.dumps(event))
    rows = [
        {"event_id": event_id, "subscriber": {"first_name": name}}
        for name in ("\udc00", "\U0001f600", "\x00")
    ]
    upstream.rule(
        "event-subscriptions",
        event_id,
        body=json.dumps({"meta_data": {"count": 3}, "data": rows}),
    )
    answer = service.event(event_id)
    names = ["\ufffd", "\U0001f600", "\x00"]
    assert (answer.status_code, answer.json()) == (
        200,
        {"id": event_id, "title": "a\ufffdb", "names": names},
    )


def test_pause(inside: MakeInside, upstream: Standin) -> None:
    """After a 429, no event is asked for until its Retry-After has passed.

    The 429 is passed through, with a Retry-After that counts down.
    """
    service, first, second = inside(), new_id(), new_id()
    upstream.rule(
        "events",
        first,
        status=429,
        body='{"slow": "down"}',
        headers={"Retry-After": "30"},
    )
    began = service.clock.now
    for passed in 0, 15, 29.9:
        service.clock.now = began + passed
        answer = service.event(first)
        assert (answer.status_code, answer.data) == (429, b'{"slow": "down"}')
        # One more if the load took real time, which the test's clock doesn't show.
        assert int(answer.headers["Retry-After"]) - (30 - int(passed)) in (0, 1)
    answer = service.event(second)
    assert (answer.status_code, answer.json["error"]["code"]) == (
        429,
        "TOO_MANY_REQUESTS",
    )
    assert (upstream.calls("events", first), upstream.calls(event_id=second)) == (1, 0)


def test_token_stays_inside(start: Start, upstream: Standin) -> None:
    """The token is in no answer, header or log line, whatever the upstream echoes.

    This includes the log at level DEBUG.
    """
    service, said = start(C42_LOGLEVEL="DEBUG"), []
    echoes: list[dict[str, Any]] = [
        {"status": 401, "body": json.dumps({"error": f"Token {TOKEN}"})},
        {
            "status": 500,
            "body": f"<p>{TOKEN}",
            "headers": {"Retry-After": TOKEN, "X-Token": TOKEN, "Bad Name": TOKEN},
        },
        {"status": 302, "headers": {"Location": f"http://{TOKEN}/"}},
        {"status": 200, "body": TOKEN},
        {
            "status": 200,
            "body": b"x",
            "headers": {"Content-Encoding": "gzip", "Set-Cookie": TOKEN},
        },
    ]
    for echo in echoes:
        event_id = new_id()
        upstream.rule(event_id=event_id, **echo)
        answer = service.event(event_id)
        said.append(f"{answer.headers} {answer.text}")
    upstream.rule(event_id="last", status=429, headers={"Retry-After": TOKEN})
    answer = service.event("last")
    said.append(f"{answer.headers} {answer.text}")
    assert service.stop() == 0
    for text in [*said, service.log]:
        assert TOKEN not in text


@pytest.mark.skipif(
    not (os.environ.get("C42_TOKEN") and os.environ.get("C42_LIVE_EVENT")),
    reason="needs C42_TOKEN and C42_LIVE_EVENT",
)
def test_live() -> None:
    """The live Calendar42 gives an answer of the promised form."""
    event_id = os.environ["C42_LIVE_EVENT"]
    environ = {
        name: os.environ[name]
        for name in ("C42_TOKEN", "C42_BASE_URL")
        if name in os.environ
    }
    with started(Service(None, (), **environ)) as service:
        answer = service.event(event_id)
        assert answer.status_code == 200
        assert list(answer.json()) == ["id", "title", "names"]
        assert answer.json()["id"] == event_id
        assert all(
            isinstance(name, str) and name.strip() for name in answer.json()["names"]
        )


if __name__ == "__main__":
    from conftest import run_as_script

    sys.exit(run_as_script(__file__))
