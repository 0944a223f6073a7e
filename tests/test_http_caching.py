"""What clients and proxies may keep, and how hits are answered."""

import itertools
import json
import math
import random
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from serving.interface import Serialized
from serving.request import parse
from serving.wsgi import make_environ, run_app
from standin import DEMO_EVENTS, Gate, Standin
from tests.fixtures import (
    PREFIX,
    Inside,
    MakeInside,
    Service,
    Start,
    listed,
    load_outcomes,
    new_events,
    new_id,
    until,
)
from tests.reading import cache_status, lifetime
from tests.wire import Desk, Wire

PAGE = "https://app.example.com"

# Hits and the route


class Asked:
    """A repeated request. Like the server, it looks for its fast path once."""

    def __init__(self, service: Inside, raw: bytes) -> None:
        self.raw = raw
        self._app = service.app.wsgi_app
        self._request = parse(raw)
        self._fast_path = service.components.find_fast_path(self._request)

    def answer_at_once(self) -> Serialized | None:
        """Return the fast path's answer, if it has one."""
        answer = self._fast_path() if self._fast_path else None
        return (
            (answer[0], b"") if answer and self._request.method == "HEAD" else answer
        )  # no body will be sent

    def route(self) -> Serialized:
        """Return the route's answer."""
        return run_app(self._app, make_environ(self._request, ("127.0.0.1", 80)))


def requests_of(ids: dict[str, str], etag: str) -> Iterator[bytes]:
    """Make requests of every kind."""
    paths = [
        f"{PREFIX}{event_id}{slash}"
        for event_id, slash in zip(ids.values(), itertools.cycle(["", "/"]))
    ]
    paths += [
        f"{PREFIX}{ids[name]}{slash}"
        for name in ("ok", "negative")
        for slash in ("", "/", "//", "%2F", "?x=1")
    ]
    paths += [
        f"{PREFIX}not%20an%20id",
        f"{PREFIX}%61",
        PREFIX,
        PREFIX[:-1],
        "/",
        "/livez",
    ]
    conditions = [
        None,
        etag,
        f"W/{etag}",
        f'"a", W/"b" ,{etag}',
        f'"a,b",{etag}',
        "*",
        '"other"',
        '"',
        etag[1:-1] + "x",
    ]
    origins = [None, PAGE, "https://other.example.com"]
    conditional = [
        *itertools.product(conditions[:2], origins),
        *zip(conditions[2:], itertools.cycle(origins)),
    ]
    others = [("*", origin) for origin in origins]
    for method, path in itertools.product(
        ["GET", "HEAD", "OPTIONS", "POST", "BREW"], paths
    ):
        for condition, origin in conditional if method in ("GET", "HEAD") else others:
            headers = {
                "If-None-Match": condition,
                "Origin": origin,
                "Accept": "text/html",
                "Range": "bytes=0-1",
            }
            lines = [
                f"{name}: {value}"
                for name, value in headers.items()
                if value is not None
            ]
            yield "\r\n".join(
                [f"{method} {path} HTTP/1.1", "Host: c42c", *lines, "", ""]
            ).encode()


@pytest.mark.parametrize("origins", ["", PAGE, "*"])
def test_the_fast_path_answers_as_the_route(
    inside: MakeInside, upstream: Standin, origins: str
) -> None:
    """The fast path answers every hit, and nothing else, byte for byte as the route."""
    service = inside(C42_CORS_ORIGINS=origins)
    ids = load_outcomes(service, upstream)
    etag = service.event(ids["ok"]).headers["ETag"]
    calls, statuses = (
        upstream.calls("events"),
        set(),
    )  # of the other, one that nobody waits for may come late
    requests = [Asked(service, raw) for raw in requests_of(ids, etag)]
    for seconds in (
        0.0,
        0.3,
        3.0,
    ):  # a little later, what is left in whole seconds is the same
        service.clock.now += seconds
        hits: list[Asked] = []
        for request in requests:
            fast, route = request.answer_at_once(), request.route()
            assert fast in (None, route), request.raw
            is_hit = b"Cache-Status: c42c; hit" in route[0]
            assert bool(fast) == is_hit, request.raw
            statuses.add(int(route[0][9:12]))
            assert (b" 304 " in route[0]) <= is_hit
            hits += [request] * is_hit
        requests = hits  # time changes no other answer
    assert statuses == {200, 204, 304, 400, 404, 405, 422, 429, 499, 500, 502, 599}
    assert upstream.calls("events") == calls, "all of it came from the cache"


def test_only_hits_are_answered_at_once(inside: MakeInside, upstream: Standin) -> None:
    """The fast path has no answer for a cold event, or at its very expiry."""
    service, event_id = inside(), new_events(upstream, 1)[0]
    get = f"GET {PREFIX}{event_id} HTTP/1.1\r\nHost: c42c\r\n\r\n".encode()
    fast_path = service.components.find_fast_path(parse(get))
    assert fast_path
    began = service.clock.now
    expiry = began + 252.0
    for now, fresh in (
        (began, False),
        (began, True),
        (math.nextafter(expiry, began), True),
        (expiry, False),
    ):
        service.clock.now = now
        assert bool(fast_path()) == fresh
        service.event(event_id)
    assert upstream.calls("events") == 2


def test_the_fast_path_follows_the_cache(inside: MakeInside, upstream: Standin) -> None:
    """After an event was loaded again, the fast path's answer is the new one."""
    service, event_id = inside(), new_id()
    request = Asked(
        service, f"GET {PREFIX}{event_id} HTTP/1.1\r\nHost: c42c\r\n\r\n".encode()
    )
    for title in ("Old", "New", None, "Old"):
        if title:
            upstream.add_event(event_id, title=title)
        else:
            upstream.rule("events", event_id, times=1, status=404)
        assert service.event(event_id).status_code == (200 if title else 404)
        for seconds in (0.0, 0.4, 0.7):
            service.clock.now += seconds
            assert request.answer_at_once() == request.route()
        service.clock.now += 252


def test_hits_do_not_reach_flask(inside: MakeInside, upstream: Standin) -> None:
    """A hit is answered in the loop's turn that read it; a miss goes to a worker.

    So hits don't reach Flask.
    """
    service, (event_id, cold) = inside(), new_events(upstream, 2)
    service.event(event_id)
    desk = Desk(find_fast_path=service.components.find_fast_path)
    for raw in (
        f"GET {PREFIX}{event_id} HTTP/1.1",
        f"HEAD {PREFIX}{event_id}/?x HTTP/1.1",
    ):
        wire = Wire(desk).send(f"{raw}\r\nHost: c42c\r\n\r\n".encode())
        assert (
            wire.answers(raw[:4].strip())[0].headers["Cache-Status"]
            == "c42c; hit; ttl=252"
        )
        assert not desk.waiting
    for path in (PREFIX + cold, listed([event_id]), "/livez"):
        assert (
            Wire(desk)
            .send(f"GET {path} HTTP/1.1\r\nHost: c42c\r\n\r\n".encode())
            .answers()
            == []
        )
    assert len(desk.waiting) == 3


# Lifetimes


@pytest.mark.parametrize(
    ("minutes", "seconds"),
    [("4.2", 252.0), ("0.04", 2.4), ("1", 60.0), ("0.005", 0.3), ("7.77", 466.2)],
)
def test_nobody_keeps_an_answer_longer(
    inside: MakeInside, upstream: Standin, minutes: str, seconds: float
) -> None:
    """`max-age` is what is left in whole seconds, so no copy outlives the entry."""
    service = inside(
        C42_EXPIRY=minutes, C42_FAULT_EXPIRY="0.001", C42_REFRESH_AHEAD="0"
    )
    good, bad = new_events(upstream, 1)[0], new_id()
    began = service.clock.now
    for event_id, status in ((good, 200), (bad, 404)):
        answer = service.event(event_id)
        assert (answer.status_code, lifetime(answer)) == (status, int(seconds))
        assert cache_status(answer) == {
            "fwd": "miss",
            "fwd-status": status,
            "stored": True,
            "ttl": int(seconds),
        }
    rng = random.Random(42)
    ages = [
        0.0,
        1e-3,
        0.999,
        1.0,
        1.001,
        2.0,
        2.3,
        seconds - 1.0,
        seconds - 1e-3,
        seconds - 1e-6,
    ]
    for age in sorted(
        age
        for age in (*ages, *(rng.uniform(0, seconds) for _ in range(50)))
        if 0 <= age < seconds
    ):
        service.clock.now = began + age
        left = int(began + seconds - service.clock.now)
        many = service.http.get(listed([good, bad]))
        revalidated = service.event(good, headers={"If-None-Match": "*"})
        for answer in (service.event(good), service.event(bad), revalidated, many):
            assert (lifetime(answer), answer.headers.get("Age")) == (left, None)
            assert cache_status(answer) == {"hit": True, "ttl": left}
    calls = upstream.calls("events")
    service.clock.now = began + seconds
    assert cache_status(service.event(good))["fwd"] == "miss"
    assert upstream.calls("events") == calls + 1


def test_who_waits_for_a_load(inside: MakeInside, upstream: Standin) -> None:
    """After a load, `max-age` is what is left by then, for waiting callers too."""
    service, event_id, gate = inside(), new_events(upstream, 1)[0], Gate()
    upstream.rule("events", gate=gate)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(service.event, event_id)
        gate.wait_for(1)
        second = pool.submit(service.app.test_client().get, PREFIX + event_id)
        until(lambda: service.cache.snapshot().waiting == 2)
        service.clock.now += 3.5
        gate.open()
        loaded, shared = first.result(), second.result()
    assert (lifetime(loaded), lifetime(shared)) == (248, 248)
    assert cache_status(loaded) == {
        "fwd": "miss",
        "fwd-status": 200,
        "stored": True,
        "ttl": 248,
    }
    assert cache_status(shared) == {
        "fwd": "miss",
        "collapsed": True,
        "fwd-status": 200,
        "stored": True,
        "ttl": 248,
    }
    assert loaded.headers["ETag"] == shared.headers["ETag"]


def test_a_load_longer_than_the_lifetime(inside: MakeInside, upstream: Standin) -> None:
    """An answer that has expired when its load ends is sent; no client may keep it.

    It's sent only once.
    """
    service, event_id, gate = (
        inside(C42_EXPIRY="0.05"),
        new_events(upstream, 1)[0],
        Gate(),
    )
    upstream.rule("events", gate=gate)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(service.event, event_id)
        gate.wait_for(1)
        service.clock.now += 3.0
        gate.open()
        answer = first.result()
    assert (answer.status_code, lifetime(answer)) == (200, None)
    assert cache_status(answer) == {"fwd": "miss", "fwd-status": 200}
    assert cache_status(service.event(event_id))["fwd"] == "miss"


def test_libraries_keep_a_late_hit_no_longer(
    start: Start, upstream: Standin, tmp_path: Path
) -> None:
    """Client libraries ask again when an answer expires, even if they got it late.

    They are requests-cache, CacheControl and hishel.
    """
    # Here, because they take a second to import, in each of pytest-xdist's processes.
    import cachecontrol
    import httpx
    import requests
    import requests_cache
    from hishel import SqliteStorage
    from hishel.httpx import CacheTransport

    # A refresh might bring the new title before the old one expires.
    service, event_id = start(C42_EXPIRY="0.1", C42_REFRESH_AHEAD="0"), new_id()
    upstream.add_event(event_id, title="Old")
    url = service.url + PREFIX + event_id
    storage = SqliteStorage(database_path=tmp_path / "cache.db")
    with (
        requests_cache.CachedSession(backend="memory", cache_control=True) as first,
        cachecontrol.CacheControl(requests.Session()) as second,
        httpx.Client(
            transport=CacheTransport(httpx.HTTPTransport(), storage, rfc=True)
        ) as third,
    ):
        until(
            lambda: lifetime(service.event(event_id)) == 3,
            "an answer late in its life",
            every=0.05,
        )
        assert all('"Old"' in client.get(url).text for client in (first, second, third))
        upstream.set_title(event_id, "New")
        until(
            lambda: '"New"' in service.event(event_id).text,
            "the end of its life",
            every=0.05,
        )
        assert all('"New"' in client.get(url).text for client in (first, second, third))


# Conditional requests


def test_etag_is_of_the_body(inside: MakeInside, upstream: Standin) -> None:
    """An ETag is strong, and changes with any part of the answer, and only then."""
    service, event_id = inside(), new_id()
    upstream.add_event(event_id, title="One", names=["Ella"])
    seen = []
    for title, names in (
        ("One", ["Ella"]),
        ("One", ["Ella"]),
        ("Two", ["Ella"]),
        ("Two", ["Ella", "Arthur"]),
    ):
        upstream.add_event(event_id, title=title, names=names)
        service.clock.now += 252
        answer = service.event(event_id)
        assert cache_status(answer)["fwd"] == "miss"
        assert re.fullmatch('"[!#-~]+"', answer.headers["ETag"])
        seen.append(answer.headers["ETag"])
    assert seen[0] == seen[1]
    assert len(set(seen)) == 3


@pytest.mark.parametrize(
    "condition",
    [
        "{}",
        "W/{}",
        "*",
        '"x", {}',
        'W/"x" , W/{},"y"',
        '"a,b",{}',
        ", {} ,",
        '"",{}',
        '"x",' * 5000 + "{}",
    ],
)
def test_not_modified(inside: MakeInside, condition: str) -> None:
    """A client that has the answer gets a 304 without a body.

    It has the headers that RFC 9110, 15.4.5 asks for.
    """
    service = inside(C42_CORS_ORIGINS=PAGE)
    full = service.event(DEMO_EVENTS["plain"])
    condition = condition.format(full.headers["ETag"])
    for path in (
        PREFIX + DEMO_EVENTS["plain"],
        listed([DEMO_EVENTS["plain"], DEMO_EVENTS["unknown"]]),
    ):
        service.http.get(path)  # so that both of these are hits
        full = service.http.get(path, headers={"Origin": PAGE})
        tag = condition.replace(
            service.event(DEMO_EVENTS["plain"]).headers["ETag"], full.headers["ETag"]
        )
        for method in ("GET", "HEAD"):
            answer = service.http.open(
                path, method=method, headers={"Origin": PAGE, "If-None-Match": tag}
            )
            assert (answer.status, answer.data) == ("304 Not Modified", b"")
            left = [
                header
                for header in full.headers
                if header[0] not in ("Content-Type", "Content-Length")
            ]
            assert list(answer.headers) == left
        assert {
            "ETag",
            "Cache-Control",
            "Cache-Status",
            "Vary",
            "Access-Control-Allow-Origin",
        } <= set(dict(left))


@pytest.mark.parametrize(
    "condition",
    [
        '"x"',
        'W/"x"',
        '"x", "y"',
        '"',
        '"*"',
        "",
        ",",
        "W/",
        "\\",
        "x" * 50_000,
        '"x",' * 5000,
        "\xff",
        ' " ',
    ],
)
def test_modified(inside: MakeInside, condition: str) -> None:
    """A client with another answer or a malformed condition gets the whole answer."""
    service = inside()
    for path in (PREFIX + DEMO_EVENTS["plain"], listed([DEMO_EVENTS["plain"]])):
        answer = service.http.get(path, headers={"If-None-Match": condition})
        assert (answer.status_code, bool(answer.data)) == (200, True)


def test_errors_are_not_conditional(inside: MakeInside, upstream: Standin) -> None:
    """If-None-Match doesn't apply to errors (RFC 9110, 13.2.1)."""
    service = inside()
    ids = load_outcomes(service, upstream)
    for event_id in (*(ids[name] for name in ids if name != "ok"), "%20", "a/b"):
        answer = service.event(event_id, headers={"If-None-Match": "*"})
        assert answer.status_code >= 400
        assert answer.data
        assert "ETag" not in answer.headers


# Cache-Status


def test_cache_status_of_every_outcome(inside: MakeInside, upstream: Standin) -> None:
    """Cache-Status says whether it was a hit, and whether the answer is kept.

    For a miss, it says what the upstream answered.
    """
    service = inside()
    said = {}
    outcomes: list[tuple[str, dict[str, Any]]] = [
        ("ok", {}),
        ("unknown", {}),
        ("refused", {"status": 400}),
        ("401", {"status": 401}),
        ("500", {"status": 500}),
        ("reset", {"reset": True}),
        ("not JSON", {"body": "{"}),
        ("redirect", {"status": 302}),
        ("429", {"status": 429, "headers": {"Retry-After": "1000"}}),
    ]
    for name, fault in outcomes:
        event_id = new_id()
        if name != "unknown":
            upstream.add_event(event_id)
        if fault:
            upstream.rule("events", event_id, **fault)
        answers = [service.event(event_id) for _ in range(2)]
        said[name] = [answers[0].status_code, *map(cache_status, answers)]
        faulty = answers[0].headers["Cache-Control"] == "no-store"
        assert faulty == (name not in ("ok", "unknown", "refused"))
        assert {answer.headers["Cache-Control"] for answer in answers} == {
            answers[0].headers["Cache-Control"]
        }

    def expected(status: int, upstream_status: int | None, ttl: int) -> list[Any]:
        forwarded = {"fwd-status": upstream_status} if upstream_status else {}
        return [
            status,
            {"fwd": "miss", **forwarded, "stored": True, "ttl": ttl},
            {"hit": True, "ttl": ttl},
        ]

    assert said == {
        "ok": expected(200, 200, 252),
        "unknown": expected(404, 404, 252),
        "refused": expected(400, 400, 252),
        "401": expected(401, 401, 6),
        "500": expected(500, 500, 6),
        "reset": expected(502, None, 6),
        "not JSON": expected(502, 200, 6),
        "redirect": expected(502, 302, 6),
        "429": expected(429, 429, 252),
    }
    event_ids = [new_id() for _ in range(3)]
    for answer in (
        service.event(event_ids[0]),
        service.http.get(listed(event_ids[1:])),
    ):
        status = cache_status(answer)
        assert (status.pop("detail"), 240 < status.pop("ttl") <= 252, status) == (
            "paused",
            True,
            {},
        )
    assert [upstream.calls(event_id=event_id) for event_id in event_ids] == [0, 0, 0]


def test_retry_after_covers_what_is_kept(inside: MakeInside, upstream: Standin) -> None:
    """A client that comes back after `Retry-After` doesn't find the same 429."""
    service = inside()
    upstream.rule("events", times=1, status=429, headers={"Retry-After": "30"})
    for event_id in new_events(upstream, 2):
        answer = service.event(event_id)
        assert answer.status_code == 429
        service.clock.now += 10.0
        later = service.event(event_id)
        assert 19 <= int(later.headers["Retry-After"]) <= 31 - 10
        service.clock.now += int(later.headers["Retry-After"])
        assert service.cache.get(event_id) is None


# Methods, and answers that no client may store


@pytest.mark.parametrize(
    "path",
    [
        PREFIX + DEMO_EVENTS["plain"],
        PREFIX + DEMO_EVENTS["plain"] + "/",
        listed([DEMO_EVENTS["plain"]]),
    ],
)
def test_head_and_options_on_the_wire(service: Service, path: str) -> None:
    """HEAD is GET without the body, and OPTIONS says what is allowed.

    Other methods get a 405 that says so too.
    """
    target = path.encode()
    service.get(path)
    get, head = service.raw(target), service.raw(target, b"HEAD")
    assert (get.status, head.status, head.body) == (200, 200, b"")
    assert head.headers["Content-Length"] == str(len(get.body))
    same = {"ETag", "Content-Type", "Content-Length", "X-Content-Type-Options"}
    assert [head.headers[name] for name in same] == [get.headers[name] for name in same]
    assert lifetime(head) == pytest.approx(
        lifetime(get), abs=1
    )  # a second may have passed
    assert set(head.headers) == set(get.headers)
    assert {"Date", "Cache-Status"} <= set(get.headers)
    options = service.raw(target, b"OPTIONS")
    assert (options.status, options.body, options.headers["Content-Length"]) == (
        204,
        b"",
        None,
    )
    allowed = {"GET", "HEAD", "OPTIONS"}
    assert set(options.headers["Allow"].split(", ")) == allowed
    for method in (b"POST", b"PUT", b"DELETE", b"PATCH", b"BREW"):
        answer = service.raw(target, method)
        assert (answer.status, set(answer.headers["Allow"].split(", "))) == (
            405,
            allowed,
        )
        assert answer.headers["Cache-Control"] == "no-store"
    assert service.raw(b"/nothing-here", b"OPTIONS").status == 404


def test_nobody_keeps_what_is_no_answer(inside: MakeInside) -> None:
    """No client may store a 400, a 404 for an unknown path, or a 405."""
    service = inside()
    for method, path, status in (
        ("GET", PREFIX + "a b", 400),
        ("GET", PREFIX, 400),
        ("GET", "/nothing", 404),
        ("GET", PREFIX + "a/b", 404),
        ("POST", PREFIX + "a", 405),
    ):
        answer = service.http.open(path, method=method)
        assert (answer.status_code, answer.headers["Cache-Control"]) == (
            status,
            "no-store",
        )
        assert not {"ETag", "Cache-Status"} & {name for name, _ in answer.headers}


def test_rejections_say_when_to_come_back(inside: MakeInside) -> None:
    """What the server rejects isn't stored; a busy server says when to come back."""
    reject = inside().components.reject
    for status, soon in ((400, []), (408, []), (500, []), (503, ["Retry-After: 1"])):
        head, body = reject(status, "why", "")
        line, *headers = head.decode().splitlines()
        assert line.startswith(f"HTTP/1.1 {status} ")
        assert {"Cache-Control: no-store", "X-Content-Type-Options: nosniff"} < set(
            headers
        )
        assert [text for text in headers if text.startswith("Retry-After")] == soon
        assert json.loads(body)["error"]["message"] == "why"
