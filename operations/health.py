"""What operators and their programs ask: `/metrics`, health, and the numbers of the status page.

None of it asks the upstream or waits for anything, and none tells an id, a name or the token.
"""

import json
import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

from flask import Flask, Response, g, request
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from answers import response as answers
from answers.hits import Answer, Immediate, Request, Shortcut
from answers.value import JSON
from operations.metrics import NO_ROUTE, Metrics

log = logging.getLogger("c42c.requests")


def register(app: Flask, metrics: Metrics) -> None:
    """Add the routes to `app`, and count all of its responses. To be called before anything else handles requests."""

    @app.before_request
    def begin() -> None:
        g.began = time.monotonic()

    @app.after_request
    def count(response: Response) -> Response:
        route = request.url_rule.rule if request.url_rule else NO_ROUTE
        metrics.responded(route.rstrip("/") or "/", str(response.status_code), time.monotonic() - g.began)
        return response

    @app.get("/metrics")
    def prometheus() -> Response:
        return _respond(200, generate_latest(metrics.registry), CONTENT_TYPE_LATEST)

    @app.get("/livez")
    @app.get("/healthz")
    def livez() -> Response:
        return _json(200, {"status": "ok"})

    @app.get("/readyz")
    def readyz() -> Response:
        now = metrics.status()
        ready = now["reaper_alive"] and not now["stopping"]
        return _json(
            200 if ready else 503,
            {
                "status": "ok" if ready else "not ready",
                "stopping": now["stopping"],
                "reaper_alive": now["reaper_alive"],
                "shared_tier": now["shared_tier"] and ("up" if now["shared_tier"]["up"] else "down"),
                "upstream": {
                    "pause_seconds": now["upstream"]["pause_seconds"],
                    "last_fault": next(iter(now["upstream"]["faults"]), None),
                },
            },
        )

    @app.get("/status.json")
    def status() -> Response:
        return _json(200, metrics.status())


def _json(status: int, data: dict[str, Any]) -> Response:
    return _respond(status, json.dumps(data).encode(), JSON)


def _respond(status: int, body: bytes, content_type: str) -> Response:
    return Response(body, status, [("Content-Type", content_type), answers.NO_STORE, answers.NOSNIFF])


App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def log_requests(app: App) -> App:
    """Return WSGI middleware that logs every request to `app`, for the level DEBUG."""

    def serve(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        began = time.monotonic()

        def start(status: str, headers: answers.Headers, *exc_info: Any) -> Any:
            _log_request(environ["REQUEST_METHOD"], environ["PATH_INFO"], status[:3], began)
            return start_response(status, headers, *exc_info)

        return app(environ, start)

    return serve


def log_hits(immediate: Immediate) -> Immediate:
    """Return `immediate`, whose shortcuts also log the requests that they answer, for the level DEBUG."""

    def find_shortcut(request: Request) -> Shortcut | None:
        shortcut = immediate(request)

        def logged() -> Answer | None:
            began = time.monotonic()
            answer = shortcut() if shortcut else None
            if answer:
                _log_request(request.method, request.path, answer[0][9:12].decode(), began)
            return answer

        return logged

    return find_shortcut


def _log_request(method: str, path: str, status: str, began: float) -> None:
    seconds = time.monotonic() - began
    fields = {"method": method, "path": path, "status": int(status), "seconds": round(seconds, 4)}
    log.debug("request %s %r %s %.1f ms", method, path, status, seconds * 1000, extra={"fields": fields})
