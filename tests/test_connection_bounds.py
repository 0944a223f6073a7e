"""One client gets no more of the server than its share, of time and of memory."""

import tracemalloc
import weakref
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, cast

import pytest

from serving.interface import Serialized
from serving.limits import Limits
from serving.state import ServerState
from serving.unsent import UnsentAnswers
from tests.test_connection import HIT, MISS, get
from tests.wire import Desk, Wire


def test_limits() -> None:
    """The server has the documented limits; sizes are in bytes, times in seconds."""
    assert asdict(Limits()) == {
        "max_head": 32_768,
        "max_fields": 100,
        "max_body": 65_536,
        "max_connections": 8192,
        "max_remembered": 4_194_304,
        "max_pending": 8_388_608,
        "max_unsent": 33_554_432,
        "max_read": 16_384,
        "max_requests": 32,
        "max_answers": 65_536,
        "max_remembered_head": 2048,
        "request_seconds": 10,
        "idle_seconds": 620,
        "stuck_seconds": 30,
        "linger_seconds": 2,
        "tick_seconds": 1,
        "yield_seconds": 0.02,
    }


def test_a_turn_answers_32_requests_of_a_client() -> None:
    """A turn of the loop answers at most 32 requests of one client, then others'.

    Here, one client pipelines endlessly.
    """
    desk = Desk()
    greedy, modest = Wire(desk), Wire(desk)
    greedy.queue(HIT * 3000)
    turns = 0
    while greedy.turn():
        modest.queue(HIT)
        modest.turn()
        turns += 2
        assert modest.received.count(b"200 OK") == turns // 2
        assert greedy.received.count(b"200 OK") <= turns * 32
    assert len(greedy.answers()) == 3000


def test_a_turn_makes_64_kib_of_answers() -> None:
    """A turn makes no more answers of one client once they have 64 KiB."""
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 10000\r\n"
    wire = Wire(Desk(find_fast_path=lambda _: lambda: (head, bytes(10_000))))
    wire.queue(HIT * 30)
    wire.turn()
    made: list[int] = []
    while wire.turn():
        made.append(len(wire.received) - sum(made))
    assert len(wire.answers()) == 30
    assert 64 * 1024 <= max(made) < 80 * 1024


def test_no_more_is_read_than_is_needed() -> None:
    """While a worker has a request, at most 64 KiB more of its client are read."""
    for pieces in ([MISS * 10_000], [MISS] * 10_000):
        wire = Wire(desk := Desk()).send(*pieces)
        assert len(desk.waiting) == 1
        assert len(MISS) * 10_000 - wire.untaken <= 64 * 1024


def test_a_client_that_takes_nothing_is_asked_nothing() -> None:
    """While a client takes no data, no answers are made for it; they follow later.

    Those that were made before are below 100 KiB.
    """
    wire = Wire(desk := Desk())
    wire.stuck = True
    wire.send(*[HIT] * 5000)
    assert wire.unsent < 100 * 1024
    assert wire.untaken > 100 * 1024
    while wire.unsent:
        wire.take(10_000)
        wire.run()
        assert wire.unsent < 100 * 1024
    assert len(wire.answers()) == len(desk.seen) == 5000


LARGE_BODY = bytes(range(250)) * 4000


def large_answer(made: list[int]) -> Callable[[], Serialized]:
    """Return a fast path to a large answer, which notes in `made` that it was asked."""

    def answer() -> Serialized:
        made.append(1)
        return b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n", LARGE_BODY

    return answer


def test_no_second_large_answer_for_a_client_that_takes_nothing() -> None:
    """While a client takes none of a large answer, no second one is made for it.

    Its transport holds little of the first.
    """
    desk = Desk(find_fast_path=lambda _: large_answer(made))
    made: list[int] = []
    wire = Wire(desk)
    wire.stuck = True
    wire.send(HIT * 3)
    assert len(made) == 1
    while wire.unsent:
        assert wire.unsent <= 64 * 1024
        wire.take(100_000)
        wire.run()
    assert [answer.body for answer in wire.answers()] == [LARGE_BODY] * 3


def test_a_large_last_answer() -> None:
    """A connection ends with a large answer if that is its last one."""
    desk = Desk(find_fast_path=lambda _: large_answer([]))
    wire = Wire(desk)
    wire.stuck = True
    wire.send(get(b"Connection: close", target=b"/hit/a"))
    while wire.unsent:
        wire.take(100_000)
        wire.run()
    assert not wire.open
    assert wire.answers()[0].body == LARGE_BODY


def test_one_body_for_many_clients() -> None:
    """A large answer that many clients don't take is in memory once."""
    desk = Desk(find_fast_path=lambda _: large_answer([]))
    wires = [Wire(desk) for _ in range(50)]
    tracemalloc.start()
    try:
        for wire in wires:
            wire.stuck = True
            wire.send(HIT)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert all(wire.open for wire in wires)
    # The stand-in for a transport copies the first piece.
    assert held < 50 * (64 + 8) * 1024


def test_untaken_answers_are_bounded() -> None:
    """When untaken answers exceed their bound, the clients stuck longest are dropped.

    They are those that have gone longest without taking a byte, as many as it takes to
    free a sixteenth of the bound.
    """
    desk = Desk(fast_below="", max_unsent=160_000)
    wires = []
    for _ in range(16):
        wire = Wire(desk)
        wire.stuck = True
        wires.append(wire)
        wire.send(MISS)
    desk.loop.now += 1
    for number, wire in enumerate(wires):
        desk.loop.now += 1
        _, on_done = desk.waiting.popleft()
        on_done((b"HTTP/1.1 200 OK\r\nContent-Length: 10000\r\n", bytes(10_000)))
        wire.run()
        if number == 10:
            wires[0].take(5)
            desk.tick(1)  # the server notices
    # Each takes 10,000 bytes and its headers, so the sixteenth is too much.
    assert [at for at, wire in enumerate(wires) if wire.aborted] == [1, 2]
    assert all(wire.reset for wire in wires if wire.aborted)
    for wire in wires:
        wire.take(20_000)
        wire.run()
    assert sum(len(wire.answers()) for wire in wires if not wire.aborted) == 14


class Slow:
    """A client that takes nothing of its answer."""

    def __init__(self, unsent: UnsentAnswers, last_progress: float) -> None:
        self.last_progress = last_progress
        self.dropped = False
        self._unsent = unsent

    def drop(self) -> None:
        """Disconnect it."""
        self.dropped = True
        self._unsent.remove(self)


def test_untaken_answers_may_take_all_of_their_bound() -> None:
    """Nobody is dropped while untaken answers take no more than their bound.

    When they take more, no more clients are dropped than free a sixteenth of it.
    """
    unsent = UnsentAnswers(160)
    clients = [Slow(unsent, last_progress) for last_progress in range(17)]
    for client in clients[:16]:
        unsent.add(client, bytes(10))
    assert not any(client.dropped for client in clients)
    unsent.add(clients[16], bytes(10))
    assert [client.last_progress for client in clients if client.dropped] == [0, 1]


def test_answers_that_were_taken_do_not_count() -> None:
    """Clients that have taken their answers, at once or at last, hold nothing."""
    desk = Desk(max_unsent=300)  # bytes: two answers
    wires = [Wire(desk).send(HIT * 2) for _ in range(10)]
    for _ in range(10):
        wire = Wire(desk)
        wire.stuck = True
        wire.send(HIT)
        wire.take(wire.unsent)
        wire.run()
        wires.append(wire)
    for _ in range(2):
        wire = Wire(desk)
        wire.stuck = True
        wire.send(HIT)
        wires.append(wire)
    assert not any(wire.aborted for wire in wires)


def test_an_answer_of_several_clients_counts_once() -> None:
    """One answer that goes to several clients counts until the last has taken it."""
    unsent = UnsentAnswers(25)
    clients = [Slow(unsent, last_progress) for last_progress in range(3)]
    shared = bytes(20)
    for client in clients:
        unsent.add(client, shared)
    for client in clients[:2]:
        unsent.remove(client)
    assert not any(client.dropped for client in clients)
    late = Slow(unsent, 3)
    unsent.add(late, bytes(10))
    assert (clients[2].dropped, late.dropped) == (True, False)


def test_a_very_large_answer_is_sent() -> None:
    """An answer over the bound is sent: other clients are dropped, not its own."""
    desk = Desk(
        find_fast_path=lambda request: (
            large_answer([]) if request.path == "/hit/a" else None
        ),
        max_unsent=500_000,
    )
    slow, large = Wire(desk), Wire(desk)
    for wire in slow, large:
        wire.stuck = True
    slow.send(MISS)
    slow.settle()
    assert slow.unsent
    large.send(HIT)
    assert (slow.aborted, large.aborted) == (True, False)
    while large.unsent:
        large.take(100_000)
        large.run()
    assert large.answers()[0].body == LARGE_BODY


def test_bodies_are_not_held() -> None:
    """What has arrived of a body isn't kept in memory."""
    desk = Desk()
    wires = [Wire(desk) for _ in range(50)]
    post = get(b"Content-Length: 65536", method=b"POST")
    tracemalloc.start()
    try:
        for wire in wires:
            wire.send(post, b"x" * 16_000, b"x" * 16_000, b"x" * 16_000)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 50 * 4_000


def test_incomplete_requests_are_bounded() -> None:
    """When incomplete requests exceed their bound, those that began first are rejected.

    As many are as it takes to free a sixteenth of the bound. Idle clients stay.
    """
    desk = Desk(max_pending=160_000)
    idle = Wire(desk)
    wires = []
    for number in range(16):
        desk.loop.now = 2000.0 + number
        wires.append(Wire(desk).send(get(b"X: " + b"y" * 10_000)[:-1]))
    assert [at for at, wire in enumerate(wires) if not wire.open] == [0, 1]
    assert idle.open
    (answer,) = wires[0].answers()
    assert answer.status == 503
    for wire in wires[2:]:
        wire.send(b"\n")
        assert [answer.status for answer in wire.answers()] == [200]


def test_heads_of_incomplete_requests_are_bounded() -> None:
    """The head of a request counts while its body is arriving."""
    desk = Desk(max_pending=160_000)
    wires = []
    for number in range(16):
        desk.loop.now = 2000.0 + number
        wires.append(Wire(desk).send(get(b"X: " + b"y" * 10_000, b"Content-Length: 5")))
    assert [at for at, wire in enumerate(wires) if not wire.open] == [0, 1]
    (answer,) = wires[0].answers()
    assert answer.status == 503
    for wire in wires[2:]:
        wire.send(b"12345")
        assert [answer.status for answer in wire.answers()] == [200]


def test_requests_that_wait_have_no_fast_path() -> None:
    """While a body arrives, or a worker has a request, its fast path isn't held.

    It may have copies of most of the head, which aren't counted.
    """
    found = weakref.WeakSet[Callable[[], None]]()

    def find_fast_path(_: object) -> Callable[[], None]:
        def declines() -> None:
            pass

        found.add(declines)
        return declines

    desk = Desk(find_fast_path=find_fast_path)
    wire = Wire(desk).send(get(b"Content-Length: 5"))
    assert (len(found), len(desk.waiting)) == (0, 0)
    wire.send(b"12345")
    assert (len(found), len(desk.waiting)) == (0, 1)


def test_those_that_send_ahead_are_dropped() -> None:
    """When requests are too many, a client that waits for a worker is dropped.

    That is if more of it has been read. What the worker answers isn't sent then.
    """
    desk = Desk(max_pending=30_000)
    large = get(b"X: " + b"y" * 10_000)[:-1]
    ahead = Wire(desk).send(MISS)
    ahead.send(large)
    desk.loop.now += 1
    Wire(desk).send(large)
    last = Wire(desk)
    last.queue(large)
    last.turn()
    assert ahead.aborted
    desk.finish()  # before the server hears that the connection is lost
    ahead.run()
    assert ahead.received == b""


class Incomplete:
    """A client whose request is incomplete, and takes ten bytes."""

    is_incomplete = True

    def __init__(self, server: ServerState, last_progress: float) -> None:
        self.last_progress = last_progress
        self.rejected = False
        self._server = server
        server.connections.add(cast(Any, self))
        server.count_pending(10)

    def give_up_reading(self) -> None:
        """Note that it is rejected, and let go of its bytes."""
        self.rejected = True
        self._server.count_pending(-10)


def test_incomplete_requests_may_take_all_of_their_bound() -> None:
    """Nobody is rejected while incomplete requests take no more than their bound.

    When they take more, no more clients are rejected than free a sixteenth of it.
    """
    server = Desk(max_pending=160).server
    clients = [Incomplete(server, last_progress) for last_progress in range(15)]
    assert server.has_room_for(10)
    assert not server.has_room_for(11)
    clients.append(Incomplete(server, 15))
    assert not any(client.rejected for client in clients)
    clients.append(Incomplete(server, 16))
    assert [client.last_progress for client in clients if client.rejected] == [0, 1]


def test_waiting_requests_are_bounded() -> None:
    """When waiting requests exceed their bound, more get a 503, and hits an answer."""
    desk = Desk(max_pending=100_000)
    large = get(b"X: " + b"y" * 10_000, target=b"/miss")
    wires = [Wire(desk).send(large) for _ in range(12)]
    rejected = [wire for wire in wires if not wire.open]
    assert len(desk.waiting) == 8
    assert [wire.answers()[0].status for wire in rejected] == [503] * 4
    assert Wire(desk).send(HIT).answers()[0].status == 200
    for wire in wires[:7]:  # the workers still have their requests
        wire.abort()
        wire.run()
    assert not Wire(desk).send(large).open
    wires[7].settle()
    assert wires[7].answers()[0].status == 200
    assert Wire(desk).send(large).open


@pytest.mark.parametrize("before", [b"", HIT])
def test_a_request_too_many(before: bytes) -> None:
    """A request that may not wait is rejected by its own method and Origin."""
    head = get(b"Origin: https://a.example", method=b"HEAD", target=b"/miss")
    answers = Wire(Desk(max_pending=1000)).send(before + head + MISS).answers
    *_, rejection = answers("GET", "HEAD") if before else answers("HEAD")
    assert (rejection.status, rejection.body) == (503, b"")
    assert rejection.headers["X-Origin"] == "https://a.example"


def test_requests_that_were_answered_take_nothing() -> None:
    """However many requests were answered, as many may wait as before."""
    desk = Desk(max_pending=20_000)
    wire = Wire(desk)
    for _ in range(50):
        wire.send(MISS)
        wire.settle()
    assert [answer.status for answer in wire.answers()] == [200] * 50


def test_clients_that_have_gone_take_nothing() -> None:
    """What was held for clients that have gone no longer counts.

    That is parts of requests, and answers that they didn't take.
    """
    desk = Desk(max_pending=20_000, max_unsent=20_000)
    line = b"X: " + b"y" * 1000
    for _ in range(50):
        for data in get(line)[:-1], get(line, b"Content-Length: 1"), HIT * 20:
            wire = Wire(desk)
            wire.stuck = True
            wire.send(data)
            wire.abort()
            wire.run()
    waiting = Wire(desk).send(MISS)
    waiting.settle()
    assert waiting.answers()[0].status == 200
    slow = [Wire(desk) for _ in range(2)]
    for wire in slow:
        wire.stuck = True
        wire.send(HIT)
    assert not any(wire.aborted for wire in slow)


def test_many_small_requests_are_bounded() -> None:
    """What a waiting request takes beside its head counts, too."""
    desk = Desk(max_pending=50_000)
    for _ in range(50):
        Wire(desk).send(MISS)
    assert 15 < len(desk.waiting) < 25


def test_newcomers_come_first() -> None:
    """While new clients connect, one that pipelined many requests has to wait.

    It waits for its next turn, and gets it.
    """
    desk = Desk()
    greedy = Wire(desk)
    greedy.queue(HIT * 200)
    greedy.turn()
    served = greedy.received.count(b"200 OK")
    assert served <= 32
    for _ in range(10):
        Wire(desk)
        desk.loop.turn()
        assert greedy.received.count(b"200 OK") == served
    desk.loop.now += 0.03
    Wire(desk)
    desk.loop.turn()
    desk.loop.turn()
    assert greedy.received.count(b"200 OK") == served + 32
    greedy.run()
    assert len(greedy.answers()) == 200


def test_idle_connections_make_room() -> None:
    """At the limit, a new connection replaces those that have been idle longest.

    It replaces a sixteenth of all.
    """
    desk = Desk(max_connections=32)
    wires = [Wire(desk).send(MISS)]
    desk.finish()
    for seconds in range(31):
        desk.loop.now = 2000 + seconds
        wires.append(Wire(desk))
    wires[1].send(MISS)
    wires[2].send(HIT[:-1])
    desk.loop.now += 1
    wires[3].send(HIT)
    assert all(wire.open for wire in wires)
    newest = Wire(desk).send(HIT)
    assert [at for at, wire in enumerate(wires) if not wire.open] == [0, 4, 5]
    assert [answer.status for answer in newest.answers()] == [200]
    assert not any(wire.reset for wire in wires)


def test_no_room() -> None:
    """At the limit, a new connection gets a 503 if no other is idle."""
    desk = Desk(max_connections=3)
    busy = [Wire(desk).send(MISS) for _ in range(3)]
    rejected = Wire(desk).send(get(b"Origin: https://a.example"))
    (answer,) = rejected.answers()
    assert answer.headers["X-Origin"] == "https://a.example"
    assert (answer.status, answer.headers["Connection"], rejected.ended) == (
        503,
        "close",
        True,
    )
    assert b'"all connections are busy"' in answer.body
    busy[0].settle()
    assert all(len(wire.answers()) == 1 and wire.open for wire in busy)
    rejected.send(half_close=True)
    assert [answer.status for answer in Wire(desk).send(HIT).answers()] == [200]


def test_far_too_many() -> None:
    """Silent connections beyond the limit take no descriptors from the app.

    Only a few of them wait for their 503, for 2 s at most.
    """
    desk = Desk(max_connections=16)
    busy = [Wire(desk).send(MISS) for _ in range(16)]
    wires = [Wire(desk) for _ in range(10)]
    assert [wire.aborted for wire in wires] == [False] * 2 + [True] * 8
    assert wires[0].send(HIT).answers()[0].status == 503
    desk.tick(2)
    assert all(wire.closed for wire in wires)
    assert all(wire.open for wire in busy)


@pytest.mark.parametrize("lines", [[], [b"X-%d: y" % number for number in range(80)]])
def test_remembered_requests_are_bounded(lines: list[bytes]) -> None:
    """Requests that the server remembers take a bounded amount of memory.

    Their fast paths are included, and it's the same however many requests come.
    """
    desk = Desk(max_remembered=500_000)
    wire = Wire(desk)
    tracemalloc.start()
    try:
        for number in range(700):
            wire.send(get(*lines, target=b"/hit/%d" % number))
        wire.received.clear()
        desk.seen.clear()
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 10 < len(desk.server.summaries.by_head) < 500
    assert held < 600_000


def test_what_is_remembered_takes_all_of_its_bound() -> None:
    """Requests are remembered until there is no room; then all are forgotten.

    Each takes some 1,500 bytes beside its head.
    """
    desk = Desk(max_remembered=4000)
    remembered = []
    for number in range(6):
        Wire(desk).send(get(target=b"/hit/%d" % number))
        remembered.append(len(desk.server.summaries.by_head))
    assert remembered == [1, 2] * 3


def test_what_is_remembered() -> None:
    """A request is remembered if it has a fast path, no body, and at most 2 KiB."""
    desk = Desk(
        find_fast_path=lambda request: None if "none" in request.path else lambda: None
    )
    largest = get(b"X: " + b"y" * (2048 - len(get(b"X: "))))
    others = [
        get(target=b"/none"),
        get(b"Content-Length: 1") + b"x",
        largest.replace(b"X:", b"XX:"),
    ]
    for raw in others:
        Wire(desk).send(raw)
    assert list(desk.server.summaries.by_head) == []
    Wire(desk).send(largest)
    assert list(desk.server.summaries.by_head) == [largest]
