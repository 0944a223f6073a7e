"""The figures of the issue that no comparison gives: one function each, which measures and says what it found."""

import contextlib
import itertools
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from bench import machine
from bench.machine import PREFIX, ROOT
from standin import Gate, Standin

_numbers = itertools.count(1)


class Row(NamedTuple):
    """One figure: what was wanted, and what came out."""

    what: str
    wanted: str
    measured: str
    reached: bool | None = None  # None: nothing was wanted but the figure
    limit: str = ""  # what stands in the way where it is not reached, and how that is known


class Scale(NamedTuple):
    """How long, how often and how much."""

    rounds: int
    seconds: int
    many: int  # stands for "a million"
    cold: int  # cold answers


def new_event(upstream: Standin, size: int = 300) -> str:
    """Add an event whose merged answer has `size` bytes, on one page; return its id."""
    event_id = f"{0xBE << 64 | next(_numbers):032x}_14602021609581"
    count = min(90, size // 25)
    bare = len(f'{{"id":"{event_id}","title":"","names":[]}}') - 1 + count * 3  # quotes and commas of the names
    width = (size - bare - 10) // count
    names = [
        f"{number} {'Arthur of the bench and of the long names in it'}"[:width] for number in range(10, 10 + count)
    ]
    title = "x" * (size - bare - sum(len(name) for name in names))
    upstream.add_event(event_id, title=title, names=names)
    return event_id


def spread(values: list[float], digits: int = 1) -> str:
    """Write the median of `values` with their least and greatest."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def hanging(upstream: Standin, scale: Scale) -> Iterator[Row]:
    """Hits while the upstream hangs and the waiting room is full."""
    rates, singles, room = list[float](), list[float](), 0
    with machine.service(upstream.base_url) as service:
        hot = PREFIX + new_event(upstream)
        machine.get(service.port, hot)
        for _ in range(scale.rounds):
            calm = machine.wrk(service, hot, scale.seconds)
            gate = Gate()
            rule = upstream.rule(gate=gate)
            with _waiting(service.port, upstream) as (waiting, still_waiting):
                room = waiting
                full = machine.wrk(service, hot, scale.seconds)
                single = machine.wrk(service, hot, scale.seconds, connections=1)
                assert still_waiting(), "the upstream's time-out was over before the measurement"
                assert not full.refused + single.refused, (full, single)
                gate.open()
            rule.remove()
            rates.append(full.rate / calm.rate)
            singles.append(single.p99)
    what = f"hits while the upstream hangs and all {room} places of the waiting room are taken"
    yield Row(f"{what}: rate / undisturbed", "≥ 0.8", spread(rates, 2), statistics.median(rates) >= 0.8)
    yield Row("the same: a single hit's p99, ms", "< 20", spread(singles, 2), statistics.median(singles) < 20)


@contextlib.contextmanager
def _waiting(port: int, upstream: Standin) -> Iterator[tuple[int, Callable[[], bool]]]:
    """Fill the waiting room with requests for different events, until one more is refused with 503."""
    with contextlib.ExitStack() as stack:
        sockets: list[socket.socket] = []

        def answered() -> bool:
            return any(_peek(sock) for sock in sockets)

        while not answered():
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            sock.sendall(f"GET {PREFIX}{new_event(upstream)} HTTP/1.1\r\nHost: bench\r\n\r\n".encode())
            sockets.append(sock)
            time.sleep(0.002)
        time.sleep(0.1)
        refused = [sock for sock in sockets if _peek(sock)]
        assert all(_peek(sock).startswith(b"HTTP/1.1 503 ") for sock in refused)
        sockets = [sock for sock in sockets if sock not in refused]
        yield len(sockets), lambda: not answered()
        for sock in sockets:  # let the last of them end before the next round
            sock.settimeout(machine.PATIENCE)
            sock.recv(1)


def _peek(sock: socket.socket) -> bytes:
    try:
        return sock.recv(64, socket.MSG_DONTWAIT | socket.MSG_PEEK)
    except BlockingIOError:
        return b""


def held(upstream: Standin, scale: Scale) -> Iterator[Row]:
    """Hits with few and with very many entries held; and what one entry costs. The upstream is a stub here."""
    counts = [10, min(10_000, scale.many), scale.many]
    with contextlib.ExitStack() as stack:
        started = {count: stack.enter_context(machine.python_server("filled", str(count))) for count in counts}
        sizes = {count: machine.memory(server.pid) for count, server in started.items()}
        for same in (True, False):
            rates: dict[int, list[float]] = {count: [] for count in counts}
            for _ in range(scale.rounds):
                for count, server in started.items():
                    script = [PREFIX, "0", "0" if same else str(count - 1)]
                    load = machine.wrk(server, "/", scale.seconds, script=script)
                    assert not load.refused, load
                    rates[count].append(load.rate)
            ratios = {
                count: statistics.median(a / b for a, b in zip(rates[count], rates[10], strict=True))
                for count in counts
            }
            asked = "one asked for" if same else "asked for at random"
            yield Row(
                f"hits with {', '.join(f'{count:,}' for count in counts)} entries held, {asked}: rate / rate with 10",
                "within 10 % of each other" if same else "(reported)",
                ", ".join(f"{ratio:.2f}" for ratio in ratios.values()),
                max(ratios.values()) / min(ratios.values()) <= 1.1 if same else None,
            )
        each = (sizes[counts[-1]] - sizes[10]) / (counts[-1] - 10)
    yield Row("memory per kept answer of 300 bytes", "≤ 1.2 KB", f"{each:.0f} bytes", each <= 1200)


def unknown(upstream: Standin, scale: Scale) -> Iterator[Row]:
    """How the process grows with ever new unknown ids."""
    with machine.python_server("filled", "10") as few, machine.python_server("filled", f"10,{scale.many}") as many:
        growth = (machine.memory(many.pid) - machine.memory(few.pid)) / 1e6
    what = f"{scale.many:,} different unknown ids, loaded into the cache of a service with a stub upstream: growth"
    yield Row(what, "≤ 60 MB", f"{growth:.1f} MB", growth <= 60)
    with machine.service(upstream.base_url) as service:
        machine.wrk(service, "/", 2, script=[PREFIX, str(10**9), ""])  # starts the threads and connections
        first = machine.memory(service.pid)
        load = machine.wrk(service, "/", max(2, scale.many // 50_000), script=[PREFIX, str(2 * 10**9), ""])
        growth = (machine.memory(service.pid) - first) / 1e6
    what = f"{load.requests:,} different unknown ids asked for over HTTP at 32 connections: growth"
    yield Row(what, "≤ 60 MB", f"{growth:.1f} MB", growth <= 60)


def expiring(upstream: Standin, scale: Scale) -> Iterator[Row]:
    """The longest that a reader waits while very many entries expire together."""
    command = ["taskset", "-c", str(machine.SERVER_CORE), sys.executable, "-m", "bench.expire", str(scale.many)]
    said = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT, timeout=300).stdout
    without, longest = (float(word) for word in said.split())
    what = f"{scale.many:,} entries expire together, in process: the longest that a reader waits, ms"
    yield Row(f"{what} (without that: {without:.2f})", "≤ 10", f"{longest:.2f}", longest <= 10)


def cold(upstream: Standin, scale: Scale) -> Iterator[Row]:
    """What a cold answer costs beyond the upstream's own time, alone and with many at once."""
    delay = 0.05
    rule = upstream.rule(delay=delay)
    with machine.service(upstream.base_url) as (port, _):
        machine.burst(port, [PREFIX + new_event(upstream)])
        times = [machine.burst(port, [PREFIX + new_event(upstream)])[0] for _ in range(scale.cold // 20)]
        beyond = [(seconds - delay) * 1000 for seconds in times]
        yield Row(
            "a cold answer at concurrency 1, both calls 50 ms: time beyond 50 ms, ms",
            "≤ 5",
            spread(beyond),
            statistics.median(beyond) <= 5,
        )
        lasts = [
            max(machine.burst(port, [PREFIX + new_event(upstream) for _ in range(32)])) * 1000
            for _ in range(scale.rounds)
        ]
        yield Row(
            "32 cold events at once, calls of 50 ms: all done after, ms",
            "≤ 200",
            spread(lasts, 0),
            statistics.median(lasts) <= 200,
        )
        lasts, calls = [], set()
        for _ in range(scale.rounds):
            event_id = new_event(upstream)
            lasts.append(max(machine.burst(port, [PREFIX + event_id] * 200)) * 1000)
            calls.add(upstream.calls(event_id=event_id))
        yield Row(
            f"200 callers of one cold event, {' or '.join(map(str, calls))} upstream calls of 50 ms: all answered, ms",
            "2 calls, ≤ 350",
            spread(lasts, 0),
            statistics.median(lasts) <= 350 and calls == {2},
        )
    rule.remove()


def cold_cpu(upstream: Standin, scale: Scale) -> Iterator[Row]:
    """The CPU that a cold answer costs, and where it goes (to `bench/cold-profile.txt`, where py-spy is there)."""
    with machine.service(upstream.base_url) as (port, pid):
        # Two connections: the service shall not wait for the bench all the time.
        events = [PREFIX + new_event(upstream) for _ in range(scale.cold + 40)]
        batches = [events[at : at + 2] for at in range(0, len(events), 2)]
        for batch in batches[:20]:
            machine.burst(port, batch)
        began = machine.cpu(pid)
        for batch in batches[20:]:
            machine.burst(port, batch)
        each = (machine.cpu(pid) - began) / scale.cold * 1000
        began = machine.cpu(pid)
        for batch in batches[20:]:
            machine.burst(port, batch)  # the same again, from the cache: what the bench's own requests cost
        hit = (machine.cpu(pid) - began) / scale.cold * 1000
    measured = f"{each:.2f} (the same as a hit, over a new connection too: {hit:.2f})"
    yield Row("CPU per cold answer (user and system), ms", "reported", measured)


def profile(upstream: Standin, seconds: int) -> str | None:
    """Return where the CPU of cold answers goes, or None where py-spy is not there or must not look."""
    with machine.service(upstream.base_url) as (port, pid), tempfile.TemporaryDirectory() as place:
        worker = machine.tree(pid)[-1]
        into = Path(place) / "stacks"
        how = ["record", "--format", "raw", "--rate", "500", "--gil", "--nonblocking"]
        command = [
            str(Path(sys.executable).with_name("py-spy")),
            *how,
            "--duration",
            str(seconds),
            "--output",
            str(into),
        ]
        try:
            spy = subprocess.Popen(
                [*command, "--pid", str(worker)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
        except FileNotFoundError:
            return None
        until, answers = time.monotonic() + seconds, 0
        try:
            while time.monotonic() < until:
                answers += len(machine.burst(port, [PREFIX + new_event(upstream) for _ in range(2)]))
            spy.wait(30)
        finally:
            spy.kill()
            spy.wait()
        stacks = into.read_text() if into.exists() else ""
        return _summary(stacks, answers) if stacks else None


def _summary(stacks: str, answers: int) -> str:
    inclusive, own, total = Counter[str](), Counter[str](), 0
    for line in stacks.splitlines():
        stack, _, count = line.rpartition(" ")
        # Without line numbers, so that the samples of one function add up.
        frames = [
            f"{name} ({place.rpartition(':')[0] or place}"
            for name, _, place in (frame.partition(" (") for frame in stack.split(";"))
        ]
        frames = [frame.rstrip(")") + ")" for frame in frames]
        total += int(count)
        own[frames[-1]] += int(count)
        inclusive.update({frame: int(count) for frame in set(frames)})
    lines = [
        f"Where the CPU of {answers} cold answers went: {total} samples, by py-spy, of threads that held Python's",
        "interpreter lock; what the kernel does for them without it is not in here.",
        "",
        "with all that it calls",
        *(f"{count / total:6.1%}  {frame}" for frame, count in inclusive.most_common(45)),
        "",
        "by itself",
        *(f"{count / total:6.1%}  {frame}" for frame, count in own.most_common(30)),
    ]
    return "\n".join(lines) + "\n"


def start(upstream: Standin, scale: Scale) -> Iterator[Row]:
    """From `python main.py` to the first answer."""
    path, times = PREFIX + new_event(upstream), []
    for _ in range(scale.rounds):
        began = time.perf_counter()
        with machine.service(upstream.base_url) as (port, _):
            status, _, _ = machine.get(port, path)
            times.append(time.perf_counter() - began)
            assert status == 200
    yield Row("from `python main.py` to the first answer, s", "≤ 1", spread(times, 2), statistics.median(times) <= 1)


ALL = [hanging, held, unknown, expiring, cold, cold_cpu, start]
