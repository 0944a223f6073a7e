"""What the cache keeps of Calendar42's answers and errors, and for how long."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from answers.value import failure, success
from cache import FAULT, NEGATIVE, OK, PAUSED, Loaded, Loader
from calendar42.errors import C42Error, Paused

Fetch = Callable[[list[str], float], Iterator[tuple[str, Mapping[str, Any] | C42Error]]]


def loader(
    fetch: Fetch,
    *,
    expiry: float,
    fault_expiry: float,
    request_id: Callable[[], str],
) -> Loader:
    """Return a function that loads events for the cache, by a deadline (of
    `time.monotonic`).

    Times are in seconds. `request_id` returns the id of the request that loads: errors
    keep it, because that is where the log tells of them.
    """

    def load(event_ids: list[str], deadline: float) -> Iterator[tuple[str, Loaded]]:
        began = time.monotonic()
        for event_id, outcome in fetch(event_ids, deadline):
            if isinstance(outcome, C42Error):
                yield event_id, load_error(outcome, time.monotonic() - began)
            else:
                yield event_id, Loaded(success(outcome), OK, expiry)

    def load_error(error: C42Error, seconds: float) -> Loaded:
        """Return what is kept of an error that was found so many seconds after the
        beginning of the load.
        """
        if error.definite:
            stored = failure(error, request_id=request_id())
            return Loaded(stored, NEGATIVE, expiry)
        kind = FAULT
        lifetime = fault_expiry
        if isinstance(error, Paused):
            kind = PAUSED
            lifetime = min(max(error.retry_after, fault_expiry), expiry)
        stored = failure(
            error,
            extra_wait=max(0, math.ceil(error.retry_after - lifetime)),
            request_id=request_id(),
        )
        return Loaded(
            stored,
            kind,
            lifetime,
            age=-seconds,  # a fault ages from when it was found
            private=error.private,
        )

    return load
