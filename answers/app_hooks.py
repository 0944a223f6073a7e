"""What all responses of the app have in common.

Errors are in the envelope, nothing redirects, and pages of other origins may read what
`C42_CORS_ORIGINS` lets them.
"""

from collections.abc import Callable

import flask
from flask import Flask, request
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound
from werkzeug.routing import RequestRedirect

from answers import response
from answers.response import Response
from cache import TooManyWaiting
from calendar42.ids import BadIds
from serving.interface import FAILED

# Logs an error (status, message and the exception, if it is a bug of ours), and returns
# the id under which the log has it.
OnError = Callable[[int, str, Exception | None], str]

_IGNORED_HEADERS = (
    "RANGE",
    "IF_MATCH",
    "IF_MODIFIED_SINCE",
    "IF_UNMODIFIED_SINCE",
)


def register(
    app: Flask,
    *,
    origins: frozenset[str],
    on_full: Callable[[], None],
    on_error: OnError,
) -> None:
    """Add the error handlers to `app`, and let pages of `origins` read its answers."""
    app.before_request(_ignore_headers)
    app.before_request(_refuse_odd_path)
    handlers = _ErrorHandlers(on_full, on_error)
    app.register_error_handler(BadIds, handlers.on_bad_ids)
    app.register_error_handler(TooManyWaiting, handlers.on_too_many_waiting)
    app.register_error_handler(HTTPException, handlers.on_http_error)
    app.register_error_handler(Exception, handlers.on_bug)

    @app.after_request
    def finish(flask_response: flask.Response) -> flask.Response:
        if request.method == "OPTIONS" and flask_response.status_code == 200:
            flask_response.status_code = 204
            del flask_response.headers["Content-Type"]
        # Flask writes reason phrases in capitals.
        flask_response.status = response.status_line(flask_response.status_code)
        origin = request.headers.get("Origin", "")
        flask_response.headers.extend(response.cors(origins, origin, request.method))
        return flask_response


def respond(rendered: Response) -> flask.Response:
    """Turn a response into Flask's."""
    return flask.Response(rendered.body, rendered.status, rendered.headers)


def _ignore_headers() -> None:
    """Ignore ranges, and all conditions but If-None-Match.

    No client needs ranges (RFC 9110, 14.2), and the routes of events know no other
    condition. Werkzeug fails on some dates, and its 412 isn't in the envelope.
    """
    for name in _IGNORED_HEADERS:
        request.environ.pop(f"HTTP_{name}", None)


def _refuse_odd_path() -> None:
    """Answer 404 to a path with two slashes in a row, or none at all.

    Flask would redirect some to whatever host the client named, and ignore doubled
    slashes at the beginning, where a proxy's rules may not.
    """
    is_redirect = isinstance(request.routing_exception, RequestRedirect)
    if is_redirect or request.environ["PATH_INFO"].startswith("//"):
        raise NotFound


class _ErrorHandlers:
    """Answer the errors that routes raise, in the envelope."""

    def __init__(self, on_full: Callable[[], None], on_error: OnError) -> None:
        self._on_full = on_full
        self._on_error = on_error

    def on_bad_ids(self, error: BadIds) -> flask.Response:
        return self._answer(400, str(error))

    def on_too_many_waiting(self, _: TooManyWaiting) -> flask.Response:
        self._on_full()
        return self._answer(
            503,
            "too many requests wait for Calendar42",
            response.SOON,
            ("Cache-Status", "c42c; detail=refused"),
        )

    def on_http_error(self, error: HTTPException) -> flask.Response:
        if isinstance(error, NotFound):
            return self._answer(404, "there is no such path; /openapi.json lists all")
        if isinstance(error, MethodNotAllowed):
            allowed = ", ".join(sorted(error.valid_methods or ()))
            message = f"{request.method} isn't allowed here, only {allowed}"
            return self._answer(405, message, ("Allow", allowed))
        return self._answer(error.code or 500, error.description or "")

    def on_bug(self, error: Exception) -> flask.Response:
        return self._answer(500, FAILED, bug=error)

    def _answer(
        self,
        status: int,
        message: str,
        *headers: tuple[str, str],
        bug: Exception | None = None,
    ) -> flask.Response:
        request_id = self._on_error(status, message, bug)
        id_header = ("X-Request-ID", request_id)
        return respond(response.error(status, message, *headers, id_header))
