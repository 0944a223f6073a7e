"""`/metrics`, the health checks, `/status.json` and the contract; and the id, time and count of every request.

No route here calls the upstream or waits for anything, and none shows an event id, a name or the token.
"""

import json
import logging
import re
import secrets
import time
from pathlib import Path
from typing import Any

from flask import Flask, Response, g, request, send_file
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from answers import response as answers
from answers.value import JSON
from operations import logs
from operations.metrics import NO_ROUTE, Metrics

log = logging.getLogger("c42c.requests")


def register(app: Flask, metrics: Metrics) -> None:
    """Add the routes to `app`, give each of its requests an id, and count them. Must come before all other handlers."""
    _add_routes(app, metrics)

    @app.before_request
    def begin() -> None:
        g.began = time.monotonic()
        given = request.headers.get("X-Request-ID", "")
        logs.request_id.set(given if re.fullmatch("[A-Za-z0-9._-]{1,64}", given) else secrets.token_hex(8))

    @app.after_request
    def end(response: Response) -> Response:
        seconds = time.monotonic() - g.began
        route = request.url_rule.rule if request.url_rule else NO_ROUTE
        metrics.responded(route.rstrip("/") or "/", response.status_code, seconds)
        fields = {"method": request.method, "path": request.path, "status": response.status_code}
        fields["seconds"] = round(seconds, 4)
        log.debug("request %s %r %d %.4f s", *fields.values(), extra={"fields": fields})
        if not response.headers.get("Cache-Status", "").startswith("c42c; hit"):  # see answers.hits
            response.headers["X-Request-ID"] = logs.request_id.get()
        return response


def _add_routes(app: Flask, metrics: Metrics) -> None:
    @app.get("/metrics")
    def prometheus() -> Response:
        headers = [("Content-Type", CONTENT_TYPE_LATEST), answers.NO_STORE, answers.NOSNIFF]
        return Response(generate_latest(metrics.registry), headers=headers)

    @app.get("/livez")
    @app.get("/healthz")
    def livez() -> Response:
        return _respond({"status": "ok"})

    @app.get("/readyz")
    def readyz() -> Response:
        now = metrics.status()
        ready = now["reaper_alive"] and not now["stopping"]
        answer = {
            "status": "ok" if ready else "not ready",
            "stopping": now["stopping"],
            "reaper_alive": now["reaper_alive"],
            "shared_tier": now["shared_tier"] and ("up" if now["shared_tier"]["up"] else "down"),
            "upstream": {
                "pause_seconds": now["upstream"]["pause_seconds"],
                "last_fault": next(iter(now["upstream"]["faults"]), None),
            },
        }
        return _respond(answer, 200 if ready else 503)

    @app.get("/openapi.json")
    def contract() -> Response:
        return send_file(Path(__file__).with_name("openapi.json"))

    @app.get("/status.json")
    def status() -> Response:
        return _respond(metrics.status())


def _respond(data: dict[str, Any], status: int = 200) -> Response:
    return Response(json.dumps(data), status, [("Content-Type", JSON), answers.NO_STORE, answers.NOSNIFF])
