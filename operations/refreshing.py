"""Loads answers again before they expire, in a few threads of its own.

They are the same under any WSGI server, and are started when they are first needed.
"""

import logging
import secrets
import time
from concurrent.futures import ThreadPoolExecutor

from cache import Cache, Loader
from calendar42.calls import Pause
from operations import logs

MAX_REFRESHES = 8  # at once

log = logging.getLogger("c42c")


class Refresher:
    """Refreshes what the cache says is due, by `load`, within `timeout` seconds.

    Nothing is refreshed in a `pause`.
    """

    def __init__(
        self, cache: Cache, load: Loader, *, timeout: float, pause: Pause
    ) -> None:
        self._cache = cache
        self._load = load
        self._timeout = timeout
        self._pause = pause
        self._threads = ThreadPoolExecutor(
            MAX_REFRESHES, thread_name_prefix="c42c-refresh"
        )

    def on_refresh_due(self, event_ids: list[str]) -> bool:
        """Refresh events soon, all by one load.

        Return False during a pause, or if the system allows no more threads.
        """
        if self._pause.left:
            return False
        try:
            self._threads.submit(self._refresh, event_ids)
        except RuntimeError:
            return False
        return True

    def _refresh(self, event_ids: list[str]) -> None:
        # No request waits for it, so it has an id of its own in the log.
        logs.request_id.set(secrets.token_hex(8))
        deadline = time.monotonic() + self._timeout
        try:
            self._cache.refresh(event_ids, self._load, deadline)
        except Exception:
            log.exception("unhandled exception in a refresh")
