"""Whatever Redis replies, and whatever answers in its place, answers are right."""

import contextlib
import socket
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from answers import value as values
from cache import OK, Loaded
from calendar42.payload import Event
from tests.fixtures import PATIENCE, TOKEN, new_id, until
from tests.machines import (
    GOOD,
    PASSWORD,
    VALUE,
    Make,
    MakeProxy,
    Redis,
    Said,
    encoded,
    quickly,
    silence,
)

INVALID_ENTRIES = [
    b"",
    b"\xff\n",
    b"[]\n",
    b"[" * 100000,
    GOOD[:-1],
    GOOD + b" ",
    GOOD.replace(b"252.0", b"250.0"),
    values.pack(Loaded(VALUE, OK, 10.0)),  # less than what is left of it there
]


def test_what_is_no_answer_is_replaced(
    shared_redis: Redis, machine: Make, counts: Counter[str], said: Said
) -> None:
    """Anything else in place of an answer is never served, but replaced by one."""
    first, second = machine(shared_redis.url), machine(shared_redis.url)
    with shared_redis.client() as client:
        for number, content in enumerate(INVALID_ENTRIES, 1):
            event_id = new_id()
            client.set(first.key(event_id), content, px=60000)
            assert first.ask(event_id).value == VALUE, content
            assert second.ask(event_id).source == "shared", content
            assert (counts[event_id], said("invalid answer")) == (1, number)
        client.set(first.key(event_id := new_id()), GOOD)  # without an end
        assert first.ask(event_id).source == "miss"
        assert client.pttl(first.key(event_id)) > 0
    assert first.shares


def test_keys_of_another_type(
    shared_redis: Redis, machine: Make, counts: Counter[str], said: Said
) -> None:
    """Keys that hold a list are replaced, and Redis isn't taken for lost."""
    first, second = (machine(shared_redis.url, scope=("types",)) for _ in range(2))
    first.pause.begin("1")
    event_id, locked = new_id(), new_id()
    with shared_redis.client() as client:
        for key in (
            first.key(event_id),
            first.lock(locked),
            first.tier.keys([])[0],  # the pause
        ):
            client.lpush(key, "1")
            client.pexpire(key, 60_000)
    for each in (event_id, locked):
        assert quickly(partial(first.ask, each)).source == "miss"
        assert second.ask(each).source == "shared"
        assert counts[each] == 1
    assert second.pause.left > 0
    assert said("is lost") == 0
    assert said("invalid answer") == 1


scalars = (
    st.integers(-(2**63), 2**63 - 1)
    | st.binary(max_size=20)
    | st.sampled_from(["$-1", "*-1", "+OK", "-ERR", GOOD])
)


replies = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4), max_leaves=8)


@hypothesis_settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(first=replies, second=replies)
def test_whatever_redis_replies(
    first: Any, second: Any, shared_redis: Redis, proxy: MakeProxy, machine: Make
) -> None:
    """Whatever Redis replies, answers are right and prompt, and it is used again."""
    between = proxy(shared_redis.port)
    one = machine(between.url, retry_after=0.02, patience=None)

    def reply(data: bytes, sink: socket.socket) -> None:
        between.spoil = None
        sink.sendall(encoded(first) + encoded(second))

    one.ask(new_id())
    between.spoil = reply
    assert quickly(lambda: one.ask(new_id())).value == VALUE
    between.spoil = None
    until(one.shares_again)
    assert one.ask(new_id()).value == VALUE
    one.end()


NOW = 10**12
MALFORMED = [
    7,
    "$-1",
    [],
    [NOW, -2],
    [NOW, -2, 7],
    [NOW, -2, "$-1"],
    [NOW, -2, []],
    [NOW, -2, [b"load", b"load"]],
    [NOW, -2, [[b"load"]]],
    [NOW, -2, [b"stay"]],
    [NOW, -2, [[GOOD]]],
    [NOW, -2, [[1, 2]]],
    [NOW, -2, [[GOOD, b"x"]]],
    [NOW, b"x", [b"load"]],
    [b"x", -2, [b"wait"]],
    [NOW, 3_000_000, [b"nothing"]],
]


@pytest.mark.parametrize("reply", MALFORMED, ids=map(str, range(len(MALFORMED))))
def test_a_malformed_reply_is_a_loss(
    reply: Any,
    shared_redis: Redis,
    proxy: MakeProxy,
    machine: Make,
    said: Said,
) -> None:
    """After a reply that Redis never gives, it is lost, and the log says why."""
    between = proxy(shared_redis.port)
    one = machine(between.url, patience=4.0, retry_after=PATIENCE)
    one.ask(new_id())
    between.spoil = lambda data, sink: sink.sendall(encoded(reply))
    assert quickly(lambda: one.ask(new_id())).value == VALUE
    assert tuple(one.tier.snapshot().values()) == (0, 0, 1, 1, False)
    assert said(f"Redis at {between.address} is lost") == 1
    assert said("invalid reply") == 1
    assert one.pause.left == 0


def nonsense(answer: bytes) -> Callable[[bytes, socket.socket], None]:
    return lambda data, sink: sink.sendall(answer)


def cut(data: bytes, sink: socket.socket) -> None:
    sink.sendall(data[: len(data) // 2])
    sink.shutdown(socket.SHUT_RDWR)


WRONG: dict[str, Callable[[bytes, socket.socket], None]] = {
    "web server": nonsense(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"),
    "OK to all": nonsense(b"+OK\r\n"),
    "noise": nonsense(bytes(range(256))),
    "endless": nonsense(b"$500000000\r\nxxx"),
    "echo": lambda data, sink: sink.sendall(data),
    "an error": nonsense(b"-LOADING Redis is loading the dataset in memory\r\n"),
    "silence": silence,
    "cut": cut,
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_server_that_is_no_redis(
    kind: str,
    proxy: MakeProxy,
    machine: Make,
    said: Said,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """If something else answers, Redis is lost once, and the log has no secret."""
    address = proxy(0, WRONG[kind]).address
    lonely = machine(
        f"redis://:{PASSWORD}@{address}", retry_after=PATIENCE, patience=None
    )
    for _ in range(10):
        assert quickly(lambda: lonely.ask(new_id())).value == VALUE
    assert tuple(lonely.tier.snapshot().values()) == (0, 0, 0, 10, False)
    assert (said("is lost"), said("answers are shared")) == (1, 0)
    assert not any(secret in caplog.text for secret in (PASSWORD, "se/cret", TOKEN))


@pytest.mark.parametrize("password", ["Zq%2FZq", "%27Zq%5CZq%22", "Zqä"])
@pytest.mark.parametrize(
    "before", [b"-ERR unknown command ", b"-ERR " + 183 * b"-", b"", b":"]
)
def test_a_password_that_comes_back(
    before: bytes,
    password: str,
    proxy: MakeProxy,
    machine: Make,
    said: Said,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """No part of the password is in the log, however a server sends it back."""
    address = proxy(
        0,
        lambda data, sink: sink.sendall(before + data.replace(b"\r\n", b" ") + b"\r\n"),
    ).address
    for url in (
        f"redis://:{password}@{address}",
        f"redis://{address}?password={password}",
    ):
        alone = machine(url, retry_after=PATIENCE, patience=None)
        assert quickly(partial(alone.ask, new_id())).value == VALUE
    assert said("is lost") == 2
    assert "Zq" not in caplog.text


def test_nothing_half_read_is_used(
    shared_redis: Redis, proxy: MakeProxy, machine: Make, counts: Counter[str]
) -> None:
    """A reply that comes too late is never taken for the reply to the next command."""
    between, held_back = proxy(shared_redis.port), list[tuple[bytes, socket.socket]]()
    one, other = (
        machine(between.url, patience=2.0),
        machine(shared_redis.url, patience=PATIENCE),
    )
    other.answer = lambda: Loaded(values.success(Event("2", None, [])), OK, 252.0)
    other.ask(late := new_id())
    one.ask(new_id())
    between.spoil = lambda data, sink: held_back.append((data, sink))
    assert quickly(lambda: one.ask(late)).value == VALUE
    assert not one.shares
    between.spoil = None
    for data, sink in held_back:
        with contextlib.suppress(OSError):
            sink.sendall(data)
    until(one.shares_again)
    for _ in range(5):
        assert one.ask(event_id := new_id()).value == VALUE
        assert other.ask(event_id).value == VALUE
        assert counts[event_id] == 1
