"""Popular events are loaded again before they expire, so that nobody waits for them."""

import logging
import threading

import pytest

from cache import Stats
from calendar42.calls import Pause
from operations import logs
from operations.refreshing import Refresher
from standin import Standin
from tests.cache_callers import Clock, Make, Pairs, keep
from tests.fixtures import Inside, MakeInside, listed, new_events, threads, until
from tests.reading import cache_status

EXPIRY = 252.0
DUE = 230.0  # seconds after which a hit refreshes


def refreshes(service: Inside, outcome: str = "ok") -> int:
    stats: Stats = service.cache.snapshot()
    return stats.refreshes[outcome]


def load(service: Inside, *event_ids: str) -> None:
    """Load events, and let them get old enough to be refreshed."""
    assert service.http.get(listed(list(event_ids))).status_code == 200
    service.clock.now += DUE


def test_a_hot_event_is_never_waited_for(inside: MakeInside, upstream: Standin) -> None:
    """A hit in the last tenth of the lifetime is answered, and loads the event again.

    So all further requests are hits, however old the event gets.
    """
    service = inside()
    (event_id,) = new_events(upstream, 1)
    load(service, event_id)
    for times in range(1, 4):
        answer = service.event(event_id)
        assert (answer.status_code, cache_status(answer)["hit"]) == (200, True)
        until(lambda times=times: refreshes(service) == times)  # type: ignore[misc]
        assert upstream.calls("events") == 1 + times
        service.clock.now += DUE
    assert service.cache.snapshot().misses == 1
    service.clock.now += EXPIRY
    assert cache_status(service.event(event_id))["fwd"] == "miss"


def test_the_event_loop_refreshes_too(inside: MakeInside, upstream: Standin) -> None:
    """A hit that is answered without the app begins a refresh as well."""
    service = inside()
    (event_id,) = new_events(upstream, 1)
    load(service, event_id)
    assert service.cache.get(event_id)
    until(lambda: refreshes(service) == 1)
    hit = service.cache.get(event_id)
    assert hit
    assert hit[3] == EXPIRY


def test_a_list_is_refreshed_by_one_load(inside: MakeInside, upstream: Standin) -> None:
    """All due events of a list are refreshed by two calls."""
    service = inside()
    event_ids = new_events(upstream, 100, people=1)
    load(service, *event_ids)
    assert service.http.get(listed(event_ids)).status_code == 200
    until(lambda: refreshes(service) == 100)
    assert upstream.calls("events") == 2
    assert upstream.calls("event-subscriptions", event_ids[0]) == 2


def test_refreshing_can_be_turned_off(inside: MakeInside, upstream: Standin) -> None:
    """With C42_REFRESH_AHEAD=0, an event is loaded again when it has expired."""
    service = inside(C42_REFRESH_AHEAD="0")
    (event_id,) = new_events(upstream, 1)
    load(service, event_id)
    service.clock.now += EXPIRY - DUE - 0.001
    assert cache_status(service.event(event_id))["hit"] is True
    service.clock.now += 0.001
    assert cache_status(service.event(event_id))["fwd"] == "miss"
    assert (refreshes(service), upstream.calls("events")) == (0, 2)


def test_trouble_is_not_seen(inside: MakeInside, upstream: Standin) -> None:
    """A refresh's fault is handed to nobody, and tried again after C42_FAULT_EXPIRY."""
    service = inside()
    (event_id,) = new_events(upstream, 1)
    load(service, event_id)
    upstream.rule("events", event_id, status=503)
    assert service.event(event_id).status_code == 200
    until(lambda: refreshes(service, "fault") == 1)
    service.clock.now += 5
    assert service.event(event_id).status_code == 200
    upstream.clear_rules()
    service.clock.now += 1
    assert service.event(event_id).status_code == 200
    until(lambda: refreshes(service) == 1)
    assert upstream.calls("events") == 3


def test_no_refresh_during_a_pause(inside: MakeInside, upstream: Standin) -> None:
    """While Calendar42 wants no calls, nothing is refreshed."""
    service = inside()
    event_id, other = new_events(upstream, 2)
    load(service, event_id)
    upstream.rule("events", other, status=429, headers={"Retry-After": "30"})
    assert service.event(other).status_code == 429
    assert service.event(event_id).status_code == 200
    stats = service.cache.snapshot()
    assert (sum(stats.refreshes.values()), stats.refreshing) == (0, 0)
    assert upstream.calls("events") == 2


def test_no_refresh_without_a_thread(
    inside: MakeInside,
    upstream: Standin,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If the system allows no more threads, hits are answered without refreshing.

    Once it allows some again, the event is refreshed.
    """

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    service = inside()
    (event_id,) = new_events(upstream, 1)
    load(service, event_id)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        assert service.event(event_id).status_code == 200
    assert service.cache.snapshot().refreshing == 0
    assert [record for record in caplog.records if record.exc_info] == []
    service.clock.now += 6
    assert service.event(event_id).status_code == 200
    until(lambda: refreshes(service) == 1)


def test_a_refresh_that_raises_is_logged(
    make: Make, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """A bug that ends a refresh has a line of the log, with its traceback."""
    cache = make(refresh_ahead=0.1)
    refresher = Refresher(cache, broken, timeout=1, pause=Pause(1))
    cache.on_refresh_due = refresher.on_refresh_due
    keep(cache, "key", lifetime=100)
    clock.advance(90)
    assert cache.get("key")
    until(lambda: caplog.records)
    (record,) = caplog.records
    assert record.getMessage() == "unhandled exception in a refresh"
    assert record.exc_info
    assert record.exc_info[0] is ZeroDivisionError


def broken(_keys: list[str], _deadline: float) -> Pairs:
    """Stand in for a load that has a bug."""
    raise ZeroDivisionError


def test_a_refresh_has_an_id_of_its_own(
    inside: MakeInside, upstream: Standin, caplog: pytest.LogCaptureFixture
) -> None:
    """The log line of a refresh says so, and has an id that no request has."""
    service = inside()
    (event_id,) = new_events(upstream, 1)
    load(service, event_id)
    ids, lines = [], []

    class Watch(logging.Handler):
        """Note the request's id when a line is logged."""

        def emit(self, record: logging.LogRecord) -> None:
            if event_id in record.getMessage():
                lines.append(record.getMessage())
                ids.append(logs.request_id.get())

    watch = Watch()
    log = logging.getLogger("c42c")
    log.addHandler(watch)
    try:
        with caplog.at_level(logging.INFO, "c42c"):
            service.event(event_id, headers={"X-Request-ID": "mine"})
            until(lambda: refreshes(service) == 1)
    finally:
        log.removeHandler(watch)
    (line,) = lines
    assert line.startswith(f"refresh event={event_id} outcome=ok")
    (its_id,) = ids
    assert its_id not in ("", "mine")
    assert len(its_id) == 16


def test_no_thread_before_the_first_request(inside: MakeInside) -> None:
    """Making the app starts no thread, and it is ready without.

    So a server may fork after it (`gunicorn --preload`).
    """
    others = threads()
    service = inside()
    assert threads() <= others
    assert service.http.get("/readyz").status_code == 200
