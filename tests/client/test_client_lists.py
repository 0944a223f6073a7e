"""Events with many attendees come in pages, and many events in lists."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from calendar42.errors import (
    C42Error,
    Paused,
    TimedOut,
    TooLarge,
)
from calendar42.payload import Event
from standin import DEMO_EVENTS, Gate, Standin
from tests.client.callers import (
    ENDPOINTS,
    Make,
    asked,
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


@pytest.mark.parametrize(("before", "after"), MOVES.values(), ids=MOVES)
def test_pages_that_move(
    make: Make, upstream: Standin, before: list[str], after: list[str]
) -> None:
    """A list that changes between two pages is read again, and has its new names."""
    event_id = new_id()
    upstream.add_event(event_id)
    for offset in 0, 100, 200:
        upstream.rule(
            "event-subscriptions",
            event_id,
            offset=offset,
            body=page(event_id, after, offset),
        )
    upstream.rule(
        "event-subscriptions", event_id, 1, offset=0, body=page(event_id, before, 0)
    )
    assert fetch(make(), event_id).names == after
    pages = -(-len(before) // 100), -(-len(after) // 100)
    assert upstream.calls("event-subscriptions") == sum(pages)
    assert upstream.calls("events") == 1


@pytest.mark.parametrize(("before", "after"), MOVES.values(), ids=MOVES)
def test_pages_that_move_again(
    make: Make, upstream: Standin, before: list[str], after: list[str]
) -> None:
    """A list that changes while it is read a second time is a fault.

    It isn't read a third time.
    """
    event_id = new_id()
    upstream.add_event(event_id)
    for offset, names in (0, before), (100, after), (200, after):
        upstream.rule(
            "event-subscriptions",
            event_id,
            offset=offset,
            body=page(event_id, names, offset),
        )
    error = failure(make(), event_id)
    assert str(error) == "Calendar42 sent subscriptions that don't add up"
    assert (error.status, error.endpoint, error.upstream_status) == (
        502,
        "event-subscriptions",
        200,
    )
    assert upstream.calls("event-subscriptions") == 2 * -(-len(before) // 100)


def test_moving_pages_have_one_deadline(make: Make, upstream: Standin) -> None:
    """The second reading has what is left of the time."""

    def check(seconds: float) -> None:
        event_id = new_id()
        upstream.add_event(event_id)
        upstream.rule("event-subscriptions", event_id, offset=0, hang=True)
        upstream.rule(
            "event-subscriptions",
            event_id,
            offset=100,
            body=page(event_id, GUESTS, 100),
        )
        upstream.rule(
            "event-subscriptions",
            event_id,
            1,
            offset=0,
            body=page(event_id, GUESTS[:150], 0),
        )
        assert isinstance(failure(make(), event_id, seconds), TimedOut)
        assert upstream.calls("event-subscriptions", event_id) == 3

    given_time(check)


def test_rows_without_ids(make: Make, upstream: Standin) -> None:
    """Rows without an id count as rows, even if several look the same.

    Removed ones without content count, too.
    """
    event_id, blank = new_id(), [{"subscriber": {"first_name": "A"}}] * 99
    upstream.add_event(event_id)
    for offset, more in (
        (0, {"permission": "removed"}),
        (100, {"id": "x", "permission": "removed"}),
    ):
        upstream.rule(
            "event-subscriptions",
            event_id,
            offset=offset,
            body=rows(event_id, 200, *blank, more),
        )
    assert fetch(make(), event_id).names == ["A"] * 198


@pytest.mark.parametrize("count", [2, 100])
def test_fewer_rows_than_promised(make: Make, upstream: Standin, count: int) -> None:
    """If there are fewer rows than `count` says, the answer is a 502.

    A single page isn't read twice.
    """
    event_id = new_id()
    upstream.add_event(event_id)
    upstream.rule(
        "event-subscriptions",
        event_id,
        body=rows(event_id, count, {"subscriber": {"first_name": "A"}}),
    )
    assert (
        str(failure(make(), event_id))
        == "Calendar42 sent subscriptions that don't add up"
    )
    assert upstream.calls("event-subscriptions") == 1


def test_closing_waits_for_no_call(make: Make, upstream: Standin) -> None:
    """A client closes at once, also twice, even if Calendar42 hasn't answered yet.

    The answer comes all the same.
    """
    client, event_id, gate = make(), new_events(upstream, 1)[0], Gate()
    upstream.rule(gate=gate)
    with ThreadPoolExecutor() as pool:
        under_way = pool.submit(fetch, client, event_id)
        gate.wait_for(2)
        for _ in range(1000):
            client.calls.close()
        assert not under_way.done()
        gate.open()
        assert under_way.result().id == event_id


@pytest.mark.parametrize("count", [99, 100, 101, 200, 201])
def test_no_more_calls_than_pages(make: Make, upstream: Standin, count: int) -> None:
    """A page has a hundred rows, and no page is asked for that would be empty."""
    event_id = new_id()
    upstream.add_event(event_id, names=GUESTS[:count])
    assert fetch(make(), event_id).names == GUESTS[:count]
    assert upstream.calls("event-subscriptions") == -(-count // 100)


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        ({"status": 503}, 503),
        ({"status": 404}, 404),
        ({"reset": True}, 502),
        ({"truncate": True}, 502),
        ({"hang": True}, 504),
    ],
)
@pytest.mark.parametrize("offset", [100, 200])
def test_a_page_fails(
    make: Make, upstream: Standin, fault: dict[str, Any], status: int, offset: int
) -> None:
    """If one of many pages fails, the answer is that error."""
    upstream.rule("event-subscriptions", offset=offset, **fault)
    assert (
        failure(make(), DEMO_EVENTS["big"], 0.3 if status == 504 else 10).status
        == status
    )


def test_many_pages_at_once(make: Make, upstream: Standin) -> None:
    """Further pages are asked for side by side, and no more than sixteen of them."""
    event_id, gate = new_id(), Gate()
    upstream.add_event(event_id, names=[f"Guest {number}" for number in range(2500)])
    for number in range(1, 25):
        upstream.rule("event-subscriptions", event_id, offset=100 * number, gate=gate)
    client, answers = make(), list[Any]()
    thread = threading.Thread(target=lambda: answers.append(fetch(client, event_id)))
    thread.start()
    gate.wait_for(16)
    assert upstream.calls("event-subscriptions", event_id) == 17
    gate.open()
    thread.join()
    assert answers[0].names == [f"Guest {number}" for number in range(2500)]
    assert upstream.calls("event-subscriptions", event_id) == 25


def test_a_page_that_fails_calls_off_the_others(make: Make, upstream: Standin) -> None:
    """When a page fails, those that haven't been requested yet aren't requested."""
    event_id, gate = new_id(), Gate()
    upstream.add_event(event_id, names=[f"Guest {number}" for number in range(5000)])
    upstream.rule("event-subscriptions", event_id, status=500)
    upstream.rule("event-subscriptions", event_id, 1, offset=0)
    assert failure(make(), event_id).status == 500
    assert upstream.calls("event-subscriptions", event_id) <= 17
    gate.open()


# Lists


def test_a_list(make: Make, upstream: Standin) -> None:
    """A list costs one call to each endpoint.

    Each of its events has the answer that it would have alone.
    """
    client, (one, two) = make(), new_events(upstream, 2)
    outcomes = fetch_list(
        client,
        [
            one,
            DEMO_EVENTS["deleted"],
            two,
            DEMO_EVENTS["untitled"],
            DEMO_EVENTS["mixed"],
        ],
    )
    assert (upstream.calls("events"), upstream.calls("event-subscriptions")) == (1, 1)
    assert str(outcomes.pop(DEMO_EVENTS["deleted"])) == "the event is deleted"
    for event_id, outcome in outcomes.items():
        assert outcome == fetch(client, event_id)


def test_a_deleted_event_that_still_has_subscribers(
    make: Make, upstream: Standin
) -> None:
    """In a list, the subscriptions of a deleted event are ignored."""
    client, (deleted, other) = make(), new_events(upstream, 2)
    upstream.add_event(deleted, permission="removed", names=["Arthur"])
    outcomes = fetch_list(client, [deleted, other])
    assert outcomes[deleted].status == 404
    assert outcomes[other].names == [f"{other} 0", f"{other} 1"]


def test_unknown_events(make: Make, upstream: Standin) -> None:
    """An unknown event is a definite 404, known at once.

    The others' subscriptions are asked for again without it.
    """
    client, (one, two), unknown, gate = (
        make(),
        new_events(upstream, 2),
        new_id(),
        Gate(),
    )
    upstream.rule("event-subscriptions", gate=gate)
    outcomes = client.fetch([one, unknown, two], time.monotonic() + 10)
    event_id, error = next(outcomes)
    assert (event_id, str(error), gate.arrived <= 1) == (
        unknown,
        f"Event {unknown} not found",
        True,
    )
    gate.open()
    assert [
        (event_id, isinstance(outcome, Event)) for event_id, outcome in outcomes
    ] == [(one, True), (two, True)]
    assert any(
        f"?event_ids=%5B{one},{two}%5D" in target for _, target, _ in upstream.requests
    )


def test_only_unknown_events(make: Make, upstream: Standin) -> None:
    """If no event is known, the client doesn't wait for their subscriptions."""
    gate = Gate()
    upstream.rule("event-subscriptions", gate=gate)
    outcomes = fetch_list(make(), [new_id(), DEMO_EVENTS["deleted"], new_id()])
    assert {outcome.status for outcome in outcomes.values()} == {404}
    gate.open()


def test_a_list_that_nobody_waits_for(make: Make, upstream: Standin) -> None:
    """A caller that stops reading a list leaves only the active calls behind."""
    client, event_ids, gate = make(), new_events(upstream, 2), Gate()
    upstream.rule("event-subscriptions", gate=gate)
    outcomes = client.fetch([new_id(), *event_ids], time.monotonic() + 10)
    next(outcomes)
    outcomes.close()  # type: ignore[attr-defined]
    gate.open()
    assert fetch_list(client, event_ids).keys() == set(event_ids)


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize(
    "fault",
    [{"status": 400}, {"status": 404}, {"status": 414}, {"body": 9}],
    ids=["400", "404", "414", "9 MiB"],
)
def test_a_list_is_split(
    make: Make, upstream: Standin, endpoint: str, fault: dict[str, Any]
) -> None:
    """If one event makes its list refused or too large, the others get their answers.

    That takes few calls.
    """
    faults: list[C42Error] = []
    client, event_ids = make(on_fault=faults.append), new_events(upstream, 16)
    bad = event_ids[5]
    upstream.rule(endpoint, bad, **fault)
    outcomes = fetch_list(client, event_ids)
    error = outcomes.pop(bad)
    assert (type(error), error.private) == (
        TooLarge if "body" in fault else C42Error,
        False,
    )
    assert error.kind == ("negative" if "status" in fault else "fault")
    assert error.endpoint == endpoint
    assert all(
        outcome.names == [f"{event_id} 0", f"{event_id} 1"]
        for event_id, outcome in outcomes.items()
    )
    assert (
        upstream.calls("events") == 1 + 4 * 2
    )  # the whole, and both halves of 16, 8, 4 and 2
    assert upstream.calls(event_id=bad) <= 2 * 5
    assert faults == ([error] if "body" in fault else [])


def test_too_many_subscriptions_for_a_list(make: Make, upstream: Standin) -> None:
    """A list with more than 100,000 subscriptions is read in halves."""
    client, event_ids = make(), new_events(upstream, 3)
    upstream.rule(
        "event-subscriptions", event_ids[0], 1, body=rows(event_ids[0], 100_001)
    )
    outcomes = fetch_list(client, event_ids)
    assert [outcomes[event_id].names for event_id in event_ids] == [
        [f"{one} 0", f"{one} 1"] for one in event_ids
    ]
    assert upstream.calls("events") == 3


def test_what_is_settled_is_not_asked_for_again(make: Make, upstream: Standin) -> None:
    """The halves of a list leave out what is known already."""
    client, (one, two), unknown = make(), new_events(upstream, 2), new_id()
    upstream.rule("event-subscriptions", one, 1, status=400)
    # The first call, which nobody waits for, may come late.
    upstream.rule("event-subscriptions", unknown)
    outcomes = fetch_list(client, [unknown, one, two])
    assert (str(outcomes[unknown]), type(outcomes[one]), type(outcomes[two])) == (
        f"Event {unknown} not found",
        Event,
        Event,
    )
    assert upstream.calls("events", unknown) == 1


LIST_FAULTS: dict[str, tuple[dict[str, Any], int]] = {
    "500": ({"status": 500}, 500),
    "503": ({"status": 503, "body": "down"}, 503),
    "401": ({"status": 401}, 401),
    "reset": ({"reset": True}, 502),
    "truncated": ({"truncate": True}, 502),
    "shape": ({"body": '{"data": [1]}'}, 502),
    "hang": ({"hang": True}, 504),
}


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize(("fault", "status"), LIST_FAULTS.values(), ids=LIST_FAULTS)
def test_a_list_fails(
    make: Make, upstream: Standin, endpoint: str, fault: dict[str, Any], status: int
) -> None:
    """If a list fails for another reason, all its events fail, without a retry.

    That says nothing about each of them.
    """
    upstream.rule(endpoint, **fault)

    def check(seconds: float) -> None:
        upstream.reset_counts()
        check_failed_list(make, upstream, endpoint, fault, status, seconds)

    if "hang" in fault:
        given_time(check)
    else:
        check(10.0)


def check_failed_list(
    make: Make,
    upstream: Standin,
    endpoint: str,
    fault: dict[str, Any],
    status: int,
    seconds: float,
) -> None:
    faults: list[C42Error] = []
    client, event_ids, unknown = (
        make(on_fault=faults.append),
        new_events(upstream, 3),
        new_id(),
    )
    outcomes = fetch_list(client, [*event_ids, unknown], seconds)
    if endpoint == "event-subscriptions":
        assert outcomes.pop(unknown).status == 404  # which its own call says
    assert {type(error) for error in outcomes.values()} == {
        TimedOut if "hang" in fault else C42Error
    }
    assert len(set(outcomes.values())) == len(outcomes)
    assert faults == list(outcomes.values())
    for error in faults:
        assert (error.status, error.private, error.kind, error.endpoint) == (
            status,
            True,
            "fault",
            endpoint,
        )
        assert (str(error), error.upstream_status) == (
            str(faults[0]),
            faults[0].upstream_status,
        )
        assert (error.body, error.retry_after) == (faults[0].body, 0)
    # A call that is reset on the connection that the other one has left is made again.
    again = "reset" in fault
    assert upstream.calls("events") <= 1 + again
    assert upstream.calls("event-subscriptions") <= 2 + again


def test_a_filter_that_is_ignored(make: Make, upstream: Standin) -> None:
    """If the upstream ignores the filter, no missing event is taken for unknown."""
    client, (known, other, foreign) = make(), new_events(upstream, 3)
    data = [{"id": event_id, "title": event_id} for event_id in (known, foreign)]
    upstream.rule("events", body=json.dumps({"data": data}))
    outcomes = fetch_list(client, [known, other])
    assert outcomes[known].title == known
    assert (outcomes[other].status, outcomes[other].private) == (502, True)


def test_a_part_of_a_list(make: Make, upstream: Standin) -> None:
    """If the upstream counts more events than it sends, none is taken for unknown."""
    known = new_events(upstream, 2)
    upstream.rule(
        "events",
        times=1,
        body=json.dumps({"meta_data": {"count": 2}, "data": [{"id": known[0]}]}),
    )
    outcomes = fetch_list(make(), known)
    assert all(isinstance(outcomes[event_id], Event) for event_id in known)
    assert upstream.calls("events") == 3


def test_a_list_runs_out_of_time(make: Make, upstream: Standin) -> None:
    """If a list's time runs out, that says nothing about the events that are left."""

    def check(seconds: float) -> None:
        client, event_ids = make(timeout=10 * seconds), new_events(upstream, 4)
        upstream.rule("events", event_ids[1], hang=True)
        upstream.rule("events", event_ids[0], 2, status=400)
        outcomes = fetch_list(client, event_ids, seconds)
        assert outcomes[event_ids[0]].title == f"Title {event_ids[0]}"
        for event_id in event_ids[1:]:
            error = outcomes[event_id]
            assert (error.status, error.private) == (504, True)
        assert upstream.calls("events", event_ids[3]) == 1

    given_time(check)


def test_a_pause_holds_for_a_whole_list(make: Make, upstream: Standin) -> None:
    """A 429 to a list is a pause for each of its events, not a fault of the list."""
    client, event_ids = make(), new_events(upstream, 2)
    upstream.rule("events", status=429, body="slow down", headers={"Retry-After": "30"})
    for error in fetch_list(client, event_ids).values():
        assert isinstance(error, Paused)
        assert (error.private, error.body, error.upstream_status) == (
            False,
            b"slow down",
            429,
        )
    assert upstream.calls("events") == 1


def test_long_lists(make: Make, upstream: Standin) -> None:
    """A call names a hundred events at most, and no more than fit into an address."""
    client = make()
    fetch_list(client, [f"{number}" for number in range(100)])
    fetch_list(client, [f"{number}" for number in range(101)])
    fetch_list(client, [f"{number:0128d}" for number in range(50)])
    fetch_list(client, [f"{number:0128d}" for number in range(51)])
    assert asked(upstream) == [100, 51, 50, 50, 26, 25]
    assert max(len(target) for _, target, _ in upstream.requests) < 8000
