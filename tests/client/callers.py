"""What the tests of the client share."""

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from c42client import Calls, Client, Outcome
from calendar42.calls import Attempt, Pause
from calendar42.errors import FAULT, C42Error
from calendar42.payload import Event
from operations.load_log import log_load
from standin import DEMO_EVENTS, Gate, Standin

Make = Callable[..., Client]
ENDPOINTS = ["events", "event-subscriptions"]


@contextmanager
def clients(own_base_url: str = "", **usual: Any) -> Iterator[Make]:
    """Give a way to make clients that log their loads as the service does.

    `make(base_url, timeout=1)`; what isn't given is as `usual`. At the end they are
    closed.
    """
    with ExitStack() as stack:

        def make(
            base_url: str = own_base_url,
            on_fault: Callable[[C42Error], None] = lambda error: None,
            **options: Any,
        ) -> Client:
            def on_load(event_id: str, outcome: Outcome, attempt: Attempt) -> None:
                log_load(event_id, outcome, attempt)
                if isinstance(outcome, C42Error) and outcome.kind == FAULT:
                    on_fault(outcome)

            defaults = {"pause": Pause(6), "on_call": lambda call: None, **usual}
            calls = Calls(base_url=base_url, **defaults | options)
            stack.callback(calls.close)
            return Client(calls, on_load)

        yield make


def fetch(client: Client, event_id: str, seconds: float = 10.0) -> Event:
    """Return the answer, which may take so many `seconds`."""
    ((_, outcome),) = client.fetch([event_id], time.monotonic() + seconds)
    if isinstance(outcome, C42Error):
        raise outcome
    return outcome


def failure(client: Client, event_id: str, seconds: float = 10.0) -> C42Error:
    """Return why there is no answer."""
    with pytest.raises(C42Error) as raised:
        fetch(client, event_id, seconds)
    return raised.value


def connect(client: Client, upstream: Standin) -> None:
    """Load an event over two new connections, which the client keeps."""
    gate = Gate()
    rule = upstream.rule(gate=gate)
    with ThreadPoolExecutor() as pool:
        loading = pool.submit(fetch, client, DEMO_EVENTS["plain"])
        # So that one call doesn't take the connection of the other.
        gate.wait_for(2)
        gate.open()
        loading.result()
    rule.remove()


def fetch_list(
    client: Client, event_ids: list[str], seconds: float = 10.0
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
    return rows(
        event_id,
        len(names),
        *(
            {"id": f"{event_id}__{name}", "subscriber": {"first_name": name}}
            for name in names[offset : offset + 100]
        ),
    )


def asked(upstream: Standin) -> list[int]:
    """Return how many ids each call for events named."""
    return [
        target.count(",") + 1
        for endpoint, target, _ in upstream.requests
        if endpoint == "events"
    ]
