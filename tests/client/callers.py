"""What the tests of the client share."""

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from c42client import Client
from calendar42.errors import (
    C42Error,
)
from calendar42.payload import Event
from standin import Standin

Make = Callable[..., Client]
ENDPOINTS = ["events", "event-subscriptions"]


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
