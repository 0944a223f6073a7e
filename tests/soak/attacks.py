"""`python -m tests.soak.attacks`: attacks on the service's memory and on its turns.

Each runs against a service of its own, started with default settings, over loopback.
Prints the peak of the service's memory during each attack, and its memory a minute
later; then, how long new clients wait beside others that pipeline. Exit status 1 if a
bound is exceeded. `--wait 5` looks after five seconds instead of a minute, `--only
lists` runs the attack of that name.
"""

import argparse
import contextlib
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

from bench.machine import RunningServer, service
from standin import Standin

TOKEN = "0123456789abcdef-a-token-for-attacks"
PATH = "/events-with-subscriptions/"
MOST_DURING = 256.0  # MiB
MOST_AFTER = 150.0
NEWCOMERS = 500
PIPELINERS = 8
MOST_NEWCOMER = 0.3  # seconds
MOST_POLITE = 0.02

PIPELINE = f"""
init = function()
  batch = string.rep(wrk.format("GET", "{PATH}hit"), 200)
end
request = function() return batch end
"""

Connections = list[socket.socket]


class Attack(NamedTuple):
    """What clients do; `run` returns connections that stay open for a while."""

    name: str
    what: str
    run: Callable[[int, Standin], Connections]


def get(target: str, *lines: str) -> bytes:
    """Return a request."""
    head = [f"GET {target} HTTP/1.1", "Host: attacks", *lines, "", ""]
    return "\r\n".join(head).encode()


def connect(port: int, room: int | None = None) -> socket.socket:
    """Connect; with `room`, to take few bytes before the system stops taking more."""
    sock = socket.socket()
    if room is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
    sock.settimeout(20)
    sock.connect(("127.0.0.1", port))
    return sock


def receive(sock: socket.socket) -> bytes:
    """Read one answer."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = sock.recv(65536)
        if not piece:
            return data
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    length = 0
    for line in head.split(b"\r\n"):
        if line.lower().startswith(b"content-length:"):
            length = int(line.split(b":")[1])
    while len(body) < length:
        piece = sock.recv(65536)
        if not piece:
            break
        body += piece
    return head + b"\r\n\r\n" + body


def tiny_header_lines(port: int, _: Standin) -> Connections:
    """Send distinct requests of many tiny header lines, on one connection at a time."""
    for lines in (90, 5000):
        sock = connect(port)
        for number in range(5000):
            fields = [f"a{at}:b" for at in range(lines)]
            try:
                sock.sendall(get(f"{PATH}none.{number}", *fields))
                answer = receive(sock)
            except OSError:
                answer = b""
            if b"Connection: close" in answer or not answer:
                sock.close()
                sock = connect(port)
        sock.close()
    return []


def known_requests(port: int, upstream: Standin) -> Connections:
    """Ask for one event with ever other queries, so that each is a hit to remember."""
    upstream.add_event("hit", names=["Somebody"])
    sock = connect(port)
    for number in range(50_000):
        sock.sendall(get(f"{PATH}hit?{number}", f"X: {'y' * (number % 1500)}"))
        receive(sock)
    return [sock]


def made_up_ids(port: int, upstream: Standin) -> Connections:
    """Ask for 10,000 made-up ids whose 404 pages have 60 kB."""
    upstream.rule("events", status=404, body=b"x" * 60_000, content_type="text/html")

    def ask(first: int) -> None:
        with connect(port) as sock:
            for number in range(first, 10_000, 16):
                sock.sendall(get(f"{PATH}made-up-{number}"))
                receive(sock)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(ask, range(16)))
    return []


def lists(port: int, upstream: Standin) -> Connections:
    """Ask 100 times for a list of 6 MB, and read nothing."""
    ids = [f"large-{number}" for number in range(100)]
    for event_id in ids:
        upstream.add_event(event_id, names=["n" * 100] * 600)
    target = f"{PATH}?event_ids=[{','.join(ids)}]"
    with connect(port) as sock:
        for event_id in ids:
            sock.sendall(get(PATH + event_id))
            receive(sock)
    socks = [connect(port, 4096) for _ in range(100)]
    for sock in socks:
        sock.sendall(get(target))
    return socks


def unfinished_bodies(port: int, _: Standin) -> Connections:
    """Send 2,000 bodies of 64 KiB but for the last byte."""
    socks = [connect(port) for _ in range(2000)]
    for sock in socks:
        sock.sendall(get(PATH, "Content-Length: 65536").replace(b"GET", b"POST"))
        sock.sendall(b"x" * 65535)
    return socks


def unfinished_heads(port: int, _: Standin) -> Connections:
    """Send 2,000 heads of 32 KB but for the last line."""
    socks = [connect(port) for _ in range(2000)]
    for sock in socks:
        with contextlib.suppress(OSError):
            sock.sendall(get(PATH, f"X: {'y' * 32_000}")[:-2])
    return socks


def untaken_hits(port: int, upstream: Standin) -> Connections:
    """Pipeline hits on 1,000 connections, and read nothing."""
    upstream.add_event("hit", names=["n" * 100] * 150)
    with connect(port) as sock:
        sock.sendall(get(f"{PATH}hit"))
        receive(sock)
    socks = [connect(port, 4096) for _ in range(1000)]
    for sock in socks:
        sock.setblocking(False)
        with contextlib.suppress(OSError):
            sock.sendall(get(f"{PATH}hit") * 5000)
    return socks


def idle(port: int, _: Standin) -> Connections:
    """Open 9,000 connections, and use each once."""
    socks = []
    for number in range(9000):
        sock = connect(port)
        with contextlib.suppress(OSError):
            sock.sendall(get(f"{PATH}a.b?{number}"))
            receive(sock)
        socks.append(sock)
    return socks


ATTACKS = [
    Attack("lines", "distinct requests of many tiny header lines", tiny_header_lines),
    Attack("known", "50,000 distinct requests that are hits", known_requests),
    Attack("ids", "10,000 made-up ids whose 404 pages have 60 kB", made_up_ids),
    Attack("lists", "100 clients that don't read a list of 6 MB", lists),
    Attack("bodies", "2,000 unfinished bodies of 64 KiB", unfinished_bodies),
    Attack("heads", "2,000 unfinished heads of 32 KB", unfinished_heads),
    Attack("hits", "1,000 clients that pipeline hits and read nothing", untaken_hits),
    Attack("idle", "9,000 idle connections", idle),
]


class Memory:
    """Watches the memory of a process, in MiB."""

    def __init__(self, pid: int) -> None:
        self._path = Path(f"/proc/{pid}/statm")
        self._peak = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended.wait(0.005):
            self._peak = max(self._peak, self.now())

    def now(self) -> float:
        """Return the memory that the process has."""
        return int(self._path.read_text().split()[1]) * 4096 / 2**20

    def stop(self) -> float:
        """Return the most that the process had."""
        self._ended.set()
        self._thread.join()
        return self._peak


@contextlib.contextmanager
def started() -> Iterator[tuple[RunningServer, Standin]]:
    """Start a stand-in for Calendar42, and the service with default settings."""
    with (
        Standin(token=TOKEN) as upstream,
        service(upstream.base_url, C42_TOKEN=TOKEN) as server,
    ):
        yield server, upstream


def run(attack: Attack, wait: float) -> bool:
    """Run an attack, print what it took, and return whether that is within bounds."""
    with started() as (server, upstream):
        memory = Memory(server.pid)
        before = memory.now()
        try:
            socks = attack.run(server.port, upstream)
            time.sleep(3)
            for sock in socks:
                sock.close()
        finally:
            peak = memory.stop()
        time.sleep(wait)
        after = memory.now()
    figures = f"{before:.0f} → {peak:.0f} MiB, {after:.0f} {wait:g} s later"
    print(f"{attack.what}: {figures}", flush=True)
    return peak <= MOST_DURING and after <= MOST_AFTER


@contextlib.contextmanager
def pipelining(port: int, seconds: int) -> Iterator[list[str]]:
    """Have wrk pipeline hits for so many seconds, 200 at a time on a connection.

    At the end, the list has what it printed.
    """
    said: list[str] = []
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(PIPELINE)
        script.flush()
        wrk = ["wrk", "-t1", f"-c{PIPELINERS}", f"-d{seconds}s", "-s", script.name]
        url = f"http://127.0.0.1:{port}"
        with subprocess.Popen(
            [*wrk, url], stdout=subprocess.PIPE, text=True
        ) as process:
            yield said
            output, _ = process.communicate()
            said.append(output)


def ask_politely(port: int, seconds: float) -> list[float]:
    """Ask for one event after the other, and return how long each took."""
    waits = []
    end = time.monotonic() + seconds
    with connect(port) as sock:
        while time.monotonic() < end:
            time.sleep(0.005)
            began = time.monotonic()
            sock.sendall(get(f"{PATH}hit"))
            receive(sock)
            waits.append(time.monotonic() - began)
    return waits


def crowd(port: int) -> list[float]:
    """Connect many clients at once; return how long each waited for its answer."""
    socks = []
    began = time.monotonic()
    for _ in range(NEWCOMERS):
        sock = socket.socket()
        sock.setblocking(False)
        sock.connect_ex(("127.0.0.1", port))
        socks.append(sock)
    waits = []
    for sock in socks:
        sock.setblocking(True)
        sock.settimeout(20)
        sock.sendall(get(f"{PATH}hit", "Connection: close"))
    for sock in socks:
        sock.recv(100)
        waits.append(time.monotonic() - began)
        sock.close()
    return waits


def run_newcomers() -> bool:
    """Measure how long newcomers and a polite client wait beside pipelining ones."""
    if not shutil.which("wrk"):
        sys.exit("needs Debian's package wrk")
    with started() as (server, upstream):
        upstream.add_event("hit", names=["Arthur", "Ella"])
        with connect(server.port) as sock:
            sock.sendall(get(f"{PATH}hit"))
            receive(sock)
        alone = max(crowd(server.port))
        with pipelining(server.port, 4) as undisturbed:
            pass
        beside = []
        # In a process of its own, as this one is busy with the newcomers.
        with (
            get_context("spawn").Pool(1) as pool,
            pipelining(server.port, 6) as disturbed,
        ):
            time.sleep(1)
            asking = pool.apply_async(ask_politely, (server.port, 4.0))
            for _ in range(5):
                beside.append(max(crowd(server.port)))
                time.sleep(0.7)
            polite = asking.get()
    p99 = statistics.quantiles(polite, n=100)[98]
    rates = [
        re.search(r"Requests/sec: *([0-9.]+)", said[0])
        for said in (undisturbed, disturbed)
    ]
    print(
        f"{NEWCOMERS} newcomers: the last is answered after {alone * 1000:.0f} ms;"
        f" beside {PIPELINERS} clients that pipeline, after"
        f" {' '.join(f'{each * 1000:.0f}' for each in beside)} ms;"
        f" a polite client's p99 is {p99 * 1000:.1f} ms;"
        f" answers a second to those that pipeline, alone and beside newcomers:"
        f" {' '.join(rate[1] for rate in rates if rate)}"
    )
    return max(beside) <= MOST_NEWCOMER and p99 <= MOST_POLITE


def main() -> int:
    """Run the attacks; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    names = [attack.name for attack in ATTACKS] + ["newcomers"]
    parser.add_argument("--wait", type=float, default=60.0, metavar="SECONDS")
    parser.add_argument("--only", choices=names)
    options = parser.parse_args()
    passed = True
    for attack in ATTACKS:
        if options.only in (None, attack.name):
            passed &= run(attack, options.wait)
    if options.only in (None, "newcomers"):
        passed &= run_newcomers()
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
