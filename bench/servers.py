"""The Python servers of the bench: `python -m bench.servers KIND PORT ARGUMENT`.

constant        the service's own server with one constant answer for each path: ARGUMENT is the file that has them
plain           the simplest thing a person would write, on Flask's own server: ARGUMENT is the upstream's address
flask-caching   the same with Flask-Caching instead of the dict, on the service's own server
requests-cache  the same with requests-cache instead, on the service's own server
filled          the service, but for its upstream: a stub answers at once, and ARGUMENT says how many events of it are
                in the cache before the first request ("10"), or how many unknown ids were asked for ("10,1000")
"""

import importlib
import json
import math
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from threading import Lock
from typing import Any

import requests
from flask import Flask, jsonify
from flask import Response as FlaskResponse

import main
from bench.machine import PREFIX, TOKEN
from c42client import Client
from calendar42.errors import Rejected
from operations import settings
from serving.server import Server

LIFETIME = 36000  # seconds: nothing expires in a run
UNKNOWN = json.dumps({"error": {"status_code": 404, "message": "Event not found", "code": "NOT_FOUND"}}).encode()


def constant(path: str) -> Callable[..., Iterable[bytes]]:
    """Make a WSGI app that does nothing but answer."""
    read = json.loads(Path(path).read_text())
    ready = {path: ([tuple(header) for header in one["headers"]], [one["body"].encode()]) for path, one in read.items()}

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        headers, body = ready.get(environ["PATH_INFO"], ([], []))
        start_response("200 OK", headers)
        return body

    return app


def _merge(get: Callable[..., Any], base_url: str, event_id: str) -> dict[str, Any]:
    headers = {"Authorization": f"Token {TOKEN}", "Accept": "application/json"}
    event = get(f"{base_url}events/{event_id}/", headers=headers).json()["data"][0]
    rows = get(f"{base_url}event-subscriptions/?event_ids=[{event_id}]&limit=100", headers=headers).json()["data"]
    return {"id": event_id, "title": event["title"], "names": [row["subscriber"]["first_name"] for row in rows]}


def plain(base_url: str) -> Flask:
    """Make the simplest app that a person would write: a dict under a global lock, held during the fetch."""
    app = Flask(__name__)
    answers: dict[str, dict[str, Any]] = {}
    lock = Lock()

    @app.get(f"{PREFIX}<event_id>")
    def event(event_id: str) -> FlaskResponse:
        with lock:
            if event_id not in answers:
                answers[event_id] = _merge(requests.get, base_url, event_id)
            return jsonify(answers[event_id])

    return app


def flask_caching(base_url: str) -> Flask:
    """Make the app as Flask-Caching's documentation has it, with its in-memory cache."""
    app = Flask(__name__)
    cache = importlib.import_module("flask_caching").Cache(app, config={"CACHE_TYPE": "SimpleCache"})

    @app.get(f"{PREFIX}<event_id>")
    @cache.cached(timeout=LIFETIME)  # type: ignore[untyped-decorator]  # the library is there for the bench only
    def event(event_id: str) -> FlaskResponse:
        return jsonify(_merge(requests.get, base_url, event_id))

    return app


def requests_cache(base_url: str) -> Flask:
    """Make the app as requests-cache's documentation has it, with its in-memory cache: it merges every time."""
    app = Flask(__name__)
    session = importlib.import_module("requests_cache").CachedSession(backend="memory", expire_after=LIFETIME)

    @app.get(f"{PREFIX}<event_id>")
    def event(event_id: str) -> FlaskResponse:
        return jsonify(_merge(session.get, base_url, event_id))

    return app


class _Stub(Client):
    """Stands where the service's upstream client does: knows all events below a number, each of 300 bytes."""

    def __init__(self, held: int) -> None:
        self.held = held

    def fetch(self, event_id: str, deadline: float) -> dict[str, Any]:
        if int(event_id[:32], 16) >= self.held:
            raise Rejected("events", 404, UNKNOWN)
        return {
            "id": event_id,
            "title": "A title of the usual length, as they are",
            "names": ["Someone called so"] * 9 + [""],
        }


def filled(argument: str, config: settings.Settings) -> Any:
    """Make the service with a stub for its upstream, and load so many events and unknown ids into its cache."""
    held, unknown = (int(count) for count in f"{argument},0".split(",")[:2])
    app = main.create_app(config, client=_Stub(held))
    parts: main.Parts = app.extensions["c42c"]
    for number in range(held + unknown):
        parts.cache.get_or_load_many([f"{number:032x}_14602021609581"], lambda keys: parts.load(keys, math.inf))
    return app


def run(kind: str, port: str, argument: str) -> int:
    """Serve until told to stop."""
    if kind == "plain":
        plain(argument).run(port=int(port))
        return 0
    most = "1200000" if kind == "filled" and "," not in argument else "100000"
    config = settings.read(
        {"C42_TOKEN": TOKEN, "C42_PORT": port, "C42_EXPIRY": str(LIFETIME / 60), "C42_MAX_ENTRIES": most}
    )
    server = Server(config.host, config.port)
    app: Any
    if kind == "filled":
        app = filled(argument, config)
        on_loop = app.extensions["c42c"]._asdict()
    else:
        app = {"constant": constant, "flask-caching": flask_caching, "requests-cache": requests_cache}[kind](argument)
        on_loop = {"immediate": lambda _: None, "refusal": lambda *_: (b"HTTP/1.1 400 Bad Request\r\n", b"")}
    server.serve(app, **on_loop, threads=config.threads, drain=0, patience=config.timeout)
    return 0


if __name__ == "__main__":
    sys.exit(run(*sys.argv[1:]))
