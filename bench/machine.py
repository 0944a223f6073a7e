"""Processes on one core, load from another, and what the kernel says of a process.

Everything listens and asks on 127.0.0.1. Whoever starts a process here ends it, by its id.
"""

import contextlib
import os
import platform
import re
import selectors
import shutil
import signal
import socket
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
PATIENCE = 120.0  # seconds for a server to give its first answer; a million entries are filled in before that

_cores = sorted(os.sched_getaffinity(0))
SERVER_CORE, LOAD_CORE = _cores[0], _cores[-1]


class Server(NamedTuple):
    """A server that runs."""

    port: int
    pid: int


class Load(NamedTuple):
    """What one run of wrk saw, and what it cost the server."""

    rate: float  # answers per second
    p99: float  # milliseconds
    cost: float  # microseconds of CPU that the server used per answer; hardly depends on what else the machine does
    share: float  # of its core that the server had: near 1, or else something was in its way
    requests: int
    refused: int  # answers other than 2xx and 3xx
    broken: int  # connections that failed, or were timed out


def require() -> None:
    """Exit where this machine can't measure."""
    if SERVER_CORE == LOAD_CORE:
        sys.exit("the bench needs two cores: one for the server, one for the load")
    for program in ("wrk", "taskset"):
        if not shutil.which(program):
            sys.exit(f"the bench needs {program} (Debian packages wrk and util-linux)")
    os.sched_setaffinity(0, {LOAD_CORE})


def describe() -> str:
    """Name the machine, by its kind only."""
    model = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    return f"{model[1] if model else platform.machine()}, {len(_cores)} cores, {platform.system()}"


def python() -> str:
    """Name the Python that runs the bench, and all its Python servers."""
    return f"{platform.python_implementation()} {platform.python_version()}"


def free_port() -> int:
    """Return a port on which nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@contextlib.contextmanager
def running(command: Sequence[str], environ: Mapping[str, str] = os.environ, cwd: Path = ROOT) -> Iterator[int]:
    """Run a server on its core, give its process id, and end it with all that it started."""
    process = subprocess.Popen(
        ["taskset", "-c", str(SERVER_CORE), *command],  # noqa: S607 - from the PATH, as a user has it
        cwd=cwd,
        env=dict(environ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process.pid
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


@contextlib.contextmanager
def service(base_url: str) -> Iterator[Server]:
    """Run the service as `python main.py` does; give it once it answers."""
    port = free_port()
    own = {"C42_TOKEN": TOKEN, "C42_BASE_URL": base_url, "C42_PORT": str(port), "C42_EXPIRY": "600"}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("C42_")}
    with running([sys.executable, "main.py"], inherited | own) as pid:
        wait_until_ready(port)
        yield Server(port, pid)


@contextlib.contextmanager
def python_server(kind: str, argument: str) -> Iterator[Server]:
    """Run one of `bench.servers`; give it once it answers."""
    port = free_port()
    with running([sys.executable, "-m", "bench.servers", kind, str(port), argument]) as pid:
        wait_until_ready(port)
        yield Server(port, pid)


def wait_until_ready(port: int, path: str = "/") -> None:
    """Return once the server on `port` answers, whatever it says."""
    give_up = time.monotonic() + PATIENCE
    while True:
        try:
            get(port, path)
        except OSError:
            if time.monotonic() > give_up:
                raise
            time.sleep(0.005)
        else:
            return


def get(port: int, path: str) -> tuple[int, list[tuple[str, str]], bytes]:
    """GET `path` over a connection of its own; return status, headers and body."""
    connection = HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    with contextlib.closing(connection):
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.getheaders(), response.read()


def wrk(server: Server, path: str, seconds: int, *, connections: int = 32, script: Sequence[str] = ()) -> Load:
    """Ask for `path` over so many keep-alive connections, each again as soon as it is answered."""
    arguments = ["-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "--timeout", "20s"]
    lua = ["-s", str(ROOT / "bench" / "ids.lua")] if script else []
    command = ["wrk", *arguments, *lua, f"http://127.0.0.1:{server.port}{path}", *(["--", *script] if script else [])]
    used, began = cpu(server.pid), time.monotonic()
    said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=seconds + 60).stdout
    used, took = cpu(server.pid) - used, time.monotonic() - began
    p99 = _found(r"99%\s+([\d.]+)(us|ms|s)\b", said)
    broken = sum(int(count) for count in re.findall(r"(?:connect|read|write|timeout) (\d+)", said))
    requests = int(_found(r"(\d+) requests in", said)[1])
    return Load(
        rate=float(_found(r"Requests/sec:\s+([\d.]+)", said)[1]),
        p99=float(p99[1]) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[p99[2]],
        cost=used * 1e6 / max(1, requests),
        share=used / took,
        requests=requests,
        refused=int(match[1]) if (match := re.search(r"Non-2xx or 3xx responses: (\d+)", said)) else 0,
        broken=broken,
    )


def _found(pattern: str, text: str) -> re.Match[str]:
    if not (match := re.search(pattern, text)):
        raise ValueError(f"wrk said something else:\n{text}")
    return match


def burst(port: int, paths: Sequence[str]) -> list[float]:
    """Ask for all `paths` at once, each over a connection of its own; return when each was answered, in seconds."""
    sockets = [socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) for _ in paths]
    times, pending = [], dict.fromkeys(sockets, b"")
    with selectors.DefaultSelector() as selector:
        for sock in sockets:
            selector.register(sock, selectors.EVENT_READ)
        began = time.perf_counter()
        for sock, path in zip(sockets, paths, strict=True):
            sock.sendall(f"GET {path} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n".encode())
        while pending:
            for key, _ in selector.select(PATIENCE):
                ready = key.fileobj
                assert isinstance(ready, socket.socket)
                if data := ready.recv(65536):
                    pending[ready] += data
                    continue
                times.append(time.perf_counter() - began)
                if not pending.pop(ready).startswith(b"HTTP/1.1 200 "):
                    raise ValueError("one of them was not answered with 200")
                selector.unregister(ready)
                ready.close()
    return times


def tree(pid: int) -> list[int]:
    """Return `pid` and all processes below it."""
    found = [pid]
    for one in found:
        for children in Path(f"/proc/{one}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                found += [int(child) for child in children.read_text().split()]
    return found


def memory(pid: int) -> int:
    """Return the bytes of memory that `pid` and all processes below it hold."""
    status = [Path(f"/proc/{one}/status").read_text() for one in tree(pid)]
    return sum(int(_found(r"VmRSS:\s+(\d+) kB", text)[1]) * 1024 for text in status)


def cpu(pid: int) -> float:
    """Return the seconds of CPU, user and system, that `pid` and all processes below it have used."""
    ticks = 0
    for one in tree(pid):
        fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def version(command: Sequence[str]) -> str:
    """Return the first version number that a program names when it is asked."""
    said = subprocess.run(command, check=False, capture_output=True, text=True)
    return _found(r"\d+(?:\.\d+)+", said.stdout + said.stderr)[0]
