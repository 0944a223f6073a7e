"""Logs the errors that have no line of a load, at a limited rate.

Whatever clients do, an `X-Request-ID` that comes with an error is in the log. If there
are many errors of one status and route, only the first few of each interval get a line.
The others carry the id of the last one, and are counted: the next line says how many
there were. `ErrorLog._lock` guards the counts.
"""

import logging
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from flask import request

from answers import EVENT_PATH
from calendar42 import ids
from calendar42.errors import C42Error, Paused
from operations import logs
from operations.metrics import NO_ROUTE

MAX_LINES = 10  # of one status and route
INTERVAL = 10.0  # seconds
MAX_PATH = 300  # characters

log = logging.getLogger("c42c.errors")


@dataclass
class _Latest:
    """The latest errors of one status and route."""

    began: float  # when the present interval began
    lines: int = 0  # in it
    left_out: int = 0  # since the last line
    last_id: str = ""  # of the last line


@dataclass
class _Error:
    """What a line says."""

    status: int
    route: str
    message: str
    method: str = ""
    path: str = ""
    event: str = ""
    exception: Exception | None = None


class ErrorLog:
    """Logs errors, and says under which id. Any thread may use it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._latest: dict[tuple[str, int], _Latest] = {}

    def on_error(
        self, status: int, message: str, exception: Exception | None = None
    ) -> str:
        """Log why the app answers the present request with an error.

        Return the id to send along.
        """
        route = NO_ROUTE
        if request.url_rule:
            route = request.url_rule.rule
        error = _Error(
            status=status,
            route=route,
            message=message,
            method=request.method,
            path=request.full_path.removesuffix("?")[:MAX_PATH],
            event=(request.view_args or {}).get("event_id", "")[:MAX_PATH],
            exception=exception,
        )
        return self._record(error, logs.request_id.get())

    def on_rejection(self, status: int, message: str) -> str:
        """Log that the server rejects a request that never reaches the app.

        Return the id to send along.
        """
        return self._record(_Error(status, NO_ROUTE, message), secrets.token_hex(8))

    def id_for_failed_load(self, event_id: str, error: C42Error) -> str:
        """Return the id to keep with an event's error.

        It is that of the request that loads it, because the load has a line of its own.
        A load that ends in a pause has none, so it is logged here.
        """
        request_id = logs.request_id.get()
        if not isinstance(error, Paused):
            return request_id
        line = _Error(error.status, EVENT_PATH, str(error), event=event_id)
        return self._record(line, request_id)

    def _record(self, error: _Error, request_id: str) -> str:
        """Log or count an error; return the id under which the log has it."""
        with self._lock:
            now = self._clock()
            latest = self._latest.setdefault((error.route, error.status), _Latest(now))
            if now - latest.began >= INTERVAL:
                latest.began = now
                latest.lines = 0
            if latest.lines == MAX_LINES:
                latest.left_out += 1
                return latest.last_id
            latest.lines += 1
            latest.last_id = request_id
            left_out = latest.left_out
            latest.left_out = 0
            is_last = latest.lines == MAX_LINES
        before = logs.request_id.set(request_id)
        _write(error, left_out, is_last)
        logs.request_id.reset(before)
        return request_id


def _write(error: _Error, left_out: int, is_last: bool) -> None:
    level = logging.INFO
    if error.exception:
        level = logging.ERROR
        text = f"unhandled exception in {error.method} {error.path}"
    else:
        if error.status >= 500:
            level = logging.WARNING
        text = f"error status={error.status} route={error.route}"
        if error.event:
            text += f" event={_quote(error.event)}"
        if error.path:
            text += f" {error.method} {error.path!r}"
        text += f": {error.message}"
    if left_out:
        text += f" ({left_out} errors like it since the last line)"
    if is_last:
        text += f" (more of them within {INTERVAL:.0f} s will carry this id)"
    fields = {
        "status": error.status,
        "route": error.route,
        "event": error.event,
        "method": error.method,
        "path": error.path,
        "left_out": left_out,
    }
    log.log(level, "%s", text, exc_info=error.exception, extra={"fields": fields})


def _quote(event_id: str) -> str:
    """Return an id as it is, as in the lines of loads, but what is none in quotes."""
    try:
        return ids.validate_id(event_id)
    except ids.BadIds:
        return repr(event_id)
