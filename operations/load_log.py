"""Logs how the load of each event ended, and how long its calls took."""

import logging
import time

from calendar42.calls import Attempt
from calendar42.errors import FAULT, C42Error, Exhausted, Paused
from calendar42.payload import Event

SLOW = 2.0  # seconds after which a load is a warning

log = logging.getLogger("c42c.upstream")


def log_load(event_id: str, outcome: Event | C42Error, attempt: Attempt) -> None:
    """Log the load of an event as one line.

    A pause has a line of its own.
    """
    if isinstance(outcome, Paused):
        return
    seconds = time.monotonic() - attempt.began
    calls = list(attempt.calls)  # some may still be under way
    names = None
    if isinstance(outcome, Event):
        kind = "ok"
        status = 200
        names = len(outcome.names)
        said = f"{names} names"
    else:
        kind = outcome.kind
        status = outcome.status
        said = str(outcome)
    level = logging.INFO
    if kind == FAULT or seconds > SLOW:
        level = logging.WARNING
    if isinstance(outcome, Exhausted):
        level = logging.ERROR
    verb = "refresh" if attempt.refresh else "load"
    fields = {
        "event": event_id,
        "refresh": attempt.refresh,
        "outcome": kind,
        "status": status,
        "names": names,
        "seconds": round(seconds, 4),
        "calls": [call._asdict() for call in calls],
    }
    log.log(
        level,
        "%s event=%s outcome=%s status=%d: %s (%s)",
        verb,
        event_id,
        kind,
        status,
        said,
        ", ".join(map(str, calls)),
        extra={"fields": fields},
    )
