"""The service: its routes, and what wires and runs it. `python main.py --help` says how."""

import argparse
import logging
import os
import re
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from flask import Flask, Response, request, send_file
from werkzeug.exceptions import BadRequest, HTTPException

import answers
import check
import logs
import operations
import server
import settings
import status_page
from c42client import Client
from cache import Cache, Refused
from fastpath import FastPath
from loading import loader
from metrics import Metrics
from pause import Pause
from settings import Settings

EVENT_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
EVENT_ID_RULE = "an event id is 1 to 128 letters, digits, hyphens and underscores"
LONGEST_LIST = 100

log = logging.getLogger("c42c")


def create_app(config: Settings, stopping: Callable[[], bool] = lambda: False) -> Flask:
    """Make the service: the Flask app, with a cache and an upstream client of its own."""
    cache = Cache(max_entries=config.max_entries, max_waiting=config.max_waiting)
    pause = Pause(config.fault_expiry)
    metrics = Metrics(config, cache, pause, stopping)
    client = Client(
        base_url=config.base_url,
        token=config.token,
        timeout=config.timeout,
        pause=pause,
        callers=config.max_waiting,
        observe=metrics.called,
        observe_fault=metrics.faulted,
    )
    load = loader(client, config)
    app = Flask(__name__, static_folder=None)  # the status page brings its own
    app.url_map.merge_slashes = False  # a path with two slashes is not found, rather than redirected
    operations.register(app, metrics)
    status_page.register(app, metrics.status)

    @app.get("/events-with-subscriptions/<event_id>")
    @app.get("/events-with-subscriptions/<event_id>/")
    def event(event_id: str) -> Response:
        if not EVENT_ID.fullmatch(event_id):
            raise BadRequest(EVENT_ID_RULE)
        found = cache.get_or_load(event_id, lambda event_id: load([event_id])[event_id])
        return _respond(answers.render(found, request.environ))

    @app.get("/events-with-subscriptions")
    @app.get("/events-with-subscriptions/")
    def events() -> Response:
        found = cache.get_or_load_many(_event_ids(request.args.getlist("event_ids")), load)
        return _respond(answers.render_many(found, request.environ))

    @app.get("/openapi.json")
    def contract() -> Response:
        return send_file("openapi.json")

    @app.after_request
    def allow_origins(response: Response) -> Response:
        if request.method == "OPTIONS" and response.status_code == 200:
            response.status_code = 204
            del response.headers["Content-Type"]
        response.headers.extend(answers.cors(config.cors_origins, request.environ))
        return response

    @app.errorhandler(Refused)
    def refused(_: Refused) -> Response:
        message = "too many requests wait for Calendar42"
        return _respond(answers.error(503, message, [("Retry-After", "1"), ("Cache-Status", "c42c; detail=refused")]))

    @app.errorhandler(HTTPException)
    def failed(error: HTTPException) -> Response:
        kept = [(name, value) for name, value in error.get_headers() if name == "Allow"]
        return _respond(answers.error(error.code or 500, error.description or "", kept))

    @app.errorhandler(Exception)
    def broken(error: Exception) -> Response:
        log.error("a request failed", exc_info=error)
        return _respond(answers.error(500, "the service failed; its log says why", []))

    fast = FastPath(app.wsgi_app, cache, config.cors_origins, metrics.served.add)
    logged = operations.RequestLog(fast) if log.isEnabledFor(logging.DEBUG) else fast
    app.wsgi_app = logged  # type: ignore[method-assign]  # as Flask's documentation has it
    return app


def _event_ids(lists: list[str]) -> list[str]:
    """Read `event_ids=[a,b,c]`, the form in which Calendar42 takes lists; raise BadRequest where it is another."""
    if len(lists) != 1:
        raise BadRequest("one list of events is needed: ?event_ids=[a,b,c]")
    if not re.fullmatch(r"\[[^\[\]]+\]", lists[0]):
        raise BadRequest("event_ids is a list in brackets, not empty: [a,b,c]")
    event_ids = lists[0][1:-1].split(",")
    if len(event_ids) > LONGEST_LIST:
        raise BadRequest(f"event_ids has {len(event_ids)} entries; {LONGEST_LIST} are the most")
    for position, event_id in enumerate(event_ids, 1):
        if not EVENT_ID.fullmatch(event_id):
            raise BadRequest(f"entry {position} of event_ids is wrong: {EVENT_ID_RULE}")
    return event_ids


def _respond(answer: answers.Response) -> Response:
    return Response(answer.body, answer.status, answer.headers)


def main(arguments: list[str], environ: Mapping[str, str]) -> int:
    """Run the service until it is told to stop; return the exit status."""
    options = _parser().parse_args(arguments)
    if options.demo:
        return _demo(environ)
    if options.check:
        return check.run(environ)
    try:
        config = settings.read(environ)
    except settings.SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    return _serve(config, environ)


def _serve(config: Settings, environ: Mapping[str, str], greeting: str = "") -> int:
    logs.configure(config.loglevel, config.logformat, config.token)
    settings.warn_of_unknown(environ, log)
    try:
        address = server.find_address(config.host, config.port)
    except OSError as error:
        print(f"cannot listen on {server.url(config)}: {error.strerror}", file=sys.stderr)
        return 1
    print(greeting, end="", flush=True)
    return server.serve(partial(_build, config), config, address)


def _build(config: Settings, stopping: Any) -> Flask:
    """Make the service in the process that will serve it, which may be a new one."""
    logs.configure(config.loglevel, config.logformat, config.token)
    server.depend_on_parent()
    os.environ.pop("C42_TOKEN", None)  # or Granian hands it on with every request
    log.info("serving on %s", server.url(config))
    return create_app(config, lambda: bool(stopping.value))


def _demo(environ: Mapping[str, str]) -> int:
    """Serve what the stand-in of Calendar42 has, with no token, and nothing from outside."""
    from standin import EVENTS, Standin

    shown = {
        "plain": "a plain event",
        "big": "one with 250 people, on three pages",
        "scripts": "names in several scripts",
        "deleted": "a deleted event",
        "unknown": "one that Calendar42 does not know",
    }
    with Standin() as upstream:
        try:
            config = settings.read({**environ, "C42_TOKEN": upstream.token, "C42_BASE_URL": upstream.base_url})
        except settings.SettingsError as error:
            print(error, file=sys.stderr)
            return 2
        address = f"{server.url(config)}/events-with-subscriptions/"
        lines = [f"    curl -i {address}{EVENTS[name]}  # {what}" for name, what in shown.items()]
        greeting = "\n".join(
            [f"c42c answers on {server.url(config)}, from made-up events. Try, in another terminal:", ""]
        )
        return _serve(config, environ, "\n".join([greeting, *lines, "", "Ctrl-C ends it.", ""]))


def _parser() -> argparse.ArgumentParser:
    lines = [
        f"  {name:<17} {variable.meaning} ({'mandatory' if variable.default is None else variable.default})"
        for name, variable in settings.VARIABLES.items()
    ]
    parser = argparse.ArgumentParser(
        prog="python main.py",
        description="Serve the title of a Calendar42 event and the first names of everyone on it.",
        epilog="\n".join(["environment variables:", *lines]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--demo", action="store_true", help="serve made-up events from a stand-in; needs no token")
    parser.add_argument("--check", action="store_true", help="say whether all is well with settings and Calendar42")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
