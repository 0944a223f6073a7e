"""`/metrics`, the health checks, the status page and the contract; and the id, time and
count of every request.

No route here calls the upstream or waits for anything, and none shows an event id, a
name or the token. The status page shows `/status.json`, once a second. It loads nothing
from other hosts, and runs no inline scripts.
"""

import json
import logging
import re
import secrets
import time
from pathlib import Path
from typing import Any

from flask import Blueprint, Flask, Response, g, render_template, request, send_file
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from answers.response import NO_STORE, NOSNIFF
from answers.value import JSON
from operations import logs
from operations.metrics import NO_ROUTE, Metrics

_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

log = logging.getLogger("c42c.requests")


def register(app: Flask, metrics: Metrics) -> None:
    """Add the routes to `app`, give each of its requests an id, and count them.

    Must come before all other handlers.
    """
    _add_routes(app, metrics)
    _add_page(app)

    @app.before_request
    def begin() -> None:
        g.began = time.monotonic()
        given = request.headers.get("X-Request-ID", "")
        logs.request_id.set(
            given
            if re.fullmatch("[A-Za-z0-9._-]{1,64}", given)
            else secrets.token_hex(8)
        )

    @app.after_request
    def end(response: Response) -> Response:
        seconds, status = time.monotonic() - g.began, response.status_code
        route = request.url_rule.rule if request.url_rule else NO_ROUTE
        metrics.on_response(route.rstrip("/") or "/", status, seconds)
        fields = {
            "method": request.method,
            "path": request.path,
            "status": status,
            "seconds": round(seconds, 4),
        }
        log.debug("request %s %r %d %.4f s", *fields.values(), extra={"fields": fields})
        # The id of an error's load is there already. A hit on a good answer has none, so
        # that all hits are the same.
        if "X-Request-ID" not in response.headers and not g.get("is_hit"):
            response.headers["X-Request-ID"] = logs.request_id.get()
        return response


def _add_routes(app: Flask, metrics: Metrics) -> None:
    @app.get("/metrics")
    def prometheus() -> Response:
        headers = [
            ("Content-Type", CONTENT_TYPE_LATEST),
            NO_STORE,
            NOSNIFF,
        ]
        return Response(generate_latest(metrics.registry), headers=headers)

    @app.get("/livez")
    @app.get("/healthz")
    def livez() -> Response:
        return _respond({"status": "ok"})

    @app.get("/readyz")
    def readyz() -> Response:
        now = metrics.status()
        ready = now["reaper_alive"] and not now["stopping"]
        tier, calls = now["shared_tier"], now["upstream"]
        answer = {
            "status": "ok" if ready else "not ready",
            "stopping": now["stopping"],
            "reaper_alive": now["reaper_alive"],
            "shared_tier": tier and ("up" if tier["up"] else "down"),
            "upstream": {
                "pause_seconds": calls["pause_seconds"],
                "last_fault": next(iter(calls["faults"]), None),
            },
        }
        return _respond(answer, 200 if ready else 503)

    @app.get("/openapi.json")
    def contract() -> Response:
        return send_file(Path(__file__).with_name("openapi.json"))

    @app.get("/status.json")
    def status() -> Response:
        return _respond(metrics.status())


def _add_page(app: Flask) -> None:
    page = Blueprint(
        "status_page", __name__, static_folder="static", template_folder="templates"
    )

    @page.get("/")
    def status() -> Response:
        return Response(
            render_template("status.html"),
            headers=[NO_STORE],
            mimetype="text/html",
        )

    @page.after_request
    def protect(response: Response) -> Response:
        response.headers.update(_PAGE_HEADERS)
        return response

    app.register_blueprint(page)


def _respond(data: dict[str, Any], status: int = 200) -> Response:
    return Response(
        json.dumps(data),
        status,
        [("Content-Type", JSON), NO_STORE, NOSNIFF],
    )
