"""Events with many attendees come in pages, and many events in lists."""

import json
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from calendar42.errors import C42Error, Paused, TimedOut, TooLarge
from calendar42.payload import Event
from standin import DEMO_EVENTS, Gate, Standin
from tests.client.callers import (
    ENDPOINTS,
    Make,
    check_error,
    failure,
    fetch,
    fetch_list,
    page,
    rows,
)
from tests.fixtures import given_time, new_events, new_id

# Pages


GUESTS = [f"Guest {number}" for number in range(250)]
MOVES: dict[str, tuple[list[str], list[str]]] = {
    "one at the front": (GUESTS[1:150], GUESTS[:150]),
    "one at the front, one less at the end": (GUESTS[1:151], GUESTS[:150]),
    "one less at the front": (GUESTS[:151], GUESTS[1:151]),
    "one less at the end": (GUESTS[:150], GUESTS[:149]),
    "from 150 to 250": (GUESTS[:150], GUESTS),
    "from 250 to 150": (GUESTS, GUESTS[:150]),
    "from 250 to 50": (GUESTS, GUESTS[:50]),
}
moving = pytest.mark.parametrize(("before", "after"), MOVES.values(), ids=MOVES)
DO_NOT_ADD_UP = "Calendar42 sent subscriptions that don't add up"


def serve_pages(
    upstream: Standin,
    event_id: str,
    names: list[str],
    *offsets: int,
    times: int | None = None,
) -> None:
    """Have the pages at these offsets be those of a list of these names."""
    for offset in offsets:
        upstream.rule(
            "event-subscriptions",
            event_id,
            times,
            offset=offset,
            body=page(event_id, names, offset),
        )


def pages(names: list[str]) -> int:
    """Return how many pages a list of names has."""
    return -(-len(names) // 100)


@moving
def test_pages_that_move(
    make: Make, upstream: Standin, before: list[str], after: list[str]
) -> None:
    """A list that changes between two pages is read again, and has its new names."""
    (event_id,) = new_events(upstream, 1)
    serve_pages(upstream, event_id, after, 0, 100, 200)
    serve_pages(upstream, event_id, before, 0, times=1)
    assert fetch(make(), event_id).names == after
    assert upstream.calls("event-subscriptions") == pages(before) + pages(after)
    assert upstream.calls("events") == 1


@moving
def test_pages_that_move_again(
    make: Make, upstream: Standin, before: list[str], after: list[str]
) -> None:
    """A list that changes while it is read a second time is a fault.

    It isn't read a third time.
    """
    (event_id,) = new_events(upstream, 1)
    serve_pages(upstream, event_id, before, 0)
    serve_pages(upstream, event_id, after, 100, 200)
    check_error(
        failure(make(), event_id),
        status=502,
        upstream_status=200,
        endpoint="event-subscriptions",
        message=DO_NOT_ADD_UP,
    )
    assert upstream.calls("event-subscriptions") == 2 * pages(before)


def test_moving_pages_have_one_deadline(make: Make, upstream: Standin) -> None:
    """The second reading has what is left of the time."""

    def check(seconds: float) -> None:
        (event_id,) = new_events(upstream, 1)
        upstream.rule("event-subscriptions", event_id, offset=0, hang=True)
        serve_pages(upstream, event_id, GUESTS, 100)
        serve_pages(upstream, event_id, GUESTS[:150], 0, times=1)
        assert isinstance(failure(make(), event_id, seconds), TimedOut)
        assert upstream.calls("event-subscriptions", event_id) == 3

    given_time(check)


@pytest.mark.parametrize("count", [2, 100])
def test_fewer_rows_than_promised(make: Make, upstream: Standin, count: int) -> None:
    """If there are fewer rows than `count` says, the answer is a 502.

    A single page isn't read twice.
    """
    (event_id,) = new_events(upstream, 1)
    body = rows(event_id, count, {"subscriber": {"first_name": "A"}})
    upstream.rule("event-subscriptions", event_id, body=body)
    check_error(failure(make(), event_id), status=502, message=DO_NOT_ADD_UP)
    assert upstream.calls("event-subscriptions") == 1


@pytest.mark.parametrize("count", [99, 100, 101, 200, 201])
def test_no_more_calls_than_pages(make: Make, upstream: Standin, count: int) -> None:
    """A page has a hundred rows, and no page is asked for that would be empty."""
    event_id = new_id()
    upstream.add_event(event_id, names=GUESTS[:count])
    assert fetch(make(), event_id).names == GUESTS[:count]
    assert upstream.calls("event-subscriptions") == pages(GUESTS[:count])


@pytest.mark.parametrize("status", [404, 503])
@pytest.mark.parametrize("offset", [100, 200])
def test_a_page_fails(make: Make, upstream: Standin, status: int, offset: int) -> None:
    """If one of many pages fails, the answer is that error."""
    upstream.rule("event-subscriptions", offset=offset, status=status)
    assert failure(make(), DEMO_EVENTS["big"]).status == status


def test_many_pages_at_once(make: Make, upstream: Standin) -> None:
    """Further pages are asked for side by side, and no more than sixteen of them."""
    event_id = new_id()
    names = [f"Guest {number}" for number in range(2500)]
    upstream.add_event(event_id, names=names)
    gate = Gate()
    upstream.rule("event-subscriptions", event_id, gate=gate)
    upstream.rule("event-subscriptions", event_id, offset=0)
    with ThreadPoolExecutor() as pool:
        loading = pool.submit(fetch, make(), event_id)
        gate.wait_for(16)
        assert upstream.calls("event-subscriptions") == 17
        gate.open()
        assert loading.result().names == names
    assert upstream.calls("event-subscriptions") == 25


def test_a_page_that_fails_calls_off_the_others(make: Make, upstream: Standin) -> None:
    """When a page fails, those that haven't been requested yet aren't requested."""
    (event_id,) = new_events(upstream, 1, people=5000)
    upstream.rule("event-subscriptions", event_id, status=500)
    upstream.rule("event-subscriptions", event_id, offset=0)
    assert failure(make(), event_id).status == 500
    assert upstream.calls("event-subscriptions") <= 17


# Lists


def test_a_list(make: Make, upstream: Standin) -> None:
    """A list costs one call to each endpoint.

    Each of its events has the answer that it would have alone.
    """
    client = make()
    deleted = DEMO_EVENTS["deleted"]
    one, two = new_events(upstream, 2)
    event_ids = [one, deleted, two, DEMO_EVENTS["untitled"], DEMO_EVENTS["mixed"]]
    outcomes = fetch_list(client, event_ids)
    assert [upstream.calls(endpoint) for endpoint in ENDPOINTS] == [1, 1]
    assert str(outcomes.pop(deleted)) == "the event is deleted"
    for event_id, outcome in outcomes.items():
        assert outcome == fetch(client, event_id)


def test_a_deleted_event_that_still_has_subscribers(
    make: Make, upstream: Standin
) -> None:
    """In a list, the subscriptions of a deleted event are ignored."""
    deleted, other = new_events(upstream, 2)
    upstream.add_event(deleted, permission="removed", names=["Arthur"])
    outcomes = fetch_list(make(), [deleted, other])
    assert outcomes[deleted].status == 404
    assert outcomes[other].names == [f"{other} 0", f"{other} 1"]


def test_unknown_events(make: Make, upstream: Standin) -> None:
    """An unknown event is a definite 404, known at once.

    The others' subscriptions are asked for again without it.
    """
    one, two = new_events(upstream, 2)
    unknown = new_id()
    gate = Gate()
    upstream.rule("event-subscriptions", gate=gate)
    outcomes = make().fetch([one, unknown, two], time.monotonic() + 10)
    event_id, error = next(outcomes)
    assert event_id == unknown
    check_error(error, kind="negative", message=f"Event {unknown} not found")
    gate.open()
    loaded = dict(outcomes)
    assert list(loaded) == [one, two]
    assert {type(outcome) for outcome in loaded.values()} == {Event}
    targets = [target for _, target, _ in upstream.requests]
    assert any(f"?event_ids=%5B{one},{two}%5D" in target for target in targets)


def test_only_unknown_events(make: Make, upstream: Standin) -> None:
    """If no event is known, the client doesn't wait for their subscriptions."""
    gate = Gate()
    upstream.rule("event-subscriptions", gate=gate)
    outcomes = fetch_list(make(), [new_id(), DEMO_EVENTS["deleted"], new_id()])
    assert {outcome.status for outcome in outcomes.values()} == {404}
    gate.open()


def test_a_list_that_nobody_waits_for(make: Make, upstream: Standin) -> None:
    """A caller that stops reading a list leaves only the active calls behind."""
    client = make()
    event_ids = new_events(upstream, 2)
    gate = Gate()
    upstream.rule("event-subscriptions", gate=gate)
    outcomes = client.fetch([new_id(), *event_ids], time.monotonic() + 10)
    next(outcomes)
    outcomes.close()  # type: ignore[attr-defined]
    gate.open()
    assert fetch_list(client, event_ids).keys() == set(event_ids)


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize(
    ("fault", "error_class", "kind"),
    [
        ({"status": 400}, C42Error, "negative"),
        ({"status": 404}, C42Error, "negative"),
        ({"status": 414}, C42Error, "negative"),
        ({"body": 9}, TooLarge, "fault"),
    ],
    ids=["400", "404", "414", "9 MiB"],
)
def test_a_list_is_split(
    make: Make,
    upstream: Standin,
    caplog: pytest.LogCaptureFixture,
    endpoint: str,
    fault: dict[str, Any],
    error_class: type[C42Error],
    kind: str,
) -> None:
    """If one event makes its list refused or too large, the others get their answers.

    That takes few calls. The log says so, with the reason, and has one line for each
    event.
    """
    event_ids = new_events(upstream, 16)
    bad = event_ids[5]
    upstream.rule(endpoint, bad, **fault)
    with caplog.at_level(logging.INFO, logger="c42c"):
        outcomes = fetch_list(make(), event_ids)
    error = outcomes.pop(bad)
    check_error(error, error_class, private=False, kind=kind, endpoint=endpoint)
    for event_id, outcome in outcomes.items():
        assert outcome.names == [f"{event_id} 0", f"{event_id} 1"]
    # The whole, and both halves of 16, 8, 4 and 2
    assert upstream.calls("events") == 1 + 4 * 2
    assert upstream.calls(event_id=bad) <= 2 * 5
    reason = f"a list of 16 events failed ({error}): asking for its halves"
    assert caplog.messages[0] == reason
    assert len(caplog.messages) == 4 + 16


def test_what_is_settled_is_not_asked_for_again(make: Make, upstream: Standin) -> None:
    """The halves of a list leave out what is known already."""
    one, two = new_events(upstream, 2)
    unknown = new_id()
    upstream.rule("event-subscriptions", one, 1, status=400)
    # The first call, which nobody waits for, may come late.
    upstream.rule("event-subscriptions", unknown)
    outcomes = fetch_list(make(), [unknown, one, two])
    assert str(outcomes[unknown]) == f"Event {unknown} not found"
    assert {type(outcomes[event_id]) for event_id in (one, two)} == {Event}
    assert upstream.calls("events", unknown) == 1


LIST_FAULTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "503": (
        {"status": 503, "body": "down"},
        {"status": 503, "upstream_status": 503, "body": b"down"},
    ),
    "reset": ({"reset": True}, {"status": 502, "upstream_status": 0}),
    "shape": ({"body": '{"data": [1]}'}, {"status": 502, "upstream_status": 200}),
}


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize(("fault", "expected"), LIST_FAULTS.values(), ids=LIST_FAULTS)
def test_a_list_fails(
    make: Make,
    upstream: Standin,
    caplog: pytest.LogCaptureFixture,
    endpoint: str,
    fault: dict[str, Any],
    expected: dict[str, Any],
) -> None:
    """If a list fails for another reason, all its events fail, without a retry.

    That says nothing about each of them. Each is logged as a fault.
    """
    unknown = new_id()
    upstream.rule(endpoint, **fault)
    outcomes = fetch_list(make(), [*new_events(upstream, 3), unknown])
    if endpoint == "event-subscriptions":
        assert outcomes.pop(unknown).status == 404  # which its own call says
    errors = set(outcomes.values())
    assert len(errors) == len(outcomes) == len(caplog.records)
    assert len({str(error) for error in errors}) == 1
    for error in errors:
        check_error(
            error,
            private=True,
            kind="fault",
            endpoint=endpoint,
            retry_after=0.0,
            **expected,
        )
    # A call that is reset on the connection that the other one has left is made again.
    again = "reset" in fault
    assert upstream.calls("events") <= 1 + again
    assert upstream.calls("event-subscriptions") <= 2 + again


def test_a_part_of_a_list(make: Make, upstream: Standin) -> None:
    """If the upstream counts more events than it sends, none is taken for unknown."""
    known = new_events(upstream, 2)
    body = json.dumps({"meta_data": {"count": 2}, "data": [{"id": known[0]}]})
    upstream.rule("events", times=1, body=body)
    outcomes = fetch_list(make(), known)
    assert {type(outcome) for outcome in outcomes.values()} == {Event}
    assert upstream.calls("events") == 3


def test_a_list_runs_out_of_time(make: Make, upstream: Standin) -> None:
    """If a list's time runs out, that says nothing about the events that are left."""

    def check(seconds: float) -> None:
        event_ids = new_events(upstream, 4)
        upstream.rule("events", event_ids[1], hang=True)
        upstream.rule("events", event_ids[0], 2, status=400)
        outcomes = fetch_list(make(timeout=10 * seconds), event_ids, seconds)
        assert outcomes.pop(event_ids[0]).title == f"Title {event_ids[0]}"
        for error in outcomes.values():
            check_error(error, TimedOut, status=504, private=True)
        assert upstream.calls("events", event_ids[3]) == 1

    given_time(check)


def test_a_pause_holds_for_a_whole_list(make: Make, upstream: Standin) -> None:
    """A 429 to a list is a pause for each of its events, not a fault of the list."""
    upstream.rule("events", status=429, body="slow down", headers={"Retry-After": "30"})
    for error in fetch_list(make(), new_events(upstream, 2)).values():
        check_error(
            error, Paused, private=False, body=b"slow down", upstream_status=429
        )
    assert upstream.calls("events") == 1


def test_long_lists(make: Make, upstream: Standin) -> None:
    """A call names a hundred events at most, and no more than fit into an address."""
    client = make()
    for count, width in (100, 1), (101, 1), (50, 128), (51, 128):
        fetch_list(client, [f"{number:0{width}d}" for number in range(count)])
    targets = [target for name, target, _ in upstream.requests if name == "events"]
    named = [target.count(",") + 1 for target in targets]
    assert named == [100, 51, 50, 50, 26, 25]
    assert max(len(target) for _, target, _ in upstream.requests) < 8000
