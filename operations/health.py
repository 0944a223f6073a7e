"""Serves the routes for operators, and gives every request an id, a time and a count.

These are `/metrics`, the health checks, the status page and the contract. No route here
calls Calendar42 or waits for anything, and none shows an event id, a name or the token.
The status page shows `/status.json`, once a second. It loads nothing from other hosts,
and runs no inline scripts.
"""

import json
import logging
import re
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import werkzeug
from flask import Blueprint, Flask, Response, g, render_template, request, send_file
from prometheus_client import make_wsgi_app

from answers.response import NO_STORE, NOSNIFF
from answers.value import JSON
from calendar42 import ENDPOINTS
from operations import logs
from operations.error_log import ErrorLog
from operations.metrics import NO_ROUTE, Metrics
from operations.recent import Outcomes
from operations.status import faults, read_status

_POLICY = (
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "img-src 'self'",
    "connect-src 'self'",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
)
_PAGE_HEADERS = {
    "Content-Security-Policy": "; ".join(_POLICY),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_REQUEST_ID = re.compile("[A-Za-z0-9._-]{1,64}")

log = logging.getLogger("c42c.requests")


def register(app: Flask, metrics: Metrics, error_log: ErrorLog) -> None:
    """Add the routes to `app`, give each of its requests an id, and count them.

    Must come before the app's other handlers. Flask runs those before a request in
    this order and those after it in reverse, so that the time and the count are of all
    of them. A route that answers a hit says so by setting `flask.g.is_hit`.
    """
    _add_health(app, metrics, error_log)
    _add_numbers(app, metrics)
    _add_page(app)

    @app.before_request
    def begin() -> None:
        g.began = time.monotonic()
        g.is_hit = False
        given = request.headers.get("X-Request-ID", "")
        if not _REQUEST_ID.fullmatch(given):
            given = secrets.token_hex(8)
        logs.request_id.set(given)
        metrics.history.start()

    @app.after_request
    def end(response: Response) -> Response:
        seconds = time.monotonic() - g.began
        metrics.on_response(_route(), response.status_code, seconds)
        _log(response.status_code, seconds)
        # Errors have the id under which the log tells of them. A hit on a good answer
        # has none, so that all hits are the same.
        if not g.is_hit:
            response.headers.setdefault("X-Request-ID", logs.request_id.get())
        return response


def _route() -> str:
    """Return the rule that the request matches, for counting."""
    if request.url_rule is None:
        return NO_ROUTE
    return request.url_rule.rule.rstrip("/") or "/"


def _log(status: int, seconds: float) -> None:
    method = request.method
    path = request.path
    fields = {
        "method": method,
        "path": path,
        "status": status,
        "seconds": round(seconds, 4),
    }
    line = "request %s %r %d %.4f s"
    log.debug(line, method, path, status, seconds, extra={"fields": fields})


def _add_health(app: Flask, metrics: Metrics, error_log: ErrorLog) -> None:
    @app.get("/livez")
    @app.get("/healthz")
    def livez() -> Response:
        return _respond({"status": "ok"})

    @app.get("/readyz")
    def readyz() -> Response:
        stopping = metrics.stopping()
        reaper_alive = metrics.cache.reaper_alive
        answer = {
            "status": "ok",
            "stopping": stopping,
            "reaper_alive": reaper_alive,
            "shared_tier": _tier(metrics),
            "upstream": {
                "pause_seconds": round(metrics.pause.left, 1),
                "last_fault": next(iter(faults(metrics)), None),
            },
        }
        if reaper_alive and not stopping:
            return _respond(answer)
        answer["status"] = "not ready"
        response = _respond(answer, 503)
        response.headers["X-Request-ID"] = error_log.on_error(503, "not ready")
        return response


def _tier(metrics: Metrics) -> str | None:
    if metrics.tier is None:
        return None
    if metrics.tier.snapshot()["up"]:
        return "up"
    return "lost"


def _add_numbers(app: Flask, metrics: Metrics) -> None:
    prometheus_app = make_wsgi_app(metrics.registry)

    @app.get("/metrics")
    def prometheus() -> werkzeug.Response:
        # prometheus_client chooses the format and the compression that the client asks
        # for. It knows only GET; Flask leaves out the body of a response to HEAD.
        environ = {**request.environ, "REQUEST_METHOD": "GET"}
        if request.accept_encodings["gzip"] == 0:
            environ.pop("HTTP_ACCEPT_ENCODING", None)  # it overlooks `gzip;q=0`
        try:
            response = Response.from_app(prometheus_app, environ)
        except TypeError:  # it can't compare a version in Accept
            environ.pop("HTTP_ACCEPT")
            response = Response.from_app(prometheus_app, environ)
        response.headers.extend([NO_STORE, NOSNIFF])
        return response

    @app.get("/openapi.json")
    def contract() -> Response:
        return send_file(Path(__file__).with_name("openapi.json"))

    @app.get("/status.json")
    def numbers() -> Response:
        return _respond(read_status(metrics, port=_port()))


def _port() -> int | None:
    """Return the port that the server listens on; None if it listens on none.

    On a Unix socket, some servers say that it is "", others "None".
    """
    port: str = request.environ["SERVER_PORT"]
    if not port.isdecimal():
        return None
    return int(port)


def _add_page(app: Flask) -> None:
    page = Blueprint(
        "status_page", __name__, static_folder="static", template_folder="templates"
    )

    @page.get("/")
    def show() -> Response:
        text = render_template(
            "status.html", endpoints=ENDPOINTS, outcomes=Outcomes._fields
        )
        return Response(text, headers=[NO_STORE])

    @page.after_request
    def protect(response: Response) -> Response:
        response.headers.update(_PAGE_HEADERS)
        return response

    app.register_blueprint(page)


def _respond(data: Mapping[str, Any], status: int = 200) -> Response:
    headers = [("Content-Type", JSON), NO_STORE, NOSNIFF]
    return Response(json.dumps(data), status, headers)
