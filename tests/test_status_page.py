"""The status page, in a real browser, of a service that is really started."""

import json
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from selenium.webdriver import ActionChains, Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from standin import DEMO_EVENTS, Gate, Standin
from tests.fixtures import Service, new_id, until

soon = partial(until, every=0.02)  # each look takes the browser some milliseconds

HITS = '[data-number="outcomes.hit"]'
RATE = '[data-number="rates.hit"]'


def text(browser: Chrome, selector: str) -> str:
    """Return what the page shows there to a reader: nothing of what is hidden."""
    return browser.find_element(By.CSS_SELECTOR, selector).text


def shows(browser: Chrome, selector: str, wanted: str) -> None:
    """Wait until the page shows `wanted` there."""
    soon(lambda: wanted in text(browser, selector), f"{wanted!r} in {selector}")


def try_event(browser: Chrome, event_id: str) -> None:
    """Ask for an event in the page's box."""
    box = browser.find_element(By.ID, "event-id")
    box.clear()
    box.send_keys(event_id, Keys.ENTER)


def complaints(browser: Chrome) -> list[str]:
    """Return what the browser's console says since it was last asked.

    Failed requests are left out.
    """
    entries = browser.get_log("browser")  # type: ignore[no-untyped-call]
    lines = [entry["message"] for entry in entries]
    return [line for line in lines if "Failed to load resource" not in line]


def test_numbers_move(browser: Chrome, service: Service, upstream: Standin) -> None:
    """The page soon counts every request by its outcome.

    The browser's console stays empty.
    """
    browser.get(service.url)
    shows(browser, RATE, ".")
    before = service.get("/status.json").json()["outcomes"]
    event_id = new_id()
    upstream.add_event(event_id, names=["Ella"])
    for _ in range(6):
        service.event(event_id)
    soon(lambda: text(browser, HITS) == f"{before['hit'] + 5:,}", "five more hits")
    assert text(browser, '[data-number="outcomes.miss"]') == f"{before['miss'] + 1:,}"
    plot = browser.find_element(By.ID, "plot-requests")
    assert re.search(
        r"hit: \S+ now, from \S+ to \S+; cached error: ",
        plot.get_attribute("aria-label") or "",
    )
    soon(
        lambda: len(plot.find_elements(By.CSS_SELECTOR, 'path.line.hit[d*="L"]')) == 1,
        "a line",
    )
    assert "events, median: " in (
        browser.find_element(By.ID, "plot-latency").get_attribute("aria-label") or ""
    )
    held = browser.find_element(By.CSS_SELECTOR, 'meter[data-number="cache.entries"]')
    assert int(held.get_attribute("value") or 0) >= 1
    assert complaints(browser) == []


def test_numbers_are_those_of_the_server(
    browser: Chrome, start: Callable[..., Service]
) -> None:
    """All numbers of the page are there, and are those of /status.json.

    Without JavaScript, the page says where they are.
    """
    service = start()  # of its own, so that nothing expires meanwhile
    for name in ("plain", "plain", "unknown"):
        service.event(DEMO_EVENTS[name])
    browser.get(service.url)
    shows(browser, '[data-number="hit_ratio"]', "33.3 %")
    shows(browser, '[data-number="history.hit_ratio"]', "33.3 %")
    shows(browser, RATE, ".")
    assert text(browser, '[data-number="saved_calls"]') == "2"
    assert text(browser, '[data-number="expiry_seconds"]') == "4 min 12 s"
    assert (
        browser.execute_script(
            "return document.querySelectorAll('[data-number]').length"
        )
        > 30
    )
    dashes = """
        return [...document.querySelectorAll("[data-number]")]
          .filter((place) => place.textContent === "–" && place.offsetParent);
    """
    assert browser.execute_script(dashes) == []
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    browser.get(service.url)
    assert (
        text(browser, "main")
        == "This page needs JavaScript. The same numbers are in status.json."
    )
    assert not browser.find_element(By.ID, "event-id").is_displayed()


def test_formats(browser: Chrome, service: Service) -> None:
    """Numbers are written for readers.

    They have two units of time, three digits or so, and 100 % only if it is all.
    """
    written: dict[str, dict[float, str]] = {
        "duration": {
            0: "0 s",
            59.9: "59 s",
            60: "1 min 0 s",
            252: "4 min 12 s",
            3_599: "59 min 59 s",
            86_399: "23 h 59 min",
            90061.5: "1 d 1 h",
            8_640_000: "100 d 0 h",
        },
        "span": {
            5.9: "5 s",
            60: "1 min",
            604.9: "10 min",
        },
        "taken": {
            0.3: "300 ms",
            1.9: "1.90 s",
            18.2: "18 s: Calendar42 is slow",
        },
        "pause": {
            0: "none",
            0.1: "1 s",
            99.5: "1 min 40 s",
        },
        "latency": {
            4e-05: "0.0 ms",
            0.0023: "2.3 ms",
            0.00995: "10.0 ms",
            0.0125: "13 ms",
            0.5: "500 ms",
            0.9996: "1.00 s",
            1.125: "1.13 s",
        },
        "percent": {
            0: "0.0 %",
            0.33333: "33.3 %",
            0.99999: "99.9 %",
            1: "100.0 %",
        },
        "count": {
            0: "0",
            999: "999",
            1_000: "1,000",
            1_234_567: "1,234,567",
        },
        "mib": {
            0: "0 MiB",
            524_288: "0.5 MiB",
            1_048_576: "1 MiB",
            134_217_728: "128 MiB",
            13_212_058: "13 MiB",
        },
        "amount": {
            9_999_999: "9,999,999",
            10_000_000: "10.0 M",
            123_456_789: "123.5 M",
        },
        "rate": {
            0: "0.0",
            9.94: "9.9",
            12.5: "13",
            12345.6: "12,346",
        },
    }
    browser.get(service.url)
    script = """const [name, numbers, done] = arguments;
        import("/static/format.js").then((all) => done(numbers.map(all[name])))"""
    for name, cases in written.items():
        assert browser.execute_async_script(script, name, list(cases)) == list(
            cases.values()
        ), name


def test_tries_an_event_by_keyboard(
    browser: Chrome, service: Service, upstream: Standin
) -> None:
    """An event can be tried by keyboard: Tab, its id, Enter, and Tab to the answer.

    The bar runs down to the expiry.
    """
    event_id = new_id()
    upstream.add_event(event_id, names=["Anna", "Arthur"])
    browser.get(service.url)
    ActionChains(browser).send_keys(Keys.TAB, event_id, Keys.ENTER).perform()
    shows(browser, "#try-status", "200 OK")
    assert json.loads(text(browser, "#body"))["names"] == ["Anna", "Arthur"]
    assert "fwd=miss" in text(browser, "#cache-status")
    ActionChains(browser).send_keys(Keys.ENTER).perform()
    shows(browser, "#cache-status", "c42c; hit; ttl=2")
    assert re.fullmatch(r"expires in \d min \d+ s", text(browser, "#life-left"))
    left = "return document.querySelector('progress').value"
    first = browser.execute_script(left)
    assert 200 < first <= 252
    soon(lambda: browser.execute_script(left) < first, "the bar to run down")
    ActionChains(browser).send_keys(Keys.TAB, Keys.TAB).perform()
    assert browser.switch_to.active_element.get_attribute("id") == "body"
    assert complaints(browser) == []


def test_shows_hostile_names_as_text(browser: Chrome, service: Service) -> None:
    """Markup in a name is shown, not run."""
    browser.get(service.url)
    try_event(browser, DEMO_EVENTS["scripts"])
    shows(browser, "#try-status", "200 OK")
    assert '"</script><script>alert(42)</script>"' in text(browser, "#body")
    assert "👩🏽\u200d🚀 Zoë" in text(browser, "#body")
    assert browser.find_elements(By.CSS_SELECTOR, "#body *") == []
    assert complaints(browser) == []


def test_shows_errors(
    browser: Chrome, start: Callable[..., Service], upstream: Standin
) -> None:
    """Errors are shown with their status, and faults are listed.

    A malformed id isn't requested.
    """
    service = start()  # of its own: many faults of other tests would be an outage
    browser.get(service.url)
    try_event(browser, DEMO_EVENTS["unknown"])
    shows(browser, "#try-status", "404 Not Found")
    assert "NOT_FOUND" in text(browser, "#body")
    event_id = new_id()
    upstream.rule("events", event_id, status=503, body="<h1>out of order</h1>")
    try_event(browser, event_id)
    shows(browser, "#try-status", "503 Service Unavailable")
    assert text(browser, "#body") == "<h1>out of order</h1>"
    assert re.fullmatch(r"expires in \d s|expired: .*", text(browser, "#life-left"))
    soon(
        lambda: (
            "events: Calendar42 answered 503" in text(browser, "#fault-table tbody")
        ),
        "the fault",
    )
    shows(browser, "#troubles", "had faults")
    assert event_id not in text(browser, "main")
    calls = upstream.calls("events")
    try_event(browser, "../status.json")
    assert "503" in text(browser, "#try-status")
    assert browser.find_elements(By.CSS_SELECTOR, "#event-id:invalid")
    assert upstream.calls("events") == calls
    assert complaints(browser) == []


def test_an_earlier_question_is_forgotten(
    browser: Chrome, service: Service, upstream: Standin
) -> None:
    """If you ask twice, the page shows the second answer, whichever comes last."""
    slow, gate = new_id(), Gate()
    upstream.add_event(slow, title="slow")
    upstream.rule("events", slow, gate=gate)
    browser.get(service.url)
    try_event(browser, slow)
    gate.wait_for(1)
    assert text(browser, "#try-status") == "Asking…"
    try_event(browser, DEMO_EVENTS["plain"])
    shows(browser, "#try-status", "200 OK")
    gate.open()
    service.event(slow)
    assert DEMO_EVENTS["plain"] in text(browser, "#body")


def test_says_so_when_the_service_gives_no_answer(
    browser: Chrome, start: Callable[..., Service]
) -> None:
    """If the service is gone, the page says that it doesn't answer.

    Once it is back, the page goes on by itself.
    """
    service = start(C42_LOGLEVEL="WARNING")
    browser.get(service.url)
    shows(browser, "#troubles", WELL)
    service.stop()
    shows(browser, "#troubles", "Down: the service does not answer.")
    assert WELL not in text(browser, "#troubles")
    assert browser.title == "(!) c42c status"
    try_event(browser, DEMO_EVENTS["plain"])
    shows(browser, "#try-status", "The service gave no answer")
    successor = start(ready=False, C42_PORT=str(service.port), C42_EXPIRY="2")
    shows(browser, "#troubles", WELL)
    shows(browser, '[data-number="expiry_seconds"]', "2 min 0 s")
    assert browser.title == "c42c status"
    assert successor.process.poll() is None
    assert complaints(browser) == []


# What is wrong, what clients get, and what to do.
TROUBLES = {
    "stopping": "Warning: the service is shutting down, because it was told to "
    "(SIGTERM or Ctrl-C). It finishes the requests that it has. Send new ones to "
    "another instance.",
    "reaper": "Failing: expired answers are no longer deleted, because the thread that "
    "does it has died. Clients still get correct answers, but the memory fills, and "
    "/readyz says 503. Restart the service.",
    "full": "Failing: too many requests are waiting for loads. Every further "
    "uncached request gets a 503; cached answers are served. The oldest load has taken "
    "18 s: Calendar42 is slow. Check Calendar42. With a shorter C42_TIMEOUT, "
    "requests wait less long; with a higher C42_THREADS, more may wait.",
    "refusing": "Failing: requests were refused (503), because too many were waiting "
    "for loads. In the last minute: 12, the latest 40 s ago. Once that is a minute "
    "ago, it is over, and this message disappears. Cached answers are served. If more "
    "are refused, check Calendar42, or raise C42_THREADS.",
    "pause": "Failing: Calendar42 asked for a pause (429). Until it ends, uncached "
    "requests get a 429; cached answers are served. Wait: it ends in 1 min 40 s. If "
    "pauses come again, make fewer calls, for example with a longer C42_EXPIRY.",
    "token": "Failing: Calendar42 refuses the token (401 or 403). Uncached requests "
    "get an error; cached answers are served. Check C42_TOKEN and restart.",
    "outage": "Failing: Calendar42 is out of order. 72 of 80 loads failed in the last "
    "minute. Most uncached requests get an error; cached answers are served. See the "
    "latest faults, and check Calendar42. c42c keeps trying.",
    "faults": "Warning: Calendar42 had faults. 72 of 80 loads failed in the last "
    "minute. Clients that waited for those got an error; cached answers aren't "
    "affected. See the latest faults.",
    "limit": "Warning: this instance has made more than 80 % of the calls that "
    "Calendar42 allows in an hour. No client is affected yet. At the limit, Calendar42 "
    "asks for a pause. A longer C42_EXPIRY saves calls.",
    "redis": "Warning: Redis is lost. Clients still get answers, but instances no "
    "longer share them, so Calendar42 gets more calls. Check Redis.",
}
MINUTE = {
    "loads": 80,
    "failed": 72,
    "token_refused": 0,
    "refused": 12,
    "refused_seconds_ago": 40.4,
}
WELL = "OK: all is well."


class Pretence:
    """A page to which the service seems to say what a test wants."""

    def __init__(self, browser: Chrome, service: Service) -> None:
        """Open the page, and have it ask every 50 milliseconds."""
        self._browser = browser
        self.numbers: dict[str, Any] = service.get("/status.json").json()
        self.numbers |= {"troubles": [], "shared_tier": None}
        browser.get(service.url)
        browser.execute_script(
            """
            const later = window.setTimeout;
            window.setTimeout = (what) => later(what, 50);
            """
        )

    def say(self, **changed: object) -> None:
        """Have the service say something else in some of its numbers."""
        said = json.dumps(self.numbers | changed)
        self._browser.execute_script(
            "const said = arguments[0]; window.fetch = async () => new Response(said)",
            said,
        )


@pytest.fixture
def pretence(browser: Chrome, service: Service) -> Pretence:
    """Give a test a page to which the service seems to say what the test wants."""
    return Pretence(browser, service)


TIER = {"shared": 1, "awaited": 22, "loaded": 333, "alone": 4444, "up": False}


def says(browser: Chrome, sentences: str) -> bool:
    """Tell whether the page says exactly this about troubles."""
    return " ".join(text(browser, "#troubles").split()) == sentences


def test_troubles_are_shown(browser: Chrome, pretence: Pretence) -> None:
    """For each trouble that the server names, and no others, the page has advice.

    It says how bad it is, what is wrong, what clients get and what to do. It marks its
    title.
    """
    pretence.numbers["last_minute"] = MINUTE
    pretence.numbers["upstream"] |= {"oldest_load_seconds": 18.2, "pause_seconds": 99.5}
    for name, sentences in TROUBLES.items():
        pretence.say(troubles=[name])
        soon(partial(says, browser, sentences), sentences)
        shown = browser.find_elements(By.CSS_SELECTOR, "#troubles > :not([hidden])")
        assert len(shown) == 1
        assert browser.title == "(!) c42c status"
    pretence.say(troubles=list(TROUBLES))
    soon(
        lambda: (
            len(browser.find_elements(By.CSS_SELECTOR, "#troubles > :not([hidden])"))
            == len(TROUBLES)
        ),
        "all of them",
    )
    pretence.say()
    soon(lambda: text(browser, "#troubles") == WELL, "none of them")
    assert browser.title == "c42c status"


def test_severity_is_seen(browser: Chrome, pretence: Pretence) -> None:
    """An outage says how many loads failed, and looks worse than single faults do."""
    looks = {}
    for name, failed in {"faults": 1, "outage": 72}.items():
        pretence.say(troubles=[name], last_minute=MINUTE | {"failed": failed})
        shows(browser, "#troubles", f"{failed} of 80 loads failed in the last minute.")
        banner = browser.find_element(By.CSS_SELECTOR, f"[data-trouble={name}]")
        size = float(banner.value_of_css_property("font-size").removesuffix("px"))
        looks[name] = (banner.value_of_css_property("background-color"), size)
    assert looks["faults"][0] != looks["outage"][0]
    assert looks["faults"][1] < looks["outage"][1]


def test_changing_numbers_are_not_announced(
    browser: Chrome, pretence: Pretence
) -> None:
    """Screen readers don't announce numbers that change all the time.

    In sentences that they do announce, such numbers are in parts of their own.
    """
    pretence.say(troubles=list(TROUBLES))
    shows(browser, "#troubles", "Redis is lost")
    loud = """return [...document.querySelectorAll("[role=status] [data-number]")]
        .filter((number) => number.closest("[aria-live]")?.ariaLive !== "off").length"""
    assert browser.execute_script(loud) == 0


def test_faults_are_listed(browser: Chrome, pretence: Pretence) -> None:
    """Each fault has a row: time, cause, number and the request to look for in the log.

    A row isn't replaced while it stays the same, so it can be copied.
    """
    fault = {
        "time": "2026-01-01T10:11:12Z",
        "endpoint": "events",
        "status": 0,
        "cause": "no answer",
        "request_id": "report-1",
        "count": 1234,
    }
    upstream = pretence.numbers["upstream"] | {"faults": [fault]}
    pretence.say(upstream=upstream, now="2026-01-01T23:59:59Z")
    body = "#fault-table tbody"
    shows(browser, body, "10:11:12 events: no answer 1,234 report-1")
    assert "2026" not in text(browser, body)
    browser.execute_script("document.querySelector('#fault-table td').same = true")
    pretence.say(upstream=upstream, now="2026-01-02T00:00:00Z")
    shows(browser, body, "2026-01-01 10:11:12 events: no answer 1,234 report-1")
    assert browser.execute_script(
        "return document.querySelector('#fault-table td').same"
    )
    pretence.say(upstream=upstream | {"faults": []})
    shows(browser, "#no-faults", "None since the start.")
    assert text(browser, body) == ""


def test_redis_is_shown(browser: Chrome, pretence: Pretence) -> None:
    """With C42_CACHE_URL, a tile says whether Redis is there, and what it gave."""
    assert not browser.find_element(By.ID, "shared-tier").is_displayed()
    pretence.say(shared_tier=TIER)
    shows(browser, "#shared-tier", "lost")
    tile = text(browser, "#shared-tier")
    assert "loaded for all: 333, alone (without Redis): 4,444" in tile


def test_starts_afresh_with_another_instance(
    browser: Chrome, pretence: Pretence
) -> None:
    """If another instance answers, all that is shown is of that one.

    The page says so.
    """
    shows(browser, RATE, ".")
    assert not browser.find_element(By.ID, "changed").is_displayed()
    latency = browser.find_element(By.ID, "plot-latency")
    requests = browser.find_element(By.ID, "plot-requests")
    nothing = {name: [None] for name in pretence.numbers["outcomes"]}
    no_latency = {
        name: {"median": [None], "p99": [None]}
        for name in pretence.numbers["upstream"]["endpoints"]
    }
    history = pretence.numbers["history"] | {
        "seconds_ago": [0.0],
        "requests_per_second": nothing,
        "latency_seconds": no_latency,
    }
    pretence.say(instance="other-1", port=5002, history=history)
    shows(browser, "header", "other-1")
    assert ":5002" in text(browser, "header")
    shows(browser, "#changed", "Another instance answers than before")
    assert text(browser, RATE) == "–"
    for plot in (latency, requests):
        label = plot.get_attribute("aria-label") or ""
        assert " now, " not in label


def test_plots_have_history_when_the_page_is_opened(
    browser: Chrome, pretence: Pretence
) -> None:
    """The first answer fills the plots with up to ten minutes.

    They have gaps where nothing was measured.
    """
    ago = [600.0, 595.0, 590.0, 100.0, 95.0, 0.0]
    rates: dict[str, list[float | None]] = {
        name: [0.0] * 6 for name in pretence.numbers["outcomes"]
    }
    rates["hit"] = [None, 10.0, 20.0, 30.0, 40.0, 50.0]
    seconds = {"median": [None, 0.1, 0.1, 0.2, 0.2, 0.3], "p99": [None] * 6}
    endpoints = pretence.numbers["upstream"]["endpoints"]
    history = pretence.numbers["history"] | {
        "seconds_ago": ago,
        "requests_per_second": rates,
        "latency_seconds": dict.fromkeys(endpoints, seconds),
    }
    pretence.say(history=history)
    shows(browser, RATE, "50")
    path = browser.execute_script(
        "return document.querySelector('#plot-requests .line.hit').getAttribute('d')"
    )
    # Three lines: of 595 and 590, of 100 and 95, and of 0 seconds ago.
    assert re.sub("[^A-Za-z]", "", path) == "MhLMhLMh"
    label = browser.find_element(By.ID, "plot-requests").get_attribute("aria-label")
    assert "last 10 min. hit: 50 now, from 10 to 50; cached error: 0.0 now" in (
        label or ""
    )


def has_marks(browser: Chrome, first: list[str]) -> bool:
    """Tell whether the time axis of a plot begins with these marks."""
    marks = browser.execute_script(
        """
        return [...document.querySelectorAll("#plot-latency :is(.start, .middle)")]
          .map((mark) => mark.textContent);
        """
    )
    return bool(marks == first)


def test_plots_fit_a_short_history(browser: Chrome, pretence: Pretence) -> None:
    """A plot begins ten minutes ago, or later if the service has just begun."""
    for oldest, expected in {
        20.0: ["−1 min", "−30 s"],
        61.0: ["−2 min", "−1 min"],
        200.0: ["−4 min", "−2 min"],
        604.0: ["−10 min", "−5 min"],
    }.items():
        ago = [oldest, 0.0]
        pretence.say(history=pretence.numbers["history"] | {"seconds_ago": ago})
        soon(partial(has_marks, browser, expected), expected[0])


def test_failed_requests_have_a_row(browser: Chrome, pretence: Pretence) -> None:
    """Events whose callers got an error have a row of their own.

    It has those of now, of the last minutes and of the whole time.
    """
    seconds = {"seconds": 83.0, "failed": 22, "failed_per_second": [None, 4.5]}
    pretence.say(failed=333, history=pretence.numbers["history"] | seconds)
    shows(browser, "main", "failed, of all but collapsed 4.5 22 333")
    shows(browser, "[aria-labelledby=requests] thead", "Last 1 min")


def test_meter_warns_near_the_limit(browser: Chrome, pretence: Pretence) -> None:
    """The meter of the last hour's calls looks different from four fifths on."""
    meter = 'meter[data-number="upstream.requests_last_hour"]'
    upstream = pretence.numbers["upstream"]
    pretence.say(upstream=upstream | {"requests_last_hour": 8001})
    shows(browser, '[data-number="upstream.requests_last_hour"]:not(meter)', "8,001")
    state = browser.execute_script(
        """
        const { value, low, high, max, optimum } = document.querySelector(arguments[0]);
        return { value, low, high, max, optimum };
        """,
        meter,
    )
    # Above `high` while the best is below `low`: the standard's worst region.
    assert state == {"value": 8001, "low": 0, "high": 8000, "max": 10000, "optimum": 0}


LARGE = {
    "instance": "0123abcd-4194304",
    "host": "c42c-7d9f8b6c5d-x2x4z",
    "uptime_seconds": 8_640_000,
    "saved_calls": 123_456_789,
    "requests": 123_456_789,
}


@pytest.mark.parametrize("width", [320, 375, 1280])
def test_large_numbers_fit(browser: Chrome, pretence: Pretence, width: int) -> None:
    """No tile and no banner is narrower than what it shows, with Redis and all."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    numbers = pretence.numbers
    cache = dict.fromkeys(numbers["cache"], 123_456) | {
        "entries_by_kind": dict.fromkeys(numbers["cache"]["entries_by_kind"], 123_456)
    }
    upstream = numbers["upstream"] | {
        "requests": 123_456_789,
        "requests_last_hour": 9_999,
        "pause_seconds": 588.0,
    }
    tier = dict.fromkeys(TIER, 123_456_789)
    pretence.say(
        **LARGE,
        cache=cache,
        upstream=upstream,
        shared_tier=tier,
        troubles=list(TROUBLES),
    )
    shows(browser, "main", "9 min 48 s")
    wide = browser.execute_script(
        """
        const boxes = ".tiles > div, .tiles dd, #troubles li";
        return [...document.querySelectorAll(boxes)]
          .filter((box) => box.scrollWidth > box.clientWidth)
          .map((box) => box.textContent.trim());
        """
    )
    assert wide == []
    root = "document.documentElement"
    assert browser.execute_script(f"return {root}.scrollWidth") <= width


def test_hidden_tabs_do_not_ask(browser: Chrome, service: Service) -> None:
    """A hidden page sends no requests, and goes on when it is shown again."""
    browser.get(service.url)
    browser.execute_script(
        """
        const ask = window.fetch;
        window.asked = 0;
        window.fetch = (...what) => { asked++; return ask(...what); };
        // Until the test says so.
        window.setTimeout = (what) => { window.next = what; };
        """
    )
    soon(
        lambda: browser.execute_script("return Boolean(window.next)"),
        "the page to have asked, and to wait",
    )
    browser.minimize_window()
    soon(
        lambda: browser.execute_script("return document.hidden"),
        "the page to be hidden",
    )
    assert (
        browser.execute_script("const before = asked; next(); return asked - before")
        == 0
    )
    before = browser.execute_script("return asked")
    browser.set_window_size(1280, 1000)
    soon(
        lambda: browser.execute_script("return asked") == before + 1,
        "the page to ask again",
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 390, 1280])
def test_fits(browser: Chrome, service: Service, scheme: str, width: int) -> None:
    """Nothing is wider than the window, and the scheme is the reader's."""
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(service.url)
    try_event(browser, DEMO_EVENTS["big"])
    shows(browser, "#try-status", "200 OK")
    root = "document.documentElement"
    assert browser.execute_script(f"return {root}.scrollWidth") <= width
    assert _contrasts(browser) == []


def _contrasts(browser: Chrome) -> list[Any]:
    """Return the texts that stand out from their background by less than 4.5:1.

    That is the least that WCAG 2.2, 1.4.3 demands.
    """
    found: list[Any] = browser.execute_script(
        """
        const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
        const light = ([r, g, b]) => [r, g, b].map((c) => c / 255)
          .map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
          .reduce((sum, c, at) => sum + c * [0.2126, 0.7152, 0.0722][at], 0);
        const behind = (node) => {
          for (; node; node = node.parentElement) {
            const colour = channels(getComputedStyle(node).backgroundColor);
            if (colour[3] !== 0) return colour;
          }
          return [255, 255, 255];
        };
        return [...document.querySelectorAll("body *")]
          .filter((node) => [...node.childNodes]
            .some((child) => child.nodeType === 3 && child.data.trim()))
          .filter((node) => node.checkVisibility())
          .map((node) => {
            const style = getComputedStyle(node);
            const front = node instanceof SVGElement ? style.fill : style.color;
            const [a, b] = [light(channels(front)), light(behind(node))];
            const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
            return [node.textContent.trim(), contrast];
          })
          .filter(([, contrast]) => !(contrast >= 4.5));
        """
    )
    return found


def test_headers(service: Service) -> None:
    """The page may load and run only its own files.

    It isn't cached, and its files are revalidated.
    """
    page = service.get("/")
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    assert page.headers["Cache-Control"] == "no-store"
    policy = dict(
        part.strip().split(" ", 1)
        for part in page.headers["Content-Security-Policy"].split(";")
    )
    own = dict.fromkeys(("script-src", "style-src", "img-src", "connect-src"), "'self'")
    none = dict.fromkeys(
        ("default-src", "base-uri", "form-action", "frame-ancestors"), "'none'"
    )
    assert policy == own | none
    assert not re.search(r"<script>|<style|style=|\son\w+=|https?:", page.text)
    for path in {
        "/",
        *(
            f"/{path}"
            for path in re.findall(r'(?:src|href)="(static/[^"]+)"', page.text)
        ),
    }:
        answer = service.get(path)
        assert answer.status_code == 200, path
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        if path != "/":
            assert answer.headers["Cache-Control"] == "no-cache"
            again = service.get(path, headers={"If-None-Match": answer.headers["ETag"]})
            assert again.status_code == 304, path
    for path in (
        "/static/",
        "/static/../main.py",
        "/static/%2e%2e/main.py",
        "/static/nothing.js",
    ):
        assert service.get(path).json()["error"]["status_code"] == 404
