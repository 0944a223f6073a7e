"""Loads answers again before they expire, in a few threads of its own.

They are the same under any WSGI server, are started when they are first needed, and
never keep the process from ending.
"""

import logging
import secrets
import time
from collections.abc import Callable
from functools import partial

from cache import Cache, Loader
from operations import logs

MAX_REFRESHES = 8  # at once

log = logging.getLogger("c42c")


class Refresher:
    """Refreshes what the cache says is due, by `load`, within `timeout` seconds.

    `submit` runs a function in a thread. While `is_paused()`, nothing is refreshed.
    """

    def __init__(
        self,
        cache: Cache,
        load: Loader,
        *,
        timeout: float,
        is_paused: Callable[[], bool],
        submit: Callable[[Callable[[], None]], object],
    ) -> None:
        self._cache = cache
        self._load = load
        self._timeout = timeout
        self._is_paused = is_paused
        self._submit = submit

    def on_refresh_due(self, event_ids: list[str]) -> bool:
        """Refresh events soon, all by one load; return False during a pause."""
        if self._is_paused():
            return False
        self._submit(partial(self._refresh, event_ids))
        return True

    def _refresh(self, event_ids: list[str]) -> None:
        # No request waits for it, so it has an id of its own in the log.
        logs.request_id.set(secrets.token_hex(8))
        deadline = time.monotonic() + self._timeout
        try:
            self._cache.refresh(event_ids, self._load, deadline)
        except Exception:
            log.exception("unhandled exception in a refresh")
