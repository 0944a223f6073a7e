"""docs/frontend.md: each snippet runs in a browser and prints what its comments say."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from selenium.webdriver import Chrome

from standin import DEMO_EVENTS, Gate, Standin
from tests.fixtures import ROOT, Service, new_events, new_id, started, until

PAGE = (ROOT / "docs/frontend.md").read_text()
SNIPPETS = "\n".join(re.findall(r"^```js\n(.*?)^```$", PAGE, re.M | re.S))
PRINTED = re.findall(r"console\.log\(.*\);? ?\)?;? // (.*)$", SNIPPETS, re.M)
RUN = """
    const done = arguments[arguments.length - 1];
    const run = async () => { %s };
    const seen = ({name, message, status, requestId}) => {
        return {name, message, status, requestId};
    };
    run().then((value) => done({value}), (error) => done({error: seen(error)}));
"""

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def open_service(
    shared_upstream: Standin, shared_service: Service
) -> Iterator[Service]:
    """Start a service whose answers the pages of another may read."""
    with started(
        Service(
            shared_upstream,
            C42_CORS_ORIGINS=shared_service.url,
            C42_FAULT_EXPIRY="0.01",
        )
    ) as service:
        yield service


@pytest.fixture
def run(browser: Chrome, open_service: Service, service: Service) -> Run:
    """Give a test a function that runs JavaScript on a page of another origin.

    All snippets have run there.
    """
    browser.get(f"{service.url}/livez")

    def run(script: str, *arguments: Any) -> Any:
        outcome = browser.execute_async_script(RUN % script, *arguments)
        return outcome.get("error") or outcome["value"]

    named = ", ".join(
        re.findall(r"^(?:async )?(?:function|class) (\w+)", SNIPPETS, re.M)
    )
    snippets = SNIPPETS.replace("http://127.0.0.1:5000", open_service.url)
    own_console = "const console = {log: (...values) => lines.push(values.join(' '))};"
    script = f"const lines = []; {own_console} {snippets};"
    share = f"Object.assign(globalThis, {{{named}}})"
    assert run(f"{script} {share}; return lines") == PRINTED
    return run


def test_snippets_handle_errors(
    run: Run, open_service: Service, upstream: Standin
) -> None:
    """An error in any form becomes a C42Error, with an id that the log has too."""
    event_id = new_id()
    upstream.rule(
        "events", event_id, status=500, body="<h1>Sorry</h1>", content_type="text/html"
    )
    error = run("await getEvent(arguments[0])", event_id)
    assert (error["name"], error["message"], error["status"]) == (
        "C42Error",
        "<h1>Sorry</h1>",
        500,
    )
    until(lambda: event_id in open_service.log, "the line of the load")
    (line,) = (line for line in open_service.log.splitlines() if event_id in line)
    assert line.endswith(f" request={error['requestId']}")
    first = run("await getEvent(arguments[0])", DEMO_EVENTS["unknown"])
    cached = run(
        "await getEvent(arguments[0], {cache: 'reload'})", DEMO_EVENTS["unknown"]
    )
    assert (cached["status"], cached["requestId"]) == (404, first["requestId"])
    assert run("await fetch('http://127.0.0.1:1/')")["name"] == "TypeError", (
        "nothing listens there"
    )


def test_snippets_can_be_cancelled(
    run: Run, open_service: Service, upstream: Standin
) -> None:
    """A request can be cancelled and can time out; the answer is cached anyway."""
    (event_id,), gate = new_events(upstream, 1), Gate()
    upstream.rule("events", event_id, gate=gate)
    late = run(
        "await getEvent(arguments[0], {signal: AbortSignal.timeout(50)})", event_id
    )
    assert late["name"] == "TimeoutError"
    cancel = """
        const leaving = new AbortController();
        const answer = getEvent(arguments[0], {signal: leaving.signal});
        leaving.abort();
        await answer;
    """
    assert run(cancel, event_id)["name"] == "AbortError"
    gate.open()
    assert run("return (await getEvent(arguments[0])).id", event_id) == event_id
    assert upstream.calls("events", event_id) == 1


def test_snippets_notice_changes(run: Run, upstream: Standin) -> None:
    """An event that hasn't changed isn't shown again."""
    event_id = DEMO_EVENTS["mixed"]
    twice = """
        let shown = 0;
        for (const _ of [1, 2]) await refresh(arguments[0], () => { shown++; });
        return shown;
    """
    assert run(twice, event_id) == 1


def test_snippets_get_many(run: Run, upstream: Standin) -> None:
    """250 events and an unknown one take three requests."""
    event_ids = new_events(upstream, 250, people=0)
    unknown = new_id()
    many = """
        const {events, errors} = await getEvents(arguments[0]);
        return [events.map(({id}) => id), errors];
    """
    found, errors = run(many, [*event_ids, unknown])
    assert found == event_ids
    assert {event_id: error["status_code"] for event_id, error in errors.items()} == {
        unknown: 404
    }


TRY = """
    let tried = 0;
    const load = () => { tried++; return getEvent(arguments[0]); };
    const many = () => { tried++; return getEvents(arguments[0]); };
"""


def test_snippets_try_again(run: Run, open_service: Service, upstream: Standin) -> None:
    """What comes with Retry-After is tried again, unless that would take too long.

    Other errors aren't tried again.
    """
    hopeless = f"{TRY} await withRetries(load, {{patience: 0.5}}).catch(() => {{}})"
    assert run(f"{hopeless}; return tried", new_id()) == 1, "a 404 has no Retry-After"
    (event_id,) = new_events(upstream, 1)
    upstream.rule("events", event_id, times=1, status=500)
    again = f"{TRY} const {{id}} = await withRetries(load, {{tries: 2}})"
    assert run(f"{again}; return [id, tried]", event_id) == [event_id, 2]
    rule = upstream.rule(status=429, headers={"Retry-After": "3"})
    assert run(f"{hopeless}; return tried", new_id()) == 1, "three seconds are too long"
    rule.remove()
    (event_id,) = new_events(upstream, 1)
    again = f"{TRY} const {{id}} = await withRetries(load, {{tries: 20}})"
    assert run(f"{again}; return [id, tried > 1]", event_id) == [event_id, True]
    until(
        lambda: (
            not open_service.get("/status.json").json()["upstream"]["pause_seconds"]
        ),
        "the end of the pause",
    )


def test_snippets_try_lists_again(run: Run, upstream: Standin) -> None:
    """A list is asked for again until it has no faults, or for as often as was said."""
    again = f"{TRY} const {{events, errors}} = await withRetries(many, {{tries: 2}})"
    counted = f"{again}; return [events.length, Object.keys(errors).length, tried]"
    good = new_events(upstream, 2)
    assert run(counted, [*good, new_id()]) == [2, 1, 1], "a 404 has no retry_after"
    bad = new_events(upstream, 1)
    upstream.rule("events", times=1, status=500)
    assert run(counted, [*good, *bad]) == [3, 0, 2]
    upstream.rule("events", status=500)
    assert run(counted, [*good, new_id()]) == [2, 1, 2]
