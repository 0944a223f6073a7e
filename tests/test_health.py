"""The health checks, and that no endpoint for operators waits or tells secrets."""

import threading
from collections.abc import Iterator

import pytest
from flask import Flask

from cache import Cache
from calendar42.calls import Pause
from operations import health
from operations.error_log import ErrorLog
from operations.metrics import Metrics
from standin import Gate, Standin
from tests.fixtures import TOKEN, Service, Start, new_id
from tests.test_metrics import samples, value

ENDPOINTS = ("/metrics", "/livez", "/readyz", "/healthz", "/status.json")


def test_everything_answers_in_a_jam(start: Start, upstream: Standin) -> None:
    """While the upstream hangs and no more requests may wait, all else is answered.

    That is hits and the endpoints, /readyz with 200.
    """
    service, gate = start(C42_THREADS="20", C42_TIMEOUT="30"), Gate()  # four may wait
    known = new_id()
    upstream.add_event(known, names=["Arthur"])
    assert service.event(known).status_code == 200
    upstream.rule(gate=gate)
    waiting = [
        threading.Thread(target=service.event, args=(new_id(),)) for _ in range(4)
    ]
    for thread in waiting:
        thread.start()
    gate.wait_for(8)
    assert service.event(new_id()).status_code == 503
    for path in ENDPOINTS:
        answer = service.get(path)
        told = (path, answer.status_code, answer.headers["Cache-Control"])
        assert told == (path, 200, "no-store")
    assert service.event(known).status_code == 200
    found = samples(service)
    assert value(found, "c42_waiting_requests") == 4
    assert value(found, "c42_waiting_requests_limit") == 4
    gate.open()
    for thread in waiting:
        thread.join()


def test_upstream_trouble_does_not_make_it_unready(
    service: Service, upstream: Standin
) -> None:
    """Upstream faults are shown by /readyz, but don't change its status.

    No health check calls the upstream.
    """
    known = new_id()
    upstream.add_event(known)
    assert service.event(known).status_code == 200
    for path in ("/livez", "/healthz"):
        assert service.get(path).json() == {"status": "ok"}
    assert service.get("/readyz").status_code == 200
    # Of the other calls, some that nobody waits for may come late from other tests.
    assert (upstream.calls("events"), upstream.calls(event_id=known)) == (1, 2)
    upstream.rule(status=507)
    failed = service.event(new_id())
    assert failed.status_code == 507
    ready = service.get("/readyz")
    assert ready.status_code == 200
    fault = ready.json()["upstream"]["last_fault"]
    assert (fault["endpoint"], fault["status"]) == ("events", 507)
    assert fault["cause"] == "Calendar42 answered 507"
    assert fault["request_id"] == failed.headers["X-Request-ID"]


@pytest.fixture
def cache() -> Iterator[Cache]:
    """Give a test a small cache."""
    made = Cache(max_entries=10, max_bytes=10**6, max_waiting=1)
    yield made
    made.close()


def ready(metrics: Metrics) -> tuple[int, dict[str, object]]:
    """Ask /readyz of an app with these metrics; return the status and the body."""
    app = Flask(__name__)
    health.register(app, metrics, ErrorLog())
    client = app.test_client()
    assert client.get("/livez").status_code == 200
    answer = client.get("/readyz")
    metrics.history.close()
    assert answer.json is not None
    return answer.status_code, answer.json


def test_ready(cache: Cache) -> None:
    """/readyz is 200 while requests are welcome."""
    status, body = ready(Metrics(cache, Pause(1), 252.0))
    assert status == 200
    assert body == {
        "status": "ok",
        "stopping": False,
        "reaper_alive": True,
        "shared_tier": None,
        "upstream": {"pause_seconds": 0.0, "last_fault": None},
    }


def test_not_ready_while_stopping(
    cache: Cache, caplog: pytest.LogCaptureFixture
) -> None:
    """/readyz is 503 once the service was told to stop; /livez is 200 even then.

    The log says so.
    """
    status, body = ready(Metrics(cache, Pause(1), 252.0, stopping=lambda: True))
    assert status == 503
    assert (body["status"], body["stopping"]) == ("not ready", True)
    assert caplog.messages == [
        "error status=503 route=/readyz GET '/readyz': not ready"
    ]


def test_not_ready_without_the_reaper(cache: Cache) -> None:
    """/readyz is 503 if the reaper is dead; /livez is 200 even then."""
    cache.close()
    status, body = ready(Metrics(cache, Pause(1), 252.0))
    assert status == 503
    assert (body["status"], body["reaper_alive"]) == ("not ready", False)


class Tier:
    """A shared tier that is up or down."""

    def __init__(self, up: bool) -> None:
        self._up = up

    def snapshot(self) -> dict[str, int]:
        """Return its numbers."""
        return {"shared": 0, "up": self._up}


@pytest.mark.parametrize(("up", "says"), [(True, "up"), (False, "lost")])
def test_redis_does_not_make_it_unready(cache: Cache, up: bool, says: str) -> None:
    """/readyz says whether Redis is there, and is 200 without it."""
    status, body = ready(Metrics(cache, Pause(1), 252.0, tier=Tier(up)))
    assert (status, body["shared_tier"]) == (200, says)


def test_endpoints_keep_secrets(service: Service, upstream: Standin) -> None:
    """No endpoint shows the token, an id that somebody asked for, or a name."""
    secrets = [TOKEN, new_id(), new_id(), "Ottilie", "Vierundvierzig"]
    upstream.add_event(secrets[1], title=secrets[4], names=[secrets[3]])
    upstream.rule(event_id=secrets[2], status=500, body=f"{secrets[3]} {TOKEN}")
    assert service.event(secrets[1]).json()["names"] == [secrets[3]]
    assert service.event(secrets[2]).status_code == 500
    service.get(f"/{secrets[1]}?{TOKEN}", headers={"X-Name": secrets[3]})
    for path in ENDPOINTS:
        answer = service.get(path)
        shown = answer.text + str(answer.headers)
        told = [secret for secret in secrets if secret in shown]
        assert (path, told) == (path, [])
