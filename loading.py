"""What is kept of a load, and for how long: the step from the upstream's outcome to the cache."""

import time
from collections.abc import Callable
from typing import Any

import answers
from errors import C42Error
from outcome import NEGATIVE, OK, Loaded
from settings import Settings


def loader(fetch: Callable[[str, float], dict[str, Any]], settings: Settings) -> Callable[..., Loaded]:
    """Return the load function of the cache: it calls `fetch`, and makes an answer of whatever comes of it.

    `waited` are the seconds of the time-out that are used up when the load begins.
    """

    def load(event_id: str, waited: float = 0.0) -> Loaded:
        began = time.monotonic()
        try:
            answer = fetch(event_id, waited)
        except C42Error as error:
            return _failed(error, time.monotonic() - began, settings)
        return Loaded(answers.success(answer), OK, settings.expiry)

    return load


def _failed(error: C42Error, elapsed: float, settings: Settings) -> Loaded:
    """A definite no lasts as long as a good answer. A fault lasts from when it was found, which may be long after
    the load began; one that comes with a pause lasts until the end of that, within reason."""
    retry_after = elapsed + error.retry_after if error.retry_after else 0.0
    value = answers.failure(
        error.status, str(error), body=error.body, upstream_status=error.upstream_status, retry_after=retry_after
    )
    if error.kind == NEGATIVE:
        return Loaded(value, NEGATIVE, settings.expiry)
    return Loaded(value, error.kind, elapsed + min(max(error.retry_after, settings.fault_expiry), settings.expiry))
