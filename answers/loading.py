"""What the cache keeps of Calendar42's answers and errors, and for how long."""

import math
import time
from collections.abc import Callable, Iterator

from answers.value import failure, success
from cache import NEGATIVE, OK, PAUSED, Loaded, Loader
from calendar42.errors import C42Error
from calendar42.payload import Event

Fetch = Callable[[list[str], float], Iterator[tuple[str, Event | C42Error]]]


def loader(
    fetch: Fetch,
    *,
    expiry: float,
    fault_expiry: float,
    id_for: Callable[[str, C42Error], str],
) -> Loader:
    """Return a function that loads events for the cache.

    It gets a deadline, a moment of `time.monotonic`. Times are in seconds. `id_for`
    gets an event's id and error, and returns the id under which the log tells how it
    came about; that is kept with the error.
    """

    def load(event_ids: list[str], deadline: float) -> Iterator[tuple[str, Loaded]]:
        began = time.monotonic()
        for event_id, outcome in fetch(event_ids, deadline):
            if isinstance(outcome, C42Error):
                request_id = id_for(event_id, outcome)
                seconds = time.monotonic() - began
                yield event_id, keep(outcome, request_id, seconds)
            else:
                yield event_id, Loaded(success(outcome), OK, expiry)

    def keep(error: C42Error, request_id: str, seconds: float) -> Loaded:
        """Return what is kept of an error.

        `seconds` says how long after the beginning of its load it was found.
        """
        if error.kind == NEGATIVE:
            value = failure(error, request_id=request_id)
            return Loaded(value, NEGATIVE, expiry)
        lifetime = fault_expiry
        if error.private:
            lifetime = 0.0  # it isn't kept: c42c would ask again at once
        elif error.kind == PAUSED:
            lifetime = min(max(error.retry_after, fault_expiry), expiry)
        value = failure(
            error,
            extra_wait=max(0, math.ceil(error.retry_after - lifetime)),
            request_id=request_id,
        )
        return Loaded(
            value,
            error.kind,
            lifetime,
            age=-seconds,  # a fault ages from when it was found
            private=error.private,
        )

    return load
