"""What instances that share answers through Redis promise."""

import signal
import socket
import threading
import time
from collections import Counter, namedtuple
from concurrent.futures import ThreadPoolExecutor

import pytest

import sharing.tier
from answers import response
from answers import value as values
from cache import FAULT, KINDS, NEGATIVE, OK, Loaded, clock
from calendar42.calls import Pause
from calendar42.payload import Event
from operations import settings
from sharing.tier import LOOK
from standin import Standin
from tests.fixtures import PATIENCE, TOKEN, MakeInside, new_id, until
from tests.machines import (
    GOOD,
    VALUE,
    Machine,
    Make,
    MakeProxy,
    Redis,
    begin_load,
    encoded,
    failed,
    patient,
)


def test_an_answer_ages_from_its_load_wherever_it_is_served(
    shared_redis: Redis, machine: Make
) -> None:
    """An answer that was taken over knows its age, and expires no later."""
    first, second = machine(shared_redis.url), machine(shared_redis.url)
    began = clock()
    first.answer = lambda: Loaded(VALUE, OK, 252.0, born=began - 100.0)
    first.ask(event_id := new_id())
    found = second.ask(event_id)
    loaded, taken = first.held(event_id), second.held(event_id)
    shortest = 152 - (clock() - began) - 0.1  # Redis counts in milliseconds
    assert shortest < taken.ttl <= loaded.ttl
    assert shortest < found.ttl <= 152
    assert taken.age >= loaded.age >= 100
    assert taken.age + taken.ttl == pytest.approx(252.0)
    header = ("Cache-Control", f"max-age={int(found.ttl)}")
    assert header in response.render(found, None)[1]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != OK])
def test_errors_are_shared(
    kind: str, shared_redis: Redis, machine: Make, counts: Counter[str]
) -> None:
    """An error is shared for its own lifetime, with all that its answer says."""
    first, second = machine(shared_redis.url), machine(shared_redis.url)
    value = failed(503, "<p>Störung", retry_after=7.5)
    first.answer = lambda: Loaded(value, kind, 6.0)
    event_id = new_id()
    first.ask(event_id)
    found = second.ask(event_id)
    assert (found.value, found.kind, counts[event_id]) == (value, kind, 1)
    assert found.age + found.ttl == pytest.approx(6.0)


def test_expiry_is_the_same_for_all(
    shared_redis: Redis, machine: Make, counts: Counter[str]
) -> None:
    """When an answer has expired, no machine serves it any more."""
    first, second = (machine(shared_redis.url, expiry=2.0) for _ in range(2))
    event_id = new_id()
    first.ask(event_id)
    second.ask(event_id)
    until(lambda: not first.cache.get(event_id))
    assert second.cache.get(event_id) is None
    assert second.ask(event_id).source == "miss"
    assert counts[event_id] == 2


def test_only_the_same_is_shared(
    inside: MakeInside, shared_redis: Redis, upstream: Standin
) -> None:
    """Instances share only with the same settings, and no key shows the token."""
    other_url = upstream.base_url.replace("127.0.0.1", "localhost")
    others = {
        "C42_TOKEN": f"{TOKEN}2",
        "C42_BASE_URL": other_url,
        "C42_EXPIRY": "4",
        "C42_FAULT_EXPIRY": "0.2",
    }
    decisive = settings.scope(settings.read({"C42_TOKEN": TOKEN}))
    assert others.keys() == {f"C42_{name.upper()}" for name, _ in decisive}
    url = patient(shared_redis.url, PATIENCE)
    made = [inside(C42_CACHE_URL=url) for _ in range(2)]
    for name, value in others.items():
        made.append(inside(**{"C42_CACHE_URL": url, name: value}))
    upstream.add_event(event_id := new_id(), title="Shared")
    calls = []
    for one in made:
        one.event(event_id)
        calls.append(upstream.calls("events", event_id))
    assert calls == [1, 1, 2, 3, 4, 5]
    with shared_redis.client() as client:
        assert not any(TOKEN.encode() in key for key in client.keys("*"))


def test_lists_that_overlap(
    shared_redis: Redis, machine: Make, counts: Counter[str], pool: ThreadPoolExecutor
) -> None:
    """Lists that overlap crosswise load every event once, and don't deadlock."""
    first, second = (machine(shared_redis.url) for _ in range(2))
    ids = [new_id() for _ in range(60)]
    first.ask(ids[0])
    gate = first.gate = second.gate = threading.Event()
    lists = [pool.submit(first.ask_many, ids[:40])]
    assert first.entered.acquire(timeout=PATIENCE)
    assert first.entered.acquire(timeout=PATIENCE)
    lists.append(pool.submit(second.ask_many, ids[:19:-1]))
    single = pool.submit(second.ask, ids[5])
    until(lambda: second.cache.snapshot().waiting == 2)
    gate.set()
    assert list(lists[0].result(PATIENCE)) == ids[:40]
    assert list(lists[1].result(PATIENCE)) == ids[:19:-1]
    assert single.result(PATIENCE).value == VALUE
    assert dict(counts) == dict.fromkeys(ids, 1)


def test_what_redis_has_of_a_list_is_there_at_once(
    shared_redis: Redis, machine: Make, counts: Counter[str], pool: ThreadPoolExecutor
) -> None:
    """An event of a list that Redis has doesn't wait for the rest of the list."""
    first, second = machine(shared_redis.url), machine(shared_redis.url)
    there, missing = new_id(), new_id()
    first.ask(there)
    second.gate = threading.Event()
    listed = pool.submit(second.ask_many, [missing, there])
    assert second.entered.acquire(timeout=PATIENCE)
    assert second.ask(there).value == VALUE
    assert not listed.done()
    second.gate.set()
    assert {key: found.source for key, found in listed.result(PATIENCE).items()} == {
        missing: "miss",
        there: "shared",
    }
    assert counts == {there: 1, missing: 1}


def test_nothing_outlives_its_time_in_a_list(
    shared_redis: Redis, machine: Make, counts: Counter[str], pool: ThreadPoolExecutor
) -> None:
    """An answer that expires while the rest of its list loads is loaded again."""
    first, second = (machine(shared_redis.url, expiry=2.0) for _ in range(2))
    there, missing = new_id(), new_id()
    first.ask(there)
    second.answer = lambda: Loaded(VALUE, OK, 252.0)
    second.gate = threading.Event()
    listed = pool.submit(second.ask_many, [there, missing])
    assert second.entered.acquire(timeout=PATIENCE)
    until(lambda: second.cache.get(there), "the answer from Redis")
    until(lambda: not (first.cache.get(there) or second.cache.get(there)), "its end")
    assert not listed.done()
    second.gate.set()
    assert all(each.ttl > 0 for each in listed.result(PATIENCE).values())
    assert counts == {there: 2, missing: 1}


def test_how_an_answer_came_is_told(
    shared_redis: Redis, proxy: MakeProxy, machine: Make, pool: ThreadPoolExecutor
) -> None:
    """What was found in Redis is told from what was awaited."""
    looks, between = threading.Semaphore(0), proxy(shared_redis.port)
    first, second, third = (
        machine(url) for url in (shared_redis.url, between.url, shared_redis.url)
    )

    def watch(data: bytes, sink: socket.socket) -> None:
        if b"wait" in data:
            looks.release()
        sink.sendall(data)

    between.spoil = watch
    event_id, gate, loading = begin_load(first, pool)
    waiting = pool.submit(second.ask, event_id)
    assert looks.acquire(timeout=PATIENCE)
    gate.set()
    assert loading.result(PATIENCE).source == "miss"
    assert waiting.result(PATIENCE).source == "awaited"
    assert third.ask(event_id).source == "shared"
    for each, kind in (first, "loaded"), (second, "awaited"), (third, "shared"):
        assert Counter(each.tier.snapshot()) == Counter({kind: 1, "up": 1})


def test_the_pause_is_shared(shared_redis: Redis, machine: Make) -> None:
    """A pause holds for all machines.

    Passing it on never makes it longer, nor shorter by more than a moment.
    """
    first, second = (machine(shared_redis.url, scope=("paused",)) for _ in range(2))
    first.pause.begin("30")
    for _ in range(5):
        first.ask(new_id())
        second.ask(new_id())
    asked, told = first.pause.left, second.pause.left
    assert 25 < told <= asked <= 30
    second.pause.begin("3000")
    second.ask(new_id())
    first.ask(new_id())
    asked, told = second.pause.left, first.pause.left
    assert asked - 2 < told <= asked


def test_the_last_millisecond(shared_redis: Redis, machine: Make) -> None:
    """An answer with less than a millisecond left counts as expired, not as invalid."""
    first = machine(shared_redis.url)
    with shared_redis.client() as client:
        for _ in range(30):
            key = first.key(new_id())
            client.set(key, b"answer", px=3)
            while True:
                keys = ("pause", key, f"{key}:lock")
                _, _, (sight,) = client.eval(LOOK, 3, *keys, "token", 1000, 0)
                if sight == b"load":
                    break
                assert sight[1] > 0


class Shifted:
    """A clock that a test sets back."""

    by = 0.0

    def __call__(self) -> float:
        return clock() + self.by


def test_a_clock_that_stands_still_during_a_load(
    shared_redis: Redis, machine: Make
) -> None:
    """If a clock stands still during a load, others keep the answer no longer."""
    shifted = Shifted()
    first, second = machine(shared_redis.url, clock=shifted), machine(shared_redis.url)

    def answer() -> Loaded:
        began = clock()
        until(lambda: clock() > began + 0.5)
        shifted.by -= 0.5
        return Loaded(VALUE, OK, 252.0)

    first.answer = answer
    first.ask(event_id := new_id())
    assert 240 < second.ask(event_id).ttl <= 251.5


def test_a_pause_is_no_longer_if_it_is_passed_on_slowly(
    shared_redis: Redis, machine: Make
) -> None:
    """A pause ends no later for others if passing it on is held up."""
    shifted = Shifted()

    class SlowPause(Pause):
        @property
        def left(self) -> float:
            left = super().left
            # The machine is held up, and its other clock seems to have been for less
            # time.
            shifted.by += 0.5
            return left

    scope = ("passed on slowly",)  # without the pauses of other tests
    first = machine(shared_redis.url, clock=shifted, pause=SlowPause(6.0), scope=scope)
    second = machine(shared_redis.url, scope=scope)
    first.pause.begin("30")
    first.ask(new_id())
    second.ask(new_id())
    assert (
        first.pause.left >= second.pause.left > 0
    )  # in this order: the test may be held up in between


def test_an_answer_never_lives_longer_than_its_lifetime_again(
    shared_redis: Redis, machine: Make
) -> None:
    """If Redis's clock is set back, an answer is kept for at most one lifetime more."""
    first, second = (machine(shared_redis.url) for _ in range(2))
    with shared_redis.client() as client:
        for left, result in (251_900, "shared"), (260_000, "miss"):
            first.ask(event_id := new_id())
            client.pexpire(first.key(event_id), left)  # what the clock would do
            found = second.ask(event_id)
            assert (found.source, found.ttl <= 252) == (result, True)


def test_a_millisecond_may_be_over_already(
    shared_redis: Redis, proxy: MakeProxy, machine: Make
) -> None:
    """An answer with 1000 ms left is kept for 999 ms, since Redis rounds."""
    between = proxy(shared_redis.port)
    one = machine(between.url, clock=lambda: 5000.0)
    one.ask(new_id())
    reply = [int(time.time() * 1000), -2, [[GOOD, 1000]]]
    between.spoil = lambda data, sink: sink.sendall(encoded(reply))
    found = one.ask(new_id())
    assert (found.source, found.value) == ("shared", VALUE)
    assert found.ttl == pytest.approx(0.999, abs=1e-6)


def test_what_is_written_late_lives_no_longer(own_redis: Redis, machine: Make) -> None:
    """An answer that reaches Redis late expires there when it expires here."""
    one = machine(own_redis.url, expiry=6.0, patience=1.0)
    event_id = new_id()

    def answer() -> Loaded:
        own_redis.signal(signal.SIGSTOP)
        return Loaded(VALUE, OK, one.expiry)

    one.answer = answer
    one.ask(event_id)
    one.answer = lambda: Loaded(VALUE, OK, one.expiry)
    until(lambda: one.held(event_id).ttl < 4.4)
    own_redis.signal(signal.SIGCONT)
    until(one.shares_again)
    with own_redis.client() as client:
        looked = time.monotonic()
        left = client.pttl(one.key(event_id)) / 1000
        here = one.held(event_id)
        took = time.monotonic() - looked
    assert 0 < left < 4.4
    assert left <= here.ttl + took + 0.01


def test_an_answer_that_expires_on_its_way_is_not_served(
    shared_redis: Redis, machine: Make, counts: Counter[str]
) -> None:
    """If the reply arrives when the answer has expired, the event is loaded."""
    now = [5000.0]

    def slow_clock() -> float:
        now[0] += 3.0  # passes whenever it's read: the reply takes as long
        return now[0]

    first = machine(shared_redis.url)
    first.answer = lambda: Loaded(VALUE, OK, 252.0, born=clock() - 250.0)
    second = machine(shared_redis.url, clock=slow_clock)
    first.ask(event_id := new_id())
    assert second.refresh(event_id, least_left=0.0).source == "miss"
    assert counts[event_id] == 2


def test_a_private_failure_is_not_shared(
    shared_redis: Redis, machine: Make, counts: Counter[str]
) -> None:
    """What only its own caller may get isn't stored in Redis."""
    first, second = machine(shared_redis.url), machine(shared_redis.url)
    first.answer = lambda: Loaded(failed(504), FAULT, 6.0, private=True)
    event_id = new_id()
    assert first.ask(event_id).value == failed(504)
    with shared_redis.client() as client:
        assert not client.exists(first.key(event_id), first.lock(event_id))
    assert second.ask(event_id).value == VALUE
    assert counts[event_id] == 2


def test_a_shorter_pause_replaces_no_longer_one(
    shared_redis: Redis, machine: Make
) -> None:
    """The longest pause holds, in whatever order Redis learns of them."""
    scope = ("shorter",)
    first, second, third = (machine(shared_redis.url, scope=scope) for _ in range(3))

    def answer() -> Loaded:
        first.pause.begin("10")
        second.pause.begin("60")
        second.ask(new_id())
        return Loaded(VALUE, OK, 252.0)

    first.answer = answer
    first.ask(new_id())
    third.ask(new_id())
    assert 50 < third.pause.left <= 60


# Refreshing ahead

DUE = 25.2  # seconds: answers with less left are to be refreshed
NEW_VALUE = values.success(Event("1", "New", []))


def make_due(first: Machine) -> str:
    """Have a machine load an event whose answer is due; its next ones are new."""
    first.answer = lambda: Loaded(VALUE, OK, 252.0, born=clock() - 240.0)
    first.ask(event_id := new_id())
    first.answer = lambda: Loaded(NEW_VALUE, OK, 252.0)
    return event_id


def test_one_instance_refreshes_for_all(
    shared_redis: Redis, machine: Make, counts: Counter[str], pool: ThreadPoolExecutor
) -> None:
    """Of instances that refresh an event at the same time, one loads it, 50 times."""
    machines = [machine(shared_redis.url) for _ in range(4)]
    for _ in range(50):
        event_id = make_due(machines[0])
        for each in machines:
            each.answer = machines[0].answer
        together = [
            pool.submit(each.refresh, event_id, least_left=DUE) for each in machines
        ]
        loaded = [future.result(PATIENCE) for future in together]
        assert counts[event_id] == 2
        assert [each.value for each in loaded] == [NEW_VALUE] * 4
        assert all(each.born and each.born + 252.0 - clock() > DUE for each in loaded)


def test_the_old_answer_is_there_until_it_is_replaced(
    shared_redis: Redis, machine: Make, counts: Counter[str], pool: ThreadPoolExecutor
) -> None:
    """During a refresh, an instance that lacks the answer gets the old one at once."""
    first, second, third = (machine(shared_redis.url) for _ in range(3))
    event_id = make_due(first)
    first.gate = threading.Event()
    refreshing = pool.submit(first.refresh, event_id, least_left=DUE)
    until(lambda: counts[event_id] == 2, "the refresh")
    old = second.ask(event_id)
    assert (old.source, old.value) == ("shared", VALUE)
    first.gate.set()
    assert refreshing.result(PATIENCE).source == "miss"
    new = third.ask(event_id)
    assert (new.source, new.value) == ("shared", NEW_VALUE)
    assert counts[event_id] == 2


def test_an_answer_that_is_due_is_no_refresh(
    shared_redis: Redis, machine: Make, counts: Counter[str]
) -> None:
    """A refresh takes an answer of which more is left, and no other."""
    first, second = machine(shared_redis.url), machine(shared_redis.url)
    first.answer = lambda: Loaded(VALUE, OK, 252.0, born=clock() - 200.0)
    first.ask(event_id := new_id())
    assert second.refresh(event_id, least_left=50.0).source == "shared"
    assert second.refresh(event_id, least_left=53.0).source == "miss"
    assert counts[event_id] == 2


def test_a_fault_replaces_no_answer(shared_redis: Redis, machine: Make) -> None:
    """A refresh replaces the old answers in Redis, except those of which it finds a
    fault, and releases all locks.
    """
    first = machine(shared_redis.url)
    event_ids = [make_due(first) for _ in KINDS]
    outcomes = [Loaded(failed(503), kind, 60.0) for kind in KINDS]
    first.answer = iter(outcomes).__next__
    deadline = time.monotonic() + PATIENCE
    assert len(list(first.tier.load(first.load, DUE, event_ids, deadline))) == 4
    kept = machine(shared_redis.url).ask_many(event_ids)
    for event_id, kind in zip(event_ids, KINDS, strict=True):
        replaced = kind in (OK, NEGATIVE)
        assert kept[event_id].value == (failed(503) if replaced else VALUE)
        assert (kept[event_id].ttl < 12) != replaced
    with shared_redis.client() as client:
        assert not client.exists(*map(first.lock, event_ids))


# What is stored


@pytest.mark.parametrize("changed", [values.StoredAnswer, Event])
def test_other_fields_have_other_keys(
    shared_redis: Redis,
    machine: Make,
    monkeypatch: pytest.MonkeyPatch,
    changed: type[values.StoredAnswer] | type[Event],
) -> None:
    """A version that stores other fields, of an event too, uses other keys."""
    first = machine(shared_redis.url)
    assert first.key("1") == machine(shared_redis.url).key("1")
    fields = [*changed._fields, "another"]
    monkeypatch.setattr(sharing.tier, changed.__name__, namedtuple("Changed", fields))
    assert machine(shared_redis.url).key("1") != first.key("1")
