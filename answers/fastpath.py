"""Fresh answers, served before Flask: routing, request and response objects cost ten times what a hit does.

WSGI middleware. What it answers is the same, byte for byte and header for header, as what the route answers; what is
not a GET or HEAD of a fresh answer goes on to the app.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from answers import EVENTS
from answers import response as answers
from cache import Cache, Found

PREFIX = EVENTS + "/"

App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def before(app: App, cache: Cache, origins: frozenset[str], served: Mapping[str, Iterator[int]]) -> App:
    """Return an app that serves what is fresh in `cache`, and hands on to `app` whatever else is asked for.

    `origins` are those of `answers.cors`; `served` counts the answers by status line, a step of an iterator for each.
    """
    skip = len(PREFIX)

    def serve(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        method = environ["REQUEST_METHOD"]
        if path.startswith(PREFIX) and method in ("GET", "HEAD"):
            hit = cache.get(path[skip:].removesuffix("/"))
            if hit is not None:
                status, headers, body = answers.render(Found(*hit, "hit", True), environ)
                if origins:
                    headers += answers.cors(origins, environ)
                next(served[status])
                start_response(status, headers)
                return [body] if method == "GET" else []
        return app(environ, start_response)

    return serve
