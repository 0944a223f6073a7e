"""Redis fails, and comes back."""

import contextlib
import signal
import socket
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

from calendar42.ids import MAX_IDS
from sharing import link
from sharing.client import PATIENCE as WAIT
from tests.fixtures import PATIENCE, new_id, until
from tests.machines import (
    RETRY_AFTER,
    VALUE,
    Make,
    MakeProxy,
    Redis,
    Said,
    quickly,
    silence,
)


def test_a_redis_that_is_not_there_at_first(
    own_redis: Redis, machine: Make, counts: Counter[str], said: Said
) -> None:
    """The service starts without Redis, logs that once, and shares when Redis comes."""
    own_redis.kill()
    first, second = (machine(own_redis.url) for _ in range(2))
    for each in (first, second):
        assert quickly(partial(each.ask, "alone")).value == VALUE
    assert counts["alone"] == 2
    assert said("is lost") == 2
    for _ in range(2):
        own_redis.start()
        until(first.shares_again)
        until(second.shares_again)
        event_id = new_id()
        assert first.ask(event_id).source == "miss"
        assert second.ask(event_id).source == "shared"
        own_redis.kill()
        for each in (first, second):
            assert quickly(partial(each.ask, new_id())).value == VALUE
            assert not each.shares
    assert (said("is lost"), said("is there")) == (6, 4)
    assert said("Connection refused") == 6


def test_a_redis_that_stands_still(
    own_redis: Redis, machine: Make, said: Said, pool: ThreadPoolExecutor
) -> None:
    """Nobody waits for a suspended Redis; it is used again when it continues."""
    one = machine(own_redis.url, patience=2.0)
    one.ask(new_id())
    own_redis.signal(signal.SIGSTOP)
    futures = [pool.submit(quickly, lambda: one.ask(new_id())) for _ in range(50)]
    assert {future.result(PATIENCE).value for future in futures} == {VALUE}
    assert not one.shares
    own_redis.signal(signal.SIGCONT)
    until(one.shares_again)
    assert (said("is lost"), said("is there")) == (1, 2)
    assert said("no reply in time") == 1


@pytest.mark.parametrize(("patience", "losses"), [(2.0, 0), (None, 1)])
def test_a_slow_redis(
    patience: float | None,
    losses: int,
    shared_redis: Redis,
    proxy: MakeProxy,
    machine: Make,
    said: Said,
) -> None:
    """A slow Redis is lost, once, unless the URL's `socket_timeout` lets it be slow."""
    between = proxy(shared_redis.port)
    one = machine(between.url)
    until(lambda: one.ask(new_id()) and said("is there"))
    before = said("is lost"), said("is there")

    def slowly(data: bytes, sink: socket.socket) -> None:
        time.sleep(2 * WAIT)
        sink.sendall(data)

    between.spoil = slowly
    for _ in range(3):
        assert quickly(lambda: one.ask(new_id())).value == VALUE
    assert said("is lost") == before[0] + losses
    assert said("is there") == before[1]
    between.spoil = None
    until(one.shares_again)


def test_a_name_that_is_looked_up_for_ever(
    own_redis: Redis, machine: Make, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name server that hangs delays no request, and its late answers lock nothing."""
    looked_up, answered = list[str](), threading.Event()
    look_up = socket.getaddrinfo

    def hang(host: str, *rest: Any) -> Any:
        if host == "somewhere":
            looked_up.append(host)
            answered.wait(PATIENCE)
        return look_up("127.0.0.1", *rest)

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    monkeypatch.setattr(link, "THREADS", 2)
    one = machine(f"redis://somewhere:{own_redis.port}", retry_after=0.0, patience=None)
    for _ in range(4):
        assert quickly(lambda: one.ask(new_id())).value == VALUE
    assert looked_up == ["somewhere"] * 2
    assert (said(f"somewhere:{own_redis.port} is lost"), said("in time")) == (1, 1)
    answered.set()
    with own_redis.client() as client:

        def probes() -> int:
            stats: dict[str, Any] = client.info("commandstats")
            return int(stats.get("cmdstat_eval", {"calls": 0})["calls"])

        until(lambda: probes() == 2, "all exchanges to end")
        assert client.keys("*") == []
    until(one.shares_again)


def trickle(data: bytes, sink: socket.socket) -> None:
    """Reply without an end, until the connection is closed."""
    sink.sendall(b"$1000000\r\n")
    while True:
        sink.sendall(b"x")
        time.sleep(0.05)


def test_a_connection_that_trickles_is_dropped(
    own_redis: Redis, proxy: MakeProxy, machine: Make
) -> None:
    """A reply that trickles is waited for by the time-out, not by each byte.

    Then its connection is closed.
    """
    between = proxy(own_redis.port)
    with own_redis.client() as client:
        before = len(client.client_list())
        one = machine(between.url, retry_after=PATIENCE, patience=2.0)
        one.ask(new_id())
        assert len(client.client_list()) > before
        between.spoil = trickle
        began = time.monotonic()
        assert one.ask(new_id()).value == VALUE
        assert 0.9 < time.monotonic() - began < PATIENCE / 2
        until(lambda: len(client.client_list()) <= before)
    assert tuple(one.tier.snapshot().values()) == (0, 0, 1, 1, False)


def test_a_connection_that_was_closed_meanwhile_is_no_loss(
    shared_redis: Redis, machine: Make, said: Said
) -> None:
    """A Redis that closes idle connections is asked over a new one."""
    one = machine(shared_redis.url)
    one.ask(new_id())
    with shared_redis.client() as client:
        client.client_kill_filter(_type="normal", skipme=True)
    one.ask(new_id())
    assert one.tier.snapshot()["loaded"] == 2
    assert said("is lost") == 0


def test_many_loads_at_once_do_not_look_like_a_slow_redis(
    shared_redis: Redis, machine: Make, said: Said, pool: ThreadPoolExecutor
) -> None:
    """As many loads as there may be at once go through Redis over few connections."""
    one = machine(shared_redis.url)
    with shared_redis.client() as client:
        connected = len(client.client_list())
        one.gate = threading.Event()
        ids = [new_id() for _ in range(240)]
        futures = [pool.submit(one.ask, event_id) for event_id in ids]
        for _ in ids:
            assert one.entered.acquire(timeout=PATIENCE)
        one.gate.set()
        for future in futures:
            future.result(PATIENCE)
        assert len(client.client_list()) <= connected + link.THREADS
    assert said("is lost") == 0
    assert tuple(one.tier.snapshot().values()) == (0, 0, 240, 0, True)


def test_an_instance_shares_from_its_first_request(
    shared_redis: Redis, machine: Make, said: Said
) -> None:
    """Redis isn't lost before it was asked, and the first load is shared already."""
    machine(shared_redis.url).ask(event_id := new_id())
    for _ in range(10):
        one = machine(shared_redis.url)
        assert one.shares
        assert one.ask(event_id).source == "shared"
    assert said("is there: answers are shared") == 11


def test_after_a_failure_one_load_tries(
    proxy: MakeProxy, machine: Make, pool: ThreadPoolExecutor
) -> None:
    """While Redis is lost, nobody asks it, but now and then exactly one load does."""
    hanging = proxy(0, silence)
    one = machine(hanging.url, retry_after=2.0, patience=1.0)

    def ask_together() -> None:
        for future in [pool.submit(one.ask, new_id()) for _ in range(20)]:
            assert future.result(PATIENCE).value == VALUE

    asked = time.monotonic()
    one.ask(new_id())
    ask_together()
    # Else the machine is too busy to tell.
    if time.monotonic() < asked + 1.0 + 2.0:
        assert hanging.accepted == 1
    time.sleep(2.0)
    ask_together()
    assert hanging.accepted == 2
    assert not one.shares


def test_a_failover_behind_an_address(
    own_redis: Redis, shared_redis: Redis, proxy: MakeProxy, machine: Make, said: Said
) -> None:
    """After a failover, the new master is used, even if the old one stays up."""
    between = proxy(own_redis.port)
    one = machine(between.url)
    one.ask(new_id())
    between.target = shared_redis.port
    with own_redis.client() as old, shared_redis.client() as new:
        old.replicaof("127.0.0.1", shared_redis.port)
        event_id = new_id()
        assert one.ask(event_id).value == VALUE
        assert (one.shares, said("it is a read-only replica")) == (False, 1)
        until(one.shares_again)
        assert said("is there") == 2
        one.ask(event_id := new_id())
        assert new.exists(one.key(event_id))


def test_the_reason_is_logged_when_it_changes(
    own_redis: Redis, machine: Make, said: Said
) -> None:
    """While Redis is full or down, each new reason is logged once, with its address."""
    one = machine(own_redis.url)

    def ask_twice() -> None:
        for _ in range(2):
            assert one.ask(new_id()).value == VALUE
            assert not one.shares
            time.sleep(RETRY_AFTER)

    with own_redis.client() as client:
        client.config_set("maxmemory", 1)
        ask_twice()
        own_redis.kill()
        ask_twice()
        where = f"Redis at 127.0.0.1:{own_redis.port} is lost"
        reasons = said("it is full"), said("Connection refused")
        assert (said(where), reasons) == (2, (1, 1))
        own_redis.start()
        until(one.shares_again)
        client.config_set("maxmemory", 1)
        ask_twice()
        client.config_set("maxmemory", 0)
        until(one.shares_again)
    assert (said("is lost"), said("is there")) == (3, 2)


REASONS = [
    ("LOADING Redis is loading the dataset in memory", "it is loading its data"),
    ("READONLY You can't write against a read only replica.", "a read-only replica"),
    ("MASTERDOWN Link with MASTER is down", "a replica that has lost its master"),
    ("MISCONF Errors writing to the AOF file", "it can't save its data to disk"),
    ("NOREPLICAS Not enough good replicas to write.", "it has too few replicas"),
    ("MOVED 3999 127.0.0.1:6381", "it is part of a cluster"),
    ("ASK 3999 127.0.0.1:6381", "it is part of a cluster"),
    ("CLUSTERDOWN Hash slot not served", "it is part of a cluster"),
    ("CROSSSLOT Keys in request don't hash to the same slot", "part of a cluster"),
    ("BUSY Redis is busy running a script.", "it is busy with a script"),
    ("DENIED Redis is running in protected mode", "it takes local clients only"),
    ("OOM command not allowed when used memory > 'maxmemory'.", "it is full"),
    ("NOAUTH Authentication required.", "wrong or missing user or password"),
    ("WRONGPASS invalid username-password pair", "wrong or missing user or password"),
    ("NOPERM this user has no permissions to run the 'eval' command", "run EVAL"),
    ("NOPERM no permissions to run the 'flushall' command", "the keys or commands"),
    ("ERR max number of clients reached", "it has too many clients"),
    ("ERR unknown command 'EVAL', with args", "it has no EVAL, which c42c needs"),
    ("ERR unknown command", "invalid reply"),
    ("", "it closed the connection"),
]


@pytest.mark.parametrize(("error", "reason"), REASONS)
def test_the_reason_of_a_loss(
    error: str, reason: str, proxy: MakeProxy, machine: Make, said: Said
) -> None:
    """The log says in plain words which error Redis answers; nothing is asked twice."""

    def fail(data: bytes, sink: socket.socket) -> None:
        if not error:
            sink.shutdown(socket.SHUT_RDWR)
        sink.sendall(f"-{error}\r\n".encode() * data.count(b"*"))

    failing = proxy(0, fail)
    one = machine(failing.url, retry_after=PATIENCE)
    assert one.ask(new_id()).value == VALUE
    assert said(reason) == said("is lost") == failing.accepted == 1


def test_a_load_asks_redis_twice(
    shared_redis: Redis, proxy: MakeProxy, machine: Make
) -> None:
    """A load or a list asks Redis twice at most: when it looks, and when it stores."""
    between, exchanges = proxy(shared_redis.port), Counter[str]()
    one, other = machine(between.url), machine(shared_redis.url)
    one.ask(new_id())

    def count(data: bytes, sink: socket.socket) -> None:
        exchanges["all"] += 1
        sink.sendall(data)

    between.spoil = count
    one.ask(new_id())
    assert exchanges["all"] == 2
    one.ask_many([new_id() for _ in range(MAX_IDS)])
    assert exchanges["all"] == 4
    other.ask(event_id := new_id())
    assert one.ask(event_id).source == "shared"
    assert exchanges["all"] == 5


def test_a_system_that_allows_no_more_threads(
    shared_redis: Redis,
    machine: Make,
    said: Said,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If no thread can be started to ask Redis, it is lost for a while.

    No lock is taken later, when nobody waits for it any more.
    """
    one = machine(shared_redis.url)

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as context:
        context.setattr(threading.Thread, "start", refuse)
        assert one.ask(alone := new_id()).value == VALUE
    assert said("no thread can be started") == said("is lost") == 1
    until(one.shares_again)
    with shared_redis.client() as client:
        assert not client.exists(one.lock(alone))


def test_a_name_whose_first_address_is_dead(
    shared_redis: Redis, machine: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the first address of a name takes no connections, the second one is used."""
    with contextlib.ExitStack() as stack:
        dead = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):  # fill its backlog
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(dead.getsockname())
        found = [
            (socket.AF_INET, socket.SOCK_STREAM, 0, "", address)
            for address in (dead.getsockname(), ("127.0.0.1", shared_redis.port))
        ]
        with monkeypatch.context() as context:
            context.setattr(socket, "getaddrinfo", lambda *_: found)
            one = machine("redis://somewhere", patience=4.0, retry_after=PATIENCE)
            assert one.ask(new_id()).value == VALUE
    assert tuple(one.tier.snapshot().values()) == (0, 0, 1, 0, True)
