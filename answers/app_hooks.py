"""What applies to all responses of the app: errors in the envelope, no redirects, CORS."""

import logging
from collections.abc import Callable

import flask
from flask import Flask, request
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound
from werkzeug.routing import RequestRedirect

from answers import response
from answers.response import Response
from cache import WaitingRoomFull
from calendar42.ids import BadIds

log = logging.getLogger("c42c")


def register(
    app: Flask, *, origins: frozenset[str], on_full: Callable[[], None]
) -> None:
    """Add the error handlers to `app`, and let pages of `origins` read its responses."""
    app.before_request(_ignore_headers)
    app.before_request(_refuse_odd_path)
    app.register_error_handler(BadIds, _on_bad_ids)
    app.register_error_handler(HTTPException, _on_http_error)
    app.register_error_handler(Exception, _on_bug)

    @app.errorhandler(WaitingRoomFull)
    def on_waiting_room_full(_: WaitingRoomFull) -> flask.Response:
        on_full()
        refusal = response.error(
            503,
            "too many requests wait for Calendar42",
            ("Retry-After", "1"),
            ("Cache-Status", "c42c; detail=refused"),
        )
        return respond(refusal)

    @app.after_request
    def finish(answer: flask.Response) -> flask.Response:
        if request.method == "OPTIONS" and answer.status_code == 200:
            answer.status_code = 204
            del answer.headers["Content-Type"]
        # Flask writes reason phrases in capitals.
        answer.status = response.status_line(answer.status_code)
        origin = request.headers.get("Origin", "")
        answer.headers.extend(response.cors(origins, origin, request.method))
        return answer


def respond(answer: Response) -> flask.Response:
    """Turn a response into Flask's."""
    return flask.Response(answer.body, answer.status, answer.headers)


def _ignore_headers() -> None:
    """Ignore ranges, which no client needs (RFC 9110, 14.2), and dates: ETags do
    better, and Werkzeug fails on some.
    """
    request.environ.pop("HTTP_RANGE", None)
    request.environ.pop("HTTP_IF_MODIFIED_SINCE", None)


def _refuse_odd_path() -> None:
    """Answer 404 to a path with two slashes in a row, or none at all.

    Flask would redirect some to whatever host the client named, and ignore doubled
    slashes at the beginning, where a proxy's rules may not.
    """
    is_redirect = isinstance(request.routing_exception, RequestRedirect)
    if is_redirect or request.environ["PATH_INFO"].startswith("//"):
        raise NotFound


def _on_bad_ids(error: BadIds) -> flask.Response:
    return respond(response.error(400, str(error)))


def _on_http_error(error: HTTPException) -> flask.Response:
    status = error.code or 500
    message = error.description or ""
    headers = []
    if isinstance(error, NotFound):
        message = "there is no such path; /openapi.json lists all"
    elif isinstance(error, MethodNotAllowed):
        allowed = ", ".join(sorted(error.valid_methods or ()))
        message = f"{request.method} isn't allowed here, only {allowed}"
        headers.append(("Allow", allowed))
    return respond(response.error(status, message, *headers))


def _on_bug(error: Exception) -> flask.Response:
    log.error(
        "unhandled exception in %s %s", request.method, request.path, exc_info=error
    )
    return respond(response.error(500, "the service failed; its log says why"))
