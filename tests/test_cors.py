"""CORS: which pages of other origins may read answers."""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from operations import settings
from standin import Gate, Standin
from tests.fixtures import (
    PREFIX,
    TOKEN,
    Inside,
    MakeInside,
    Start,
    listed,
    load_outcomes,
    new_id,
    until,
)
from tests.reading import cache_status

PAGE = "https://app.example.com"
EXPOSED = {"Cache-Status", "ETag", "Retry-After", "X-Request-ID"}


def every_answer(service: Inside, upstream: Standin, **headers: str) -> Iterator[Any]:
    """Yield an answer of each kind to requests with these headers.

    503 and 304 are among them.
    """
    gate, slow = Gate(), new_id()
    upstream.rule("events", slow, gate=gate)
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(service.app.test_client().get, PREFIX + slow)
        until(lambda: service.cache.snapshot().waiting == 1)
        answer = service.event(new_id(), headers=headers)
        gate.open()
        assert waiting.result().status_code == 404
    refused = (
        answer.status_code,
        answer.headers["Cache-Control"],
        answer.headers["Retry-After"],
    )
    assert refused == (503, "no-store", "1")
    assert cache_status(answer) == {"detail": "refused"}
    yield answer
    ids = load_outcomes(service, upstream)
    for path in (
        *(PREFIX + event_id for event_id in ids.values()),
        PREFIX + "a b",
        PREFIX,
        "/nothing",
        "/livez",
    ):
        for method in ("GET", "HEAD", "POST", "OPTIONS"):
            yield service.http.open(path, method=method, headers=headers)
    yield service.http.get(listed(list(ids.values())), headers=headers)
    for path in (PREFIX + ids["ok"], listed([ids["ok"], ids["deleted"]])):
        answer = service.http.get(path, headers={"If-None-Match": "*", **headers})
        assert answer.status_code == 304
        yield answer


def cors_headers(answer: Any) -> dict[str, str]:
    """Return the headers that have to do with origins; none may be there twice."""
    found = [
        (name, value)
        for name, value in answer.headers
        if re.match("access-control-|vary|timing-", name.lower())
    ]
    assert len(found) == len(dict(found))
    return dict(found)


def allowing(origin: str, options: bool) -> dict[str, str]:
    """Return what a page of an allowed origin gets."""
    preflight = {"Methods": "GET, HEAD", "Headers": "*"}
    return {
        "Access-Control-Allow-Origin": origin,
        "Timing-Allow-Origin": origin,
        **(
            {f"Access-Control-Allow-{name}": value for name, value in preflight.items()}
            if options
            else {}
        ),
        **({"Access-Control-Max-Age": "600"} if options else {}),
    }


@pytest.mark.parametrize(
    ("setting", "origin", "allowed", "vary"),
    [
        ("", PAGE, None, False),
        (f"{PAGE}, http://localhost:3000", PAGE, PAGE, True),
        (
            f"{PAGE},http://localhost:3000",
            "http://localhost:3000",
            "http://localhost:3000",
            True,
        ),
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
    inside: MakeInside,
    upstream: Standin,
    setting: str,
    origin: str | None,
    allowed: str | None,
    vary: bool,
) -> None:
    """Pages of the configured origins, and no others, can read every answer.

    Answers include errors, 304 and 503.
    """
    service = inside(C42_CORS_ORIGINS=setting, C42_THREADS="17")  # one of them may wait
    seen = set()
    for answer in every_answer(
        service, upstream, **({} if origin is None else {"Origin": origin})
    ):
        seen.add(answer.status_code)
        found = cors_headers(answer)
        assert (found.pop("Vary", None) == "Origin") == vary
        if allowed:
            assert (
                set(found.pop("Access-Control-Expose-Headers").split(", ")) == EXPOSED
            )
        options = answer.request.method == "OPTIONS"
        assert found == (allowing(allowed, options) if allowed else {})
    assert {200, 204, 304, 400, 404, 405, 422, 429, 500, 502, 503} <= seen


def test_preflight(inside: MakeInside, upstream: Standin) -> None:
    """A preflight request is answered without a call to the upstream."""
    service = inside(C42_CORS_ORIGINS=PAGE)
    headers = {
        "Origin": PAGE,
        "Access-Control-Request-Method": "GET",
        "Access-Control-Request-Headers": "if-none-match,x-trace",
    }
    event_ids = [new_id(), new_id()]
    for path in (PREFIX + event_ids[0], listed(event_ids[1:])):
        answer = service.http.options(path, headers=headers)
        found = cors_headers(answer)
        assert (answer.status_code, answer.data, found.pop("Vary")) == (
            204,
            b"",
            "Origin",
        )
        assert found.pop("Access-Control-Expose-Headers")
        assert found == allowing(PAGE, True)
    assert [upstream.calls(event_id=event_id) for event_id in event_ids] == [0, 0]


def test_rejections(start: Start) -> None:
    """Pages that may read answers can also read why the server rejected a request."""
    service = start(C42_CORS_ORIGINS=PAGE)
    too_long = b"Content-Length: 1000000000"
    for origin, allowed in ((PAGE, PAGE), (f"{PAGE}.evil.example", None)):
        its_origin = f"Origin: {origin}".encode()
        rejected = service.raw(b"/", b"POST", its_origin, too_long)
        malformed = service.raw(b"/a b", b"GET", its_origin)
        assert (rejected.status, malformed.status) == (413, 400)
        for answer in (rejected, malformed):
            assert answer.headers["Vary"] == "Origin"
            assert answer.headers["Access-Control-Allow-Origin"] == allowed


WRONG_ORIGINS = [
    "app.example.com",
    "https://app.example.com/",
    "https://app.example.com/app",
    "https://",
    "https:app.example.com",
    "ftp://app.example.com",
    "https://App.example.com",
    "https://app.example.com:",
    "https://app.example.com:0",
    "https://app.example.com:65536",
    "https://app.example.com:443",
    "http://app.example.com:80",
    "null",
    "**",
    "*.example.com",
    "https://*.example.com",
    "https://a.example.com,",
    ",",
    " ",
    "https://a.example.com,,https://b.example.com",
    "*,https://app.example.com",
    "https://a.example.com https://b.example.com",
    "https://user@app.example.com",
    "https://app.example.com?x",
    "https://app.example.com#x",
    "https://\u00fc.example.com",
    "https://a.example.com\n",
    "https://a.example.com\r\nX: y",
    "https://[::1",
    "https://a.example.com:8o",
]


@pytest.mark.parametrize("origins", WRONG_ORIGINS)
def test_malformed_origins(origins: str) -> None:
    """An origin that no browser sends is refused in one line that names the setting."""
    with pytest.raises(
        settings.SettingsError, match=r"^C42_CORS_ORIGINS.* is invalid: expected .*$"
    ) as refused:
        settings.read({"C42_TOKEN": TOKEN, "C42_CORS_ORIGINS": origins})
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "origins",
    [
        "",
        "*",
        PAGE,
        f" {PAGE} , http://localhost:3000 ",
        "http://127.0.0.1:8080",
        "http://[::1]:1",
        "https://x:80",
    ],
)
def test_sound_origins(origins: str) -> None:
    """Every origin that a browser can send is accepted."""
    expected = frozenset(filter(None, origins.replace(" ", "").split(",")))
    assert (
        settings.read({"C42_TOKEN": TOKEN, "C42_CORS_ORIGINS": origins}).cors_origins
        == expected
    )
