"""The server: starting, listening, stopping."""

import contextlib
import errno
import json
import os
import re
import resource
import select
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Any

import pytest
import requests

from serving import system
from standin import DEMO_EVENTS, Gate, Standin
from tests.fixtures import (
    PATIENCE,
    PREFIX,
    ROOT,
    TOKEN,
    Service,
    Start,
    at_once,
    new_id,
    receive,
    started,
    until,
)
from tests.test_connection import BAD
from tests.wire import responses

# Ten restarts during more than 10,000 requests have been run.
RESTARTS = 3
PER_RESTART = 20


def finish(*arguments: str, **environ: str) -> tuple[int, str, str]:
    """Run a program of ours to its end; return its status, stdout and stderr."""
    ended = subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        cwd=ROOT,
        env={
            name: value
            for name, value in os.environ.items()
            if not name.startswith("C42_")
        }
        | environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    return ended.returncode, ended.stdout, ended.stderr


def test_exit_status(service: Service) -> None:
    """The program exits with 0 after --help, and with 1 if its port is taken.

    Without a token, it exits with 2.
    """
    usage, taken, missing = at_once(
        partial(finish, "main.py", "--help"),
        partial(finish, "main.py", C42_TOKEN=TOKEN, C42_PORT=str(service.port)),
        partial(finish, "main.py"),
    )
    assert (usage[0], usage[2]) == (0, "")
    assert (taken[:2], missing[:2]) == ((1, ""), (2, ""))
    assert missing[2].count("\n") == 1
    complaint = f"cannot listen on {service.url}: Address already in use"
    lines = [line for line in taken[2].splitlines() if " INFO " not in line]
    assert lines == [f"{complaint}; see C42_HOST and C42_PORT"]
    assert service.event(DEMO_EVENTS["plain"]).status_code == 200


@pytest.mark.parametrize(
    "host", ["no-such-host.invalid", "::ffff:203.0.113.1", "1.2.3.4.5"]
)
def test_no_host_of_ours(host: str) -> None:
    """Listening at an unknown or another machine's host raises an OSError.

    The error has a reason to print.
    """
    with pytest.raises(OSError, match=r".") as raised:
        system.listen(host, 5000)
    assert raised.value.strerror


def has_ipv6() -> bool:
    """Say whether this machine has IPv6."""
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.parametrize(
    ("host", "clients"),
    [
        ("localhost", ["127.0.0.1"]),
        ("0.0.0.0", ["127.0.0.1"]),
        ("127.0.0.1", ["127.0.0.1"]),
        ("::1", ["::1"]),
        ("::", ["::1", "127.0.0.1"]),
    ],
)
def test_hosts(host: str, clients: list[str]) -> None:
    """The server listens at a name or address of this machine, or at all of them.

    All means those of both families.
    """
    if ":" in host and not has_ipv6():
        pytest.skip("this machine has no IPv6")
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(sock) for sock in system.listen(host, 0)]
        port = listeners[0].getsockname()[1]
        for address in clients:
            with socket.create_connection((address, port), timeout=PATIENCE) as sock:
                assert sock.getpeername()[1] == port


Addresses = list[tuple[int, int, int, str, tuple[Any, ...]]]


def resolve(*addresses: str) -> Callable[..., Addresses]:
    """Return what stands in for a name that has these addresses."""

    def getaddrinfo(_: str, port: int, **__: Any) -> Addresses:
        found: Addresses = []
        for address in addresses:
            if ":" in address:
                found.append((socket.AF_INET6, 1, 6, "", (address, port, 0, 0)))
            else:
                found.append((socket.AF_INET, 1, 6, "", (address, port)))
        return found

    return getaddrinfo


def test_all_addresses_of_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server listens at all addresses of a name, with one port.

    An address that this machine doesn't have is skipped, unless it is the only one.
    """
    ours = ["127.0.0.1", "127.0.0.2"]
    monkeypatch.setattr(socket, "getaddrinfo", resolve("203.0.113.1", *ours))
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(sock) for sock in system.listen("name", 0)]
        assert [sock.getsockname()[0] for sock in listeners] == ours
        assert len({sock.getsockname()[1] for sock in listeners}) == 1
        monkeypatch.setattr(socket, "getaddrinfo", resolve("127.0.0.3", ours[0]))
        port = listeners[0].getsockname()[1]
        with pytest.raises(OSError, match="in use"):
            system.listen("name", port)
        socket.create_server(("127.0.0.3", port)).close()  # it was let go of
    monkeypatch.setattr(socket, "getaddrinfo", resolve("203.0.113.1"))
    with pytest.raises(OSError, match="assign"):
        system.listen("name", 0)


def test_ipv6(start: Start) -> None:
    """The service listens at an IPv6 address, and its log has a URL that works."""
    if not has_ipv6():
        pytest.skip("this machine has no IPv6")
    service = start(C42_HOST="::1", ready=False)
    address = f"http://[::1]:{service.port}"
    until(lambda: f"serving on {address}" in service.log)
    assert (
        requests.get(
            f"{address}/livez", timeout=PATIENCE, proxies={"http": ""}
        ).status_code
        == 200
    )


def test_many_may_connect_at_once() -> None:
    """While the server is busy, the system takes several hundred connections for it."""
    with contextlib.ExitStack() as stack:
        (listener,) = system.listen("127.0.0.1", 0)
        stack.enter_context(listener)
        for _ in range(300):
            stack.enter_context(
                socket.create_connection(listener.getsockname(), timeout=PATIENCE)
            )


def test_file_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many open files are allowed as the system allows.

    Where it doesn't say, 512 are expected.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 512), hard))
        assert system.raise_file_limit() == hard
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows
    assert system.raise_file_limit() == 512


def free(port: int) -> bool:
    """Say whether nobody listens on a port of this machine."""
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED


def clean(log: str) -> bool:
    """Say whether nothing in a log is an error."""
    return not re.search("Traceback|ERROR|CRITICAL|Error|panicked", log)


def test_stops_while_starting(start: Start) -> None:
    """A service that is told to stop right after its start ends quickly, with 0."""
    service = start(C42_TIMEOUT="10", ready=False)
    until(lambda: "serving on" in service.log)
    asked = time.monotonic()
    assert service.stop() == 0
    assert time.monotonic() - asked < 8  # nothing was waited for
    assert clean(service.log), service.log


def test_stops_without_those_that_wait_for_nothing(start: Start) -> None:
    """Idle clients and half requests delay the end by at most C42_TIMEOUT and 1 s."""

    def seconds_to_stop() -> float:
        service = start(C42_TIMEOUT="0.5")
        with (
            service.connect() as idle,
            service.connect() as half,
            service.connect() as silent,
        ):
            idle.sendall(b"GET /nothing HTTP/1.1\r\nHost: c42c\r\n\r\n")
            receive(idle)
            half.sendall(b"GET /events-with-subscriptions/a HTTP/1.1\r\nHo")
            silent.sendall(b"")
            asked = time.monotonic()
            assert service.stop() == 0
            seconds = time.monotonic() - asked
        assert clean(service.log), service.log
        return seconds

    # A busy machine may be late.
    assert any(seconds_to_stop() < 0.5 + 1 + 2 for _ in range(3))


def test_second_interrupt_ends_at_once(start: Start, upstream: Standin) -> None:
    """A second Ctrl-C ends the service at once, with status 1, even if it is busy."""
    service, event_id, gate = start(C42_TIMEOUT="60"), new_id(), Gate()
    upstream.rule(event_id=event_id, gate=gate)
    with service.connect() as sock:
        sock.sendall(f"GET {PREFIX}{event_id} HTTP/1.1\r\nHost: c42c\r\n\r\n".encode())
        gate.wait_for(2)
        os.killpg(service.process.pid, signal.SIGINT)
        until(partial(free, service.port), "the port to be free")
        os.killpg(service.process.pid, signal.SIGINT)
        assert service.process.wait(PATIENCE) == 1
        assert sock.recv(1) == b""
    gate.open()


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_loses_none_of_fifty(
    start: Start, upstream: Standin, sig: signal.Signals
) -> None:
    """A service that is told to stop answers all requests that were sent before.

    50 are active. Then it ends with 0.
    """
    service, gate = start(C42_TIMEOUT="60"), Gate()
    event_ids = [new_id() for _ in range(50)]
    for event_id in event_ids:
        upstream.add_event(event_id, title=event_id)
    upstream.rule(gate=gate)
    socks = [service.connect() for _ in event_ids]
    kept = [service.connect() for _ in range(20)]
    try:
        for sock, event_id in zip(socks, event_ids, strict=True):
            sock.sendall(
                f"GET {PREFIX}{event_id} HTTP/1.1\r\nHost: c42c\r\n\r\n".encode()
            )
        for sock in kept:
            sock.sendall(b"GET /readyz HTTP/1.1\r\nHost: c42c\r\n\r\n")
            assert receive(sock).status == 200
        gate.wait_for(100)
        service.process.send_signal(
            signal.SIGSTOP
        )  # so that what is sent now comes before it hears of the end
        service.process.send_signal(sig)
        for sock in kept:
            sock.sendall(b"GET /readyz HTTP/1.1\r\nHost: c42c\r\n\r\n")
        service.process.send_signal(signal.SIGCONT)
        assert {receive(sock).status for sock in kept} <= {200, 503}
        until(partial(free, service.port), "new connections to be refused")
        gate.open()
        answers = [receive(sock) for sock in socks]
        assert [answer.status for answer in answers] == [200] * 50
        assert [json.loads(answer.body)["title"] for answer in answers] == event_ids
        assert {answer.headers["Connection"] for answer in answers} == {"close"}
    finally:
        for sock in socks + kept:
            sock.close()
    assert service.process.wait(PATIENCE) == 0
    assert [
        service.log.count(word)
        for word in ("serving on", "c42c stopping", "c42c stopped")
    ] == [1, 1, 1]


# The server with a small app


class SmallServer(Service):
    """The server with a small app (`tests.small_server`), and short limits."""

    program: tuple[str, ...] = ("-m", "tests.small_server")

    def __init__(self, **options: Any) -> None:
        super().__init__(None, (json.dumps(options),))

    def send(self, *raw: bytes) -> socket.socket:
        """Send bytes on a connection of their own."""
        sock = self.connect()
        for piece in raw:
            sock.sendall(piece)
        return sock

    def gather(self, count: int) -> None:
        """Wait until so many requests have come to the gate."""
        until(
            lambda: (
                f" {count} are waiting" in self.log
                or f":{count} are waiting" in self.log
            )
        )

    @property
    def resident(self) -> int:
        """How much memory the process has, in bytes."""
        fields = Path(f"/proc/{self.process.pid}/statm").read_text().split()
        return int(fields[1]) * resource.getpagesize()

    @property
    def cpu_seconds(self) -> float:
        """The time that the process has used so far."""
        fields = (
            Path(f"/proc/{self.process.pid}/stat")
            .read_text()
            .rpartition(")")[2]
            .split()
        )
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.fixture
def small() -> Iterator[Callable[..., SmallServer]]:
    """Give a test a way to start small servers: `small(idle_seconds=0.5)`."""
    with contextlib.ExitStack() as stack:

        def start(**options: Any) -> SmallServer:
            server = SmallServer(**options)
            stack.enter_context(started(server))
            return server

        yield start


def get(path: str, *lines: str) -> bytes:
    """Return a request."""
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: c42c", *lines, "", ""]).encode()


def read_all(sock: socket.socket) -> bytes:
    """Read until the server closes the connection, in whichever way."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := sock.recv(2**16):
            data += piece
    return data


@pytest.mark.parametrize(
    ("raw", "status"), [pytest.param(*case, id=name) for name, case in BAD.items()]
)
def test_rejected_on_the_wire(service: Service, raw: bytes, status: int) -> None:
    """A client whose request is rejected can read the error before the connection ends.

    This holds over a real socket, too.
    """
    with service.connect() as sock:
        sock.sendall(raw + get("/livez"))
        (answer,) = responses(read_all(sock))
        assert (answer.status, answer.headers["Connection"]) == (status, "close")
        assert answer.headers["Content-Type"] == "application/json"
        assert json.loads(answer.body)["error"]["status_code"] == status


@pytest.mark.parametrize("uvloop", [True, False])
def test_both_loops(small: Callable[..., SmallServer], uvloop: bool) -> None:
    """The server works the same on uvloop and on asyncio's own loop."""
    server = small(
        uvloop=uvloop, idle_seconds=0.3, request_seconds=0.3, tick_seconds=0.05
    )
    assert ("serving with uvloop" in server.log) == uvloop
    with (
        server.send(b"") as idle,
        server.send(b"GET") as slow,
        server.send(get("/miss"), b"nonsense\r\n") as both,
    ):
        first, second = responses(read_all(both))
        assert (first.body, second.status) == (b"/miss", 400)
        assert read_all(idle) == b""
        assert responses(read_all(slow))[0].status == 408
    with server.send(
        get("/hit/large") + get("/miss") + get("/hit/a", "Connection: close")
    ) as sock:
        sock.shutdown(socket.SHUT_WR)
        assert [len(answer.body) for answer in responses(read_all(sock))] == [
            2**20,
            5,
            6,
        ]
    assert server.stop() == 0
    assert clean(server.log), server.log


def test_pipelined_hits_and_misses(small: Callable[..., SmallServer]) -> None:
    """200 pipelined hits and misses are answered in order, even after a half-close."""
    server = small()
    paths = [f"/{'hit' if number % 3 else 'miss'}/{number}" for number in range(200)]
    with server.send(b"".join(get(path) for path in paths)) as sock:
        sock.shutdown(socket.SHUT_WR)
        assert [answer.body.decode() for answer in responses(read_all(sock))] == paths


PIPELINE = """
init = function() batch = string.rep(wrk.format("GET", "/hit/a"), 16) end
request = function() return batch end
"""


def test_pipelining_tools(small: Callable[..., SmallServer], tmp_path: Path) -> None:
    """wrk and h2load get an answer to each of their pipelined requests."""
    if not (shutil.which("wrk") and shutil.which("h2load")):
        pytest.skip("needs Debian's packages wrk and nghttp2-client")
    url, script = small().url, tmp_path / "pipeline.lua"
    script.write_text(PIPELINE)
    wrk = ["wrk", "-t1", "-c8", "-d1s", "-s", str(script), url]
    said = subprocess.run(wrk, check=True, capture_output=True, text=True).stdout
    assert re.search(r"[1-9]\d+ requests in", said)
    assert "Socket errors" not in said
    assert "Non-2xx" not in said
    for path in ("/hit/a", "/miss"):
        h2load = ["h2load", "--h1", "-n2000", "-c8", "-m16", url + path]
        said = subprocess.run(h2load, check=True, capture_output=True, text=True).stdout
        assert "2000 succeeded, 0 failed, 0 errored, 0 timeout" in said


@pytest.mark.parametrize(
    ("options", "statuses"),
    [
        ("", ["200", "200"]),
        ("--head", ["200", "200"]),
        ("--http1.0", ["200", "200"]),
        ("--http2", ["200", "200"]),
        ("--request OPTIONS", ["204", "204"]),
        ("--header Connection:close", ["200", "200"]),
        ("--data x --header Expect:100-continue", ["100", "405", "100", "405"]),
        ("--data x --header Transfer-Encoding:chunked", ["411", "411"]),
    ],
)
def test_curl(service: Service, options: str, statuses: list[str]) -> None:
    """curl gets the right answers to two requests in a row, whatever its options."""
    if not shutil.which("curl"):
        pytest.skip("needs curl")
    command = [
        "curl",
        "-sS",
        "--include",
        "--max-time",
        "10",
        *options.split(),
        *[f"{service.url}/livez"] * 2,
    ]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert re.findall(r"HTTP/1.1 (\d+)", said) == statuses


def test_expect_on_the_wire(service: Service) -> None:
    """A client that expects a 100 before its body gets one, and then the answer."""
    with service.connect() as sock:
        sock.sendall(
            b"POST /livez HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n"
            b"Content-Length: 2\r\n\r\n"
        )
        assert sock.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(b"hi")
        assert receive(sock, "POST").status == 405


def test_a_rejection_reaches_a_client_that_is_still_sending(service: Service) -> None:
    """A body that is too large is rejected at once, and still read for a while.

    Otherwise a proxy would meet a reset, and answer 502 in place of the 413.
    """
    size = 4 * 2**20
    with service.connect() as sock:
        head = f"POST /livez HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n"
        sock.sendall(head.encode() + b"x" * size)
        assert receive(sock, "POST").status == 413


def test_bad_clients_are_let_go(small: Callable[..., SmallServer]) -> None:
    """Bad clients are disconnected, and a good one beside them waits for none of them.

    One sends slowly, 400 are silent, 64 send half a head, and 20 read nothing. The
    shortest time that a bad one is given is 0.5 s.
    """
    server = small(
        request_seconds=0.5,
        idle_seconds=1.0,
        stuck_seconds=1.0,
        linger_seconds=0.5,
        tick_seconds=0.1,
    )
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(server.send(b"")) for _ in range(400)]
        half = [
            stack.enter_context(server.send(b"GET /hit/ HTTP/1.1\r\nHo"))
            for _ in range(64)
        ]
        greedy = [
            stack.enter_context(server.send(get("/hit/large") * 30)) for _ in range(20)
        ]
        slow = stack.enter_context(server.send(b"G"))
        left = {*silent, *half, *greedy, slow}
        dribble = iter(b"ET /hit/ HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 1000)
        give_up, waits = time.monotonic() + PATIENCE, []
        while left:
            began = time.monotonic()
            assert began < give_up
            # Over a new connection: on a busy machine, one may be idle for too long.
            with server.send(get("/hit/good", "Connection: close")) as good:
                assert responses(read_all(good))[0].body == b"/hit/good"
            waits.append(time.monotonic() - began)
            with contextlib.suppress(OSError):
                slow.sendall(bytes([next(dribble)]))
            closed = select.poll()
            for sock in left:
                closed.register(sock, select.POLLRDHUP)
            left -= {sock for sock in left if sock.fileno() in dict(closed.poll(20))}
        assert statistics.median(waits) < 0.25
        assert [read_all(sock) for sock in silent] == [b""] * 400
        assert {responses(read_all(sock))[0].status for sock in [*half, slow]} == {408}


def test_many_may_connect_to_a_busy_server(small: Callable[..., SmallServer]) -> None:
    """Several hundred who connect while the server is busy are answered later."""
    server = small()
    with contextlib.ExitStack() as stack:
        server.process.send_signal(signal.SIGSTOP)
        try:
            raw = get("/hit/a", "Connection: close")
            socks = [stack.enter_context(server.send(raw)) for _ in range(300)]
        finally:
            server.process.send_signal(signal.SIGCONT)
        answers = [responses(read_all(sock))[0] for sock in socks]
    assert [answer.status for answer in answers] == [200] * 300


def test_more_connections_than_open_files(small: Callable[..., SmallServer]) -> None:
    """With more idle connections than open files, new clients are served.

    The CPU stays idle. Here, 300 files may be open, and 400 clients are idle.
    """
    server = small(files=300)
    with contextlib.ExitStack() as stack:
        for _ in range(400):
            stack.enter_context(server.send(b""))
        for _ in range(3):
            with server.send(get("/miss", "Connection: close")) as sock:
                assert responses(read_all(sock))[0].body == b"/miss"
        before = server.cpu_seconds
        time.sleep(0.5)
        assert server.cpu_seconds - before < 0.2


def test_more_busy_connections_than_open_files(
    small: Callable[..., SmallServer],
) -> None:
    """At the limit with only busy connections, a new client gets a 503.

    The CPU stays idle, and the others go on.
    """
    server = small(files=300, threads=200)
    with contextlib.ExitStack() as stack:
        key = stack.enter_context(server.send(b"GET /op"))
        busy = [
            stack.enter_context(server.send(get("/gate", "Connection: close")))
            for _ in range(149)
        ]
        server.gather(149)
        with server.send(get("/hit/a")) as rejected:
            (answer,) = responses(read_all(rejected))
            assert (answer.status, json.loads(answer.body)["error"]["status_code"]) == (
                503,
                503,
            )
        before = server.cpu_seconds
        time.sleep(0.3)
        assert server.cpu_seconds - before < 0.1
        key.sendall(b"en HTTP/1.1\r\nHost: a\r\n\r\n")
        assert [responses(read_all(sock))[0].body for sock in busy] == [b"/gate"] * 149


def test_an_app_that_raises(small: Callable[..., SmallServer]) -> None:
    """If the app raises, the client gets a 500, and its connection goes on.

    The 500 is in the envelope, and the log says why.
    """
    server = small()
    for number, path in enumerate(["/raise", "/raise-late", "/exit"], start=1):
        with server.send(get(path) + get("/miss", "Connection: close")) as sock:
            failed, other = responses(read_all(sock))
        assert (
            failed.status,
            json.loads(failed.body)["error"]["status_code"],
            other.body,
        ) == (500, 500, b"/miss")
        assert f"unhandled exception in GET {path}" in server.log
        assert server.log.count("unhandled exception") == number


class SteadyClient:
    """Sends one request after the other until nobody listens; notes which were lost."""

    def __init__(self, server: Service, path: str, keep: bool) -> None:
        self._server, self._keep = server, keep
        self._request = get(path, *([] if keep else ["Connection: close"]))
        self.answered = 0
        self.asked = 0.0  # when it asked for its last connection that was served
        # When each was sent, or its connection was there if it was new.
        self.lost: list[float] = []
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        address = ("127.0.0.1", self._server.port)
        with contextlib.suppress(ConnectionError):  # nobody listens any more
            while True:
                asked = time.monotonic()
                with socket.create_connection(address, timeout=PATIENCE) as sock:
                    self._use(sock, asked)

    def _use(self, sock: socket.socket, asked: float) -> None:
        goes_on = True
        while goes_on:
            sent = time.monotonic()
            try:
                sock.sendall(self._request)
                answer = receive(sock)
            except (OSError, HTTPException):
                self.lost.append(sent)
                return
            self.answered += 1
            self.asked = asked
            goes_on = self._keep and answer.headers["Connection"] != "close"


def stop_under_load(server: SmallServer, number: int) -> None:
    """Stop a server under load, and check that it answered what came while it listened.

    It is stopped for the `number`-th time.
    """
    until(lambda: server.log.count("serving with") == number)
    clients = [
        SteadyClient(server, path, keep)
        for path in ("/hit/a", "/miss", "/sleep")
        for keep in (True, False)
    ]
    until(lambda: all(client.answered > 3 for client in clients))
    server.process.send_signal(signal.SIGTERM)
    for client in clients:
        client.thread.join()
    listened = max(client.asked for client in clients)
    lost = [sent for client in clients for sent in client.lost]
    assert [sent for sent in lost if sent < listened] == []
    until(lambda: f"round {number} of " in server.log)


def test_stops_under_load(small: Callable[..., SmallServer]) -> None:
    """A server that is stopped under load answers what was sent while it listened.

    That is every request on each connection that came before the last one it took.
    """
    server = small(rounds=8)
    for number in range(1, 9):
        stop_under_load(server, number)
        server.process.send_signal(signal.SIGHUP)
    assert server.process.wait(PATIENCE) == 0


def test_what_does_not_finish_is_cut(small: Callable[..., SmallServer]) -> None:
    """When the time to finish is over, what hangs is cut off.

    That is work that doesn't end, and clients that take nothing.
    """
    server = small(patience=0.5)
    with (
        server.send(get("/gate")) as hanging,
        server.send(get("/hit/large") * 30) as greedy,
    ):
        server.gather(1)
        assert server.stop() == 0
        assert read_all(hanging) == b""
        read_all(greedy)
    assert "closed 2 unfinished connections" in server.log


def test_large_answers_are_shared(small: Callable[..., SmallServer]) -> None:
    """100 clients that don't take an answer of 1 MiB don't cost 100 copies of it.

    The answer is one from memory.
    """
    server = small()
    before = server.resident
    with contextlib.ExitStack() as stack:
        socks = []
        for _ in range(100):
            sock = stack.enter_context(socket.socket())
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.connect(("127.0.0.1", server.port))
            sock.sendall(get("/hit/large", "Connection: close"))
            socks.append(sock)
        with server.send(get("/hit/a", "Connection: close")) as last:
            assert responses(read_all(last))[0].body == b"/hit/a"
        assert server.resident - before < 20 * 2**20
        for sock in socks[:5]:
            assert len(responses(read_all(sock))[0].body) == 2**20


def test_signals_that_change_nothing(start: Start) -> None:
    """SIGHUP, SIGUSR1 and SIGUSR2 change nothing, and the log says so."""
    service = start()
    for sig in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        service.process.send_signal(sig)
        said = f"{sig.name} changes nothing"
        until(partial(contains, service, said))
        assert service.get("/livez").status_code == 200
    assert service.stop() == 0
    assert clean(service.log), service.log


def contains(service: Service, text: str) -> bool:
    """Tell whether the log of a service contains a text."""
    return text in service.log


# The service


def test_drains(start: Start, upstream: Standin) -> None:
    """For C42_DRAIN seconds after the signal, events are answered and /readyz says 503.

    New connections are taken, too. The log says how long the end may take at most.
    """
    service = start(C42_DRAIN="4", C42_TIMEOUT="20")
    service.process.send_signal(signal.SIGTERM)
    until(lambda: service.get("/readyz").status_code == 503)
    assert service.event(DEMO_EVENTS["plain"]).status_code == 200
    assert service.raw(f"{PREFIX}{DEMO_EVENTS['plain']}".encode()).status == 200
    assert service.process.wait(PATIENCE) == 0
    assert "stopping: waiting up to 25 s for active requests" in service.log
    assert clean(service.log), service.log


def test_second_signal_ends_the_drain(small: Callable[..., SmallServer]) -> None:
    """A second signal ends the server at once, with status 1, also while it drains."""
    server = small(drain=60)
    server.process.send_signal(signal.SIGTERM)
    until(lambda: "stopping" in server.log)
    assert server.stop() == 1
