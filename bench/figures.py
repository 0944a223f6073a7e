"""The figures that don't compare servers.

Each function measures one thing and yields its rows. The upstream speaks TLS, as
Calendar42 does, unless a row says otherwise.
"""

import contextlib
import itertools
import json
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import NamedTuple

from bench import machine
from bench.machine import NAMES, PREFIX, TITLE, RunningServer
from standin import Gate, Standin

# Cold answers a second, during the hits: seven times what Calendar42's limit of 10,000
# calls an hour allows.
COLD = 10
_CLIENTS = 10  # threads that ask for them

_numbers = itertools.count(1)

ServiceContext = contextlib.AbstractContextManager[RunningServer]


class Row(NamedTuple):
    """One figure: what was wanted, and what was measured."""

    what: str
    wanted: str
    measured: str
    reached: bool
    why: str = ""  # what takes the time or memory; shown if the goal wasn't reached


class Scale(NamedTuple):
    """How long, how often and how much."""

    contest: int  # rounds of the contenders
    rounds: int  # of everything else
    seconds: int
    many: int  # entries
    cold: int  # cold answers
    lifetimes: int  # of a hot event


class Upstreams(NamedTuple):
    """Two stand-ins for Calendar42, and the certificate of the one that speaks TLS."""

    plain: Standin
    tls: Standin
    certificate: Path

    def serve(self, *, tls: bool = True, **settings: str) -> ServiceContext:
        """Run the service in front of one of them."""
        upstream = self.tls if tls else self.plain
        bundle = str(self.certificate)
        return machine.service(upstream.base_url, REQUESTS_CA_BUNDLE=bundle, **settings)


def new_event(upstream: Standin) -> str:
    """Add an event whose answer has 300 bytes; return its id."""
    event_id = f"{next(_numbers):032x}_14602021609581"
    upstream.add_event(event_id, title=TITLE, names=NAMES)
    return event_id


def ask(connection: HTTPConnection, upstream: Standin) -> None:
    """Ask for an event that the service doesn't know yet."""
    connection.request("GET", PREFIX + new_event(upstream))
    response = connection.getresponse()
    response.read()
    assert response.status == 200


def at_most(
    what: str, most: float, values: list[float], *, digits: int = 2, why: str = ""
) -> Row:
    """Make the row of a figure that should be low."""
    reached = statistics.median(values) <= most
    return Row(what, f"≤ {most:g}", spread(values, digits), reached, why)


def at_least(what: str, least: float, values: list[float]) -> Row:
    """Make the row of a figure that should be high."""
    reached = statistics.median(values) >= least
    return Row(what, f"≥ {least:g}", spread(values), reached)


def spread(values: list[float], digits: int = 2) -> str:
    """Write the median of `values`, and the least and the greatest."""
    median = f"{statistics.median(values):.{digits}f}"
    return f"{median} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def start_and_rest(upstreams: Upstreams, scale: Scale) -> Iterator[Row]:
    """Time from `python main.py` to the first answer, and memory after it."""
    path = PREFIX + new_event(upstreams.tls)
    times, sizes = list[float](), list[float]()
    for _ in range(scale.rounds):
        began = time.perf_counter()
        with upstreams.serve() as service:
            status, _, _ = machine.get(service.port, path)
            times.append(time.perf_counter() - began)
            assert status == 200
            sizes.append(machine.memory(service.pid))
    why = (
        "Start and memory at rest: most is for importing Flask, requests, asyncio, "
        "prometheus_client and jsonpath-ng"
    )
    yield at_most("start to first answer, s", 0.5, times, why=why)
    yield at_most("memory at rest, MiB", 50, sizes, digits=1, why=why)


def beside_waiting_requests(upstreams: Upstreams, scale: Scale) -> Iterator[Row]:
    """Hits and memory while the upstream hangs and no more requests may wait."""
    upstream = upstreams.tls
    rates, singles, sizes = list[float](), list[float](), list[float]()
    for _ in range(scale.rounds):
        with upstreams.serve(C42_TIMEOUT="60") as service:
            hot = PREFIX + new_event(upstream)
            machine.get(service.port, hot)
            calm = machine.wrk(service, hot, scale.seconds)
            before = machine.memory(service.pid)
            with _waiting(service, upstream) as sockets:
                sizes.append(machine.memory(service.pid) - before)
                beside = machine.wrk(service, hot, scale.seconds)
                rates.append(beside.rate / calm.rate)
                single = machine.wrk(service, hot, scale.seconds, connections=1)
                singles.append(single.p99)
                early = [sock for sock in sockets if _peek(sock)]
                assert not early, "they did not wait to the end"
    what = f"{len(sockets)} requests wait for a hanging upstream"
    yield at_least(f"{what}: hit rate / undisturbed", 0.95, rates)
    yield at_most("the same: p99 of hits, one at a time, ms", 2, singles)
    why = "Waiting requests: each has three threads and two TLS connections"
    yield at_most("the same: memory added, MiB", 80, sizes, digits=1, why=why)


@contextlib.contextmanager
def _waiting(
    service: RunningServer, upstream: Standin
) -> Iterator[list[socket.socket]]:
    """Have as many requests wait as may, for different events; yield their sockets."""
    gate = Gate()
    rule = upstream.rule(gate=gate)
    with contextlib.ExitStack() as stack:
        sockets = list[socket.socket]()
        while not any(_peek(sock) for sock in sockets):
            sock = stack.enter_context(
                socket.create_connection(("127.0.0.1", service.port))
            )
            path = PREFIX + new_event(upstream)
            sock.sendall(f"GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n".encode())
            sockets.append(sock)
            time.sleep(0.005)
        time.sleep(1)  # until all that are refused have been
        yield [sock for sock in sockets if not _peek(sock)]
        gate.open()
        rule.remove()


def _peek(sock: socket.socket) -> bytes:
    sock.setblocking(False)
    try:
        return sock.recv(64, socket.MSG_PEEK)
    except BlockingIOError:
        return b""


def beside_cold_answers(upstreams: Upstreams, scale: Scale) -> Iterator[Row]:
    """Hits during cold answers."""
    upstream = upstreams.tls
    hot = PREFIX + new_event(upstream)
    rates, p99s, paces = list[float](), list[float](), list[float]()
    with upstreams.serve() as service:
        machine.get(service.port, hot)
        for _ in range(scale.rounds):
            calm = machine.wrk(service, hot, scale.seconds)
            with _cold_answers(service.port, upstream) as answered:
                beside = machine.wrk(service, hot, scale.seconds)
                paces.append(next(answered) / scale.seconds)
            rates.append(beside.rate / calm.rate)
            p99s.append(beside.p99)
    what = f"beside {statistics.median(paces):.0f} cold answers a second"
    yield at_least(f"{what}: hit rate / undisturbed", 0.9, rates)
    yield at_most("the same: p99 of hits, ms", 3, p99s)


@contextlib.contextmanager
def _cold_answers(port: int, upstream: Standin) -> Iterator[Iterator[int]]:
    """Ask for `COLD` new events a second.

    `next` of the yielded counter says how many were answered.
    """
    answered, stop = itertools.count(), threading.Event()
    began = time.monotonic()

    def ask_in_turn(number: int) -> None:
        with machine.connect(port) as connection:
            for due in itertools.count(began + number / COLD, _CLIENTS / COLD):
                if stop.wait(max(0.0, due - time.monotonic())):
                    return
                ask(connection, upstream)
                next(answered)

    threads = [
        threading.Thread(target=ask_in_turn, args=(number,))
        for number in range(_CLIENTS)
    ]
    for thread in threads:
        thread.start()
    yield answered
    stop.set()
    for thread in threads:
        thread.join()


def entries_held(upstreams: Upstreams, scale: Scale) -> Iterator[Row]:
    """Hits with few and with very many entries held, and the memory that they take."""
    counts = [10, min(10_000, scale.many), scale.many]
    names = [f"{count:,}" for count in counts]
    with contextlib.ExitStack() as stack:
        filled = [
            stack.enter_context(_filled(upstreams, count, scale)) for count in counts
        ]
        sizes = [machine.memory(server.pid) for server in filled]
        held = [_bytes_held(server) for server in filled]
        for at_random in (False, True):
            ratios = [list[float](), list[float]()]
            for _ in range(scale.rounds):
                rates = list[float]()
                for server, count in zip(filled, counts, strict=True):
                    ids = count if at_random else 1
                    load = machine.wrk(server, PREFIX, scale.seconds, ids=ids)
                    rates.append(load.rate)
                ratios[0].append(rates[1] / rates[0])
                ratios[1].append(rates[2] / rates[0])
            what = f"{names[1]} or {names[2]} entries held: hit rate / with {names[0]}"
            shown = f"{spread(ratios[0])} or {spread(ratios[1])}"
            if at_random:
                yield Row(f"{what}, asked for at random", "", shown, True)
            else:
                even = all(0.9 <= statistics.median(ratio) <= 1.1 for ratio in ratios)
                yield Row(what, "0.9 to 1.1", shown, even)
    size = (sizes[2] - sizes[0]) * 2**20
    per_answer = size / (counts[2] - counts[0])
    what = "memory per kept answer of 300 bytes, bytes"
    yield Row(what, "≤ 1200", f"{per_answer:.0f}", per_answer <= 1200)
    share = size / (held[2] - held[0])
    what = f"memory of {names[2]} answers / what the cache counts"
    yield Row(what, "0.8 to 1.2", f"{share:.2f}", 0.8 <= share <= 1.2)


def _filled(upstreams: Upstreams, count: int, scale: Scale) -> ServiceContext:
    return machine.service(
        upstreams.plain.base_url,
        ["-m", "bench.servers", "filled", str(count)],
        C42_MAX_ENTRIES=str(2 * scale.many),
        C42_MAX_MIB="4096",
    )


def _bytes_held(server: RunningServer) -> int:
    _, _, body = machine.get(server.port, "/status.json")
    held: int = json.loads(body)["cache"]["bytes"]
    return held


def expiry(_: Upstreams, scale: Scale) -> Iterator[Row]:
    """How long a reader waits while very many entries expire together."""
    command = [
        "taskset",
        "-c",
        str(machine.SERVER_CORE),
        sys.executable,
        "-m",
        "bench.expire",
        str(scale.many),
    ]
    said = subprocess.run(
        command,
        check=True,
        capture_output=True,
        text=True,
        cwd=machine.ROOT,
        timeout=300,
    ).stdout
    without, longest = (float(word) for word in said.split())
    what = f"{scale.many:,} entries expire together: the longest wait of a reader, ms"
    yield Row(
        what, "≤ 10", f"{longest:.2f} (without that: {without:.2f})", longest <= 10
    )


def cold_answer(upstreams: Upstreams, scale: Scale) -> Iterator[Row]:
    """The CPU of an answer that takes two calls to the upstream.

    There is no goal: Calendar42's limit allows 1.4 of them a second.
    """
    for tls, kind in ((False, "plain HTTP"), (True, "TLS")):
        upstream = upstreams.tls if tls else upstreams.plain
        costs = list[float]()
        with (
            upstreams.serve(tls=tls) as service,
            machine.connect(service.port) as connection,
        ):
            ask(connection, upstream)
            for _ in range(scale.rounds):
                used = machine.cpu(service.pid)
                for _ in range(scale.cold):
                    ask(connection, upstream)
                used = machine.cpu(service.pid) - used
                costs.append(used / scale.cold * 1000)
        yield Row(f"CPU per cold answer over {kind}, ms", "", spread(costs), True)


def profile(upstreams: Upstreams, seconds: int) -> str | None:
    """Return where the CPU of cold answers goes.

    If py-spy is missing or not allowed to look, return None.
    """
    spy = Path(sys.executable).with_name("py-spy")
    if not spy.exists():
        return None
    with (
        upstreams.serve() as service,
        machine.connect(service.port) as connection,
        tempfile.TemporaryDirectory() as place,
    ):
        stacks = Path(place) / "stacks"
        command = [
            *(str(spy), "record", "--pid", str(service.pid)),
            *("--format", "raw", "--rate", "500", "--gil", "--nonblocking"),
            *("--duration", str(seconds), "--output", str(stacks)),
        ]
        quiet = subprocess.DEVNULL
        answers = 0
        with subprocess.Popen(command, stdout=quiet, stderr=quiet) as running:
            while running.poll() is None:
                ask(connection, upstreams.tls)
                answers += 1
        return _summary(stacks.read_text(), answers) if stacks.exists() else None


def _summary(stacks: str, answers: int) -> str:
    inclusive, own = Counter[str](), Counter[str]()
    for stack, count in re.findall(
        r"^(.+) (\d+)$", stacks, re.M
    ):  # others were read while they changed
        frames = [
            frame.rpartition(":")[0] + ")" for frame in stack.split(";")
        ]  # without line numbers
        own[frames[-1]] += int(count)
        inclusive.update(dict.fromkeys(frames, int(count)))
    total = own.total()
    return "\n".join(
        [
            f"Where the CPU of {answers} cold answers went: {total} samples, taken by",
            "py-spy, of threads that held Python's interpreter lock. What the kernel",
            "did for them is not included.",
            "",
            "with everything it calls",
            *(
                f"{count / total:6.1%}  {frame}"
                for frame, count in inclusive.most_common(40)
            ),
            "",
            "by itself",
            *(f"{count / total:6.1%}  {frame}" for frame, count in own.most_common(25)),
            "",
        ]
    )


ALL = [
    start_and_rest,
    beside_waiting_requests,
    beside_cold_answers,
    entries_held,
    expiry,
    cold_answer,
]
