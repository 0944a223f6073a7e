"""The servers compared: each serves the same answer on the same core, in turns."""

import contextlib
import getpass
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bench import machine
from bench.machine import RunningServer, WrkRun

C42C, C42C_CORS, CONSTANT = "c42c", "c42c, CORS on", "a constant on the same server"
FLASK = "plain Flask"
NGINX, NGINX_FILES = "nginx proxy_cache", "nginx with open_file_cache"
HAPROXY, VARNISH = "HAProxy's RAM cache", "Varnish"

ORIGIN = "https://app.example"
# What Chrome sends with fetch() from a page of another origin, besides Host.
BROWSER = {
    "sec-ch-ua-platform": '"Windows"',
    "User-Agent": "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 "
    "(KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36",
    "sec-ch-ua": '"Chromium";v="142", "Google Chrome";v="142", "Not_A Brand";v="99"',
    "sec-ch-ua-mobile": "?0",
    "Accept": "*/*",
    "Origin": ORIGIN,
    "Sec-Fetch-Site": "cross-site",
    "Sec-Fetch-Mode": "cors",
    "Sec-Fetch-Dest": "empty",
    "Referer": f"{ORIGIN}/",
    "Accept-Encoding": "gzip, deflate, br, zstd",
    "Accept-Language": "en-GB,en;q=0.9,nl;q=0.8",
}
REQUESTS: dict[str, dict[str, str]] = {"bare": {}, "browser": BROWSER}

# nginx closes a connection after a thousand requests unless told otherwise.
_NGINX = """
worker_processes 1; {user} daemon off; pid nginx.pid; error_log error.log crit;
events {{ worker_connections 1024; }}
http {{
  access_log off; keepalive_requests 1000000000; keepalive_timeout 600s;
  tcp_nopush on; sendfile on;
  client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
  uwsgi_temp_path uwsgi; scgi_temp_path scgi;
  proxy_cache_path cache levels=1:2 keys_zone=events:10m inactive=1h;
  {open_files}
  server {{
    listen 127.0.0.1:{port} backlog=1024;
    location / {{ proxy_pass http://127.0.0.1:{origin}; proxy_cache events; {options} }}
  }}
}}
"""
_HAPROXY = """
global
  nbthread 1
defaults
  mode http
  timeout connect 5s
  timeout client 600s
  timeout server 600s
cache events
  total-max-size 64
  max-age 36000
frontend front
  bind 127.0.0.1:{port}
  http-request cache-use events
  http-response cache-store events
  default_backend origin
backend origin
  server origin 127.0.0.1:{origin}
"""
_VARNISH = """
vcl 4.1;
backend origin {{ .host = "127.0.0.1"; .port = "{origin}"; }}
"""


class Round(NamedTuple):
    """What all contenders did, one after the other, with one kind of request."""

    request: str  # a key of REQUESTS
    loads: dict[str, WrkRun]  # by contender


def program(name: str) -> str | None:
    """Return the path of a program, even if only root's PATH has its directory."""
    return shutil.which(name) or shutil.which(f"/usr/sbin/{name}")


def missing() -> list[str]:
    """Name the contenders that are left out since they are not installed."""
    needs = {
        NGINX: "nginx",
        NGINX_FILES: "nginx",
        HAPROXY: "haproxy",
        VARNISH: "varnishd",
    }
    return [name for name, command in needs.items() if not program(command)]


def contest(
    base_url: str, event_id: str, *, rounds: int, seconds: int
) -> Iterator[Round]:
    """Have all contenders answer for `event_id` in turns.

    Each round starts them anew: starts differ.
    """
    path = machine.PREFIX + event_id
    for number in range(rounds):
        with contextlib.ExitStack() as stack:
            servers = _start(base_url, path, stack)
            bodies = [
                machine.get(server.port, path)[2].strip()
                for server in servers.values()
                for _ in range(2)
            ]
            assert {len(body) for body in bodies} == {300}, bodies
            names = list(servers)
            for request, headers in REQUESTS.items():
                origin_used = machine.cpu(servers[CONSTANT].pid)
                first = number % len(names)
                turn = names[first:] + names[:first]
                loads = {
                    name: machine.wrk(servers[name], path, seconds, headers=headers)
                    for name in turn
                }
                origin_used = machine.cpu(servers[CONSTANT].pid) - origin_used
                assert origin_used < 1.5 * seconds, "a cache keeps asking its origin"
                yield Round(request, loads)


def _start(
    base_url: str, path: str, stack: contextlib.ExitStack
) -> dict[str, RunningServer]:
    place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="c42c-bench-")))
    enter = stack.enter_context
    servers = {
        C42C: enter(machine.service(base_url)),
        C42C_CORS: enter(machine.service(base_url, C42_CORS_ORIGINS=ORIGIN)),
        FLASK: enter(machine.service(base_url, ["-m", "bench.servers", "flask"])),
    }
    # What the caches get from their origin are the headers and the body of the
    # service's own hits.
    machine.get(servers[C42C].port, path)
    _, headers, body = machine.get(servers[C42C].port, path)
    head = "".join(f"{name}: {text}\r\n" for name, text in headers if name != "Date")
    (place / "answer").write_bytes(f"HTTP/1.1 200 OK\r\n{head}\r\n".encode() + body)
    command = ["-m", "bench.servers", "constant", str(place / "answer")]
    servers[CONSTANT] = enter(machine.service(base_url, command))
    origin = servers[CONSTANT].port
    left_out = missing()
    for name in (NGINX, NGINX_FILES, HAPROXY, VARNISH):
        if name not in left_out:
            servers[name] = enter(cache(name, origin, place))
    return servers


def cache(
    name: str, origin: int, place: Path, options: str = "proxy_cache_lock on;"
) -> contextlib.AbstractContextManager[RunningServer]:
    """Run one of the programs that cache in front of `origin`.

    `options` are directives of nginx.
    """
    place, port = place / name, machine.free_port()
    place.mkdir()
    config = place / "config"
    if name == HAPROXY:
        config.write_text(_HAPROXY.format(port=port, origin=origin))
        command = ["haproxy", "-db", "-f", str(config)]
    elif name == VARNISH:
        config.write_text(_VARNISH.format(origin=origin))
        here = ["-n", str(place), "-f", str(config), "-a", f"127.0.0.1:{port}"]
        command = ["varnishd", "-F", "-j", "none", "-s", "malloc,64m", *here]
    else:
        # Started by root, nginx would change to a user who may not enter the directory.
        user = "user root;" if getpass.getuser() == "root" else ""
        open_files = (
            "open_file_cache max=1000 inactive=1h;" if name == NGINX_FILES else ""
        )
        config.write_text(
            _NGINX.format(
                port=port,
                origin=origin,
                user=user,
                open_files=open_files,
                options=options,
            )
        )
        command = ["nginx", "-p", str(place), "-c", str(config), "-e", "error.log"]
    return machine.running([program(command[0]) or command[0], *command[1:]], port)
