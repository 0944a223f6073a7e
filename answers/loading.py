"""What the cache keeps of Calendar42's answers and errors, and for how long."""

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from answers.value import failure, success
from cache import FAULT, NEGATIVE, OK, PAUSED, Loaded
from calendar42.errors import C42Error, Paused, TimedOut

Fetch = Callable[[list[str], float], Iterator[tuple[str, Mapping[str, Any] | C42Error]]]
Load = Callable[[list[str], float], Iterator[tuple[str, Loaded]]]


def loader(fetch: Fetch, *, timeout: float, expiry: float, fault_expiry: float) -> Load:
    """Return a function that loads events for the cache.

    `fetch` yields each event with its merged answer or its error, by a deadline, a moment of `time.monotonic`. A load
    usually has `timeout` seconds; a time-out in less than half of that says nothing about the event. `expiry` and
    `fault_expiry` are also in seconds.
    """

    def load(event_ids: list[str], deadline: float) -> Iterator[tuple[str, Loaded]]:
        began = time.monotonic()
        for event_id, outcome in fetch(event_ids, deadline):
            if not isinstance(outcome, C42Error):
                loaded = Loaded(success(outcome), OK, expiry)
            elif outcome.definite:
                loaded = Loaded(failure(outcome), NEGATIVE, expiry)
            else:
                kind, lifetime = FAULT, fault_expiry
                if isinstance(outcome, Paused):
                    kind, lifetime = PAUSED, min(max(outcome.retry_after, fault_expiry), expiry)
                age = began - time.monotonic()  # a fault ages from when it was found
                cut_short = deadline - began < timeout / 2 and isinstance(outcome, TimedOut)
                private = cut_short or outcome.of_list  # it says nothing about the event
                loaded = Loaded(failure(outcome), kind, lifetime, age, private=private)
            yield event_id, loaded

    return load
