"""What the cache keeps of Calendar42's answers and errors, and for how long."""

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from answers.value import failure, success
from cache import FAULT, NEGATIVE, OK, PAUSED, Loaded, Loader
from calendar42.errors import C42Error, Paused

Fetch = Callable[[list[str], float], Iterator[tuple[str, Mapping[str, Any] | C42Error]]]


def loader(fetch: Fetch, *, expiry: float, fault_expiry: float) -> Loader:
    """Return a function that loads events for the cache, by a deadline (of
    `time.monotonic`); times are in seconds.
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
                    kind, lifetime = (
                        PAUSED,
                        min(max(outcome.retry_after, fault_expiry), expiry),
                    )
                age = began - time.monotonic()  # a fault ages from when it was found
                loaded = Loaded(
                    failure(outcome), kind, lifetime, age, private=outcome.private
                )
            yield event_id, loaded

    return load
