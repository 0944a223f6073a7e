"""What is kept of a load, and for how long: the step from the upstream's outcome to the cache."""

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from answers import value
from cache import FAULT, NEGATIVE, OK, PAUSED, Loaded
from calendar42.errors import C42Error, Paused, TimedOut

Merged = Mapping[str, Any]
Load = Callable[[list[str], float], Iterator[tuple[str, Loaded]]]


class Source(Protocol):
    """What the loader asks: `c42client.Client`, or a stand-in for it. Deadlines are moments of `time.monotonic`."""

    def fetch(self, event_id: str, deadline: float) -> Merged:
        """Return the merged answer of one event, or raise `C42Error`."""

    def fetch_many(self, event_ids: list[str], deadline: float) -> Iterator[tuple[str, Merged | C42Error]]:
        """Yield each event with its merged answer, or its error."""


def loader(client: Source, *, expiry: float, fault_expiry: float) -> Load:
    """Return a function that loads events for the cache: it asks `client` and yields what is to be kept of each.

    `expiry` and `fault_expiry` are in seconds.
    """

    def load(event_ids: list[str], deadline: float) -> Iterator[tuple[str, Loaded]]:
        began = time.monotonic()
        for event_id, outcome in _fetch(client, event_ids, deadline):
            unasked = deadline <= began and isinstance(outcome, TimedOut)
            if not isinstance(outcome, C42Error):
                loaded = Loaded(value.success(outcome), OK, expiry)
            elif outcome.definite:
                loaded = Loaded(_failure(outcome), NEGATIVE, expiry)
            elif isinstance(outcome, Paused):
                lifetime = min(max(outcome.retry_after, fault_expiry), expiry)
                loaded = Loaded(_failure(outcome), PAUSED, lifetime, began - time.monotonic())
            else:  # a fault ages from when it was found, which may be long after the load began
                private = outcome.of_list or unasked  # it says nothing about this event
                age = began - time.monotonic()
                loaded = Loaded(_failure(outcome), FAULT, fault_expiry, age, private=private)
            yield event_id, loaded

    return load


def _fetch(client: Source, event_ids: list[str], deadline: float) -> Iterator[tuple[str, Merged | C42Error]]:
    if len(event_ids) > 1:
        yield from client.fetch_many(event_ids, deadline)
        return
    (event_id,) = event_ids
    try:
        yield event_id, client.fetch(event_id, deadline)
    except C42Error as error:
        yield event_id, error


def _failure(error: C42Error) -> value.Value:
    return value.failure(
        error.status,
        str(error),
        body=error.body,
        upstream_status=error.upstream_status,
        retry_after=error.retry_after,
    )
