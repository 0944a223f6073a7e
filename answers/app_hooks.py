"""What applies to all responses of the app: errors in the envelope, no redirects, CORS."""

import logging
from collections.abc import Callable

from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException, NotFound
from werkzeug.routing import RequestRedirect

from answers import response as answers
from cache import WaitingRoomFull
from calendar42 import ids

log = logging.getLogger("c42c")


def register(
    app: Flask, *, origins: frozenset[str], on_full: Callable[[], None]
) -> None:
    """Add the error handlers to `app`, and let pages of `origins` read its responses."""
    app.before_request(_ignore_headers)
    app.before_request(_refuse_odd_path)
    app.register_error_handler(
        ids.BadIds, lambda error: respond(answers.error(400, str(error)))
    )
    app.register_error_handler(HTTPException, _failed)
    app.register_error_handler(Exception, _broken)

    @app.errorhandler(WaitingRoomFull)
    def refuse(_: WaitingRoomFull) -> Response:
        on_full()
        headers = ("Retry-After", "1"), ("Cache-Status", "c42c; detail=refused")
        return respond(
            answers.error(503, "too many requests wait for Calendar42", *headers)
        )

    @app.after_request
    def allow(response: Response) -> Response:
        if request.method == "OPTIONS" and response.status_code == 200:
            response.status_code = 204
            del response.headers["Content-Type"]
        response.headers.extend(
            answers.cors(origins, request.headers.get("Origin", ""), request.method)
        )
        return response


def respond(answer: answers.Response) -> Response:
    """Turn an answer into Flask's response."""
    status, headers, body = answer
    return Response(body, status, headers)


def _ignore_headers() -> None:
    """Ignore ranges, which no client needs (RFC 9110, 14.2), and dates: ETags do
    better, and Werkzeug fails on some.
    """
    for name in "HTTP_RANGE", "HTTP_IF_MODIFIED_SINCE":
        request.environ.pop(name, None)


def _refuse_odd_path() -> None:
    doubled = request.environ["PATH_INFO"].startswith(
        "//"
    )  # Flask would ignore that, but a proxy's rules may not
    if doubled or isinstance(
        request.routing_exception, RequestRedirect
    ):  # for two slashes, or no path at all
        raise NotFound  # a redirect would lead to whatever host the client named


def _failed(error: HTTPException) -> Response:
    kept = (header for header in error.get_headers() if header[0] == "Allow")
    return respond(answers.error(error.code or 500, error.description or "", *kept))


def _broken(error: Exception) -> Response:
    log.error("a request failed", exc_info=error)
    return respond(answers.error(500, "the service failed; its log says why"))
