"""What the tests of sharing use: machines, and a real Redis.

In front of Redis is a proxy that fails in every way.

Most of these tests let several caches in this process stand for several
machines, with loads that are counted and wait at a gate.
"""

import contextlib
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import redis

from answers import value as values
from bench.machine import free_port
from cache import OK, Cache, Found, Loaded, clock
from calendar42.calls import Pause
from calendar42.errors import C42Error
from calendar42.payload import Event
from sharing.link import Link
from sharing.tier import SharedTier
from tests.fixtures import PATIENCE, new_id, until

PASSWORD = "se%2Fcret"
VALUE = values.success(Event(id="1", title="Ein schöner Titel\n", names=[]))
TIMEOUT = PATIENCE  # seconds; a lock lasts for five
GOOD = values.pack(Loaded(VALUE, OK, 252.0))
RETRY_AFTER = 0.1  # seconds

# Is handed what Redis sent, and what it should be sent on to.
Spoil = Callable[[bytes, socket.socket], None]


class Redis:
    """A redis-server on a free port of loopback, which keeps nothing on disk."""

    def __init__(self, *options: str) -> None:
        if not shutil.which("redis-server"):
            pytest.skip(
                "there is no redis-server; Debian's package of that name has it"
            )
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._options = options
        self.start()

    def start(self) -> None:
        """Start it, at first and again."""
        own = [
            "--port",
            str(self.port),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--appendonly",
            "no",
        ]
        self._process = subprocess.Popen(
            ["redis-server", *own, *self._options], stdout=subprocess.DEVNULL, cwd="/"
        )
        until(self._listens, "redis-server to listen")

    def _listens(self) -> bool:
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", self.port)) == 0

    def signal(self, sig: signal.Signals) -> None:
        """Send it a signal."""
        self._process.send_signal(sig)

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait(PATIENCE)

    @contextlib.contextmanager
    def client(self) -> Iterator[Any]:
        """Look into it, past what is tested."""
        with redis.Redis(port=self.port, protocol=2) as client:
            yield client


class Proxy:
    """Forwards data to a port and back; `spoil`, if given, changes the replies.

    Without a port, what clients send comes back.
    """

    def __init__(self, port: int = 0, spoil: Spoil | None = None) -> None:
        self.target = port
        self.spoil = spoil
        self.accepted = 0  # connections so far
        self._open = [socket.create_server(("127.0.0.1", 0))]
        self.address = f"127.0.0.1:{self._open[0].getsockname()[1]}"
        self.url = f"redis://{self.address}"
        self._spawn(self._accept)

    def _spawn(self, target: Callable[..., None], *args: Any) -> None:
        threading.Thread(target=target, args=args, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                here = self._open[0].accept()[0]
                self.accepted += 1
                there = (
                    socket.create_connection(("127.0.0.1", self.target))
                    if self.target
                    else here
                )
                self._open += [here, there]
                if self.target:
                    self._spawn(self._copy, here, there, None)
                self._spawn(self._copy, there, here, self)

    def _copy(
        self, source: socket.socket, sink: socket.socket, back: "Proxy | None"
    ) -> None:
        with contextlib.suppress(OSError), source:
            while data := source.recv(65536):
                if back and back.spoil:
                    back.spoil(data, sink)
                else:
                    sink.sendall(data)
            sink.shutdown(socket.SHUT_RDWR)

    def end(self) -> None:
        """Close everything."""
        for sock in self._open:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()


class Machine:
    """An instance's cache that shares through Redis, with a load that counts.

    The load waits at `gate` if there is one.
    """

    def __init__(
        self,
        url: str,
        counts: Counter[str],
        *,
        patience: float | None,
        retry_after: float = RETRY_AFTER,
        expiry: float = 252.0,
        **options: Any,
    ) -> None:
        self.expiry = expiry
        self.pause: Pause = options.setdefault("pause", Pause(6.0))
        own: dict[str, Any] = {
            "scope": (expiry,),
            "timeout": TIMEOUT,
        }
        if patience is not None:
            url = patient(url, patience)
        link = Link(url, retry_after=retry_after)
        self.tier = SharedTier(link, **own | options)
        self.cache = Cache(
            max_entries=1000,
            max_bytes=10**9,
            max_waiting=1000,
            clock=options.get("clock", clock),
        )
        self.gate: threading.Event | None = None
        self.entered = threading.Semaphore(0)
        self.answer: Callable[[], Loaded] = lambda: Loaded(VALUE, OK, self.expiry)
        self._counts = counts

    def load(
        self, event_ids: list[str], deadline: float
    ) -> Iterator[tuple[str, Loaded]]:
        """Load, as the client would."""
        began = self.cache.clock()
        for event_id in event_ids:
            self._counts[event_id] += 1
            self.entered.release()
            assert not self.gate or self.gate.wait(PATIENCE)
            loaded = self.answer()
            if loaded.born is None:
                loaded = loaded._replace(born=began)
            yield event_id, loaded

    def ask(self, event_id: str) -> Found:
        """Ask for an event."""
        return self.ask_many([event_id])[event_id]

    def ask_many(
        self, event_ids: list[str], timeout: float = PATIENCE
    ) -> dict[str, Found]:
        """Ask for a list."""
        deadline = time.monotonic() + timeout
        load = partial(self.tier.load, self.load, 0.0)
        return self.cache.get_or_load(event_ids, load, deadline)

    def refresh(self, event_id: str, least_left: float) -> Loaded:
        """Load an event as a refresh would: anew, unless Redis has a newer answer."""
        deadline = time.monotonic() + PATIENCE
        loaded = dict(self.tier.load(self.load, least_left, [event_id], deadline))
        return loaded[event_id]

    def held(self, event_id: str) -> Found:
        """Return what the cache holds."""
        hit = self.cache.get(event_id)
        assert hit
        return Found(*hit, "hit", True)

    @property
    def shares(self) -> bool:
        """Whether the last exchange with Redis worked, or there was none yet."""
        return bool(self.tier.snapshot()["up"])

    def shares_again(self) -> bool:
        """Ask for a new event; return whether Redis was used."""
        self.ask(new_id())
        return self.shares

    def key(self, event_id: str) -> str:
        """Return an event's key in Redis."""
        return self.tier.keys([event_id])[1]

    def lock(self, event_id: str) -> str:
        """Return the key of an event's lock in Redis."""
        return self.tier.keys([event_id])[2]

    def end(self) -> None:
        """Let go of everything."""
        if self.gate:
            self.gate.set()
        self.cache.close()


def patient(url: str, seconds: float) -> str:
    """Return a URL with which loads wait so long for Redis."""
    separator = "&" if "?" in url else "?"
    return f"{url}{separator}socket_timeout={seconds}"


Make = Callable[..., Machine]
MakeProxy = Callable[..., Proxy]
Said = Callable[[str], int]


def failed(status: int, body: str = "", retry_after: float = 0.0) -> values.StoredTuple:
    """Make the value that says that the upstream answered so."""
    error = C42Error(
        endpoint="events",
        message="",
        status=status,
        upstream_status=status,
        body=body.encode(),
        retry_after=retry_after,
    )
    return values.failure(error)


def quickly(ask: Callable[[], Found]) -> Found:
    """Return what `ask` returns; fail if it waited for a Redis that hangs."""
    began = time.monotonic()
    found = ask()
    assert time.monotonic() - began < 5.0
    return found


def begin_load(
    machine: Machine, pool: ThreadPoolExecutor
) -> tuple[str, threading.Event, Future[Found]]:
    """Have a machine load an event until the gate is opened.

    Return the event, the gate, and the coming answer.
    """
    event_id, gate = new_id(), threading.Event()
    machine.gate = gate
    loading = pool.submit(machine.ask, event_id)
    assert machine.entered.acquire(timeout=PATIENCE)
    return event_id, gate, loading


def silence(data: bytes, sink: socket.socket) -> None:
    """Say nothing, in place of Redis."""


def encoded(reply: Any) -> bytes:
    """Return a reply in Redis's protocol."""
    if isinstance(reply, list):
        return b"*%d\r\n%b" % (len(reply), b"".join(map(encoded, reply)))
    if isinstance(reply, bytes):
        return b"$%d\r\n%b\r\n" % (len(reply), reply)
    return b":%d\r\n" % reply if isinstance(reply, int) else reply.encode() + b"\r\n"
