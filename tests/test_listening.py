"""The sockets, streams, threads and memory that the server gets and gives back."""

import contextlib
import os
import platform
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from pathlib import Path
from typing import Any

import pytest

from bench.machine import free_port
from serving import system
from serving.server import Server
from serving.wsgi import App
from tests.fixtures import PATIENCE, ROOT, TOKEN, receive, started, until
from tests.test_serving import (
    PER_RESTART,
    RESTARTS,
    SmallServer,
    free,
    get,
    has_ipv6,
    read_all,
)
from tests.wire import reject, responses

# Started by systemd with a socket

# It puts the socket where systemd would, and becomes the program.
LAUNCHER = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ |= {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())}
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


class Activated(SmallServer):
    """A small server that is started with the socket of `listener`."""

    def __init__(self, listener: socket.socket, **options: Any) -> None:
        number = listener.fileno()
        os.set_inheritable(number, True)
        self.program = ("-c", LAUNCHER, str(number), *SmallServer.program)
        self.inherited = (number,)
        super().__init__(**options)
        self.own_port = self.port  # which is C42_PORT
        self.port = listener.getsockname()[1]


def test_takes_the_socket_of_systemd() -> None:
    """A server that is started with a socket listens there and nowhere else.

    Clients that connect while it restarts are served by the next one.
    """
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listener:
        with started(Activated(listener)) as server:
            with server.send(get("/miss", "Connection: close")) as sock:
                assert responses(read_all(sock))[0].body == b"/miss"
            assert free(server.own_port)
            assert server.stop() == 0
        waiting = [
            socket.create_connection(listener.getsockname(), timeout=PATIENCE)
            for _ in range(20)
        ]
        for sock in waiting:
            sock.sendall(get("/hit/a", "Connection: close"))
        with started(Activated(listener)) as server:
            for sock in waiting:
                with sock:
                    assert responses(read_all(sock))[0].body == b"/hit/a"


class Asking:
    """Asks for one path, each time on a connection of its own, until told to stop."""

    def __init__(self, address: tuple[str, int], path: str) -> None:
        self.answered = 0
        self.failed: list[str] = []
        self._address = address
        self._request = get(path, "Connection: close")
        self._stopping = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopping:
            try:
                with socket.create_connection(self._address, PATIENCE) as sock:
                    sock.sendall(self._request)
                    assert receive(sock).status == 200
            except (OSError, HTTPException) as error:
                self.failed.append(repr(error))
            self.answered += 1

    def wait_for(self, count: int) -> None:
        """Wait until it has had so many answers."""
        until(lambda: self.answered > count)

    def stop(self) -> None:
        """Wait for its last answer."""
        self._stopping = True
        self._thread.join()


def test_a_restart_loses_nobody() -> None:
    """With systemd's socket, restarts lose no request.

    The only instance restarts again and again during many requests.
    """
    with (
        socket.create_server(("127.0.0.1", 0), backlog=100) as listener,
        contextlib.ExitStack() as stack,
    ):
        asking = [Asking(listener.getsockname(), path) for path in ("/hit/a", "/miss")]
        for each in asking:
            stack.callback(each.stop)
        for _ in range(RESTARTS):
            goals = [each.answered + PER_RESTART for each in asking]
            with started(Activated(listener)) as server:
                for each, goal in zip(asking, goals, strict=True):
                    each.wait_for(goal)
                assert server.stop() == 0
        stack.enter_context(started(Activated(listener)))
        for each in asking:
            each.stop()
        assert [each.failed for each in asking] == [[], []]


@pytest.mark.parametrize("kind", ["a file", "a datagram socket", "not listening"])
def test_no_socket_of_systemd(kind: str, tmp_path: Path) -> None:
    """What isn't a listening TCP socket is rejected."""
    with contextlib.ExitStack() as stack:
        if kind == "a file":
            descriptor = stack.enter_context((tmp_path / "file").open("w")).fileno()
        elif kind == "a datagram socket":
            sock = stack.enter_context(socket.socket(type=socket.SOCK_DGRAM))
            descriptor = sock.fileno()
        else:
            descriptor = stack.enter_context(socket.socket()).fileno()
        os.set_inheritable(descriptor, True)
        command = ["-c", LAUNCHER, str(descriptor), "main.py"]
        ended = subprocess.run(
            [sys.executable, *command],
            cwd=ROOT,
            env=os.environ | {"C42_TOKEN": TOKEN},
            pass_fds=[descriptor],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    assert ended.returncode == 1
    assert "cannot listen" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("host", "shown"), [("127.0.0.1", "127.0.0.1"), ("::1", "[::1]")]
)
def test_the_log_has_the_address_of_systemd(host: str, shown: str) -> None:
    """With systemd's socket, the log says where that listens, not C42_HOST."""
    family = socket.AF_INET
    if ":" in host:
        family = socket.AF_INET6
        if not has_ipv6():
            pytest.skip("this machine has no IPv6")
    with socket.create_server((host, 0), family=family) as listener:
        number = listener.fileno()
        os.set_inheritable(number, True)
        with subprocess.Popen(
            [sys.executable, "-c", LAUNCHER, str(number), "main.py"],
            cwd=ROOT,
            env=os.environ | {"C42_TOKEN": TOKEN, "C42_HOST": "127.0.0.2"},
            pass_fds=[number],
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                assert process.stderr is not None
                lines = [process.stderr.readline() for _ in range(2)]
            finally:
                process.kill()
        port = listener.getsockname()[1]
        assert lines[1].endswith(f" serving on http://{shown}:{port}\n"), lines


# It takes the socket, and ends with 0 if a program that it starts doesn't get it.
STARTS_ANOTHER = """
import os, subprocess, sys
from serving import system
(listener,) = system.inherited_listeners(os.environ)
other = subprocess.run(
    [sys.executable, "-c", "import os; os.fstat(3)"],
    close_fds=False,
    stderr=subprocess.DEVNULL,
)
sys.exit(other.returncode == 0)
"""


def test_the_socket_of_systemd_is_kept() -> None:
    """No program that the service starts gets the socket that systemd has passed."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        number = listener.fileno()
        os.set_inheritable(number, True)
        subprocess.run(
            [sys.executable, "-c", LAUNCHER, str(number), "-c", STARTS_ANOTHER],
            cwd=ROOT,
            pass_fds=[number],
            timeout=PATIENCE,
            check=True,
        )


def test_sockets_of_others() -> None:
    """Sockets that were passed to another process are left alone."""
    environ = {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getppid())}
    assert system.inherited_listeners(environ) == []
    assert system.inherited_listeners({}) == []


@pytest.mark.parametrize("count", ["", "x", "-1", "1_0", "1 "])
def test_no_number_of_sockets(count: str) -> None:
    """A LISTEN_FDS that is no number is an error with a reason."""
    environ = {"LISTEN_FDS": count, "LISTEN_PID": str(os.getpid())}
    with pytest.raises(OSError, match="LISTEN_FDS is no number"):
        system.inherited_listeners(environ)


# Standard streams


@pytest.mark.parametrize("closed", [[0], [1], [2], [0, 1, 2]])
def test_closed_standard_streams(closed: list[int]) -> None:
    """Standard streams that are closed are opened on the null device.

    So no connection takes their place; the service works, and stops cleanly.
    """
    port = free_port()
    environ = {"C42_TOKEN": TOKEN, "C42_PORT": str(port)}
    command = (
        "import os, sys\n"
        f"for descriptor in {closed}: os.close(descriptor)\n"
        "os.execv(sys.executable, [sys.executable, 'main.py'])"
    )
    with subprocess.Popen(
        [sys.executable, "-c", command],
        cwd=ROOT,
        env=os.environ | environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            until(lambda: not free(port), "the service to listen")
            raw = get("/livez", "Connection: close")
            with socket.create_connection(("127.0.0.1", port), PATIENCE) as sock:
                sock.sendall(raw)
                assert receive(sock).status == 200
                for descriptor in closed:
                    link = os.readlink(f"/proc/{process.pid}/fd/{descriptor}")
                    assert link == os.devnull
            process.terminate()
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()


# The C library's memory

# Frees a large block and then a smaller one, and prints how many bytes are kept.
FREES = """
from serving.system import return_memory_early

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

return_memory_early()
before = resident()
for mib in 30, 20:
    block = b"x" * (mib * 2**20)
    del block
print(resident() - before)
"""

# Has eight threads take memory at the same time. The C library then prints a line about
# each arena that it made for them.
TAKES = """
import ctypes, threading
from serving.system import return_memory_early

def take():
    barrier.wait()
    ctypes.CDLL(None).malloc(1000)
    barrier.wait()

return_memory_early()
barrier = threading.Barrier(8)
threads = [threading.Thread(target=take) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
ctypes.CDLL(None).malloc_stats()
"""

needs_glibc = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="needs glibc's malloc"
)


def run(script: str) -> subprocess.CompletedProcess[str]:
    """Run a script that uses modules of ours."""
    return subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )


@needs_glibc
def test_large_blocks_are_given_back() -> None:
    """The system gets a large block back once it is free, even after a larger one."""
    assert int(run(FREES).stdout) < 2**20


@needs_glibc
def test_threads_share_two_arenas() -> None:
    """However many threads take memory, the C library makes two arenas for them."""
    assert run(TAKES).stderr.count("Arena ") == 2


# The server in this process


def serve(
    app: App, talk: Callable[[Callable[[bytes], socket.socket]], None], **options: Any
) -> None:
    """Serve `app` while `talk` talks to it, then stop.

    `talk` runs in a thread; its argument makes connections.
    """
    signals = ["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2"]
    handlers = [
        (getattr(signal, name), signal.getsignal(getattr(signal, name)))
        for name in signals
    ]
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(1, "talk") as pool:
        for handler in handlers:
            stack.callback(signal.signal, *handler)
        stack.callback(
            resource.setrlimit,
            resource.RLIMIT_NOFILE,
            resource.getrlimit(resource.RLIMIT_NOFILE),
        )
        server = Server("127.0.0.1", 0)

        def ask(raw: bytes) -> socket.socket:
            sock = stack.enter_context(
                socket.create_connection(server.address, timeout=PATIENCE)
            )
            sock.sendall(raw)
            return sock

        def talk_and_stop() -> None:
            try:
                talk(ask)
            finally:
                os.kill(os.getpid(), signal.SIGTERM)

        talking = pool.submit(talk_and_stop)
        settings = {
            "find_fast_path": lambda _: None,
            "threads": 1,
            "drain": 0,
            "patience": PATIENCE,
            **options,
        }
        server.serve(app, reject=reject, **settings)
        talking.result(PATIENCE)


def answer_path(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    """Serialized with the path; an app."""
    start_response("200 OK", [])
    return [environ["PATH_INFO"].encode()]


def test_stops_without_idle_connections() -> None:
    """A server that stops closes idle connections without waiting for them."""
    socks: list[socket.socket] = []

    def talk(ask: Callable[[bytes], socket.socket]) -> None:
        socks.extend([ask(get("/a")), ask(b"")])
        assert receive(socks[0]).body == b"/a"

    asked = time.monotonic()
    serve(answer_path, talk)
    assert time.monotonic() - asked < PATIENCE / 2


def test_work_that_has_not_begun_is_dropped() -> None:
    """When the time to finish is over, nobody waits for worker threads.

    They begin nothing more.
    """
    begun, gate = list[str](), threading.Event()

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        begun.append(environ["PATH_INFO"])
        gate.wait(PATIENCE)
        return answer_path(environ, start_response)

    def talk(ask: Callable[[bytes], socket.socket]) -> None:
        ask(get("/a"))
        until(lambda: begun == ["/a"])
        ask(get("/b"))

    serve(app, talk, patience=0.2)
    assert not gate.is_set()
    (worker,) = [
        thread for thread in threading.enumerate() if thread.name == "c42c-worker_0"
    ]
    gate.set()
    worker.join(PATIENCE)
    assert (begun, worker.is_alive()) == (["/a"], False)
