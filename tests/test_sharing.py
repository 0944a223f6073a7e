"""What processes promise that share answers through Redis: a real one, and ones that fail in every way.

Most tests let several caches and tiers in this process stand for several machines, with loads that are counted and
wait at a gate; some start the service. A Redis that was lost is tried again every 0.2 s here, rather than every 5 s.
"""

import asyncio
import contextlib
import logging
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis
import requests
import uvloop

import main
from answers import response
from answers import value as values
from cache import FAULT, OK, Cache, Found, Loaded, clock
from calendar42.errors import C42Error
from calendar42.pause import Pause
from operations import settings
from sharing import link
from sharing.tier import LOOK_UP, SharedTier
from standin import Standin
from tests.fixtures import PATIENCE, TOKEN, Service, new_id, until
from tests.reading import lifetime

PASSWORD = "se%2Fcret"
VALUE = values.success({"id": "1", "title": "Ein schöner Titel\n", "names": []})


if not shutil.which("redis-server"):
    pytest.skip("there is no redis-server; Debian's package of that name has it", allow_module_level=True)


def failed(status: int, body: str = "", retry_after: float = 0.0) -> C42Error:
    """Make the error that says that the upstream answered so."""
    return C42Error(
        endpoint="events",
        message="",
        status=status,
        upstream_status=status,
        body=body.encode(),
        retry_after=retry_after,
    )


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class Redis:
    """A redis-server on a free port of loopback, which keeps nothing on disk."""

    def __init__(self, *options: str) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._options = options
        self.start()

    def start(self) -> None:
        own = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        self.process = subprocess.Popen(
            ["redis-server", *own, *self._options],
            stdout=subprocess.DEVNULL,
            cwd="/",
        )
        until(self.listens, "redis-server to listen")

    def listens(self) -> bool:
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", self.port)) == 0

    def signal(self, sig: signal.Signals) -> None:
        self.process.send_signal(sig)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(PATIENCE)

    @contextlib.contextmanager
    def client(self) -> Iterator[Any]:
        """Look into it, past the tier."""
        with redis.Redis(port=self.port, protocol=2) as client:
            yield client


class Proxy:
    """Hands on what it gets to a port and back; `answer`, if there is one, does something else to what comes back."""

    def __init__(self, port: int = 0, answer: Callable[[bytes, socket.socket], None] | None = None) -> None:
        self._target = port
        self.answer = answer
        self._open = [socket.create_server(("127.0.0.1", 0))]
        self.url = f"redis://:{PASSWORD}@127.0.0.1:{self._open[0].getsockname()[1]}"
        self._spawn(self._accept)

    def _spawn(self, target: Callable[..., None], *args: Any) -> None:
        threading.Thread(target=target, args=args, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                here = self._open[0].accept()[0]
                there = socket.create_connection(("127.0.0.1", self._target)) if self._target else here
                self._open += [here, there]
                if self._target:
                    self._spawn(self._copy, here, there, None)
                self._spawn(self._copy, there, here, self)

    def _copy(self, source: socket.socket, sink: socket.socket, back: "Proxy | None") -> None:
        with contextlib.suppress(OSError), source:
            while data := source.recv(65536):
                if back and back.answer:
                    back.answer(data, sink)
                else:
                    sink.sendall(data)
            sink.shutdown(socket.SHUT_RDWR)

    def end(self) -> None:
        for sock in self._open:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()


class Machine:
    """An instance's cache over a tier, with a load that counts, and waits at `gate` if there is one."""

    def __init__(self, url: str, counts: Counter[str], **options: Any) -> None:
        self.expiry = options.setdefault("expiry", 252.0)
        self.patience = 5.0
        self.pause = Pause(6.0)
        own: dict[str, Any] = {
            "base_url": "http://127.0.0.1:1/",
            "timeout": 0.8,  # for a lease and a beat as short
            "token": TOKEN,
            "fault_expiry": 6.0,
            "probe_every": 0.2,
        }
        self.tier = SharedTier(url, pause=self.pause, **own | options)
        self.cache = Cache(max_entries=1000, max_waiting=1000, clock=options.get("clock", clock))
        self.gate: threading.Event | None = None
        self.entered = threading.Semaphore(0)
        self.answer: Callable[[], Loaded] = lambda: Loaded(VALUE, OK, self.expiry)
        self._counts = counts

    def load(self, event_ids: list[str], deadline: float) -> Iterator[tuple[str, Loaded]]:
        for event_id in event_ids:
            self._counts[event_id] += 1
            self.entered.release()
            assert not self.gate or self.gate.wait(PATIENCE)
            yield event_id, self.answer()

    def ask(self, event_id: str) -> Found:
        return self.ask_many([event_id])[event_id]

    def ask_many(self, event_ids: list[str]) -> dict[str, Found]:
        deadline, load = time.monotonic() + self.patience, self.tier.wrap(self.load)
        return self.cache.get_or_load_many(event_ids, lambda wanted: load(wanted, deadline), deadline)

    def held(self, event_id: str) -> Found:
        hit = self.cache.get(event_id)
        assert hit
        return Found(*hit, "hit", True)

    @property
    def shares(self) -> bool:
        return self.tier.snapshot().up

    def key(self, event_id: str) -> str:
        return self.tier.key(event_id)

    def end(self) -> None:
        if self.gate:
            self.gate.set()
        self.tier.close()
        self.cache.close()


@contextlib.contextmanager
def running(factory: Callable[[], asyncio.AbstractEventLoop]) -> Iterator[asyncio.AbstractEventLoop]:
    """Run an event loop in a thread, as the server runs one in the main thread."""
    runner, ended = asyncio.Runner(loop_factory=factory), asyncio.Event()

    def run() -> None:
        with runner:
            runner.run(ended.wait())

    loop = runner.get_loop()
    thread = threading.Thread(target=run)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(ended.set)
    thread.join(PATIENCE)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    with running(uvloop.new_event_loop) as made:
        yield made


@pytest.fixture(scope="module")
def shared_redis() -> Iterator[Redis]:
    server = Redis()
    yield server
    server.kill()


@pytest.fixture
def own_redis() -> Iterator[Redis]:
    """Give a test a Redis to be ill-treated."""
    server = Redis()
    yield server
    server.kill()


@pytest.fixture
def counts() -> Counter[str]:
    """Count the loads of all machines, by event."""
    return Counter()


@pytest.fixture
def machine(counts: Counter[str], loop: asyncio.AbstractEventLoop) -> Iterator[Callable[..., Machine]]:
    """Give a test a way to make machines: `machine(url, expiry=60.0)`."""
    with contextlib.ExitStack() as stack:

        def make(url: str, *, ready: bool = True, **options: Any) -> Machine:
            made = Machine(url, counts, **{"loop": loop} | options)
            stack.callback(made.end)
            if ready:
                until(lambda: made.shares, "Redis to be there")
            return made

        yield make


@pytest.fixture
def proxy() -> Iterator[Callable[..., Proxy]]:
    with contextlib.ExitStack() as stack:

        def make(*args: Any) -> Proxy:
            made = Proxy(*args)
            stack.callback(made.end)
            return made

        yield make


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(500) as executor:
        yield executor


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[str], int]:
    """Count the log records about Redis that contain a text."""
    caplog.set_level(logging.INFO, "c42c")
    return lambda text: sum(text in one.getMessage() and one.name == "c42c.redis" for one in caplog.records)


def bounded(function: Callable[[], Found]) -> Found:
    """Return what it does, well before a Redis that hangs could have been waited for."""
    began = time.monotonic()
    found = function()
    assert time.monotonic() - began < 2.0
    return found


# Sharing


def test_machines_load_once_between_them(
    shared_redis: Redis, machine: Callable[..., Machine], counts: Counter[str], pool: ThreadPoolExecutor
) -> None:
    """Callers on several machines that ask for one cold event cause one load, and all get its outcome."""
    machines = [machine(shared_redis.url) for _ in range(4)]
    event_id, gate = new_id(), threading.Event()
    for each in machines:
        each.gate = gate
    futures = [pool.submit(each.ask, event_id) for each in machines for _ in range(10)]
    until(lambda: sum(each.cache.snapshot().waiting for each in machines) == 40)
    gate.set()
    found = [future.result(PATIENCE) for future in futures]
    assert counts[event_id] == 1
    assert {each.value for each in found} == {VALUE}
    stats = [each.tier.snapshot() for each in machines]
    assert sum(each.loaded for each in stats) == 1
    assert sum(each.found + each.awaited for each in stats) == 3


def test_an_answer_ages_from_its_load_wherever_it_is_served(
    shared_redis: Redis, machine: Callable[..., Machine]
) -> None:
    """An answer that was taken over expires no later than where it was loaded, and knows its age."""
    first, second = machine(shared_redis.url), machine(shared_redis.url)
    event_id = new_id()
    first.ask(event_id)
    time.sleep(0.3)
    assert second.ask(event_id).result == "shared"
    loaded, taken = first.held(event_id), second.held(event_id)
    assert taken.ttl <= loaded.ttl
    assert taken.ttl == pytest.approx(loaded.ttl, abs=0.5)
    assert taken.age >= loaded.age >= 0.3
    assert taken.age + taken.ttl == pytest.approx(first.expiry)
    _, headers, _ = response.render(second.ask(event_id)._replace(result="shared"), None)
    assert ("Cache-Control", "max-age=251") in headers


def test_what_was_waited_for_is_no_older_than_its_load(
    shared_redis: Redis, machine: Callable[..., Machine], pool: ThreadPoolExecutor
) -> None:
    """Who waits for another machine's load gets an answer that ages from that load's beginning."""
    first, second = machine(shared_redis.url), machine(shared_redis.url)
    event_id, first.gate = new_id(), threading.Event()
    loading = pool.submit(first.ask, event_id)
    assert first.entered.acquire(timeout=PATIENCE)
    waiting = pool.submit(second.ask, event_id)
    until(lambda: second.cache.snapshot().waiting)
    time.sleep(0.3)
    first.gate.set()
    loading.result(PATIENCE)
    waiting.result(PATIENCE)
    loaded, taken = first.held(event_id), second.held(event_id)
    assert taken.ttl <= loaded.ttl
    assert taken.age >= loaded.age >= 0.3


def test_errors_are_shared(shared_redis: Redis, machine: Callable[..., Machine], counts: Counter[str]) -> None:
    """A fault is shared for its own lifetime, with all that its answer says."""
    first, second = machine(shared_redis.url), machine(shared_redis.url)
    value = values.failure(failed(503, "<p>Störung", retry_after=7.5))
    first.answer = lambda: Loaded(value, FAULT, 6.0)
    event_id = new_id()
    first.ask(event_id)
    found = second.ask(event_id)
    assert (found.value, found.kind, counts[event_id]) == (value, FAULT, 1)
    assert found.age + found.ttl == pytest.approx(6.0)


def test_expiry_is_the_same_for_all(shared_redis: Redis, machine: Callable[..., Machine], counts: Counter[str]) -> None:
    """When an answer's time is up, no machine serves it any more."""
    first, second = (machine(shared_redis.url, expiry=0.3) for _ in range(2))
    event_id = new_id()
    first.ask(event_id)
    second.ask(event_id)
    until(lambda: not first.cache.get(event_id))
    assert second.cache.get(event_id) is None
    assert second.ask(event_id).result == "miss"
    assert counts[event_id] == 2


@pytest.mark.parametrize(
    "other",
    [{"token": "another-token"}, {"base_url": "http://127.0.0.1:9/"}, {"expiry": 240.0}, {"fault_expiry": 7.0}],
    ids=str,
)
def test_only_the_same_is_shared(
    shared_redis: Redis, machine: Callable[..., Machine], counts: Counter[str], other: dict[str, Any]
) -> None:
    """Another token, another upstream or another lifetime never gets these answers."""
    event_id = new_id()
    machine(shared_redis.url).ask(event_id)
    machine(shared_redis.url, **other).ask(event_id)
    assert counts[event_id] == 2
    with shared_redis.client() as client:
        assert not any(TOKEN.encode() in key for key in client.keys("*"))


def test_batches(
    shared_redis: Redis, machine: Callable[..., Machine], counts: Counter[str], pool: ThreadPoolExecutor
) -> None:
    """Batches that overlap crosswise load every event once, and wait for each other without end never."""
    first, second = machine(shared_redis.url), machine(shared_redis.url)
    ids = [new_id() for _ in range(60)]
    first.ask(ids[0])
    gate = first.gate = second.gate = threading.Event()
    batches = [pool.submit(first.ask_many, ids[:40])]
    assert first.entered.acquire(timeout=PATIENCE)
    assert first.entered.acquire(timeout=PATIENCE)
    batches.append(pool.submit(second.ask_many, ids[:19:-1]))
    single = pool.submit(second.ask, ids[5])
    until(lambda: second.cache.snapshot().waiting == 2)
    gate.set()
    assert list(batches[0].result(PATIENCE)) == ids[:40]
    assert list(batches[1].result(PATIENCE)) == ids[:19:-1]
    assert single.result(PATIENCE).value == VALUE
    assert dict(counts) == dict.fromkeys(ids, 1)


def test_what_redis_has_of_a_list_is_there_at_once(
    shared_redis: Redis, machine: Callable[..., Machine], counts: Counter[str], pool: ThreadPoolExecutor
) -> None:
    """A request for an event that Redis has doesn't wait for the rest of somebody else's list."""
    first, second = machine(shared_redis.url), machine(shared_redis.url)
    there, missing = new_id(), new_id()
    first.ask(there)
    second.gate = threading.Event()
    listed = pool.submit(second.ask_many, [missing, there])
    assert second.entered.acquire(timeout=PATIENCE)
    assert second.ask(there).value == VALUE
    assert not listed.done()
    second.gate.set()
    assert {key: found.result for key, found in listed.result(PATIENCE).items()} == {missing: "miss", there: "shared"}
    assert counts == {there: 1, missing: 1}


@pytest.mark.parametrize("loader", ["here", "elsewhere"])
def test_nothing_outlives_its_time_in_a_list(
    loader: str, shared_redis: Redis, machine: Callable[..., Machine], counts: Counter[str], pool: ThreadPoolExecutor
) -> None:
    """What Redis had at first, and what expired while the rest of the list was waited for, is loaded again."""
    first, second = (machine(shared_redis.url, expiry=0.5) for _ in range(2))
    there, missing = new_id(), new_id()
    first.ask(there)
    loading = second if loader == "here" else first
    loading.gate = threading.Event()
    loading.answer = lambda: Loaded(VALUE, OK, 252.0)
    alone = pool.submit(first.ask, missing) if loader == "elsewhere" else None
    listed = pool.submit(second.ask_many, [there, missing])
    assert loading.entered.acquire(timeout=PATIENCE)
    until(lambda: second.cache.get(there), "the answer from Redis")
    until(lambda: not second.cache.get(there), "its end")
    assert not listed.done()
    loading.gate.set()
    found = listed.result(PATIENCE)
    assert all(each.ttl > 0 for each in found.values())
    assert found[missing].result == ("miss" if loader == "here" else "awaited")
    assert (counts[there], counts[missing]) == (2, 1)
    assert not alone or alone.result(PATIENCE).value == VALUE


def test_how_an_answer_came_is_told(
    shared_redis: Redis, machine: Callable[..., Machine], pool: ThreadPoolExecutor
) -> None:
    """`Cache-Status` tells an answer that was found in Redis, and one for which another instance was waited."""
    first, second = machine(shared_redis.url), machine(shared_redis.url)
    event_id, first.gate = new_id(), threading.Event()
    loading = pool.submit(first.ask, event_id)
    assert first.entered.acquire(timeout=PATIENCE)
    waiting = pool.submit(second.ask_many, [event_id])
    until(lambda: second.cache.snapshot().waiting)
    time.sleep(0.05)  # or until it has looked once: no test can see that
    first.gate.set()
    awaited = waiting.result(PATIENCE)
    shared = machine(shared_redis.url).ask_many([event_id])
    assert dict(response.render(loading.result(PATIENCE), None)[1])["Cache-Status"] == (
        "c42c; fwd=miss; fwd-status=200; stored; ttl=251"
    )
    for found, detail in [(awaited, "collapsed; detail=shared"), (shared, "detail=shared")]:
        for _, headers, _ in (response.render(found[event_id], None), response.render_many(found, None)):
            assert dict(headers)["Cache-Status"] == f"c42c; fwd=miss; {detail}; stored; ttl=251"


def test_the_pause_is_shared(shared_redis: Redis, machine: Callable[..., Machine], counts: Counter[str]) -> None:
    """A pause that the upstream asks one machine for holds for all, and for none longer, however often it is told."""
    first, second = (machine(shared_redis.url, token="a-token-that-is-paused") for _ in range(2))
    value = values.failure(failed(429, retry_after=30.0))

    def answer() -> Loaded:
        first.pause.begin("30")
        return Loaded(value, FAULT, 30.0)

    first.answer = answer
    first.ask(event_id := new_id())
    first.answer = lambda: Loaded(VALUE, OK, 252.0)
    for _ in range(5):
        second.ask(new_id())
        first.ask(new_id())
    asked, told = first.pause.left, second.pause.left
    assert 25 < told <= asked <= 30
    _, headers, _ = response.render(second.ask(event_id), None)
    assert ("Retry-After", "30") in headers
    assert counts[event_id] == 1


def test_the_last_millisecond(shared_redis: Redis, machine: Callable[..., Machine]) -> None:
    """An answer whose time is up but for less than a millisecond is not there, rather than something that is wrong."""
    first = machine(shared_redis.url)
    with shared_redis.client() as client:
        for _ in range(30):
            key = first.key(new_id())
            client.set(key, b"answer", px=3)
            while len(reply := client.eval(LOOK_UP, 2, key, f"{key}:lock", "token", 1000, "")) > 1:
                assert reply[2] > 0


def test_what_is_no_answer_is_replaced(
    shared_redis: Redis, machine: Callable[..., Machine], counts: Counter[str], said: Callable[[str], int]
) -> None:
    """Whatever else stands under an answer's key is loaded anew and replaced; nothing of it is served."""
    first, second = machine(shared_redis.url), machine(shared_redis.url)
    good = values.pack(Loaded(VALUE, OK, 252.0))
    senseless = [b"", b"\xff\n", b"[]\n", b"[" * 100000, good[:-1], good + b" ", good.replace(b"252.0", b"250.0")]
    senseless += [values.pack(Loaded(VALUE, OK, 10.0))]  # less than what is left of it there
    with shared_redis.client() as client:
        for number, content in enumerate(senseless):
            event_id = new_id()
            client.set(first.key(event_id), content, px=60000)
            assert first.ask(event_id).value == VALUE, content
            assert second.ask(event_id).result == "shared", content
            assert (counts[event_id], said("something else")) == (1, number)  # nothing is said of the empty one
        client.set(first.key(event_id := new_id()), good)  # without an end
        assert first.ask(event_id).result == "miss"
        assert client.pttl(first.key(event_id)) > 0
    assert first.shares


# Clocks


class Shifted:
    """A clock that a test sets forward."""

    by = 0.0

    def __call__(self) -> float:
        return clock() + self.by


def test_a_machine_that_is_suspended_in_mid_load(shared_redis: Redis, machine: Callable[..., Machine]) -> None:
    """The time for which a machine is suspended while it loads counts: its answer lives so much shorter for all."""
    shifted = Shifted()
    first, second = machine(shared_redis.url, clock=shifted), machine(shared_redis.url)

    def answer() -> Loaded:
        shifted.by += 100
        return Loaded(VALUE, OK, 252.0)

    first.answer = answer
    assert 150 < first.ask(event_id := new_id()).ttl <= 152
    assert 150 < second.ask(event_id).ttl <= 152


def test_a_redis_whose_clock_falls_behind(
    shared_redis: Redis, machine: Callable[..., Machine], counts: Counter[str]
) -> None:
    """Answers that Redis keeps for longer, as its clock stood still or was set back, are not served for longer."""
    shifted, others = Shifted(), machine(shared_redis.url)
    one = machine(shared_redis.url, clock=shifted)
    for event_id in (ids := [new_id() for _ in range(4)]):
        others.ask(event_id)
    assert one.ask(ids[0]).ttl > 251
    shifted.by = 200  # as if Redis's clock was set back by that, after the answers were put there
    assert 50 < one.ask(ids[1]).ttl < 52
    shifted.by = 300
    assert one.ask(ids[2]).result == "miss"
    assert counts[ids[2]] == 2
    assert one.ask(ids[2]).result == "hit"
    found = machine(shared_redis.url).ask(ids[2])
    assert (found.result, found.ttl > 251) == ("shared", True)


def test_a_clock_that_fell_behind_is_forgotten(shared_redis: Redis, machine: Callable[..., Machine]) -> None:
    """Once everything from before Redis's clock was set back has expired, answers have their full lives again.

    That counts from when it was noticed, however long nobody had looked before.
    """
    shifted = Shifted()
    others, one = (machine(shared_redis.url, expiry=0.4, clock=each) for each in (clock, shifted))
    one.ask(new_id())
    time.sleep(0.7)
    shifted.by = 0.2

    def left() -> float:
        others.ask(event_id := new_id())
        return one.ask(event_id).ttl

    assert left() < 0.2
    until(lambda: left() > 0.3)


# Locks


def test_a_lock_lasts_as_long_as_its_load(
    shared_redis: Redis, machine: Callable[..., Machine], counts: Counter[str], pool: ThreadPoolExecutor
) -> None:
    """A load may take longer than a lock lasts by itself."""
    first, second = (machine(shared_redis.url, timeout=0.4) for _ in range(2))
    event_id, first.gate = new_id(), threading.Event()
    loading = pool.submit(first.ask, event_id)
    assert first.entered.acquire(timeout=PATIENCE)
    waiting = pool.submit(second.ask, event_id)
    began = time.monotonic()
    with shared_redis.client() as client:
        until(lambda: not client.exists(f"{first.key(event_id)}:lock") or time.monotonic() > began + 0.8)
        assert client.exists(f"{first.key(event_id)}:lock")
        first.gate.set()
        assert loading.result(PATIENCE).value == waiting.result(PATIENCE).value
        assert counts[event_id] == 1
        assert not client.exists(f"{first.key(event_id)}:lock")


@pytest.mark.parametrize(("timeout", "longest"), [(0.4, 0.4), (5.0, 2.0)])
def test_a_lock_lasts_by_itself_for_two_seconds_at_most(
    timeout: float, longest: float, shared_redis: Redis, machine: Callable[..., Machine]
) -> None:
    """A lock ends by itself after two seconds, or the time-out if that is shorter."""
    first, left = machine(shared_redis.url, timeout=timeout), list[int]()
    event_id = new_id()

    def answer() -> Loaded:
        with shared_redis.client() as client:
            left.append(client.pttl(f"{first.key(event_id)}:lock"))
        return Loaded(VALUE, OK, 252.0)

    first.answer = answer
    first.ask(event_id)
    assert longest * 900 < left[0] <= longest * 1000


@pytest.mark.parametrize("how", ["flushed", "restarted", "run out"])
def test_a_lock_that_is_gone_is_lost(
    how: str, own_redis: Redis, machine: Callable[..., Machine], counts: Counter[str], pool: ThreadPoolExecutor
) -> None:
    """Whoever has lost its lock in mid-load answers its own callers, stores nothing, and holds nobody up."""
    first, second = (machine(own_redis.url, timeout=0.4) for _ in range(2))
    event_id, first.gate = new_id(), threading.Event()
    loading = pool.submit(first.ask, event_id)
    assert first.entered.acquire(timeout=PATIENCE)
    if how == "restarted":
        own_redis.kill()
        until(lambda: not first.shares)
        own_redis.start()
        until(lambda: first.shares and second.shares)
    with own_redis.client() as client:
        if how == "flushed":
            client.flushall()
        elif how == "run out":
            client.delete(f"{first.key(event_id)}:lock")
        renewed = client.info("commandstats")["cmdstat_eval"]["calls"] + 5
        until(lambda: client.info("commandstats")["cmdstat_eval"]["calls"] >= renewed, "some renewals")
        assert not client.exists(f"{first.key(event_id)}:lock")
        first.gate.set()
        assert loading.result(PATIENCE).value == VALUE
        assert not client.exists(first.key(event_id))
    assert second.ask(event_id).result == "miss"
    assert counts[event_id] == 2


@pytest.mark.parametrize(
    "late", [values.failure(failed(504)), values.success({"id": "1", "title": "old", "names": []})]
)
def test_a_late_answer_replaces_no_other(
    late: values.Kept, shared_redis: Redis, machine: Callable[..., Machine], pool: ThreadPoolExecutor
) -> None:
    """What another instance stored after a lock was lost stays, whatever the one that lost it comes with."""
    first, second, third = (machine(shared_redis.url) for _ in range(3))
    event_id, first.gate = new_id(), threading.Event()
    first.answer = lambda: Loaded(late, OK if values.Value(*late).status == 200 else FAULT, 252.0)
    loading = pool.submit(first.ask, event_id)
    assert first.entered.acquire(timeout=PATIENCE)
    with shared_redis.client() as client:
        client.delete(f"{first.key(event_id)}:lock")
    assert second.ask(event_id).result == "miss"
    first.gate.set()
    assert loading.result(PATIENCE).value == late
    found = third.ask(event_id)
    assert (found.result, found.value) == ("shared", VALUE)


def test_a_lock_that_became_anothers_is_left_alone(shared_redis: Redis, machine: Callable[..., Machine]) -> None:
    """Who has lost its lock neither releases the new holder's nor puts its own answer in the way."""
    first = machine(shared_redis.url)
    event_id = new_id()
    with shared_redis.client() as client:

        def answer() -> Loaded:
            client.set(f"{first.key(event_id)}:lock", "another's", px=1000)
            return Loaded(VALUE, OK, 252.0)

        first.answer = answer
        assert first.ask(event_id).value == VALUE
        assert client.get(f"{first.key(event_id)}:lock") == b"another's"
        assert not client.exists(first.key(event_id))


def test_an_instance_that_is_suspended_in_mid_load(
    start: Callable[..., Service],
    upstream: Standin,
    shared_redis: Redis,
    machine: Callable[..., Machine],
    pool: ThreadPoolExecutor,
) -> None:
    """An instance that was suspended for longer than its lock lasts doesn't replace the others' answer with its 504."""
    suspended = start(C42_CACHE_URL=shared_redis.url, C42_TIMEOUT="0.5")
    until(lambda: "answers are shared" in suspended.log)
    second, third = (machine(shared_redis.url, base_url=upstream.base_url) for _ in range(2))
    upstream.rule("events", event_id := new_id(), hang=True)
    late = pool.submit(suspended.event, event_id)
    until(lambda: upstream.calls("events", event_id) == 1)
    suspended.process.send_signal(signal.SIGSTOP)
    try:
        assert second.ask(event_id).result == "miss"
    finally:
        suspended.process.send_signal(signal.SIGCONT)
    assert late.result(PATIENCE).status_code == 504
    found = third.ask(event_id)
    assert (found.result, found.value) == ("shared", VALUE)


def test_a_load_that_raises_releases_its_lock(
    shared_redis: Redis, machine: Callable[..., Machine], counts: Counter[str], pool: ThreadPoolExecutor
) -> None:
    """A load that raises leaves nothing behind, and another machine that waits for it loads at once."""
    first, second = machine(shared_redis.url), machine(shared_redis.url)
    event_id, first.gate = new_id(), threading.Event()

    def answer() -> Loaded:
        raise ZeroDivisionError

    first.answer = answer
    loading = pool.submit(first.ask, event_id)
    assert first.entered.acquire(timeout=PATIENCE)
    waiting = pool.submit(second.ask, event_id)
    until(lambda: second.cache.snapshot().waiting)
    first.gate.set()
    with pytest.raises(ZeroDivisionError):
        loading.result(PATIENCE)
    assert waiting.result(PATIENCE).value == VALUE
    assert counts[event_id] == 2
    with shared_redis.client() as client:
        assert not client.exists(f"{first.key(event_id)}:lock")


@pytest.mark.parametrize(("timeout", "before"), [(0.5, 0.0), (2 * PATIENCE, 2 * PATIENCE)])
def test_nobody_waits_longer_than_the_time_out(
    timeout: float, before: float, shared_redis: Redis, machine: Callable[..., Machine], pool: ThreadPoolExecutor
) -> None:
    """Who waits for another machine's load in vain asks by itself, with what is left of its own time-out: nothing.

    What it has waited before counts.
    """
    first, second = (machine(shared_redis.url, timeout=timeout) for _ in range(2))
    event_id, first.gate = new_id(), threading.Event()
    pool.submit(first.ask, event_id)
    assert first.entered.acquire(timeout=PATIENCE)
    used = Future[float]()

    def load(event_ids: list[str], deadline: float) -> Iterator[tuple[str, Loaded]]:
        used.set_result(time.monotonic() - deadline)
        yield event_id, Loaded(VALUE, OK, 252.0)

    with shared_redis.client() as client:  # one that never ends
        client.set(f"{first.key(event_id)}:lock", "another's", px=60000)
        loading, deadline = second.tier.wrap(load), time.monotonic() + timeout - before
        found = second.cache.get_or_load_many([event_id], lambda event_ids: loading(event_ids, deadline))[event_id]
        client.delete(f"{first.key(event_id)}:lock")
    first.gate.set()
    assert 0 <= used.result(PATIENCE) < PATIENCE
    assert found.result == "miss"
    assert found.age < 0.5  # it counts from its own load
    assert second.tier.snapshot().alone == 1


# Redis fails


def nonsense(answer: bytes) -> Callable[[bytes, socket.socket], None]:
    return lambda data, sink: sink.sendall(answer * max(1, data.count(b"EVAL") + data.count(b"PTTL")))


def in_drops(answer: bytes, sink: socket.socket) -> None:
    for at in range(len(answer)):
        sink.sendall(answer[at : at + 1])
        time.sleep(0.1)


WRONG: dict[str, Callable[[bytes, socket.socket], None]] = {
    "web server": nonsense(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"),
    "OK to all": nonsense(b"+OK\r\n"),
    "1 to all": nonsense(b":1\r\n"),
    "nothing to all": nonsense(b"*0\r\n"),
    "noise": nonsense(bytes(range(256))),
    "endless": nonsense(b"$500000000\r\nxxx"),
    "echo": lambda data, sink: sink.sendall(data),
    "an error": nonsense(b"-LOADING Redis is loading the dataset in memory\r\n"),
    "silence": lambda data, sink: None,
    "drops": lambda data, sink: in_drops(b"+" * 40, sink),
    "cut": lambda data, sink: sink.shutdown(socket.SHUT_RDWR),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_server_that_is_no_redis(
    kind: str, proxy: Callable[..., Proxy], machine: Callable[..., Machine], said: Callable[[str], int], caplog: Any
) -> None:
    """Whatever answers in Redis's place, the service goes on by itself, says so once, and tells nobody the password."""
    lonely = machine(proxy(0, WRONG[kind]).url, ready=False)
    for _ in range(10):
        assert bounded(lambda: lonely.ask(new_id())).value == VALUE
    assert not lonely.shares
    assert lonely.tier.snapshot().alone == 10
    assert said("Redis is lost") == 1
    assert said("Redis is back") == 0
    assert not any(secret in caplog.text for secret in (PASSWORD, "se/cret", TOKEN))


def test_a_password_that_is_not_ascii(
    proxy: Callable[..., Proxy], machine: Callable[..., Machine], said: Callable[[str], int], caplog: Any
) -> None:
    """However a password is given and comes back, cut or escaped, it is not in the log."""
    password = "pässword"
    for answer in ("x" * 170 + password, "-" + "x" * 170 + password):
        between = proxy(0, nonsense(answer.encode() + b"\r\n"))
        machine(f"redis://{between.url.partition('@')[2]}?password={password}", ready=False)
    until(lambda: said("Redis is lost") == 2)
    assert not re.search("p(ä|.xc3)", caplog.text)


@pytest.mark.parametrize("password", ["Zq%2FZq", "%27Zq%5CZq%22"])
@pytest.mark.parametrize("before", [b"-ERR unknown command ", b"-ERR " + 183 * b"-", b"", b":"])
def test_a_password_that_comes_back(
    before: bytes, password: str, proxy: Callable[..., Proxy], machine: Callable[..., Machine], caplog: Any
) -> None:
    """No part of the password is in the log, wherever the URL has it, and however a server sends it back."""
    url = proxy(0, lambda data, sink: sink.sendall(before + data.replace(b"\r\n", b" ") + b"\r\n")).url
    bare = url.replace(f":{PASSWORD}@", "")
    for each in (url.replace(PASSWORD, password), f"{bare}?password={password}"):
        assert bounded(lambda each=each: machine(each, ready=False).ask(new_id())).value == VALUE  # type: ignore[misc]
    until(lambda: caplog.text.count("Redis is lost") == 2)
    assert "Zq" not in caplog.text


@pytest.mark.parametrize("answer", [b"+OK\r\n", b":1\r\n", b"*0\r\n", b"*1\r\n:1\r\n", b"*3\r\n:1\r\n+a\r\n+b\r\n"])
def test_a_redis_that_begins_to_talk_nonsense(
    answer: bytes,
    shared_redis: Redis,
    proxy: Callable[..., Proxy],
    machine: Callable[..., Machine],
) -> None:
    """Answers of a wrong kind to the real questions are no answers; each caller then loads by itself."""
    between = proxy(shared_redis.port)
    one = machine(between.url.replace(f":{PASSWORD}@", ""))
    one.patience = 0.5
    between.answer = nonsense(answer)
    assert bounded(lambda: one.ask(new_id())).value == VALUE
    between.answer = None
    until(lambda: one.shares)


def test_a_redis_that_is_not_there_at_first(
    own_redis: Redis, machine: Callable[..., Machine], counts: Counter[str], said: Callable[[str], int]
) -> None:
    """The service starts without Redis, says so once, and shares from when Redis is there; a restart is survived."""
    own_redis.kill()
    first, second = (machine(own_redis.url, ready=False) for _ in range(2))
    for each in (first, second):
        assert not each.shares
        assert bounded(lambda each=each: each.ask("alone")).value == VALUE  # type: ignore[misc]
    assert counts["alone"] == 2
    for _ in range(2):
        own_redis.start()
        until(lambda: first.shares and second.shares)
        event_id = new_id()
        assert (first.ask(event_id).result, second.ask(event_id).result) == ("miss", "shared")
        own_redis.kill()
        assert bounded(lambda: first.ask(new_id())).value == VALUE
        until(lambda: not (first.shares or second.shares))
    assert (said("Redis is lost"), said("Redis is back")) == (6, 4)


def test_a_redis_that_stands_still(
    own_redis: Redis, machine: Callable[..., Machine], said: Callable[[str], int], pool: ThreadPoolExecutor
) -> None:
    """While Redis is stopped nobody waits for it, and it is taken back when it goes on."""
    one = machine(own_redis.url)
    own_redis.signal(signal.SIGSTOP)
    futures = [pool.submit(bounded, lambda: one.ask(new_id())) for _ in range(50)]
    assert {future.result(PATIENCE).value for future in futures} == {VALUE}
    until(lambda: not one.shares)
    own_redis.signal(signal.SIGCONT)
    until(lambda: one.shares)
    assert (said("Redis is lost"), said("Redis is back")) == (1, 1)


def test_what_is_written_late_lives_no_longer(own_redis: Redis, machine: Callable[..., Machine]) -> None:
    """An answer that reaches Redis late, as Redis stood still, expires there when it does here."""
    one = machine(own_redis.url, expiry=3.0, timeout=5.0)
    event_id = new_id()

    def answer() -> Loaded:
        own_redis.signal(signal.SIGSTOP)
        return Loaded(VALUE, OK, one.expiry)

    one.answer = answer
    one.ask(event_id)
    time.sleep(0.7)
    own_redis.signal(signal.SIGCONT)
    until(lambda: one.shares)
    with own_redis.client() as client:
        left = client.pttl(one.key(event_id)) / 1000
        here = one.held(event_id)
    assert 0 < left < 2.4
    assert left <= here.ttl + 0.05  # what it took to look here after there


@pytest.mark.parametrize("delay", [0.1, 0.4])
def test_a_slow_redis(
    delay: float,
    shared_redis: Redis,
    proxy: Callable[..., Proxy],
    machine: Callable[..., Machine],
    said: Callable[[str], int],
) -> None:
    """A Redis that is slow for good is used or left, and the log does not fill with it."""
    between = proxy(shared_redis.port)
    one = machine(between.url.replace(f":{PASSWORD}@", ""))

    def slowly(data: bytes, sink: socket.socket) -> None:
        time.sleep(delay)
        sink.sendall(data)

    between.answer = slowly
    for _ in range(6):
        assert bounded(lambda: one.ask(new_id())).value == VALUE
    assert said("Redis is lost") in ([1] if delay > link.PATIENCE else [0, 1])
    assert said("Redis is back") == 0
    between.answer = None
    until(lambda: one.shares)


def test_no_answer_waits_longer_for_redis_in_all(
    shared_redis: Redis, proxy: Callable[..., Proxy], machine: Callable[..., Machine], pool: ThreadPoolExecutor
) -> None:
    """Once its load has ended elsewhere, an answer waits 250 ms at most for a Redis that stalls 100 ms at a time."""
    between, stalls = proxy(shared_redis.port), Counter[str]()
    first = machine(shared_redis.url)
    second = machine(between.url.replace(f":{PASSWORD}@", ""), probe_every=PATIENCE)

    def stall(data: bytes, sink: socket.socket) -> None:
        time.sleep(0.1)
        stalls["all"] += 1
        sink.sendall(data)

    between.answer = stall
    event_id, first.gate = new_id(), threading.Event()
    loading = pool.submit(first.ask, event_id)
    assert first.entered.acquire(timeout=PATIENCE)
    waiting = pool.submit(second.ask, event_id)
    until(lambda: stalls["all"] >= 5, "some looks")
    assert second.tier.snapshot().up
    first.gate.set()
    loading.result(PATIENCE)
    before = stalls["all"]
    assert waiting.result(PATIENCE).value == VALUE
    assert stalls["all"] - before <= 2  # a third would have made it 300 ms


def test_nothing_half_read_is_used(
    shared_redis: Redis, proxy: Callable[..., Proxy], machine: Callable[..., Machine], counts: Counter[str]
) -> None:
    """An answer of Redis that comes after nobody waits for it any more is never taken for the next one."""
    between, held_back = proxy(shared_redis.port), list[tuple[bytes, socket.socket]]()
    one, other = machine(between.url.replace(f":{PASSWORD}@", "")), machine(shared_redis.url)
    other.answer = lambda: Loaded(values.success({"id": "2", "title": None, "names": []}), OK, 252.0)
    other.ask(late := new_id())
    between.answer = lambda data, sink: held_back.append((data, sink))
    assert bounded(lambda: one.ask(late)).value == VALUE
    until(lambda: not one.shares)
    between.answer = None
    for data, sink in held_back:
        with contextlib.suppress(OSError):
            sink.sendall(data)
    until(lambda: one.shares)
    for _ in range(5):
        assert one.ask(event_id := new_id()).value == VALUE
        assert other.ask(event_id).value == VALUE
        assert counts[event_id] == 1


def test_a_loop_that_is_held_up_is_no_slow_redis(
    shared_redis: Redis,
    machine: Callable[..., Machine],
    said: Callable[[str], int],
    loop: asyncio.AbstractEventLoop,
    pool: ThreadPoolExecutor,
) -> None:
    """On a crowded machine, where the event loop itself has to wait, Redis is not taken for slow."""
    one, other = machine(shared_redis.url), machine(shared_redis.url)
    other.ask(event_id := new_id())
    asking = [pool.submit(one.ask, event_id)]
    loop.call_soon_threadsafe(time.sleep, 2 * link.PATIENCE)
    asking.append(pool.submit(one.ask, new_id()))
    assert [future.result(PATIENCE).result for future in asking] == ["shared", "miss"]
    assert one.tier.snapshot() == (1, 0, 1, 0, True)
    assert said("Redis is lost") == 0


def test_a_name_that_is_looked_up_for_ever(loop: asyncio.AbstractEventLoop, said: Callable[[str], int]) -> None:
    """A name server that doesn't answer costs one thread, keeps nobody waiting, and says so once."""
    began, end, calls = threading.Semaphore(0), threading.Event(), list[tuple[str, Any]]()
    before = set(threading.enumerate())

    def look_up(host: str, port: Any) -> None:
        calls.append((host, port))
        began.release()
        end.wait(PATIENCE)

    one = link.Link(
        "redis://somewhere:1234",
        probe=("PING",),
        right=b"PONG",
        regular=lambda: [],
        beat=0.02,
        probe_every=0.02,
        loop=loop,
        look_up=look_up,
    )
    assert began.acquire(timeout=PATIENCE)
    for _ in range(2):  # at first it is not known yet, and then it is lost
        with pytest.raises(link.Lost):
            one.ask([("PING",)], link.PATIENCE)
        until(lambda: one.up is False)
    time.sleep(0.2)  # it is tried again and again
    assert {thread.name for thread in set(threading.enumerate()) - before} == {"c42c-redis-host_0"}
    assert calls == [("somewhere", 1234)]
    assert said("Redis is lost") == 1
    one.close()
    end.set()


def test_a_redis_that_is_lost_keeps_nobody_waiting(
    proxy: Callable[..., Proxy],
    machine: Callable[..., Machine],
    loop: asyncio.AbstractEventLoop,
    pool: ThreadPoolExecutor,
) -> None:
    """While Redis is lost, a load doesn't even wait for the event loop."""
    one, gate = machine(proxy(0, WRONG["silence"]).url, ready=False), threading.Event()
    one.ask(new_id())
    until(lambda: not one.shares)
    loop.call_soon_threadsafe(gate.wait, PATIENCE)
    try:
        assert pool.submit(one.ask, new_id()).result(4).value == VALUE
    finally:
        gate.set()


def test_a_redis_that_is_slow_is_not_back(
    shared_redis: Redis, proxy: Callable[..., Proxy], machine: Callable[..., Machine], said: Callable[[str], int]
) -> None:
    """A Redis that was lost is back once it answers quickly, and not while it takes 150 ms for one small answer."""
    between, answers = proxy(shared_redis.port), list[bytes]()
    one = machine(between.url.replace(f":{PASSWORD}@", ""))
    between.answer = WRONG["silence"]
    one.ask(new_id())
    until(lambda: not one.shares)

    def slowly(data: bytes, sink: socket.socket) -> None:
        time.sleep(0.15)
        sink.sendall(data)
        answers.append(data)

    between.answer = slowly
    until(lambda: len(answers) >= 5, "several tries")
    assert said("Redis is back") == 0
    between.answer = None
    until(lambda: one.shares)


def test_the_first_who_has_waited_for_too_long_ends_it_for_all(
    own_redis: Redis, loop: asyncio.AbstractEventLoop, pool: ThreadPoolExecutor
) -> None:
    """As soon as one caller has waited for Redis for as long as it may, it is lost to all of them."""
    ping: link.Command = ("PING",)
    options: dict[str, Any] = {"regular": lambda: [], "beat": 0.05, "probe_every": PATIENCE, "loop": loop}
    one = link.Link(own_redis.url, probe=ping, right=b"PONG", **options)
    until(lambda: one.up)
    own_redis.signal(signal.SIGSTOP)
    patient = pool.submit(one.ask, [ping], 3 * PATIENCE)
    with pytest.raises(link.Lost):
        one.ask([ping], 0.1)
    with pytest.raises(link.Lost):
        patient.result(PATIENCE)
    one.close()


def test_a_probe_must_be_answered_rightly(
    shared_redis: Redis, loop: asyncio.AbstractEventLoop, said: Callable[[str], int]
) -> None:
    """A Redis that answers the probe, but not as it should, is lost."""
    options: dict[str, Any] = {"regular": lambda: [], "beat": 0.05, "probe_every": 0.05, "loop": loop}
    one = link.Link(shared_redis.url, probe=("PING",), right=b"ping", **options)
    until(lambda: one.up is False)
    assert said("Redis is lost, and this instance is on its own: it answers nonsense") == 1
    one.close()


def test_one_wrong_answer(
    shared_redis: Redis, proxy: Callable[..., Proxy], machine: Callable[..., Machine], said: Callable[[str], int]
) -> None:
    """One answer that nobody asked for drops the connection, with the right ones that come after it."""
    between = proxy(shared_redis.port)
    one = machine(between.url.replace(f":{PASSWORD}@", ""))

    def begin_wrongly(data: bytes, sink: socket.socket) -> None:
        if data.startswith(b":"):  # what a look begins with; a probe does not
            between.answer = None
            data = b":0\r\n" + data
        sink.sendall(data)

    between.answer = begin_wrongly
    assert one.ask(new_id()).value == VALUE
    until(lambda: said("Redis is back") == 1)
    assert said("it answers nonsense (TypeError)") == 1
    assert [one.ask(new_id()).result for _ in range(5)] == ["miss"] * 5
    assert one.tier.snapshot().loaded == 5


def test_a_connection_that_hangs_is_dropped_at_once(
    shared_redis: Redis, proxy: Callable[..., Proxy], machine: Callable[..., Machine]
) -> None:
    """A connection over which no answer came in time is closed, and not only when Redis is tried again."""
    between = proxy(shared_redis.port)
    with shared_redis.client() as client:
        before = len(client.client_list())
        one = machine(between.url.replace(f":{PASSWORD}@", ""), probe_every=3 * PATIENCE)
        between.answer = WRONG["silence"]
        one.ask(new_id())
        until(lambda: len(client.client_list()) <= before)
    assert not one.shares


def test_drops_are_not_waited_for(
    shared_redis: Redis, proxy: Callable[..., Proxy], machine: Callable[..., Machine]
) -> None:
    """An answer that comes in drops, a byte every 50 ms, is waited for 250 ms in all, not after each byte."""
    between, drops = proxy(shared_redis.port), list[bytes]()
    one = machine(between.url.replace(f":{PASSWORD}@", ""))

    def drip(data: bytes, sink: socket.socket) -> None:
        for at in range(len(data)):
            sink.sendall(data[at : at + 1])
            drops.append(data)
            time.sleep(0.05)

    between.answer = drip
    assert one.ask(new_id()).value == VALUE
    assert len(drops) < 10
    assert one.tier.snapshot().alone == 1


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, None])
def test_any_loop(
    factory: Callable[[], asyncio.AbstractEventLoop] | None, shared_redis: Redis, machine: Callable[..., Machine]
) -> None:
    """Redis is asked on whatever loop there is, and on one of its own where there is none."""
    with running(factory) if factory else contextlib.nullcontext() as own:
        first, second = (machine(shared_redis.url, loop=own) for _ in range(2))
        event_id = new_id()
        assert (first.ask(event_id).result, second.ask(event_id).result) == ("miss", "shared")
        daemons = [thread.daemon for thread in threading.enumerate() if thread.name == "c42c-redis"]
        assert own or (daemons and all(daemons))


def test_a_tier_that_is_closed(
    shared_redis: Redis, machine: Callable[..., Machine], said: Callable[[str], int]
) -> None:
    """Once it is closed, loads go on without Redis, its connection is gone, and nothing is said of a loss."""
    one = machine(shared_redis.url)
    with shared_redis.client() as client:
        connected = len(client.client_list())
        one.tier.close()
        until(lambda: len(client.client_list()) < connected)
    assert not one.shares
    assert one.ask(new_id()).value == VALUE
    assert one.tier.snapshot().alone == 1
    assert said("Redis is lost") == 0


def test_an_answer_that_breaks_off(
    shared_redis: Redis, proxy: Callable[..., Proxy], machine: Callable[..., Machine], counts: Counter[str]
) -> None:
    """Half an answer from Redis is none."""
    between = proxy(shared_redis.port)
    first, second = machine(shared_redis.url), machine(between.url.replace(f":{PASSWORD}@", ""))
    first.ask(event_id := new_id())

    def cut(data: bytes, sink: socket.socket) -> None:
        sink.sendall(data[: len(data) // 2])
        sink.shutdown(socket.SHUT_RDWR)

    between.answer = cut
    assert bounded(lambda: second.ask(event_id)).result == "miss"
    assert counts[event_id] == 2


def test_a_connection_that_was_closed_meanwhile_is_no_loss(
    shared_redis: Redis, machine: Callable[..., Machine], said: Callable[[str], int]
) -> None:
    """A Redis that closes idle connections is asked over a new one."""
    one = machine(shared_redis.url)
    one.ask(new_id())
    with shared_redis.client() as client:
        client.client_kill_filter(_type="normal", skipme=True)
    one.ask(new_id())
    assert one.tier.snapshot().loaded == 2
    assert said("Redis is lost") == 0


def test_a_full_redis(machine: Callable[..., Machine], said: Callable[[str], int]) -> None:
    """A Redis that takes no more is left, once in the log, until it has room again."""
    full = Redis("--maxmemory", "3mb", "--maxmemory-policy", "noeviction")
    try:
        one = machine(full.url)
        with full.client() as client:
            with contextlib.suppress(redis.exceptions.OutOfMemoryError):
                for number in range(10**6):
                    client.set(f"other:{number}", "x" * 10000)
            for _ in range(3):
                assert one.ask(new_id()).value == VALUE
            until(lambda: not one.shares)
            time.sleep(0.5)  # it is tried again, in vain
            assert said("OutOfMemory") == said("Redis is lost") == 1
            client.flushall()
            until(lambda: one.shares)
    finally:
        full.kill()


def test_many_loads_at_once_do_not_look_like_a_slow_redis(
    shared_redis: Redis, machine: Callable[..., Machine], said: Callable[[str], int], pool: ThreadPoolExecutor
) -> None:
    """As many loads as may be under way at once all go through Redis, over one connection."""
    one = machine(shared_redis.url)
    one.gate = threading.Event()
    ids = [new_id() for _ in range(240)]
    futures = [pool.submit(one.ask, event_id) for event_id in ids]
    for _ in ids:
        assert one.entered.acquire(timeout=PATIENCE)
    one.gate.set()
    for future in futures:
        future.result(PATIENCE)
    assert said("Redis is lost") == 0
    assert one.tier.snapshot()[:4] == (0, 0, 240, 0)


# Addresses and settings


def test_addresses(tmp_path: Path, machine: Callable[..., Machine], said: Callable[[str], int]) -> None:
    """Redis is reached by TCP, TLS and a Unix socket, with a password and a database."""
    if not shutil.which("openssl"):
        pytest.skip("there is no openssl to make a certificate with")
    make = "openssl req -x509 -newkey rsa:2048 -nodes -keyout key -out crt -days 2 -subj /CN=localhost -addext"
    command = [*make.split(), "subjectAltName=DNS:localhost"]
    subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE, cwd=tmp_path)
    tls, path = free_port(), tmp_path / "s"
    files = ["--tls-cert-file", f"{tmp_path}/crt", "--tls-key-file", f"{tmp_path}/key", "--tls-auth-clients", "no"]
    server = Redis("--requirepass", "se/cret", "--unixsocket", str(path), "--tls-port", str(tls), *files)
    try:
        for number, url in enumerate(
            [
                f"redis://:{PASSWORD}@127.0.0.1:{server.port}/1",
                f"redis://default:{PASSWORD}@localhost:{server.port}?db=2",
                f"unix://:{PASSWORD}@{path}?db=3",
                f"rediss://:{PASSWORD}@localhost:{tls}/4?ssl_ca_certs={tmp_path}/crt",
            ],
            1,
        ):
            one = machine(url)
            one.ask(event_id := new_id())
            with redis.Redis(port=server.port, password="se/cret", db=number, protocol=2) as client:
                assert client.exists(one.key(event_id))
        for url in (
            f"rediss://:{PASSWORD}@localhost:{tls}",  # a strange certificate
            f"redis://:wrong@127.0.0.1:{server.port}",
            f"redis://127.0.0.1:{server.port}",
        ):
            lost = said("Redis is lost")
            one = machine(url, ready=False)
            until(lambda lost=lost: said("Redis is lost") > lost)  # type: ignore[misc]
            assert not one.shares
    finally:
        server.kill()


def test_a_user_with_few_rights(own_redis: Redis, machine: Callable[..., Machine]) -> None:
    """What docs/scaling.md says that the user of Redis must be allowed is enough."""
    with own_redis.client() as client:
        rights = "on >secret ~c42c:* +eval +get +set +del +pttl +time"
        client.execute_command("ACL", "SETUSER", "c42c", *rights.split())
    first, second = (machine(f"redis://c42c:secret@127.0.0.1:{own_redis.port}") for _ in range(2))
    event_id = new_id()
    assert (first.ask(event_id).result, second.ask(event_id).result) == ("miss", "shared")
    with own_redis.client() as client:
        assert "cmdstat_hello" not in client.info("commandstats")  # Redis 5 does not know it


@pytest.mark.parametrize(
    "url",
    [
        "localhost:6379",
        "http://:se/cret@localhost",
        "redis://",
        "redis://:se/cret@localhost",  # the slash should have been escaped
        "redis://:secret@localhost:70000",
        "redis://:secret@localhost/one",
        "redis://:secret@localhost?socket_timeout=60",
        "redis://:secret@localhost?db",
        "redis://:secret@local host",
        "redis://:secret@localhost#1",
        "redis://[::1",
        "unix://:secret@",
    ],
)
def test_senseless_addresses(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A senseless C42_CACHE_URL stops the start with one line that names it and does not show it."""
    assert main.main([], {"C42_TOKEN": TOKEN, "C42_CACHE_URL": url}) == 2
    said = capsys.readouterr().err
    assert said.startswith("C42_CACHE_URL is invalid: expected redis://")
    assert said.count("\n") == 1
    assert "cret" not in said


def test_secrets_are_not_shown() -> None:
    """The settings do not show the address of Redis, which may hold a password."""
    shown = repr(settings.read({"C42_TOKEN": TOKEN, "C42_CACHE_URL": f"redis://:{PASSWORD}@localhost"}))
    assert PASSWORD not in shown
    assert "localhost" not in shown


def test_redis_is_not_installed() -> None:
    """C42_CACHE_URL without the redis package stops the start and says what to install."""
    environ = {"C42_TOKEN": TOKEN, "C42_CACHE_URL": "redis://localhost"}
    code = f"import sys; sys.modules['redis'] = None; import main; sys.exit(main.main([], {environ}))"
    ended = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=PATIENCE)
    assert ended.returncode == 2
    assert ended.stderr == "C42_CACHE_URL needs the redis package: pip install -r requirements-redis.txt\n"


# The service: what one instance promises, several promise as well


@pytest.fixture(scope="module")
def services(shared_upstream: Standin, shared_redis: Redis) -> Iterator[list[Service]]:
    """Start four instances that share a Redis."""
    environ = {"C42_TIMEOUT": "4", "C42_FAULT_EXPIRY": "0.05", "C42_CACHE_URL": shared_redis.url}
    made = [Service(shared_upstream, (), **environ) for _ in range(4)]
    try:
        for service in made:
            service.wait_until_ready()
            until(lambda s=service: "answers are shared" in s.log)  # type: ignore[misc]
        yield made
    finally:
        for service in made:
            service.end()


def ask_all(several: list[Service], event_id: str, times: int, pool: ThreadPoolExecutor) -> list[requests.Response]:
    """Ask all services at once, each so often, over connections of their own."""
    together = threading.Barrier(times * len(several))

    def ask(service: Service) -> requests.Response:
        together.wait(PATIENCE)
        return requests.get(f"{service.url}/events-with-subscriptions/{event_id}", timeout=PATIENCE)

    return [future.result() for future in [pool.submit(ask, service) for service in several * times]]


def test_one_load_for_all(services: list[Service], upstream: Standin, pool: ThreadPoolExecutor) -> None:
    """A hundred callers of each of four instances cause one call to each endpoint, and all get the same."""
    upstream.add_event(event_id := new_id(), title="Schön", names=["Ada", "Grace"])
    upstream.rule("events", event_id, delay=0.3)
    responses = ask_all(services, event_id, 100, pool)
    assert {response.status_code for response in responses} == {200}
    assert {response.text for response in responses} == {
        f'{{"id":"{event_id}","title":"Schön","names":["Ada","Grace"]}}'
    }
    assert len({response.headers["ETag"] for response in responses}) == 1
    logs = "".join(service.log for service in services)
    assert upstream.calls("events", event_id) == 1, logs
    assert upstream.calls("event-subscriptions", event_id) == 1, logs


@pytest.mark.parametrize("status", [404, 503])
def test_errors_are_passed_through_by_all(
    status: int, services: list[Service], upstream: Standin, pool: ThreadPoolExecutor
) -> None:
    """An upstream error is the answer of every instance, with its bytes, after one call."""
    event_id = new_id()
    upstream.rule("events", event_id, status=status, body=f'{{"error": "{event_id}"}}')
    responses = ask_all(services, event_id, 8, pool)
    assert {(response.status_code, response.text) for response in responses} == {(status, f'{{"error": "{event_id}"}}')}
    assert upstream.calls("events", event_id) == 1


def test_no_answer_outlives_its_load(services: list[Service], upstream: Standin) -> None:
    """`max-age`, wherever an answer is served, never says more than what is left of the expiry from its load."""
    upstream.add_event(event_id := new_id(), names=["Ada"])
    began = time.monotonic()
    for wait in (0, 0.6, 0.6):
        time.sleep(wait)
        for service in services:
            left = lifetime(requests.get(f"{service.url}/events-with-subscriptions/{event_id}", timeout=PATIENCE))
            assert left
            assert 240 < left <= 252 - (time.monotonic() - began) + 0.5  # but while it is being loaded
    assert upstream.calls("events", event_id) == 1


def test_operators_see_the_state_of_redis(services: list[Service], service: Service) -> None:
    """`/readyz` and the metrics say whether Redis is there."""
    shared = services[0]
    assert service.get("/readyz").json()["shared_tier"] is None
    assert "c42_shared_tier" not in service.get("/metrics").text
    assert shared.get("/readyz").json()["shared_tier"] == "up"
    metrics = shared.get("/metrics").text
    assert "c42_shared_tier_up 1.0\n" in metrics
    assert 'c42_shared_tier_loads_total{result="awaited"} ' in metrics


def test_an_instance_dies_in_mid_load(services: list[Service], upstream: Standin, pool: ThreadPoolExecutor) -> None:
    """When an instance is killed in mid-load, another one has a good answer well before the time-out."""
    dying, other, *_ = services
    upstream.add_event(event_id := new_id(), names=["Ada"])
    upstream.rule("events", event_id, times=1, hang=True)
    lost = pool.submit(dying.event, event_id)
    until(lambda: upstream.calls("events", event_id) == 1)
    waiting = pool.submit(other.event, event_id)
    dying.process.kill()
    assert waiting.result(PATIENCE).status_code == 200
    assert upstream.calls("events", event_id) == 2
    with pytest.raises(requests.ConnectionError):
        lost.result(PATIENCE)
