"""Starts servers on one core, loads them from the other, and measures their use.

Everything is on 127.0.0.1. Each server gets its own process and is stopped by its
process id. What a process uses is read from /proc.
"""

import contextlib
import os
import platform
import random
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from http.client import HTTPConnection
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PREFIX = "/events-with-subscriptions/"
TOKEN = "a-token-for-the-bench"  # noqa: S105 - the stand-in's
TITLE, NAMES = (
    "A title as long as the titles of events are",
    ["Someone called so"] * 9,
)  # an answer of 300 bytes
# Seconds until a server's first answer: one of them loads a million entries before
# that.
PATIENCE = 120.0

_cores = sorted(os.sched_getaffinity(0))
SERVER_CORE, LOAD_CORE = _cores[0], _cores[-1]


class RunningServer(NamedTuple):
    """A running server."""

    port: int
    pid: int


class WrkRun(NamedTuple):
    """What one run of wrk saw, and what it cost the server."""

    rate: float  # answers per second
    p99: float  # milliseconds
    cost: float  # microseconds of CPU, user and system, that the server used per answer
    # Share of its core that the server got; well below 1, something else was using the
    # core.
    share: float


def require_two_cores_and_wrk() -> None:
    """Move this process to the load's core, or exit if the bench can't run here."""
    if SERVER_CORE == LOAD_CORE:
        sys.exit("the bench needs two cores: one for the server, one for the load")
    for program in ("wrk", "taskset", "openssl"):
        if not shutil.which(program):
            packages = "Debian packages wrk, util-linux and openssl"
            sys.exit(f"the bench needs {program} ({packages})")
    os.sched_setaffinity(0, {LOAD_CORE})


def describe() -> str:
    """Name the kind of machine, and the Python."""
    model = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    name = model[1] if model else platform.machine()
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return f"{name}, {len(_cores)} cores, {python}"


def free_port() -> int:
    """Return a port on which nothing listens, and which is given to nobody else.

    The system doesn't give it to a client: it takes ports from 32768 on for those. A
    server that sets SO_REUSEADDR, as most do, may listen there.
    """
    while True:
        sock = socket.socket()
        port = random.SystemRandom().randint(10_000, 32_000)
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            sock.close()
            continue
        # Not earlier, or the port might be one that another process was given.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # It stays bound as long as this process lives.
        sock.detach()
        return port


@contextlib.contextmanager
def running(
    command: Sequence[str], port: int, environ: Mapping[str, str] = os.environ
) -> Iterator[RunningServer]:
    """Run a server on its core, and yield it once it answers on `port`.

    In the end it is stopped, with its children.
    """
    process = subprocess.Popen(
        # From the PATH, as users have it.
        ["taskset", "-c", str(SERVER_CORE), *command],  # noqa: S607
        cwd=ROOT,
        env=dict(environ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_until_ready(port, process)
        yield RunningServer(port, process.pid)
    finally:
        family = tree(process.pid)
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            for pid in family:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()


def service(
    base_url: str, command: Sequence[str] = ("main.py",), **settings: str
) -> contextlib.AbstractContextManager[RunningServer]:
    """Run the service as `python main.py` does, or a variant of it.

    `settings` are environment variables.
    """
    port = free_port()
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith("C42_")
    }
    own = {
        "C42_TOKEN": TOKEN,
        "C42_BASE_URL": base_url,
        "C42_PORT": str(port),
        "C42_EXPIRY": "600",
    }
    return running([sys.executable, *command], port, inherited | own | settings)


def certificate(folder: Path) -> ssl.SSLContext:
    """Make a self-signed certificate for 127.0.0.1 in `folder`: `cert.pem`, `key.pem`.

    Return the context of a server that has it.
    """
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
    command += " -days 2 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    command += " -keyout key.pem -out cert.pem"
    subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return tls


def _wait_until_ready(port: int, process: subprocess.Popen[bytes]) -> None:
    give_up = time.monotonic() + PATIENCE
    while True:
        try:
            get(port, "/livez")
        except OSError:
            if time.monotonic() > give_up or process.poll() is not None:
                raise
            time.sleep(0.005)
        else:
            return


def connect(port: int) -> contextlib.closing[HTTPConnection]:
    """Return a connection to a server, for a `with`."""
    return contextlib.closing(HTTPConnection("127.0.0.1", port, timeout=PATIENCE))


def get(port: int, path: str) -> tuple[int, list[tuple[str, str]], bytes]:
    """GET `path` on a new connection; return status, headers and body."""
    with connect(port) as connection:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.getheaders(), response.read()


def wrk(
    server: RunningServer,
    path: str,
    seconds: float,
    *,
    connections: int = 32,
    headers: Mapping[str, str] | None = None,
    ids: int = 0,
) -> WrkRun:
    """Request `path` on so many keep-alive connections.

    With `ids`, a random number below that is added to `path` as an id.
    """
    options = [f"-c{connections}", f"-d{seconds}s", "--latency", "--timeout", "20s"]
    options += [
        word
        for name, text in (headers or {}).items()
        for word in ("-H", f"{name}: {text}")
    ]
    script = ["-s", str(ROOT / "bench" / "ids.lua")] if ids else []
    arguments = ["--", path, str(ids)] if ids else []
    command = [
        "wrk",
        "-t1",
        *options,
        *script,
        f"http://127.0.0.1:{server.port}{path}",
        *arguments,
    ]
    used, began = cpu(server.pid), time.monotonic()
    said = subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=seconds + 60
    ).stdout
    used, took = cpu(server.pid) - used, time.monotonic() - began
    if trouble := re.search("Non-2xx.*|Socket errors.*", said):
        raise ValueError(f"wrk had trouble: {trouble[0]}")
    p99 = _find(r"99%\s+([\d.]+)(us|ms|s)\b", said)
    return WrkRun(
        rate=float(_find(r"Requests/sec:\s+([\d.]+)", said)[1]),
        p99=float(p99[1]) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[p99[2]],
        cost=used * 1e6 / max(1, int(_find(r"(\d+) requests in", said)[1])),
        share=used / took,
    )


def _find(pattern: str, text: str) -> re.Match[str]:
    if not (match := re.search(pattern, text)):
        raise ValueError(f"{pattern!r} is not in:\n{text}")
    return match


def tree(pid: int) -> list[int]:
    """Return `pid` and all processes below it."""
    found = [pid]
    for one in found:
        for children in Path(f"/proc/{one}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                found += [int(child) for child in children.read_text().split()]
    return found


def memory(pid: int) -> float:
    """Return the resident memory of `pid` and all processes below it, in MiB."""
    status = [Path(f"/proc/{one}/status").read_text() for one in tree(pid)]
    return sum(int(_find(r"VmRSS:\s+(\d+) kB", text)[1]) for text in status) / 1024


def cpu(pid: int) -> float:
    """Return the seconds of CPU that `pid` and all processes below it have used.

    User and system time together.
    """
    fields = [
        Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
        for one in tree(pid)
    ]
    return sum(int(one[11]) + int(one[12]) for one in fields) / os.sysconf("SC_CLK_TCK")


def version(command: Sequence[str]) -> str:
    """Return the first version number that a program prints when asked for it."""
    said = subprocess.run(command, check=False, capture_output=True, text=True)
    return _find(r"\d+(?:\.\d+)+", said.stdout + said.stderr)[0]
