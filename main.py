"""The service: its routes, its wiring and its command line.

`python main.py --help` shows how to run it.
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - before an import fails for that reason
    sys.exit(f"c42c needs Python 3.11 or newer, and this is {sys.version.split()[0]}")

import argparse
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from functools import partial
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote

import flask
from flask import Flask, g, request

from answers import EVENT_PATH, LIST_PATH, app_hooks, hits, response
from answers.loading import loader
from answers.rejections import Rejections
from c42client import Calls, Client, Outcome
from cache import Cache, Found, Loader
from cache import clock as default_clock
from calendar42 import ids
from calendar42.calls import Attempt, CallRecord, Pause
from calendar42.replies import Reply
from operations import VERSION, check, health, logs, settings
from operations.error_log import ErrorLog
from operations.load_log import log_load
from operations.metrics import Metrics
from operations.refreshing import Refresher
from operations.settings import RESERVED_THREADS, Settings, SettingsError
from serving.interface import FindFastPath, MakeRejection
from serving.server import Server
from serving.system import open_standard_streams, return_memory_early

if TYPE_CHECKING:
    from sharing.tier import SharedTier  # needs redis, which few have installed

log = logging.getLogger("c42c")


class Components(NamedTuple):
    """What the app works with, as `app.extensions["c42c"]`."""

    cache: Cache
    client: Client
    tier: "SharedTier | None"
    load: Loader
    metrics: Metrics
    error_log: ErrorLog
    find_fast_path: FindFastPath  # answers hits in the event loop, without the app
    reject: MakeRejection  # answers what the server rejects, without the app


def create_app(
    config: Settings | None = None,
    *,
    client: Client | None = None,
    clock: Callable[[], float] = default_clock,
    server: Server | None = None,
) -> Flask:
    """Make the service for any WSGI server, from `config` or else the environment.

    `server` is our own server, if that will serve the app. A `client` that is given has
    a pause and observers of its own, so pages and metrics don't tell of its calls. No
    thread is started before the first request. Raises `SettingsError`.
    """
    config = config or _configure(os.environ)
    cache = _make_cache(config, clock)
    pause = Pause(config.fault_expiry)
    tier = _make_tier(config, pause, clock)
    metrics = Metrics(
        cache,
        pause,
        config.expiry,
        tier=tier,
        stopping=lambda: server is not None and server.stopping,
    )
    error_log = ErrorLog()

    def on_load(event_id: str, outcome: Outcome, attempt: Attempt) -> None:
        log_load(event_id, outcome, attempt)
        metrics.on_outcome(outcome)

    client = client or Client(_make_calls(config, pause, metrics.on_call), on_load)
    make_loader = partial(_make_loader, config, client, metrics, error_log, tier, clock)
    load = make_loader(refresh=False)
    refresh = make_loader(refresh=True)
    refresher = Refresher(cache, refresh, timeout=config.timeout, pause=pause)
    cache.on_refresh_due = refresher.on_refresh_due

    app = Flask(__name__, static_folder=None)  # the status page brings its own
    health.register(app, metrics, error_log)
    app_hooks.register(
        app,
        origins=config.cors_origins,
        on_full=metrics.on_full,
        on_error=error_log.on_error,
    )

    def find(event_ids: list[str]) -> dict[str, Found]:
        # Of all loads together: a second one may follow the first.
        deadline = time.monotonic() + config.timeout
        found = cache.get_or_load(event_ids, load, deadline)
        g.is_hit = all(part.source == "hit" for part in found.values())
        return found

    # One list at a time: the bound on unsent answers counts those that are finished.
    rendering = threading.Lock()

    @app.get(EVENT_PATH, strict_slashes=False)
    def event(event_id: str) -> flask.Response:
        found = find([ids.validate_id(event_id)])[event_id]
        condition = request.headers.get("If-None-Match")
        return app_hooks.respond(response.render(found, condition))

    @app.get(LIST_PATH, strict_slashes=False)
    def events() -> flask.Response:
        wanted = ids.parse_list(request.args.getlist("event_ids"))
        condition = request.headers.get("If-None-Match")
        found = find(wanted)
        with rendering:
            rendered = response.render_many(found, condition)
        return app_hooks.respond(rendered)

    rejections = Rejections(
        config.cors_origins,
        on_rejection=metrics.on_rejection,
        log=error_log.on_rejection,
    )
    app.extensions["c42c"] = Components(
        cache=cache,
        client=client,
        tier=tier,
        load=load,
        metrics=metrics,
        error_log=error_log,
        find_fast_path=_make_fast_path_finder(config, cache, metrics),
        reject=rejections.reject,
    )
    return app


def _make_cache(config: Settings, clock: Callable[[], float]) -> Cache:
    return Cache(
        max_entries=config.max_entries,
        max_bytes=config.max_mib * 2**20,
        max_waiting=config.threads - RESERVED_THREADS,
        refresh_ahead=config.refresh_ahead,
        retry_refresh=config.fault_expiry,
        clock=clock,
    )


def _make_tier(
    config: Settings, pause: Pause, clock: Callable[[], float]
) -> "SharedTier | None":
    """Make what shares answers with instances that have the same settings."""
    if not config.cache_url:
        return None
    from sharing.link import Link
    from sharing.tier import SharedTier

    return SharedTier(
        Link(config.cache_url),
        scope=settings.scope(config),
        timeout=config.timeout,
        pause=pause,
        clock=clock,
    )


def _make_calls(
    config: Settings, pause: Pause, on_call: Callable[[CallRecord], None]
) -> Calls:
    return Calls(
        base_url=config.base_url,
        token=config.token,
        timeout=config.timeout,
        pause=pause,
        on_call=on_call,
    )


def _make_loader(
    config: Settings,
    client: Client,
    metrics: Metrics,
    error_log: ErrorLog,
    tier: "SharedTier | None",
    clock: Callable[[], float],
    *,
    refresh: bool,
) -> Loader:
    """Make what loads events: from Redis, if there is one, or else from Calendar42.

    A refresh takes nothing from Redis that is itself about to expire.
    """
    load = loader(
        partial(client.fetch, refresh=refresh),
        expiry=config.expiry,
        fault_expiry=config.fault_expiry,
        id_for=error_log.id_for_failed_load,
        clock=clock,
    )
    watched = metrics.watch(load)
    if tier is None:
        return watched
    least_left = 0.0
    if refresh:
        least_left = config.refresh_ahead * config.expiry
    return partial(tier.load, watched, least_left)


def _make_fast_path_finder(
    config: Settings, cache: Cache, metrics: Metrics
) -> FindFastPath:
    """Make what finds the fast path of hits.

    At DEBUG no request has one: the app answers hits too, so that they are logged.
    """
    if log.isEnabledFor(logging.DEBUG):
        return lambda request: None
    return hits.fast_path_finder(cache, config.cors_origins, metrics.hits_by_status)


def _read_settings(environ: Mapping[str, str]) -> Settings:
    """Read the settings; raise `SettingsError` if any is missing or invalid."""
    return settings.read(environ, _check_cache_url)


def _check_cache_url(url: str) -> None:
    """Raise ValueError for a URL that the client of Redis can't use."""
    from sharing.client import make_client

    make_client(url)


def _ask_calendar42(config: Settings, path: str) -> Reply:
    """Get one path as it is, for `--check`; raise `C42Error` if that fails."""
    calls = _make_calls(config, Pause(0), on_call=lambda call: None)
    with closing(calls):
        return calls.ask(path, time.monotonic() + config.timeout)


def _ask_redis(url: str) -> str:
    """Return a line that says that this Redis can be used, for `--check`.

    Raises ValueError that says why it can't.
    """
    from sharing.check import check

    return check(url)


def _configure(environ: Mapping[str, str]) -> Settings:
    """Read the settings, set up the log, and tell it what was set."""
    config = _read_settings(environ)
    logs.configure(config.loglevel, config.logformat, config.token)
    facts = {"version": VERSION} | settings.facts(config)
    known = [f"{name}={fact}" for name, fact in facts.items() if fact is not None]
    log.info("start %s", " ".join(known), extra={"fields": facts})
    for text in settings.warnings(environ):
        log.warning("%s", text)
    return config


def main(arguments: list[str], environ: Mapping[str, str]) -> int:
    """Do what the command line says, by default serve; return the exit status."""
    options = _make_parser().parse_args(arguments)
    if options.check:
        means = check.Means(_read_settings, _ask_calendar42, _ask_redis)
        return check.run(environ, means)
    try:
        if options.event is not None:
            return _print_event(environ, options.event)
        if options.demo:
            return _demo(environ)
        return _serve(environ)
    except SettingsError as error:
        logs.complain(str(error), error.logformat)
        return 2


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python main.py",
        description="Returns a Calendar42 event's title and the first names of its "
        "attendees in one GET.",
        epilog=f"environment variables:\n{settings.usage()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument(
        "--demo",
        action="store_true",
        help="serve made-up events from a stand-in; needs no token",
    )
    modes.add_argument(
        "--check",
        action="store_true",
        help="check the settings, and the connection to Calendar42 and to Redis",
    )
    modes.add_argument(
        "--event",
        metavar="EVENT_ID",
        help="print the answer for one event, and exit",
    )
    parser.add_argument(
        "--version",
        action="version",
        version=f"c42c {VERSION}",
        help="print the version",
    )
    return parser


def _print_event(environ: Mapping[str, str], event_id: str) -> int:
    """Print what the service would answer now; return 0 if it's good, else 1.

    Return 1 too if it can't be printed.
    """
    config = _configure(environ)
    # Quoted, or all after a `?` would be left out, and another event might be printed.
    # As bytes, because the command line may have some that are no text.
    quoted = quote(os.fsencode(event_id), safe="")
    answer = create_app(config).test_client().get(f"{LIST_PATH}/{quoted}")
    try:
        sys.stdout.buffer.write(answer.data + b"\n")
        sys.stdout.flush()
    except OSError as error:
        logs.complain(f"cannot print: {error.strerror}", config.logformat)
        return 1
    if answer.status_code != 200:
        return 1
    return 0


def _demo(environ: Mapping[str, str]) -> int:
    import standin  # imported here to save 1.5 MB in all other runs

    with standin.Demo() as upstream:
        own = {
            "C42_TOKEN": upstream.token,
            "C42_TOKEN_FILE": "",
            "C42_BASE_URL": upstream.base_url,
        }
        return _serve({**environ, **own}, lambda url: standin.greeting(url, LIST_PATH))


def _serve(
    environ: Mapping[str, str], make_greeting: Callable[[str], str] | None = None
) -> int:
    config = _configure(environ)
    url = _make_url(config.host, config.port)
    try:
        server = Server(config.host, config.port)
    except OSError as error:
        text = f"cannot listen on {url}: {error.strerror}; see C42_HOST and C42_PORT"
        logs.complain(text, config.logformat)
        return 1
    if server.is_inherited:
        url = _make_url(*server.address)
    app = create_app(config, server=server)
    components: Components = app.extensions["c42c"]
    log.info("serving on %s", url)
    if make_greeting:
        _print(make_greeting(url))
    server.serve(
        app.wsgi_app,
        find_fast_path=components.find_fast_path,
        reject=components.reject,
        threads=config.threads,
        drain=config.drain,
        patience=config.timeout + 1,
    )
    return 0


def _print(text: str) -> None:
    """Print `text`, and go on after a second if nobody takes it."""

    def write() -> None:
        with suppress(OSError):  # nobody can read it any more
            print(text, end="", flush=True)

    # The main thread would act on no signal while it writes.
    writing = threading.Thread(target=write, daemon=True)
    writing.start()
    writing.join(1)


def _make_url(host: str, port: int) -> str:
    if ":" in host:
        host = f"[{host}]"
    return f"http://{host}:{port}"


if __name__ == "__main__":
    open_standard_streams()
    return_memory_early()
    try:
        status = main(sys.argv[1:], os.environ)
    except KeyboardInterrupt:
        status = 130  # as shells say it
    logs.flush()  # in a second at most
    os._exit(status)  # doesn't wait for threads that wait for Calendar42
