"""The Python servers of the bench.

Run one by `python -m bench.servers KIND [ARGUMENT]`, with settings as the service has
them. KIND is one of these:

constant FILE   the service's own server, which always sends the answer in FILE
flask           the simplest implementation, on Flask's own server
filled COUNT    the service with COUNT entries, and a stub for its upstream
"""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Lock
from typing import Any

import requests
from flask import Flask, jsonify
from flask import Response as FlaskResponse

import main
from bench.machine import NAMES, PREFIX, TITLE
from c42client import Client
from calendar42.payload import Event
from operations import settings
from operations.settings import Settings
from serving.server import Server


def constant(config: Settings, path: str) -> None:
    """Serve nothing but the answer in the file `path`, from the event loop."""
    head, _, body = Path(path).read_bytes().partition(b"\r\n\r\n")
    answer = head + b"\r\n", body
    server = Server(config.host, config.port)
    server.serve(
        lambda *_: [],
        find_fast_path=lambda _: lambda: answer,
        reject=lambda *_: answer,
        threads=1,
        drain=0,
        patience=1,
    )


def flask(config: Settings) -> None:
    """Serve from a dict under a global lock, which is held during the fetch."""
    app = Flask(__name__)
    answers: dict[str, dict[str, Any]] = {}
    lock = Lock()

    def get(path: str) -> Any:
        headers = {
            "Authorization": f"Token {config.token}",
            "Accept": "application/json",
        }
        return requests.get(config.base_url + path, headers=headers, timeout=10).json()[
            "data"
        ]

    @app.get(f"{PREFIX}<event_id>")
    def event(event_id: str) -> FlaskResponse:
        with lock:
            if event_id not in answers:
                title = get(f"events/{event_id}/")[0]["title"]
                rows = get(f"event-subscriptions/?event_ids=[{event_id}]&limit=100")
                names = [row["subscriber"]["first_name"] for row in rows]
                answers[event_id] = {"id": event_id, "title": title, "names": names}
            return jsonify(answers[event_id])

    # Flask's own provider has it.
    app.json.sort_keys = False  # type: ignore[attr-defined]
    app.run(config.host, config.port)


class _Stub(Client):
    """Stands in for the service's client: it knows every event.

    Each has an answer of 300 bytes.
    """

    def __init__(self) -> None:
        """Take no upstream."""

    def fetch(
        self, event_ids: list[str], deadline: float, refresh: bool = False
    ) -> Iterator[tuple[str, Event]]:
        for event_id in event_ids:
            yield event_id, Event(id=event_id, title=TITLE, names=NAMES)


def filled(config: Settings, count: str) -> None:
    """Serve from a cache that holds `count` entries from the start."""
    server = Server(config.host, config.port)
    app = main.create_app(config, client=_Stub(), server=server)
    components: main.Components = app.extensions["c42c"]
    for number in range(int(count)):
        components.cache.get_or_load([f"{number:032x}_14602021609581"], components.load)
    server.serve(
        app.wsgi_app,
        find_fast_path=components.find_fast_path,
        reject=lambda *_: (b"HTTP/1.1 400 Bad Request\r\n", b""),
        threads=config.threads,
        drain=0,
        patience=1,
    )


if __name__ == "__main__":
    kinds: dict[str, Callable[..., None]] = {
        "constant": constant,
        "flask": flask,
        "filled": filled,
    }
    kinds[sys.argv[1]](settings.read(os.environ), *sys.argv[2:])
