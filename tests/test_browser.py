"""Real clients: a browser, and caches that Python programs use."""

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from standin import DEMO_EVENTS, Standin
from tests.fixtures import (
    PREFIX,
    Service,
    listed,
    new_events,
    new_id,
    started,
    until,
)

if TYPE_CHECKING:
    import requests_cache
    from selenium import webdriver


class EmptySite(NamedTuple):
    """A site with one empty page, under two origins."""

    origin: str
    other_origin: str


@pytest.fixture(scope="module")
def page() -> Iterator[EmptySite]:
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
        yield EmptySite(f"http://127.0.0.1:{port}", f"http://localhost:{port}")
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def open_service(shared_upstream: Standin, page: EmptySite) -> Iterator[Service]:
    """Start a service whose answers the page may read."""
    with started(Service(shared_upstream, C42_CORS_ORIGINS=page.origin)) as service:
        yield service


@pytest.fixture(scope="module")
def short_service(shared_upstream: Standin, page: EmptySite) -> Iterator[Service]:
    """Start another that keeps answers for 1.2 s."""
    with started(
        Service(shared_upstream, C42_CORS_ORIGINS=page.origin, C42_EXPIRY="0.02")
    ) as service:
        yield service


FETCH = """
    const [url, options, done] = arguments;
    fetch(url, options).then(
        async answer => done({
            status: answer.status,
            body: await answer.text(),
            headers: Object.fromEntries(answer.headers),
        }),
        error => done({blocked: error.name}));
"""


def fetch(browser: "webdriver.Chrome", url: str, **options: Any) -> dict[str, Any]:
    """Have the browser's page fetch something; return what the page gets to see."""
    result: dict[str, Any] = browser.execute_async_script(FETCH, url, options)
    return result


def served(service: Service) -> Counter[str]:
    """Return how many requests for single events were answered, by status."""
    route = '(?=.*route="[^"]*<event_id>")'
    pattern = rf'^c42_http_requests_total{{{route}.*status="(\d+)".*}} (\d+)'
    counts = Counter[str]()
    for status, count in re.findall(pattern, service.get("/metrics").text, re.M):
        counts[status] = int(count)
    return counts


def test_browser(
    browser: "webdriver.Chrome",
    open_service: Service,
    upstream: Standin,
    page: EmptySite,
) -> None:
    """A page of an allowed origin can read answers and errors.

    The browser's cache saves the request, or the body.
    """
    event_id = new_events(upstream, 1)[0]
    url, before = open_service.url + PREFIX + event_id, served(open_service)
    browser.get(page.origin)
    first = fetch(browser, url)
    assert (first["status"], json.loads(first["body"])["title"]) == (
        200,
        f"Title {event_id}",
    )
    readable = {
        "cache-control",
        "cache-status",
        "content-length",
        "content-type",
        "etag",
    }
    assert set(first["headers"]) == readable | {"x-request-id"}
    assert fetch(browser, url) == first
    assert served(open_service) - before == {"200": 1}, (
        "the second came from the browser's own cache"
    )

    revalidated = fetch(browser, url, cache="no-cache")
    assert (revalidated["status"], revalidated["body"]) == (200, first["body"])
    assert set(revalidated["headers"]) >= readable
    assert served(open_service) - before == {"200": 1, "304": 1}

    unknown = fetch(
        browser,
        open_service.url + PREFIX + DEMO_EVENTS["unknown"],
        headers={"X-Trace": "asks for a preflight"},
    )
    assert (unknown["status"], json.loads(unknown["body"])["error"]["code"]) == (
        404,
        "NOT_FOUND",
    )
    rule = upstream.rule(status=429, headers={"Retry-After": "1"})
    busy = fetch(browser, open_service.url + PREFIX + new_id())
    rule.remove()
    assert (busy["status"], json.loads(busy["body"])["error"]["code"]) == (
        429,
        "TOO_MANY_REQUESTS",
    )
    assert int(busy["headers"]["retry-after"]) >= 1
    until(
        lambda: (
            not open_service.get("/status.json").json()["upstream"]["pause_seconds"]
        ),
        "the end of the pause",
    )
    many = fetch(browser, open_service.url + listed([event_id, DEMO_EVENTS["unknown"]]))
    assert (many["status"], json.loads(many["body"])["meta_data"]) == (
        200,
        {"count": 1},
    )


def test_browser_blocks_other_origins(
    browser: "webdriver.Chrome",
    open_service: Service,
    service: Service,
    upstream: Standin,
    page: EmptySite,
) -> None:
    """A page of an origin that isn't allowed can read nothing.

    If no origin is allowed, no page can.
    """
    event_id = new_events(upstream, 1)[0]
    browser.get(page.other_origin)
    assert fetch(browser, open_service.url + PREFIX + event_id) == {
        "blocked": "TypeError"
    }
    assert fetch(
        browser, open_service.url + PREFIX + event_id, headers={"X-Trace": "1"}
    ) == {"blocked": "TypeError"}
    browser.get(page.origin)
    assert fetch(browser, service.url + PREFIX + event_id) == {"blocked": "TypeError"}
    assert fetch(browser, open_service.url + PREFIX + event_id)["status"] == 200, (
        "no blocked answer stands in the way"
    )


def caching_session() -> "requests_cache.CachedSession":
    """Return a session of requests-cache that keeps whatever it is allowed to."""
    # Here, because it takes long to import, in each of pytest-xdist's processes.
    import requests_cache

    session = requests_cache.CachedSession(
        backend="memory", cache_control=True, allowable_codes=(200, 404, 500)
    )
    session.trust_env = False
    return session


def test_clients_ask_again_in_time(
    browser: "webdriver.Chrome",
    short_service: Service,
    upstream: Standin,
    page: EmptySite,
) -> None:
    """A browser and requests-cache ask again when an answer has expired.

    They get no body if it didn't change.
    """
    same, changed = new_events(upstream, 2)
    service, before = short_service, served(short_service)
    browser.get(page.origin)
    with caching_session() as session:
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


def test_requests_cache_keeps_what_it_may(
    open_service: Service, upstream: Standin
) -> None:
    """requests-cache keeps answers for as long as it may, and never keeps a fault.

    Negatives are kept, too.
    """
    good, unknown, bad = *new_events(upstream, 1), new_id(), new_id()
    upstream.rule("events", bad, status=500)
    with caching_session() as session:
        for event_id, kept in ((good, True), (unknown, True), (bad, False)):
            first, second = (
                session.get(open_service.url + PREFIX + event_id) for _ in range(2)
            )
            assert (first.from_cache, second.from_cache) == (False, kept)
            if kept:
                assert second.expires
                assert (
                    timedelta(seconds=240)
                    < second.expires - second.created_at
                    <= timedelta(seconds=252)
                )
