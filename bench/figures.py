"""The figures that don't compare servers: each function measures one thing and yields
its rows.
"""

import contextlib
import itertools
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

from bench import contenders, machine
from bench.machine import NAMES, PREFIX, TITLE, Server
from standin import Gate, Standin

COLD = 200  # cold answers a second, during the hits
_CLIENTS = 64  # threads that ask for them

_numbers = itertools.count(1)


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


def spread(values: list[float], digits: int = 2) -> str:
    """Write the median of `values`, and the least and the greatest."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def start_and_rest(upstream: Standin, scale: Scale) -> Iterator[Row]:
    """Time from `python main.py` to the first answer, and memory after it."""
    path = PREFIX + new_event(upstream)
    times, sizes = list[float](), list[float]()
    for _ in range(scale.rounds):
        began = time.perf_counter()
        with machine.service(upstream.base_url) as service:
            status, _, _ = machine.get(service.port, path)
            times.append(time.perf_counter() - began)
            assert status == 200
            sizes.append(machine.memory(service.pid))
    why = "Start and memory at rest: most is for importing Flask, requests, asyncio, prometheus_client and jsonpath-ng"
    yield Row(
        "start to first answer, s",
        "≤ 0.5",
        spread(times),
        statistics.median(times) <= 0.5,
        why,
    )
    yield Row(
        "memory at rest, MiB",
        "≤ 45",
        spread(sizes, 1),
        statistics.median(sizes) <= 45,
        why,
    )


def waiting_room(upstream: Standin, scale: Scale) -> Iterator[Row]:
    """Hits and memory while the upstream hangs and the waiting room is full."""
    rates, singles, sizes = list[float](), list[float](), list[float]()
    for _ in range(scale.rounds):
        with machine.service(upstream.base_url, C42_TIMEOUT="60") as service:
            hot = PREFIX + new_event(upstream)
            machine.get(service.port, hot)
            calm = machine.wrk(service, hot, scale.seconds)
            before = machine.memory(service.pid)
            with _waiting(service, upstream) as sockets:
                sizes.append(machine.memory(service.pid) - before)
                rates.append(machine.wrk(service, hot, scale.seconds).rate / calm.rate)
                singles.append(
                    machine.wrk(service, hot, scale.seconds, connections=1).p99
                )
                assert not any(_peek(sock) for sock in sockets), (
                    "they did not wait to the end"
                )
    what = f"{len(sockets)} requests wait for a hanging upstream"
    yield Row(
        f"{what}: hit rate / undisturbed",
        "≥ 0.95",
        spread(rates),
        statistics.median(rates) >= 0.95,
    )
    yield Row(
        "the same: p99 of hits, one at a time, ms",
        "≤ 2",
        spread(singles),
        statistics.median(singles) <= 2,
    )
    why = "Waiting requests: each has a thread, of some 25 KiB, and two connections with their calls"
    yield Row(
        "the same: memory added, MiB",
        "≤ 15",
        spread(sizes, 1),
        statistics.median(sizes) <= 15,
        why,
    )


@contextlib.contextmanager
def _waiting(service: Server, upstream: Standin) -> Iterator[list[socket.socket]]:
    """Fill the waiting room with requests for different events, until one is refused;
    yield those that wait.
    """
    gate = Gate()
    rule = upstream.rule(gate=gate)
    with contextlib.ExitStack() as stack:
        sockets = list[socket.socket]()
        while not any(_peek(sock) for sock in sockets):
            sock = stack.enter_context(
                socket.create_connection(("127.0.0.1", service.port))
            )
            sock.sendall(
                f"GET {PREFIX}{new_event(upstream)} HTTP/1.1\r\nHost: bench\r\n\r\n".encode()
            )
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


def beside_cold_answers(upstream: Standin, scale: Scale) -> Iterator[Row]:
    """Hits during cold answers, by the service and by its old form."""
    hot = PREFIX + new_event(upstream)
    rates, p99s, paces = (
        [list[float](), list[float]()] for _ in range(3)
    )  # of the service, of the old form
    with (
        machine.service(upstream.base_url) as new,
        machine.service(upstream.base_url, contenders.OLD_FORM) as old,
    ):
        for _, (which, server) in itertools.product(
            range(scale.rounds), enumerate([new, old])
        ):
            machine.get(server.port, hot)
            calm = machine.wrk(server, hot, scale.seconds)
            with _cold_answers(server.port, upstream) as answered:
                beside = machine.wrk(server, hot, scale.seconds)
                paces[which].append(next(answered) / scale.seconds)
            rates[which].append(beside.rate / calm.rate)
            p99s[which].append(beside.p99)
    what = f"beside {' or '.join(f'{statistics.median(pace):.0f}' for pace in paces)} cold answers a second"
    rate, p99 = (" or ".join(map(spread, each)) for each in (rates, p99s))
    yield Row(
        f"{what}, c42c or its old form: hit rate / undisturbed",
        "≥ 0.5",
        rate,
        statistics.median(rates[0]) >= 0.5,
    )
    reached = statistics.median(p99s[0]) <= statistics.median(p99s[1])
    yield Row("the same: p99 of hits, ms", "≤ the old form's", p99, reached)


@contextlib.contextmanager
def _cold_answers(port: int, upstream: Standin) -> Iterator[Iterator[int]]:
    """Ask for `COLD` new events a second; `next` of the yielded counter says how many
    were answered.
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


def entries_held(upstream: Standin, scale: Scale) -> Iterator[Row]:
    """Hits with few and with very many entries held, and the memory of one."""
    counts = [10, min(10_000, scale.many), scale.many]
    ratios: dict[bool, list[list[float]]] = {
        False: [],
        True: [],
    }  # for each round, those of the greater counts
    with contextlib.ExitStack() as stack:
        filled = [
            stack.enter_context(
                machine.service(
                    upstream.base_url,
                    ["-m", "bench.servers", "filled", str(count)],
                    C42_MAX_ENTRIES=str(2 * scale.many),
                )
            )
            for count in counts
        ]
        sizes = [machine.memory(server.pid) for server in filled]
        for _, at_random in itertools.product(range(scale.rounds), (False, True)):
            few, *more = (
                machine.wrk(
                    server, PREFIX, scale.seconds, ids=count if at_random else 1
                ).rate
                for server, count in zip(filled, counts, strict=True)
            )
            ratios[at_random].append([rate / few for rate in more])
    what = f"{counts[1]:,} or {counts[2]:,} entries held: hit rate / with {counts[0]}"
    for at_random, wanted in (False, "0.9 to 1.1"), (True, ""):
        each = [list(ratio) for ratio in zip(*ratios[at_random], strict=True)]
        reached = at_random or all(
            0.9 <= statistics.median(ratio) <= 1.1 for ratio in each
        )
        asked = ", asked for at random" if at_random else ""
        yield Row(what + asked, wanted, " or ".join(map(spread, each)), reached)
    size = (sizes[-1] - sizes[0]) * 2**20 / (counts[-1] - counts[0])
    yield Row(
        "memory per kept answer of 300 bytes, bytes",
        "≤ 1200",
        f"{size:.0f}",
        size <= 1200,
    )


def expiry(upstream: Standin, scale: Scale) -> Iterator[Row]:
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


def cold_answer(upstream: Standin, scale: Scale) -> Iterator[Row]:
    """The CPU of an answer that takes two calls to the upstream."""
    costs = list[float]()
    with (
        machine.service(upstream.base_url) as service,
        machine.connect(service.port) as connection,
    ):
        ask(connection, upstream)
        for _ in range(scale.rounds):
            used = machine.cpu(service.pid)
            for _ in range(scale.cold):
                ask(connection, upstream)
            costs.append((machine.cpu(service.pid) - used) / scale.cold * 1000)
    why = "Cold answers: a third is for Flask, cache and merging, a third for the two calls, a sixth for the server"
    yield Row(
        "CPU per cold answer, ms",
        "≤ 1.0",
        spread(costs),
        statistics.median(costs) <= 1.0,
        why,
    )


def profile(upstream: Standin, seconds: int) -> str | None:
    """Return where the CPU of cold answers goes, or None if py-spy is missing or not
    allowed to look.
    """
    spy = Path(sys.executable).with_name("py-spy")
    if not spy.exists():
        return None
    with (
        machine.service(upstream.base_url) as service,
        machine.connect(service.port) as connection,
        tempfile.TemporaryDirectory() as place,
    ):
        stacks, answers = Path(place) / "stacks", 0
        how = [
            "--format",
            "raw",
            "--rate",
            "500",
            "--gil",
            "--nonblocking",
            "--duration",
            str(seconds),
        ]
        command = [
            str(spy),
            "record",
            *how,
            "--output",
            str(stacks),
            "--pid",
            str(service.pid),
        ]
        with subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as running:
            while running.poll() is None:
                ask(connection, upstream)
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
            f"Where the CPU of {answers} cold answers went: {total} samples, taken by py-spy, of threads that held",
            "Python's interpreter lock. What the kernel did for them is not included.",
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
    waiting_room,
    beside_cold_answers,
    entries_held,
    expiry,
    cold_answer,
]
