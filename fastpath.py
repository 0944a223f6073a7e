"""Fresh answers, served before Flask: routing, request and response objects cost ten times what a hit does.

WSGI middleware. What it answers is the same, byte for byte and header for header, as what the route answers; what is
not a GET or HEAD of a fresh answer goes on to the app.
"""

from collections.abc import Callable, Iterable
from typing import Any

import answers
from cache import Cache

PREFIX = "/events-with-subscriptions/"
_SKIP = len(PREFIX)
ROUTE = PREFIX + "<event_id>"  # as Flask writes it

App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class FastPath:
    """Serves what is fresh in `cache`, and hands on to `app` whatever else is asked for.

    `origins` are those of `answers.cors`; `observe` is called with the status line of each answer that is served.
    """

    def __init__(self, app: App, cache: Cache, origins: frozenset[str], observe: Callable[[str], None]) -> None:
        self._app = app
        self._cache = cache
        self._origins = origins
        self._observe = observe

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        method = environ["REQUEST_METHOD"]
        if path.startswith(PREFIX) and method in ("GET", "HEAD"):
            found = self._cache.get(path[_SKIP:].removesuffix("/"))
            if found is not None:
                status, headers, body = answers.render(found, environ)
                if self._origins:
                    headers += answers.cors(self._origins, environ)
                self._observe(status)
                start_response(status, headers)
                return [body] if method == "GET" else []
        return self._app(environ, start_response)
