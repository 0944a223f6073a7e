"""What is kept of a load, and for how long: the step from the upstream's outcome to the cache."""

import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from answers import value
from cache import FAULT, NEGATIVE, OK, Loaded
from calendar42.errors import C42Error, TimedOut
from operations.settings import Settings

Merged = Mapping[str, Any]


class Source(Protocol):
    """Whom the loader asks: `c42client.Client`, or whatever stands in for it."""

    def fetch(self, event_id: str, waited: float) -> Merged:
        """Return the merged answer of one event, or raise `C42Error`."""

    def fetch_many(self, event_ids: list[str], waited: float) -> Mapping[str, Merged | C42Error]:
        """Return the merged answer of each event, or its error."""


def loader(client: Source, settings: Settings) -> Callable[..., dict[str, Loaded]]:
    """Return the load function of the cache: it asks `client`, and makes an answer of whatever comes of it.

    `waited` are the seconds of the time-out that are over when the load begins.
    """

    def load(event_ids: list[str], waited: float = 0.0) -> dict[str, Loaded]:
        began = time.monotonic()
        outcomes: Mapping[str, Merged | C42Error]
        if len(event_ids) == 1:
            try:
                outcomes = {event_ids[0]: client.fetch(event_ids[0], waited)}
            except C42Error as error:
                outcomes = {event_ids[0]: error}
        else:
            outcomes = client.fetch_many(event_ids, waited)
        elapsed = time.monotonic() - began
        loaded = {event_id: _loaded(outcome, elapsed, settings) for event_id, outcome in outcomes.items()}
        for event_id, outcome in outcomes.items():
            if waited >= settings.timeout and isinstance(outcome, TimedOut):  # it was not asked for: nobody else's 504
                loaded[event_id] = loaded[event_id]._replace(lifetime=0.0)
        return loaded

    return load


def _loaded(outcome: Merged | C42Error, elapsed: float, settings: Settings) -> Loaded:
    """A definite no lasts as long as a good answer. A fault lasts from when it was found, which may be long after
    the load began; one that comes with a pause lasts until the end of that, within reason."""
    if not isinstance(outcome, C42Error):
        return Loaded(value.success(outcome), OK, settings.expiry)
    retry_after = elapsed + outcome.retry_after if outcome.retry_after else 0.0
    failure = value.failure(
        outcome.status,
        str(outcome),
        body=outcome.body,
        upstream_status=outcome.upstream_status,
        retry_after=retry_after,
    )
    if outcome.definite:
        return Loaded(failure, NEGATIVE, settings.expiry)
    return Loaded(failure, FAULT, elapsed + min(max(outcome.retry_after, settings.fault_expiry), settings.expiry))
