"""Who runs against whom: each serves the same answers, from its own cache, on the same core, in turns."""

import contextlib
import getpass
import importlib.util
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from bench import machine
from bench.machine import Load, Server

SERVICE, BARE, PLAIN, NGINX = "c42c", "Granian, constant answer", "plain Flask, global lock", "nginx proxy_cache"
NGINX_FILES, VARNISH = "nginx proxy_cache + open_file_cache", "Varnish"
FLASK_CACHING, REQUESTS_CACHE = "Flask-Caching on Granian", "requests-cache on Granian"

# The cache keeps the answers for the whole run, as all others do. Without keepalive_requests nginx closes a connection
# after a thousand requests, which would count against it.
_NGINX = """
worker_processes 1; {user} daemon off; pid nginx.pid; error_log error.log crit;
events {{ worker_connections 1024; }}
http {{
  access_log off; keepalive_requests 1000000000; keepalive_timeout 600s; tcp_nopush on; sendfile on;
  client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi;
  scgi_temp_path scgi;
  proxy_cache_path cache levels=1:2 keys_zone=events:10m inactive=1h;
  {extra}
  server {{
    listen 127.0.0.1:{port} backlog=1024;
    location / {{ proxy_pass http://127.0.0.1:{origin}; proxy_cache events; proxy_cache_lock on; }}
  }}
}}
"""
_VARNISH = """
vcl 4.1;
backend origin {{ .host = "127.0.0.1"; .port = "{origin}"; }}
"""


class Round(NamedTuple):
    """What all contenders did, one after the other, with answers of one size."""

    size: int
    loads: dict[str, Load]


def missing() -> list[str]:
    """Name the contenders that can't run, since what they need is not installed."""
    needs = {
        FLASK_CACHING: importlib.util.find_spec("flask_caching"),
        REQUESTS_CACHE: importlib.util.find_spec("requests_cache"),
        NGINX: _nginx(),
        NGINX_FILES: _nginx(),
        VARNISH: _varnish(),
    }
    return [name for name, found in needs.items() if not found]


def versions() -> dict[str, str]:
    """Return the version of each program that is no Python package."""
    commands = {"wrk": ("wrk", "-v"), "nginx": (_nginx(), "-v"), "varnish": (_varnish(), "-V")}
    return {name: machine.version([program, option]) for name, (program, option) in commands.items() if program}


def contest(base_url: str, event_ids: dict[int, str], *, rounds: int, seconds: int) -> Iterator[Round]:
    """Start all contenders, and let them answer in turns; `event_ids` by the size of their answers."""
    with contextlib.ExitStack() as stack:
        servers = dict(_start(base_url, event_ids, stack))
        for server in servers.values():
            for size, event_id in event_ids.items():
                for _ in range(2):  # the second time from the cache, for whoever has one
                    status, _, body = machine.get(server.port, machine.PREFIX + event_id)
                assert (status, len(body.strip())) == (200, size), (status, len(body))
        names = list(servers)
        for number in range(rounds):
            for size, event_id in event_ids.items():
                turn = names[number % len(names) :] + names[: number % len(names)]
                loads = {name: machine.wrk(servers[name], machine.PREFIX + event_id, seconds) for name in turn}
                assert not any(load.refused for load in loads.values()), loads
                yield Round(size, loads)


def _start(base_url: str, event_ids: dict[int, str], stack: contextlib.ExitStack) -> Iterator[tuple[str, Server]]:
    service = stack.enter_context(machine.service(base_url))
    yield SERVICE, service
    place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="c42c-bench-")))
    # The same headers and bytes as the service's own hits, for the bare server and for whoever is in front of it.
    answers: dict[str, dict[str, object]] = {}
    for event_id in event_ids.values():
        path = machine.PREFIX + event_id
        machine.get(service.port, path)
        _, headers, body = machine.get(service.port, path)
        own = [header for header in headers if header[0].lower() not in ("date", "server")]
        answers[path] = {"headers": own, "body": body.decode()}
    (place / "answers.json").write_text(json.dumps(answers))

    def python(kind: str, argument: str) -> Server:
        return stack.enter_context(machine.python_server(kind, argument))

    bare = python("constant", str(place / "answers.json"))
    yield BARE, bare
    left_out = missing()
    others: dict[str, Callable[[], Server]] = {
        NGINX: lambda: _start_nginx(place / "plain", bare.port, "", stack),
        NGINX_FILES: lambda: _start_nginx(place / "files", bare.port, "open_file_cache max=1000 inactive=1h;", stack),
        VARNISH: lambda: _start_varnish(place / "varnish", bare.port, stack),
        FLASK_CACHING: lambda: python("flask-caching", base_url),
        REQUESTS_CACHE: lambda: python("requests-cache", base_url),
        PLAIN: lambda: python("plain", base_url),
    }
    for name, begin in others.items():
        if name not in left_out:
            yield name, begin()


def _start_nginx(place: Path, origin: int, extra: str, stack: contextlib.ExitStack) -> Server:
    place.mkdir()
    port, nginx = machine.free_port(), _nginx()
    assert nginx
    # Started by root its worker would become another user, who may not enter the directory of this run.
    user = "user root;" if getpass.getuser() == "root" else ""
    (place / "nginx.conf").write_text(_NGINX.format(port=port, origin=origin, extra=extra, user=user))
    pid = stack.enter_context(
        machine.running([nginx, "-p", str(place), "-c", "nginx.conf", "-e", "error.log"], cwd=place)
    )
    machine.wait_until_ready(port)
    return Server(port, pid)


def _start_varnish(place: Path, origin: int, stack: contextlib.ExitStack) -> Server:
    place.mkdir()
    port, varnish = machine.free_port(), _varnish()
    assert varnish
    (place / "default.vcl").write_text(_VARNISH.format(origin=origin))
    own = ["-F", "-j", "none", "-n", str(place), "-f", str(place / "default.vcl"), "-s", "malloc,64m"]
    pid = stack.enter_context(machine.running([varnish, *own, "-a", f"127.0.0.1:{port}"]))
    machine.wait_until_ready(port)
    return Server(port, pid)


def _nginx() -> str | None:
    return shutil.which("nginx") or shutil.which("/usr/sbin/nginx")


def _varnish() -> str | None:
    return shutil.which("varnishd") or shutil.which("/usr/sbin/varnishd")
