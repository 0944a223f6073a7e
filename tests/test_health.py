"""Health checks, and what `/status.json` says is wrong."""

import threading
from functools import partial
from typing import NamedTuple

import pytest
from flask import Flask

from cache import Cache
from calendar42.calls import Pause
from operations import health
from operations.metrics import Metrics
from standin import Gate, Standin
from tests.fixtures import TOKEN, Service, Start, new_id
from tests.test_metrics import SMALL, samples, value

ENDPOINTS = ("/metrics", "/livez", "/readyz", "/healthz", "/status.json")
small_metrics = partial(Metrics, expiry=252.0)


def test_everything_answers_in_a_jam(start: Start, upstream: Standin) -> None:
    """While the waiting room is full and the upstream hangs, hits and endpoints are
    answered, /readyz with 200.
    """
    service, gate = start(**SMALL), Gate()
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
        assert (path, answer.status_code, answer.headers["Cache-Control"]) == (
            path,
            200,
            "no-store",
        )
    assert service.event(known).status_code == 200
    assert (
        value(samples(service), "c42_waiting_requests")
        == value(samples(service), "c42_waiting_requests_limit")
        == 4
    )
    gate.open()
    for thread in waiting:
        thread.join()


def test_upstream_trouble_does_not_make_it_unready(
    service: Service, upstream: Standin
) -> None:
    """Upstream faults are shown by /readyz but don't change its status; no health check
    calls the upstream.
    """
    known = new_id()
    upstream.add_event(known)
    assert service.event(known).status_code == 200
    assert (
        service.get("/livez").json()
        == service.get("/healthz").json()
        == {"status": "ok"}
    )
    assert service.get("/readyz").status_code == 200
    assert upstream.calls() == 2
    upstream.rule(status=500)
    assert service.event(new_id()).status_code == 500
    ready = service.get("/readyz")
    assert ready.status_code == 200
    assert ready.json()["upstream"]["last_fault"]["status"] == 500


@pytest.mark.parametrize("what", ["stopping", "reaper_alive"])
def test_not_ready(what: str) -> None:
    """/readyz is 503 while the service stops or if the reaper is dead; /livez is 200
    even then.
    """
    cache = Cache(max_entries=10, max_waiting=1)
    app = Flask(__name__)
    metrics = small_metrics(cache, Pause(1), stopping=lambda: what == "stopping")
    health.register(app, metrics)
    if what == "reaper_alive":
        cache.close()
    answer = app.test_client().get("/readyz")
    assert answer.status_code == 503
    assert answer.json is not None
    assert answer.json[what] == (what == "stopping")
    assert app.test_client().get("/livez").status_code == 200
    cache.close()


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
        told = [
            secret for secret in secrets if secret in answer.text + str(answer.headers)
        ]
        assert (path, told) == (path, [])


class Tier(NamedTuple):
    """A shared tier, and its numbers."""

    found: int = 0
    up: bool = False

    def snapshot(self) -> dict[str, int]:
        """Return the numbers."""
        return self._asdict()


def test_troubles() -> None:
    """A service that stops, a dead reaper and a lost Redis are troubles."""
    cache, tier = Cache(max_entries=10, max_waiting=1), Tier()
    assert small_metrics(cache, Pause(1)).status()["troubles"] == []
    assert small_metrics(cache, Pause(1), tier=Tier(up=True)).status()["troubles"] == []
    cache.close()
    metrics = small_metrics(cache, Pause(1), stopping=lambda: True, tier=tier)
    assert metrics.status()["troubles"] == ["stopping", "reaper", "redis"]
