"""What the cache keeps of Calendar42's answers and errors, and for how long."""

import math
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
    clock: Callable[[], float],
) -> Loader:
    """Return a function that loads events for the cache.

    It gets a deadline, a moment of `time.monotonic`. Times are in seconds. `id_for`
    gets an event's id and error, and returns the id under which the log tells how it
    came about; that is kept with the error. `clock` is the cache's.
    """

    def load(event_ids: list[str], deadline: float) -> Iterator[tuple[str, Loaded]]:
        began = clock()
        for event_id, outcome in fetch(event_ids, deadline):
            if isinstance(outcome, Event):
                yield event_id, Loaded(success(outcome), OK, expiry, born=began)
                continue
            request_id = id_for(event_id, outcome)
            if outcome.kind == NEGATIVE:
                value = failure(outcome, request_id=request_id)
                yield event_id, Loaded(value, NEGATIVE, expiry, born=began)
                continue
            lifetime = _lifetime(outcome, expiry, fault_expiry)
            extra_wait = max(0, math.ceil(outcome.retry_after - lifetime))
            yield (
                event_id,
                Loaded(
                    failure(outcome, extra_wait=extra_wait, request_id=request_id),
                    outcome.kind,
                    lifetime,
                    born=clock(),  # a fault ages from when it was found
                    private=outcome.private,
                ),
            )

    return load


def _lifetime(fault: C42Error, expiry: float, fault_expiry: float) -> float:
    """Return for how long a fault or a pause is cached."""
    if fault.private:
        return 0.0  # so that its Retry-After asks for a new try at once
    if fault.kind == PAUSED:
        return min(max(fault.retry_after, fault_expiry), expiry)
    return fault_expiry
