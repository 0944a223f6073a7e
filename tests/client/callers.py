"""What the tests of the client share."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from c42client import Calls, Client
from calendar42.calls import Pause
from calendar42.errors import C42Error, Exhausted
from calendar42.payload import Event
from operations.load_log import log_load
from standin import DEMO_EVENTS
from tests.fixtures import PATIENCE

Make = Callable[..., Client]
ENDPOINTS = ["events", "event-subscriptions"]
PLAIN = DEMO_EVENTS["plain"]


@contextmanager
def clients(own_base_url: str = "", **usual: Any) -> Iterator[Make]:
    """Give a way to make clients that log their loads as the service does.

    `make(base_url, timeout=1)`; what isn't given is as `usual`. At the end they are
    closed.
    """
    with ExitStack() as stack:

        def make(base_url: str = own_base_url, **options: Any) -> Client:
            defaults = {"pause": Pause(60), "on_call": lambda call: None, **usual}
            calls = Calls(base_url=base_url, **defaults | options)
            stack.callback(calls.close)
            return Client(calls, log_load)

        yield make


def fetch(client: Client, event_id: str = PLAIN, seconds: float = PATIENCE) -> Event:
    """Return the answer, which may take so many `seconds`."""
    ((_, outcome),) = client.fetch([event_id], time.monotonic() + seconds)
    if isinstance(outcome, C42Error):
        raise outcome
    return outcome


def failure(
    client: Client, event_id: str = PLAIN, seconds: float = PATIENCE
) -> C42Error:
    """Return why there is no answer."""
    with pytest.raises(C42Error) as raised:
        fetch(client, event_id, seconds)
    return raised.value


def check_error(
    error: Any, error_class: type[C42Error] = C42Error, **expected: Any
) -> None:
    """Check that an error is of this class, and has the expected fields."""
    assert type(error) is error_class
    assert {name: getattr(error, name) for name in expected} == expected


def check_exhausted(error: C42Error, message: str, trouble: str) -> None:
    """Check that an error says what c42c lacks: a 503, and a fault."""
    check_error(
        error,
        Exhausted,
        message=message,
        trouble=trouble,
        status=503,
        upstream_status=0,
        kind="fault",
        retry_after=1.0,
    )


def fetch_list(
    client: Client, event_ids: list[str], seconds: float = PATIENCE
) -> dict[str, Any]:
    """Return what comes of each event of a list; each comes once."""
    outcomes = list(client.fetch(event_ids, time.monotonic() + seconds))
    assert sorted(event_id for event_id, _ in outcomes) == sorted(event_ids)
    return dict(outcomes)


def rows(event_id: str, count: int, *rows: Any) -> bytes:
    """Return a page of subscriptions to an event."""
    return json.dumps(
        {
            "meta_data": {"count": count},
            "data": [{"event_id": event_id, **row} for row in rows],
        }
    ).encode()


def page(event_id: str, names: list[str], offset: int) -> bytes:
    """Return a page of a list of subscriptions.

    Its rows keep their ids when they move.
    """
    people = [
        {"id": f"{event_id}__{name}", "subscriber": {"first_name": name}}
        for name in names[offset : offset + 100]
    ]
    return rows(event_id, len(names), *people)
