"""Several instances keep the promises of one."""

import re
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from standin import Standin
from tests.fixtures import PATIENCE, Service, Start, new_id, started, until
from tests.machines import Redis, patient

LIKE_ALL = {"C42_TIMEOUT": "10", "C42_FAULT_EXPIRY": "0.5"}


def sharing_through(server: Redis) -> dict[str, str]:
    """Return the setting for services that wait long for Redis on a busy machine."""
    return {"C42_CACHE_URL": patient(server.url, 10.0)}


@pytest.fixture(scope="module")
def services(shared_upstream: Standin, shared_redis: Redis) -> Iterator[list[Service]]:
    """Start four instances that share a Redis."""
    environ = LIKE_ALL | sharing_through(shared_redis)
    made = [Service(shared_upstream, (), **environ) for _ in range(4)]
    try:
        for service in made:
            service.wait_until_ready()
        yield made
    finally:
        for service in made:
            service.end()


def ask_all(
    several: list[Service], event_id: str, times: int, pool: ThreadPoolExecutor
) -> list[requests.Response]:
    """Ask each service so many times, all at once, on separate connections."""
    together = threading.Barrier(times * len(several))

    def ask(service: Service) -> requests.Response:
        together.wait(PATIENCE)
        return requests.get(
            f"{service.url}/events-with-subscriptions/{event_id}", timeout=PATIENCE
        )

    return [
        future.result()
        for future in [pool.submit(ask, service) for service in several * times]
    ]


def test_one_load_for_all(
    services: list[Service], upstream: Standin, pool: ThreadPoolExecutor
) -> None:
    """A hundred callers of four instances share one load."""
    upstream.add_event(event_id := new_id(), title="Schön", names=["Ada", "Grace"])
    upstream.rule("events", event_id, delay=0.3)
    responses = ask_all(services, event_id, 25, pool)
    assert {response.status_code for response in responses} == {200}
    assert {response.text for response in responses} == {
        f'{{"id":"{event_id}","title":"Schön","names":["Ada","Grace"]}}'
    }
    assert len({response.headers["ETag"] for response in responses}) == 1
    logs = "".join(service.log for service in services)
    assert upstream.calls("events", event_id) == 1, logs
    assert upstream.calls("event-subscriptions", event_id) == 1, logs


def refreshes(service: Service) -> int:
    """Return how often a service has refreshed an answer."""
    name = r'c42_cache_refreshes_total\{outcome="ok"\}'
    found = re.search(rf"{name} (\d+)", service.get("/metrics").text)
    assert found
    return int(found[1])


def test_a_hot_event_is_refreshed_by_one_instance(
    shared_redis: Redis, upstream: Standin
) -> None:
    """When a popular event is due, one instance loads it for all."""
    upstream.add_event(event_id := new_id(), names=["Ada"])
    environ = {"C42_EXPIRY": "0.1", "C42_REFRESH_AHEAD": "50"}
    environ |= sharing_through(shared_redis)
    with (
        started(Service(upstream, (), **environ)) as one,
        started(Service(upstream, (), **environ)) as other,
    ):

        def are_refreshed() -> bool:
            for service in (one, other):
                assert service.event(event_id).status_code == 200
            return refreshes(one) > 0 and refreshes(other) > 0

        until(are_refreshed, "both to refresh the event", every=0.1)
        of_both = refreshes(one) + refreshes(other)
    assert upstream.calls("events", event_id) - 1 < of_both


def test_operators_see_the_state_of_redis(
    services: list[Service], service: Service
) -> None:
    """`/readyz` and the metrics say whether Redis is there."""
    shared = services[0]
    assert service.get("/readyz").json()["shared_tier"] is None
    assert "c42_shared_tier" not in service.get("/metrics").text
    assert shared.get("/readyz").json()["shared_tier"] == "up"
    metrics = shared.get("/metrics").text
    assert "c42_shared_tier_up 1.0\n" in metrics
    assert 'c42_shared_tier_loads_total{result="awaited"} ' in metrics


def test_an_instance_dies_in_mid_load(
    services: list[Service],
    shared_redis: Redis,
    upstream: Standin,
    pool: ThreadPoolExecutor,
) -> None:
    """When an instance is killed in mid-load, another one loads the event."""
    upstream.add_event(event_id := new_id(), names=["Ada"])
    upstream.rule("events", event_id, times=1, hang=True)
    environ = LIKE_ALL | sharing_through(shared_redis)
    with started(Service(upstream, (), **environ)) as dying:
        lost = pool.submit(dying.event, event_id)
        until(lambda: upstream.calls("events", event_id) == 1)
        waiting = pool.submit(services[0].event, event_id)
        dying.process.kill()
    assert waiting.result(PATIENCE).status_code == 200
    assert upstream.calls("events", event_id) == 2
    with pytest.raises(requests.ConnectionError):
        lost.result(PATIENCE)


def test_stops_while_a_name_is_looked_up(
    start: Start, upstream: Standin, hanging_names: str
) -> None:
    """Redis's name server may hang: the service answers, and stops when it is told."""
    upstream.add_event(event_id := new_id(), names=["Ada"])
    stuck = start(C42_CACHE_URL="redis://hanging.invalid", PYTHONPATH=hanging_names)
    assert stuck.event(event_id).status_code == 200
    until(lambda: "looking up" in stuck.log)
    assert stuck.stop() == 0


def test_a_second_signal_while_a_name_is_looked_up(
    start: Start, upstream: Standin, hanging_names: str
) -> None:
    """A second SIGTERM ends the service at once, even if a request is active."""
    upstream.rule("events", event_id := new_id(), hang=True)
    stuck = start(
        C42_CACHE_URL="redis://hanging.invalid",
        C42_TIMEOUT="600",
        PYTHONPATH=hanging_names,
    )
    with stuck.connect() as client:
        client.sendall(
            f"GET /events-with-subscriptions/{event_id} HTTP/1.1\r\n"
            "Host: c42c\r\n\r\n".encode()
        )
        until(lambda: upstream.calls("events", event_id) == 1)
        until(lambda: "looking up" in stuck.log)
        stuck.process.send_signal(signal.SIGTERM)
        until(lambda: "stopping" in stuck.log)
        assert stuck.stop() == 1
