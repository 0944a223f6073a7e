"""The service: its routes, and what wires and runs it. `python main.py --help` says how."""

import argparse
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from flask import Flask, Response, request, send_file
from werkzeug.exceptions import HTTPException, NotFound
from werkzeug.routing import RequestRedirect

from answers import fastpath
from answers import response as answers
from answers.fastpath import App
from answers.loading import loader
from c42client import Client
from cache import Cache, Refused
from calendar42 import ids
from calendar42.pause import Pause
from operations import check, health, logs, settings, status_page
from operations.metrics import Metrics
from operations.settings import Settings
from serving import server
from standin import EVENTS, SHOWN, Standin

if TYPE_CHECKING:
    from sharing.tier import SharedTier

log = logging.getLogger("c42c")


def create_app(config: Settings, stopping: Callable[[], bool] = lambda: False) -> Flask:
    """Make the service: the Flask app, with a cache and an upstream client of its own."""
    cache = Cache(max_entries=config.max_entries, max_waiting=config.max_waiting)
    pause = Pause(config.fault_expiry)
    tier = _tier(config, pause)
    metrics = Metrics(config, cache, pause, stopping, tier.snapshot if tier else None)
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
    if tier:
        load = tier.wrap(load)
    app = Flask(__name__, static_folder=None)  # the status page brings its own
    health.register(app, metrics)
    status_page.register(app, metrics.status)

    @app.get("/events-with-subscriptions/<event_id>")
    @app.get("/events-with-subscriptions/<event_id>/")
    def event(event_id: str) -> Response:
        found = cache.get_or_load(ids.check(event_id), lambda event_id: load([event_id])[event_id])
        return _respond(answers.render(found, request.environ))

    @app.get("/events-with-subscriptions")
    @app.get("/events-with-subscriptions/")
    def events() -> Response:
        began = time.monotonic()  # one time-out for all of it, though a second load may follow the first
        wanted = ids.read_list(request.args.getlist("event_ids"))
        found = cache.get_or_load_many(wanted, lambda event_ids: load(event_ids, time.monotonic() - began))
        return _respond(answers.render_many(found, request.environ))

    @app.get("/openapi.json")
    def contract() -> Response:
        return send_file("operations/openapi.json")

    @app.before_request
    def redirect_nobody() -> None:
        if isinstance(request.routing_exception, RequestRedirect):  # two slashes, or no path at all
            raise NotFound  # rather than on to whatever Host the client named

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

    @app.errorhandler(ids.BadIds)
    def bad_ids(error: ids.BadIds) -> Response:
        return _respond(answers.error(400, str(error), []))

    @app.errorhandler(HTTPException)
    def failed(error: HTTPException) -> Response:
        kept = [(name, value) for name, value in error.get_headers() if name == "Allow"]
        return _respond(answers.error(error.code or 500, error.description or "", kept))

    @app.errorhandler(Exception)
    def broken(error: Exception) -> Response:
        log.error("a request failed", exc_info=error)
        return _respond(answers.error(500, "the service failed; its log says why", []))

    fast = fastpath.before(app.wsgi_app, cache, config.cors_origins, metrics.served)
    logged = health.RequestLog(fast) if log.isEnabledFor(logging.DEBUG) else fast
    app.wsgi_app = logged  # type: ignore[method-assign, assignment]  # as Flask's documentation has it
    return app


def _tier(config: Settings, pause: Pause) -> "SharedTier | None":
    if not config.cache_url:
        return None
    from sharing.tier import SharedTier  # it needs redis, which is not installed everywhere

    return SharedTier(config, pause)


def _respond(answer: answers.Response) -> Response:
    status, headers, body = answer
    return Response(body, status, headers)


def main(arguments: list[str], environ: Mapping[str, str]) -> int:
    """Run the service until it is told to stop; return the exit status."""
    options = _parser().parse_args(arguments)
    if options.check:
        return check.run(environ)
    if not options.demo:
        return _serve(environ)
    with Standin() as upstream:
        own = {"C42_TOKEN": upstream.token, "C42_BASE_URL": upstream.base_url}
        return _serve({**environ, **own}, _greeting)


def _serve(environ: Mapping[str, str], greeting: Callable[[str], str] = lambda url: "") -> int:
    try:
        config = settings.read(environ)
    except settings.SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    if config.cache_url and not find_spec("redis"):
        print("C42_CACHE_URL needs what is not installed: pip install -r requirements-redis.txt", file=sys.stderr)
        return 2
    logs.configure(config.loglevel, config.logformat, config.token)
    for text in settings.unknown(environ):
        log.warning("%s", text)
    try:
        address = server.find_address(config.host, config.port)
    except OSError as error:
        print(f"cannot listen on {server.url(config)}: {error.strerror}", file=sys.stderr)
        return 1
    print(greeting(server.url(config)), end="", flush=True)
    return server.serve(partial(_build, config), config, address)


def _build(config: Settings, stopping: Any) -> App:
    """Make the service in the process that will serve it, which may be a new one."""
    logs.configure(config.loglevel, config.logformat, config.token)
    server.depend_on_parent()
    os.environ.pop("C42_TOKEN", None)  # or Granian hands it on with every request
    log.info("serving on %s", server.url(config))
    return create_app(config, lambda: bool(stopping.value)).wsgi_app  # what the app itself would only hand on to


def _greeting(url: str) -> str:
    lines = [f"    curl -i {url}/events-with-subscriptions/{EVENTS[name]}  # {what}" for name, what in SHOWN.items()]
    first = f"c42c answers on {url}, from made-up events. Try, in another terminal:"
    return "\n".join([first, "", *lines, "", f"{url}/ shows what it does. Ctrl-C ends it.", ""])


def _parser() -> argparse.ArgumentParser:
    lines = [
        f"  {name:<17} {variable.meaning} ({'mandatory' if variable.default is None else variable.default or 'none'})"
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
