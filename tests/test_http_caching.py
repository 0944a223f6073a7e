"""What frontends rely on: HTTP caching by RFC 9110, 9111 and 9211, CORS by the Fetch standard, many events at once.

Most tests have the service in this process, under a clock of their own. The browser is real.
"""

import itertools
import json
import random
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import quote

import http_sf
import pytest
import requests_cache
from flask import Flask
from selenium import webdriver
from werkzeug.test import EnvironBuilder

from conftest import PATIENCE, TOKEN, Inside, Service, at_once, new_id, run_as_script, started, until
from operations import settings
from standin import EVENTS, Gate, Standin

PREFIX = "/events-with-subscriptions/"
PAGE = "https://app.example.com"
EXPOSED = {"Age", "Cache-Status", "ETag", "Retry-After"}

MakeInside = Callable[..., Inside]
Start = Callable[..., Service]
Answer = tuple[str, list[tuple[str, str]], bytes]


def cache_status(answer: Any) -> dict[str, Any]:
    """Parse `Cache-Status` as RFC 8941 has it, check that it is of one cache, c42c, and return its parameters."""
    parsed: Any = http_sf.parse(answer.headers["Cache-Status"].encode(), tltype="list")
    ((name, parameters),) = parsed
    assert str(name) == "c42c"
    return {key: value if isinstance(value, bool | int) else str(value) for key, value in parameters.items()}


def listed(event_ids: list[str]) -> str:
    """Return the path of a list of events."""
    return f"{PREFIX}?event_ids=[{','.join(event_ids)}]"


def new_events(upstream: Standin, count: int, people: int = 2) -> list[str]:
    """Add so many events, each with names of its own, and return their ids."""
    event_ids = [new_id() for _ in range(count)]
    for event_id in event_ids:
        upstream.add_event(event_id, title=f"Title {event_id}", names=[f"{event_id} {at}" for at in range(people)])
    return event_ids


def lifetime(answer: Any) -> int | None:
    """Return the seconds that `Cache-Control` gives, None where nothing may be stored."""
    if answer.headers["Cache-Control"] == "no-store":
        return None
    (seconds,) = re.fullmatch("max-age=([0-9]+)", answer.headers["Cache-Control"]).groups()  # type: ignore[union-attr]
    return int(seconds)


# Fast path and route


def ask(app: Callable[..., Any], environ: dict[str, Any]) -> Answer:
    """Call a WSGI app, and return status line, headers in their order and body."""
    began: list[tuple[str, list[tuple[str, str]]]] = []
    chunks = app(dict(environ), lambda status, headers, *_: began.append((status, list(headers))))
    body = b"".join(chunks)
    if hasattr(chunks, "close"):
        chunks.close()
    ((status, headers),) = began
    return status, headers, body


def load_outcomes(service: Inside, upstream: Standin) -> dict[str, str]:
    """Have `service` load an event for each outcome; return the ids."""
    ids = {name: new_id() for name in ("negative", "refused", "fault", "gone", "empty", "text", "429", "paused")}
    ids |= {"ok": EVENTS["scripts"], "deleted": EVENTS["deleted"]}
    upstream.rule("events", ids["refused"], status=422, body='{"why":  "not today"}')
    upstream.rule("events", ids["fault"], status=500)
    upstream.rule("events", ids["gone"], reset=True)
    upstream.rule("events", ids["empty"], status=499, body="")
    upstream.rule("events", ids["text"], status=599, body=b"<p>caf\xe9</p>", content_type="text/html")
    upstream.rule("events", ids["429"], status=429, headers={"Retry-After": "30"})
    for name in ("ok", "deleted", "negative", "refused", "fault", "gone", "empty", "text", "429", "paused"):
        service.event(ids[name])
    return ids


def requests_of(ids: dict[str, str], etag: str) -> Iterator[dict[str, Any]]:
    """Make requests of every kind."""
    paths = [f"{PREFIX}{event_id}{slash}" for event_id, slash in zip(ids.values(), itertools.cycle(["", "/"]))]
    paths += [f"{PREFIX}{ids[name]}{slash}" for name in ("ok", "negative") for slash in ("", "/")]
    paths += [f"{PREFIX}{ids['ok']}//", f"{PREFIX}not%20an%20id", f"{PREFIX}{ids['ok']}%2F", f"{PREFIX}{ids['ok']}?x=1"]
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
    for method, path in itertools.product(["GET", "HEAD", "OPTIONS", "POST", "BREW"], paths):
        for condition, origin in itertools.product(conditions if method in ("GET", "HEAD") else ("*",), origins):
            headers = {"If-None-Match": condition, "Origin": origin, "Accept": "text/html", "Range": "bytes=0-1"}
            path_only, _, query = path.partition("?")
            builder = EnvironBuilder(
                path_only,
                query_string=query,
                method=method,
                headers=[(name, value) for name, value in headers.items() if value is not None],
            )
            yield builder.get_environ()


@pytest.mark.parametrize("origins", ["", PAGE, "*"])
def test_fast_path_answers_as_the_route_does(inside: MakeInside, upstream: Standin, origins: str) -> None:
    """Whatever is asked for, the fast path's answer is the route's, byte for byte and header for header."""
    service = inside(C42_CORS_ORIGINS=origins)
    ids = load_outcomes(service, upstream)
    etag = service.event(ids["ok"]).headers["ETag"]
    route = partial(Flask.wsgi_app, service.app)
    calls, statuses = upstream.calls("events"), set()  # of the other, one that nobody waits for may come late
    for age in (0.0, 3.3):
        service.clock.now += age
        for environ in requests_of(ids, etag):
            fast = ask(service.app.wsgi_app, environ)
            assert fast == ask(route, environ), (environ["REQUEST_METHOD"], environ["PATH_INFO"], environ)
            statuses.add(int(fast[0][:3]))
            assert not fast[2] or environ["REQUEST_METHOD"] != "HEAD"
            assert (fast[0][:3] == "304") <= (environ["PATH_INFO"].rstrip("/") == PREFIX + ids["ok"])
    assert statuses == {200, 204, 304, 400, 404, 405, 422, 429, 499, 500, 502, 599}
    assert upstream.calls("events") == calls, "all of it came from the cache"


def test_fast_path_loads_as_the_route_does(inside: MakeInside, upstream: Standin) -> None:
    """What is cold, and what has expired at this very instant, is loaded and answered alike by fast path and route."""
    services = [inside(C42_CORS_ORIGINS=PAGE) for _ in range(2)]
    event_id = new_events(upstream, 1)[0]
    for seconds in (0.0, 252.0, 251.0, 1.0):  # cold, expired, fresh, expired
        for method, condition in (("GET", ""), ("HEAD", ""), ("GET", "*")):
            headers = [("Origin", PAGE), ("If-None-Match", condition)]
            builder = EnvironBuilder(PREFIX + event_id, method=method, headers=headers)
            for service in services:
                service.clock.now += seconds if method == "GET" and not condition else 0.0
            fast, slow = services
            answer = ask(fast.app.wsgi_app, builder.get_environ())
            assert answer == ask(partial(Flask.wsgi_app, slow.app), builder.get_environ())
    assert upstream.calls("events") == 2 * 3


# Lifetimes


@pytest.mark.parametrize(
    ("minutes", "seconds"), [("4.2", 252.0), ("0.04", 2.4), ("1", 60.0), ("0.005", 0.3), ("7.77", 466.2)]
)
def test_nobody_keeps_an_answer_longer(inside: MakeInside, upstream: Standin, minutes: str, seconds: float) -> None:
    """At any age `max-age` is the whole lifetime, `Age` not understated, and a copy fresh no longer than the entry."""
    service = inside(C42_EXPIRY=minutes, C42_FAULT_EXPIRY="0.001")
    good, bad = new_events(upstream, 1)[0], new_id()
    began = service.clock.now
    for event_id, status in ((good, 200), (bad, 404)):
        answer = service.event(event_id)
        assert (answer.status_code, lifetime(answer), "Age" in answer.headers) == (status, int(seconds), False)
        assert cache_status(answer) == {"fwd": "miss", "fwd-status": status, "stored": True, "ttl": int(seconds)}
    rng = random.Random(42)
    ages = [0.0, 1e-3, 0.999, 1.0, 1.001, 2.0, 2.3, seconds - 1.0, seconds - 1e-3, seconds - 1e-6]
    for age in sorted(age for age in (*ages, *(rng.uniform(0, seconds) for _ in range(200))) if 0 <= age < seconds):
        service.clock.now = began + age
        for answer in (service.event(good), service.event(bad), service.event(good, headers={"If-None-Match": "*"})):
            said, said_age = int(seconds), int(answer.headers["Age"])
            assert lifetime(answer) == said
            assert age - 1e-6 <= said_age < age + 1
            assert said - said_age <= seconds - age + 1e-6
            assert cache_status(answer) == {"hit": True, "ttl": max(0, said - said_age)}
        many = service.http.get(listed([good, bad]))
        assert (lifetime(many) or 0) <= seconds - age + 1e-6
        assert (lifetime(many) or 0) == max(0, said - said_age)
    calls = upstream.calls("events")
    service.clock.now = began + seconds
    assert cache_status(service.event(good))["fwd"] == "miss"
    assert upstream.calls("events") == calls + 1


def test_who_waits_for_a_load(inside: MakeInside, upstream: Standin) -> None:
    """Who waited for another's load is told its age; who waited for the whole of it knows that without being told."""
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
    assert (lifetime(loaded), loaded.headers.get("Age")) == (252, None)
    assert cache_status(loaded) == {"fwd": "miss", "fwd-status": 200, "stored": True, "ttl": 249}
    assert (lifetime(shared), shared.headers["Age"]) == (252, "4")
    assert cache_status(shared) == {"fwd": "miss", "collapsed": True, "fwd-status": 200, "stored": True, "ttl": 248}
    assert loaded.headers["ETag"] == shared.headers["ETag"]


def test_a_load_longer_than_the_lifetime(inside: MakeInside, upstream: Standin) -> None:
    """What is over when its load ends is answered once, and nobody may keep it."""
    service, event_id, gate = inside(C42_EXPIRY="0.05"), new_events(upstream, 1)[0], Gate()
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


# Conditional requests


def test_etag_is_of_the_body(inside: MakeInside, upstream: Standin) -> None:
    """An ETag is strong, stays where an event was reloaded and did not change, and changes with any of its parts."""
    service, event_id = inside(), new_id()
    upstream.add_event(event_id, title="One", names=["Ella"])
    seen = []
    for title, names in (("One", ["Ella"]), ("One", ["Ella"]), ("Two", ["Ella"]), ("Two", ["Ella", "Arthur"])):
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
    ["{}", "W/{}", "*", '"x", {}', 'W/"x" , W/{},"y"', '"a,b",{}', ", {} ,", '"",{}', '"x",' * 5000 + "{}"],
)
def test_not_modified(inside: MakeInside, condition: str) -> None:
    """A client that has the answer is spared the body, with every header of the 200 that RFC 9110, 15.4.5 asks for."""
    service = inside(C42_CORS_ORIGINS=PAGE)
    full = service.event(EVENTS["plain"], headers={"Origin": PAGE})
    condition = condition.format(full.headers["ETag"])
    for path in (PREFIX + EVENTS["plain"], listed([EVENTS["plain"], EVENTS["unknown"]])):
        service.http.get(path)  # so that both of these are hits
        full = service.http.get(path, headers={"Origin": PAGE})
        tag = condition.replace(service.event(EVENTS["plain"]).headers["ETag"], full.headers["ETag"])
        for method in ("GET", "HEAD"):
            answer = service.http.open(path, method=method, headers={"Origin": PAGE, "If-None-Match": tag})
            assert (answer.status_code, answer.data) == (304, b"")
            left = [header for header in full.headers if header[0] not in ("Content-Type", "Content-Length")]
            assert list(answer.headers) == left
        assert {"ETag", "Cache-Control", "Cache-Status", "Vary", "Access-Control-Allow-Origin"} <= set(dict(left))


@pytest.mark.parametrize(
    "condition",
    ['"x"', 'W/"x"', '"x", "y"', '"', '"*"', "", ",", "W/", "\\", "x" * 50_000, '"x",' * 5000, "\xff", ' " '],
)
def test_modified(inside: MakeInside, condition: str) -> None:
    """A client that has another answer, or asks in a way that makes no sense, gets the whole."""
    service = inside()
    for path in (PREFIX + EVENTS["plain"], listed([EVENTS["plain"]])):
        answer = service.http.get(path, headers={"If-None-Match": condition})
        assert (answer.status_code, bool(answer.data)) == (200, True)


def test_errors_are_not_conditional(inside: MakeInside, upstream: Standin) -> None:
    """Whoever has anything at all still gets an error in full (RFC 9110, 13.2.1)."""
    service = inside()
    ids = load_outcomes(service, upstream)
    for event_id in (*(ids[name] for name in ids if name != "ok"), "%20", "a/b"):
        answer = service.event(event_id, headers={"If-None-Match": "*"})
        assert answer.status_code >= 400
        assert answer.data
        assert "ETag" not in answer.headers


# Cache-Status


def test_cache_status_of_every_outcome(inside: MakeInside, upstream: Standin) -> None:
    """Cache-Status says of every outcome whether it was a hit, what the upstream said, and whether it is kept."""
    service = inside()
    said = {}
    outcomes: list[tuple[str, dict[str, Any]]] = [
        ("ok", {}), ("unknown", {}), ("refused", {"status": 400}), ("401", {"status": 401}), ("500", {"status": 500}),
        ("reset", {"reset": True}), ("not JSON", {"body": "{"}), ("redirect", {"status": 302}),
        ("429", {"status": 429, "headers": {"Retry-After": "1000"}}),
    ]  # fmt: skip
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
        assert {answer.headers["Cache-Control"] for answer in answers} == {answers[0].headers["Cache-Control"]}
        assert [answer.headers.get("Age") for answer in answers] == [None, "0"]

    def expected(status: int, upstream_status: int | None, ttl: int) -> list[Any]:
        forwarded = {"fwd-status": upstream_status} if upstream_status else {}
        return [status, {"fwd": "miss", **forwarded, "stored": True, "ttl": ttl}, {"hit": True, "ttl": ttl}]

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
    for answer in (service.event(event_ids[0]), service.http.get(listed(event_ids[1:]))):
        status = cache_status(answer)
        assert (status.pop("detail"), 240 < status.pop("ttl") <= 252, status) == ("paused", True, {})
    assert [upstream.calls(event_id=event_id) for event_id in event_ids] == [0, 0, 0]


def test_retry_after_covers_what_is_kept(inside: MakeInside, upstream: Standin) -> None:
    """Who comes back after `Retry-After` seconds does not find the same 429 in the cache."""
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


# Methods, and what nobody may keep


@pytest.mark.parametrize("path", [PREFIX + EVENTS["plain"], PREFIX + EVENTS["plain"] + "/", listed([EVENTS["plain"]])])
def test_head_and_options_on_the_wire(service: Service, path: str) -> None:
    """HEAD is GET without the body, OPTIONS says what is allowed, and all else is a 405 that says it too."""
    target = path.encode()
    service.get(path)
    get, head = service.raw(target), service.raw(target, b"HEAD")
    assert (get.status, head.status, head.body) == (200, 200, b"")
    assert head.headers["Content-Length"] == str(len(get.body))
    same = {"ETag", "Content-Type", "Content-Length", "Cache-Control", "X-Content-Type-Options"}
    assert [head.headers[name] for name in same] == [get.headers[name] for name in same]
    assert set(head.headers) == set(get.headers)
    assert {"date", "cache-status"} <= set(get.headers)
    options = service.raw(target, b"OPTIONS")
    assert (options.status, options.body, options.headers["Content-Length"]) == (204, b"", None)
    allowed = {"GET", "HEAD", "OPTIONS"}
    assert set(options.headers["Allow"].split(", ")) == allowed
    for method in (b"POST", b"PUT", b"DELETE", b"PATCH", b"BREW"):
        answer = service.raw(target, method)
        assert (answer.status, set(answer.headers["Allow"].split(", "))) == (405, allowed)
        assert answer.headers["Cache-Control"] == "no-store"
    assert service.raw(b"/nothing-here", b"OPTIONS").status == 404


def test_nobody_keeps_what_is_no_answer(inside: MakeInside) -> None:
    """A 400, an unknown path and a wrong method may be stored by nobody."""
    service = inside()
    for method, path, status in (
        ("GET", PREFIX + "a b", 400),
        ("GET", PREFIX, 400),
        ("GET", "/nothing", 404),
        ("GET", PREFIX + "a/b", 404),
        ("POST", PREFIX + "a", 405),
    ):
        answer = service.http.open(path, method=method)
        assert (answer.status_code, answer.headers["Cache-Control"]) == (status, "no-store")
        assert not {"ETag", "Age", "Cache-Status"} & {name for name, _ in answer.headers}


# CORS


def every_answer(service: Inside, upstream: Standin, **headers: str) -> Iterator[Any]:
    """Yield an answer of each kind, 503 and 304 included, to requests with these headers."""
    ids = load_outcomes(service, upstream)
    for path in (*(PREFIX + event_id for event_id in ids.values()), PREFIX + "a b", PREFIX, "/nothing", "/livez"):
        for method in ("GET", "HEAD", "POST", "OPTIONS"):
            yield service.http.open(path, method=method, headers=headers)
    yield service.http.get(listed(list(ids.values())), headers=headers)
    for path in (PREFIX + ids["ok"], listed([ids["ok"], ids["deleted"]])):
        answer = service.http.get(path, headers={"If-None-Match": "*", **headers})
        assert answer.status_code == 304
        yield answer
    waiting = service.cache._max_waiting
    service.cache._max_waiting = 0  # the waiting room is full
    answer = service.event(new_id(), headers=headers)
    assert (answer.status_code, answer.headers["Cache-Control"], answer.headers["Retry-After"]) == (
        503,
        "no-store",
        "1",
    )
    assert cache_status(answer) == {"detail": "refused"}
    yield answer
    service.cache._max_waiting = waiting


def cors_headers(answer: Any) -> dict[str, str]:
    """Return the headers that have to do with origins; none may be there twice."""
    found = [(name, value) for name, value in answer.headers if re.match("access-control-|vary|timing-", name.lower())]
    assert len(found) == len(dict(found))
    return dict(found)


def allowing(origin: str, options: bool) -> dict[str, str]:
    """Return what a page of an allowed origin gets."""
    preflight = {"Methods": "GET, HEAD", "Headers": "*"}
    return {
        "Access-Control-Allow-Origin": origin,
        **({f"Access-Control-Allow-{name}": value for name, value in preflight.items()} if options else {}),
        **({"Access-Control-Max-Age": "600"} if options else {}),
    }


@pytest.mark.parametrize(
    ("setting", "origin", "allowed", "vary"),
    [
        ("", PAGE, None, False),
        (f"{PAGE}, http://localhost:3000", PAGE, PAGE, True),
        (f"{PAGE},http://localhost:3000", "http://localhost:3000", "http://localhost:3000", True),
        (PAGE, PAGE.upper(), None, True),
        (PAGE, PAGE + ":443", None, True),
        (PAGE, PAGE + ".evil.example", None, True),
        (PAGE, f"{PAGE}, {PAGE}", None, True),
        (PAGE, "null", None, True),
        (PAGE, "*", None, True),
        (PAGE, "", None, True),
        (PAGE, None, None, True),
        ("*", PAGE, "*", False),
        ("*", None, "*", False),
    ],
)
def test_cors(
    inside: MakeInside, upstream: Standin, setting: str, origin: str | None, allowed: str | None, vary: bool
) -> None:
    """Every answer, errors, 304 and 503 included, lets those pages read it that the setting names, and no other."""
    service = inside(C42_CORS_ORIGINS=setting)
    seen = set()
    for answer in every_answer(service, upstream, **({} if origin is None else {"Origin": origin})):
        seen.add(answer.status_code)
        found = cors_headers(answer)
        assert (found.pop("Vary", None) == "Origin") == vary
        if allowed:
            assert set(found.pop("Access-Control-Expose-Headers").split(", ")) == EXPOSED
        options = answer.request.method == "OPTIONS"
        assert found == (allowing(allowed, options) if allowed else {})
    assert {200, 204, 304, 400, 404, 405, 422, 429, 500, 502, 503} <= seen


def test_preflight(inside: MakeInside, upstream: Standin) -> None:
    """What a browser asks before a fetch with headers of its own is answered, with no call to the upstream."""
    service = inside(C42_CORS_ORIGINS=PAGE)
    headers = {
        "Origin": PAGE,
        "Access-Control-Request-Method": "GET",
        "Access-Control-Request-Headers": "if-none-match,x-trace",
    }
    for path in (PREFIX + new_id(), listed([new_id()])):
        answer = service.http.options(path, headers=headers)
        found = cors_headers(answer)
        assert (answer.status_code, answer.data, found.pop("Vary")) == (204, b"", "Origin")
        assert found.pop("Access-Control-Expose-Headers")
        assert found == allowing(PAGE, True)
    assert upstream.calls() == 0


WRONG_ORIGINS = [
    "app.example.com", "https://app.example.com/", "https://app.example.com/app", "https://", "https:app.example.com",
    "ftp://app.example.com", "https://App.example.com", "https://app.example.com:", "https://app.example.com:0",
    "https://app.example.com:65536", "https://app.example.com:443", "http://app.example.com:80", "null", "**",
    "*.example.com", "https://*.example.com", "https://a.example.com,", ",", " ",
    "https://a.example.com,,https://b.example.com",
    "*,https://app.example.com", "https://a.example.com https://b.example.com", "https://user@app.example.com",
    "https://app.example.com?x", "https://app.example.com#x", "https://\u00fc.example.com", "https://a.example.com\n",
    "https://a.example.com\r\nX: y", "https://[::1", "https://a.example.com:8o",
]  # fmt: skip


@pytest.mark.parametrize("origins", WRONG_ORIGINS)
def test_malformed_origins(origins: str) -> None:
    """A setting that no browser's `Origin` could match is refused, in one line that names it."""
    with pytest.raises(settings.SettingsError, match=r"^C42_CORS_ORIGINS.* makes no sense: it takes .*$") as refused:
        settings.read({"C42_TOKEN": TOKEN, "C42_CORS_ORIGINS": origins})
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "origins",
    ["", "*", PAGE, f" {PAGE} , http://localhost:3000 ", "http://127.0.0.1:8080", "http://[::1]:1", "https://x:80"],
)
def test_sound_origins(origins: str) -> None:
    """Every origin that a browser can send may be named."""
    expected = frozenset(filter(None, origins.replace(" ", "").split(",")))
    assert settings.read({"C42_TOKEN": TOKEN, "C42_CORS_ORIGINS": origins}).cors_origins == expected


def test_malformed_origin_stops_the_start(start: Start) -> None:
    """The program ends with status 2 and says which variable is wrong."""
    service = start(ready=False, C42_CORS_ORIGINS="https://app.example.com/")
    assert service.process.wait(PATIENCE) == 2
    assert service.log.startswith("C42_CORS_ORIGINS=https://app.example.com/ makes no sense: ")
    assert service.log.count("\n") == 1


# Many events at once


def answers_of(service: Inside, event_ids: list[str]) -> Any:
    """GET a list of events, check what every such answer is, and return it."""
    answer: Any = service.http.get(listed(event_ids))
    assert (answer.status_code, answer.content_type) == (200, "application/json")
    assert list(answer.json) == ["meta_data", "data", "errors"]
    assert answer.json["meta_data"] == {"count": len(answer.json["data"])}
    said = [*(one["id"] for one in answer.json["data"]), *answer.json["errors"]]
    assert sorted(said) == sorted(set(event_ids))
    order = [event_id for event_id in dict.fromkeys(event_ids) if event_id not in answer.json["errors"]]
    assert [one["id"] for one in answer.json["data"]] == order
    return answer


def ids_asked(upstream: Standin, endpoint: str) -> list[set[str]]:
    """Return the ids that each call to an endpoint named."""
    targets = [target for called, target, _ in upstream.requests if called == endpoint]
    return [set(re.findall("[0-9a-f]{32}_[0-9]{14}", target)) for target in targets]


def test_cold_events_cost_two_calls(inside: MakeInside, upstream: Standin) -> None:
    """Twenty cold events cost two calls; then each of them, and all at once, are hits."""
    service, event_ids = inside(), new_events(upstream, 20)
    answer = answers_of(service, event_ids)
    assert (upstream.calls("events"), upstream.calls("event-subscriptions")) == (1, 1)
    assert answer.json["data"] == [
        {"id": event_id, "title": f"Title {event_id}", "names": [f"{event_id} 0", f"{event_id} 1"]}
        for event_id in event_ids
    ]
    assert cache_status(answer) == {"fwd": "miss", "stored": True, "ttl": 252}
    assert (lifetime(answer), answer.headers.get("Age")) == (252, None)
    service.clock.now += 100.5
    singles = [service.event(event_id) for event_id in event_ids]
    assert {(single.status_code, single.headers["Age"]) for single in singles} == {(200, "101")}
    again = answers_of(service, event_ids)
    assert again.data == answer.data
    assert (lifetime(again), cache_status(again)) == (151, {"hit": True, "ttl": 151})
    assert upstream.calls() == 2
    # Byte for byte what the route of one event says:
    assert b'"data":[%b]' % b",".join(single.data for single in singles) in again.data


def test_fresh_events_are_not_asked_for(inside: MakeInside, upstream: Standin) -> None:
    """What the route of one event has loaded is taken from the cache, and only the others are asked for, together."""
    service, event_ids = inside(), new_events(upstream, 6)
    for event_id in event_ids[:3]:
        service.event(event_id)
    upstream.reset_counts()
    answer = answers_of(service, event_ids)
    assert ids_asked(upstream, "events") == ids_asked(upstream, "event-subscriptions") == [set(event_ids[3:])]
    assert cache_status(answer) == {"fwd": "partial", "stored": True, "ttl": 252}


def test_each_event_keeps_its_own_expiry(inside: MakeInside, upstream: Standin) -> None:
    """The part that lives shortest decides how long others may keep the whole; then only that part is loaded."""
    service, (old, new) = inside(), new_events(upstream, 2)
    answers_of(service, [old])
    service.clock.now += 100.25
    answer = answers_of(service, [new, old])
    assert (lifetime(answer), cache_status(answer)["ttl"]) == (151, 151)
    service.clock.now += 151.75
    upstream.reset_counts()
    answer = answers_of(service, [new, old])
    assert (upstream.calls("events", old), upstream.calls("events", new)) == (1, 0)
    assert lifetime(answer) == 252 - 152


def test_a_fault_among_many(inside: MakeInside, upstream: Standin) -> None:
    """A list with a fault in it may be stored by nobody, and its good parts are good."""
    service, (good, bad) = inside(), new_events(upstream, 2)
    upstream.rule("events", bad, status=500)
    service.event(bad)
    answer = answers_of(service, [good, bad])
    assert answer.json["errors"] == {
        bad: {"status_code": 500, "message": "Internal Server Error", "code": "GENERAL_SYSTEM_ERROR"}
    }
    assert (lifetime(answer), [one["id"] for one in answer.json["data"]]) == (None, [good])


def test_unknown_and_deleted_among_many(inside: MakeInside, upstream: Standin) -> None:
    """What the list leaves out and what is deleted is a 404 for that id, as the route of one event says it later."""
    service, event_ids = inside(), new_events(upstream, 2)
    unknown, gone = new_id(), EVENTS["deleted"]
    answer = answers_of(service, [unknown, event_ids[1], gone, event_ids[0], unknown])
    assert answer.json["errors"] == {
        unknown: {"status_code": 404, "message": f"Event {unknown} not found", "code": "NOT_FOUND"},
        gone: {"status_code": 404, "message": "the event is deleted", "code": "NOT_FOUND"},
    }
    assert [one["names"] for one in answer.json["data"]] == [[f"{one} 0", f"{one} 1"] for one in reversed(event_ids)]
    assert lifetime(answer) == 252
    calls = upstream.calls()
    for event_id in (unknown, gone):
        single = service.event(event_id)
        assert (single.status_code, single.json["error"]) == (404, answer.json["errors"][event_id])
        assert (cache_status(single)["hit"], lifetime(single)) == (True, 252)
    assert upstream.calls() == calls


def test_another_request_loads_it_already(inside: MakeInside, upstream: Standin) -> None:
    """An event that someone loads already is waited for, not loaded again, by lists and by single requests alike."""
    service, (first, second, third) = inside(), new_events(upstream, 3)
    gate = Gate()
    upstream.rule("events", first, gate=gate)
    upstream.rule("events", second, gate=gate)
    get = service.app.test_client().get
    with ThreadPoolExecutor() as pool:
        single = pool.submit(get, PREFIX + first)
        gate.wait_for(1)
        many = pool.submit(get, listed([first, second]))
        gate.wait_for(2)
        waits = [pool.submit(get, path) for path in (PREFIX + second, listed([second, first]), listed([third, second]))]
        until(lambda: service.cache.snapshot().waiting == 5)
        until(lambda: service.cache.snapshot().loading == 2, "the third event")
        gate.open()
        one, both, later, all_waited, partly = (future.result() for future in (single, many, *waits))
    assert [upstream.calls("events", event_id) for event_id in (first, second, third)] == [1, 1, 1]
    assert cache_status(both) == {"fwd": "miss", "stored": True, "ttl": 252}
    assert cache_status(later)["collapsed"]
    assert cache_status(all_waited) == {"fwd": "miss", "collapsed": True, "stored": True, "ttl": 252}
    assert cache_status(partly) == {"fwd": "miss", "stored": True, "ttl": 252}
    assert b'"data":[%b,%b]' % (one.data, later.data) in both.data
    assert b'"data":[%b,%b]' % (later.data, one.data) in all_waited.data


@pytest.mark.parametrize("endpoint", ["events", "event-subscriptions"])
@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        ({"status": 500}, 500, "GENERAL_SYSTEM_ERROR"),
        ({"status": 400, "body": '{"error": {"message": "no", "code": "NO"}}'}, 400, "NO"),
        ({"status": 404}, 404, "NOT_FOUND"),
        ({"status": 414, "body": "<html>"}, 414, None),
        ({"status": 401, "body": "[]"}, 401, "UNAUTHORIZED"),
        ({"status": 429}, 429, "TOO_MANY_REQUESTS"),
        ({"reset": True}, 502, "BAD_GATEWAY"),
        ({"truncate": True}, 502, "BAD_GATEWAY"),
        ({"body": '{"data": [1]}'}, 502, "BAD_GATEWAY"),
    ],
)
def test_the_whole_fails(
    inside: MakeInside, upstream: Standin, endpoint: str, fault: dict[str, Any], status: int, code: str | None
) -> None:
    """If the call fails as a whole, each id gets that fault, and none of them is kept as a definite no."""
    service, event_ids = inside(), new_events(upstream, 3)
    rule = upstream.rule(endpoint, **fault)
    answer = answers_of(service, event_ids)
    assert list(answer.json["errors"]) == event_ids
    for error in answer.json["errors"].values():
        assert (error["status_code"], error["code"]) == (status, code or error["code"])
        assert re.fullmatch("[A-Z_]+", error["code"])
    assert lifetime(answer) is None
    single = service.event(event_ids[0])
    assert (single.status_code, lifetime(single), cache_status(single)["hit"]) == (status, None, True)
    rule.remove()
    service.clock.now += 252 if status == 429 else 7
    if status != 429:  # whose pause is over in real time only
        assert len(answers_of(service, event_ids).json["data"]) == 3


def test_a_filter_that_is_ignored(inside: MakeInside, upstream: Standin) -> None:
    """An upstream that ignores the filter leaks no event and no name, and what it did not list is no definite no."""
    service, (known, other) = inside(), new_events(upstream, 2)
    foreign = new_events(upstream, 3)
    everything = [upstream._catalogue.events[one] for one in (known, *foreign)]
    rows = [row for one in (*foreign, known) for row in upstream._catalogue.rows[one]]
    for endpoint, data in (("events", everything), ("event-subscriptions", rows)):
        upstream.rule(endpoint, body=json.dumps({"meta_data": {"count": len(data)}, "data": data}))
    answer = answers_of(service, [known, other])
    assert answer.json["data"] == [{"id": known, "title": f"Title {known}", "names": [f"{known} 0", f"{known} 1"]}]
    assert answer.json["errors"][other]["status_code"] == 502
    assert not any(one.encode() in answer.data for one in foreign)
    assert lifetime(answer) is None


def test_a_hostile_id_poisons_nothing(inside: MakeInside, upstream: Standin) -> None:
    """An id over which the upstream stumbles, and drops its filter, changes nothing for the others in the list."""
    service, (victim, other) = inside(), new_events(upstream, 2)
    hostile = "x" * 128
    answer = answers_of(service, [hostile, victim, "-", other, "__proto__"])
    assert [one["names"] for one in answer.json["data"]] == [[f"{one} 0", f"{one} 1"] for one in (victim, other)]
    assert {error["status_code"] for error in answer.json["errors"].values()} == {404}
    assert upstream.calls() <= 3


def test_long_ids_do_not_make_urls_too_long(inside: MakeInside, upstream: Standin) -> None:
    """A hundred of the longest ids are asked for in a few calls, none with an address longer than servers take."""
    service = inside()
    event_ids = [f"{number:0128d}" for number in range(100)]
    for event_id in event_ids:
        upstream.add_event(event_id, names=[event_id])
    answer = answers_of(service, event_ids)
    assert [one["names"] for one in answer.json["data"]] == [[event_id] for event_id in event_ids]
    assert upstream.calls() == 2 * 3
    assert max(len(target) for _, target, _ in upstream.requests) < 8000


HOSTILE_LISTS = [
    ("", "one list"), ("?event_ids", "in brackets"), ("?event_ids=", "in brackets"), ("?event_ids=[]", "in brackets"),
    ("?event_ids=[,]", "entry 1"), ("?event_ids=[a", "in brackets"), ("?event_ids=a]", "in brackets"),
    ("?event_ids=a,b", "in brackets"), ("?event_ids=[[a]]", "in brackets"), ("?event_ids=[a][b]", "in brackets"),
    ("?event_ids=[a,]", "entry 2"), ("?event_ids=[a,,b]", "entry 2"), ("?event_ids=[a,%20b]", "entry 2"),
    ("?event_ids=[a]&event_ids=[b]", "one list"), ("?event_ids=[a]&event_ids=", "one list"), ("?ids=[a]", "one list"),
    ("?event_ids=[%22a%22]", "entry 1"), ("?event_ids=[a%0A]", "entry 1"), ("?event_ids=[a%00]", "entry 1"),
    ("?event_ids=[a]%0A", "in brackets"), ("?event_ids=[%ff]", "entry 1"), ("?event_ids=%5B%5D", "in brackets"),
    (f"?event_ids=[{','.join('a' * 99)},a%2Fb]", "entry 100"), (f"?event_ids=[{','.join('a' * 101)}]", "101 entries"),
    (f"?event_ids=[{'a' * 129}]", "entry 1"), (f"?event_ids=[{'a' * 100_000}]", "entry 1"),
    (f"?event_ids=[{',' * 100_000}]", "100001 entries"), ("?event_ids=[%C3%A9]", "entry 1"),
    ("?event_ids[]=a", "one list"),
]  # fmt: skip


@pytest.mark.parametrize("slash", ["", "/"])
def test_hostile_lists(inside: MakeInside, upstream: Standin, slash: str) -> None:
    """A list that is no list of 1 to 100 ids is a 400 that says what is wrong, and asks the upstream nothing."""
    service = inside()
    for query, complaint in HOSTILE_LISTS:
        answer: Any = service.http.get(PREFIX.removesuffix("/") + slash + query)
        assert (answer.status_code, answer.headers["Cache-Control"]) == (400, "no-store"), query[:50]
        assert complaint in answer.json["error"]["message"]
        assert len(answer.data) < 300
    assert (upstream.calls(), len(service.cache)) == (0, 0)


def test_forms_of_a_sound_list(inside: MakeInside, upstream: Standin) -> None:
    """Brackets and commas may be percent-encoded, ids may come again, and other parameters do no harm."""
    service, (one, two) = inside(), new_events(upstream, 2)
    plain = answers_of(service, [one, two, one, one])
    for path in (PREFIX, PREFIX.removesuffix("/")):
        for text in (f"[{one},{two}]", quote(f"[{one},{two}]"), f"%5b{one},{two}%5d"):
            assert service.http.get(f"{path}?x=1&event_ids={text}&event_id=z").data == plain.data
    assert upstream.calls() == 2
    answers_of(service, [one] * 100)
    assert service.http.get(listed([two, one])).headers["ETag"] != plain.headers["ETag"]


def test_a_list_waits_as_one(inside: MakeInside, upstream: Standin) -> None:
    """A list takes one place in the waiting room, and where that is full a list is refused at once, as all are."""
    service, event_ids, gate = inside(C42_THREADS="18"), new_events(upstream, 20), Gate()
    upstream.rule("events", gate=gate)
    get = service.app.test_client().get
    with ThreadPoolExecutor() as pool:
        many = pool.submit(get, listed(event_ids))
        gate.wait_for(1)
        assert service.cache.snapshot().waiting == 1
        one = pool.submit(get, PREFIX + new_id())
        gate.wait_for(2)
        for path in (listed([new_id(), event_ids[0]]), listed(event_ids), PREFIX + new_id()):
            refused = service.http.get(path)
            assert (refused.status_code, refused.headers["Retry-After"], lifetime(refused)) == (503, "1", None)
        gate.open()
        assert (many.result().status_code, one.result().status_code) == (200, 404)
    assert service.cache.snapshot().waiting == 0


def test_a_list_has_one_time_out(inside: MakeInside, upstream: Standin) -> None:
    """Where a fresh answer expires while the rest of its list times out, it gets no time-out of its own, and nobody
    else gets that 504: the event was not asked for."""
    service, (one, two), gate = inside(C42_TIMEOUT="0.5"), new_events(upstream, 2), Gate()
    service.event(one)
    upstream.rule(event_id=two, gate=gate)
    with ThreadPoolExecutor() as pool:
        many = pool.submit(service.app.test_client().get, listed([one, two]))
        gate.wait_for(2)
        upstream.reset_counts()
        service.clock.now += 252
        errors = many.result().get_json()["errors"]
    gate.open()
    assert {event_id: error["status_code"] for event_id, error in errors.items()} == {one: 504, two: 504}
    assert upstream.calls(event_id=one) == 0
    assert service.event(one).status_code == 200


def test_head_of_many(inside: MakeInside) -> None:
    """HEAD of a list has the headers of GET and no body."""
    service = inside()
    path = listed([EVENTS["plain"], EVENTS["unknown"]])
    service.http.get(path)
    get, head = service.http.get(path), service.http.head(path)
    assert (head.data, list(head.headers)) == (b"", list(get.headers))


def test_a_hundred_big_events(start: Start, upstream: Standin) -> None:
    """A hundred cold events with 300 people each get the right names, in 301 calls, within the time-out."""
    event_ids = new_events(upstream, 100, people=300)
    answer = start(C42_TIMEOUT="60").get(listed(event_ids)).json()
    assert answer["errors"] == {}
    assert [one["id"] for one in answer["data"]] == event_ids
    for one in answer["data"]:
        assert one["names"] == [f"{one['id']} {at}" for at in range(300)]
    assert (upstream.calls("events"), upstream.calls("event-subscriptions")) == (1, 300)


def test_slow_lists(service: Service, upstream: Standin) -> None:
    """Where the upstream is too slow, each id is a 504 within half a second of the time-out."""
    faults: list[dict[str, Any]] = [{"hang": True}, {"trickle": 0.3}, {"offset": 100, "delay": 3.0}]
    lists = [new_events(upstream, 3, people=50) for _ in faults]
    for event_ids, fault in zip(lists, faults, strict=True):
        upstream.rule("event-subscriptions", event_ids[0], **fault)

    def timed(event_ids: list[str]) -> tuple[Any, float]:
        asked = time.monotonic()
        return service.get(listed(event_ids)), time.monotonic() - asked

    for event_ids, (answer, seconds) in zip(lists, at_once(*(partial(timed, one) for one in lists)), strict=True):
        assert 2 <= seconds < 2.5
        said = {event_id: error["status_code"] for event_id, error in answer.json()["errors"].items()}
        assert (answer.status_code, said) == (200, dict.fromkeys(event_ids, 504))
        assert (answer.headers["Cache-Control"], answer.json()["data"]) == ("no-store", [])


# Real clients


class Page(NamedTuple):
    """A site with one empty page, under two origins."""

    origin: str
    other_origin: str


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    """Serve an empty page."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", "15")
            self.end_headers()
            self.wfile.write(b"<!doctype html>")

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        port = server.server_address[1]
        yield Page(f"http://127.0.0.1:{port}", f"http://localhost:{port}")
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def open_service(shared_upstream: Standin, page: Page) -> Iterator[Service]:
    """Start a service whose answers the page may read."""
    with started(Service(shared_upstream, C42_CORS_ORIGINS=page.origin)) as service:
        yield service


@pytest.fixture(scope="module")
def short_service(shared_upstream: Standin, page: Page) -> Iterator[Service]:
    """Start another that keeps answers for 1.2 s."""
    with started(Service(shared_upstream, C42_CORS_ORIGINS=page.origin, C42_EXPIRY="0.02")) as service:
        yield service


FETCH = """
    const [url, options, done] = arguments;
    fetch(url, options).then(
        async answer => done({
            status: answer.status, body: await answer.text(), headers: Object.fromEntries(answer.headers)}),
        error => done({blocked: error.name}));
"""


def fetch(browser: webdriver.Chrome, url: str, **options: Any) -> dict[str, Any]:
    """Have the page that the browser shows fetch something; return what the page gets to see."""
    result: dict[str, Any] = browser.execute_async_script(FETCH, url, options)
    return result


def served(service: Service) -> Counter[str]:
    """Return how many requests for one event the service has answered, by status."""
    pattern = r'^c42_http_requests_total\{(?=.*route="[^"]*<event_id>").*status="(\d+)".*\} (\d+)'
    return Counter({status: int(count) for status, count in re.findall(pattern, service.get("/metrics").text, re.M)})


def test_browser(browser: webdriver.Chrome, open_service: Service, upstream: Standin, page: Page) -> None:
    """A page of an allowed origin reads answers and errors; what it has is not asked for, or not sent, again."""
    event_id = new_events(upstream, 1)[0]
    url, before = open_service.url + PREFIX + event_id, served(open_service)
    browser.get(page.origin)
    first = fetch(browser, url)
    assert (first["status"], json.loads(first["body"])["title"]) == (200, f"Title {event_id}")
    readable = {"cache-control", "cache-status", "content-length", "content-type", "etag"}
    assert set(first["headers"]) == readable  # Age comes with a hit only, Retry-After with a fault
    assert fetch(browser, url) == first
    assert served(open_service) - before == {"200": 1}, "the second came from the browser's own cache"

    revalidated = fetch(browser, url, cache="no-cache")
    assert (revalidated["status"], revalidated["body"]) == (200, first["body"])
    assert set(revalidated["headers"]) >= readable | {"age"}
    assert served(open_service) - before == {"200": 1, "304": 1}

    unknown = fetch(browser, open_service.url + PREFIX + EVENTS["unknown"], headers={"X-Trace": "asks for a preflight"})
    assert (unknown["status"], json.loads(unknown["body"])["error"]["code"]) == (404, "NOT_FOUND")
    upstream.rule(times=2, status=429, headers={"Retry-After": "1"})
    busy = fetch(browser, open_service.url + PREFIX + new_id())
    assert (busy["status"], json.loads(busy["body"])["error"]["code"]) == (429, "TOO_MANY_REQUESTS")
    assert int(busy["headers"]["retry-after"]) >= 1
    until(lambda: not open_service.get("/status.json").json()["upstream"]["pause_seconds"], "the end of the pause")
    many = fetch(browser, open_service.url + listed([event_id, EVENTS["unknown"]]))
    assert (many["status"], json.loads(many["body"])["meta_data"]) == (200, {"count": 1})


def test_browser_blocks_other_origins(
    browser: webdriver.Chrome, open_service: Service, service: Service, upstream: Standin, page: Page
) -> None:
    """A page of an origin that is not named reads nothing; where none is named, no page does."""
    event_id = new_events(upstream, 1)[0]
    browser.get(page.other_origin)
    assert fetch(browser, open_service.url + PREFIX + event_id) == {"blocked": "TypeError"}
    assert fetch(browser, open_service.url + PREFIX + event_id, headers={"X-Trace": "1"}) == {"blocked": "TypeError"}
    browser.get(page.origin)
    assert fetch(browser, service.url + PREFIX + event_id) == {"blocked": "TypeError"}
    assert fetch(browser, open_service.url + PREFIX + event_id)["status"] == 200, "no blocked answer stands in the way"


def test_clients_ask_again_in_time(
    browser: webdriver.Chrome, short_service: Service, upstream: Standin, page: Page
) -> None:
    """A browser and requests-cache ask again once an answer is over, and are spared the body that did not change."""
    same, changed = new_events(upstream, 2)
    service, before = short_service, served(short_service)
    browser.get(page.origin)
    with requests_cache.CachedSession(backend="memory", cache_control=True, allowable_codes=(200, 404, 500)) as session:
        session.trust_env = False
        urls = [service.url + PREFIX + event_id for event_id in (same, changed)]
        shown = [fetch(browser, url) for url in urls]
        got = [session.get(url) for url in urls]
        assert {answer["body"] for answer in shown} == {answer.text for answer in got}
        loaded = time.monotonic()
        upstream.set_title(changed, "New")
        time.sleep(max(0.0, loaded + 1.25 - time.monotonic()))
        assert served(service) - before == {"200": 4}
        again = [fetch(browser, url) for url in urls]
        assert again[0]["body"] == shown[0]["body"]
        assert json.loads(again[1]["body"])["title"] == "New"
        assert served(service) - before == {"200": 5, "304": 1}
        unchanged, new = (session.get(url) for url in urls)
        assert (unchanged.text, unchanged.revalidated) == (got[0].text, True)
        assert (new.json()["title"], new.from_cache) == ("New", False)
        assert served(service) - before == {"200": 6, "304": 2}


def test_requests_cache_keeps_what_it_may(open_service: Service, upstream: Standin) -> None:
    """requests-cache answers out of its own cache as long as it may, negatives too, and never keeps a fault."""
    good, unknown, bad = *new_events(upstream, 1), new_id(), new_id()
    upstream.rule("events", bad, status=500)
    with requests_cache.CachedSession(backend="memory", cache_control=True, allowable_codes=(200, 404, 500)) as session:
        session.trust_env = False
        for event_id, kept in ((good, True), (unknown, True), (bad, False)):
            first, second = (session.get(open_service.url + PREFIX + event_id) for _ in range(2))
            assert (first.from_cache, second.from_cache) == (False, kept)
            if kept:
                assert second.expires
                assert timedelta(seconds=240) < second.expires - second.created_at <= timedelta(seconds=252)


if __name__ == "__main__":
    sys.exit(run_as_script(__file__))
