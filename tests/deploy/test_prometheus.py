"""Alerts and the dashboard, in a real Prometheus.

It watches services with one kind of trouble each.
"""

import itertools
import json
import math
import re
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self

import pytest
import requests
import yaml

from standin import Gate, Standin
from tests.deploy.tools import free_ports, missing, needs, ran, running
from tests.fixtures import (
    PATIENCE,
    ROOT,
    TOKEN,
    Service,
    new_events,
    new_id,
    started,
    until,
)
from tests.machines import patient

RULES = ROOT / "deploy/c42c.rules.yml"
DASHBOARD = ROOT / "deploy/grafana.json"
MAX_WAITING = 10  # requests, where more are to be refused
FEW_THREADS = str(MAX_WAITING + 16)

# What fires for each kind of trouble, and what /status.json says.
ALERT = {
    "healthy": None,
    "faults": "C42cFaults",
    "token": "C42cTokenRefused",
    "pause": "C42cPaused",
    "redis": "C42cSharedTierLost",
    "full": "C42cManyWaiting",
    "refusing": "C42cRefusing",
    "slow": "C42cSlowUpstream",
    "small": "C42cCacheTooSmall",
    "stopping": "C42cStopping",
    "down": "C42cDown",
}
TROUBLES = {
    "healthy": [],
    "faults": ["outage"],
    "token": ["token"],
    "pause": ["pause"],
    "redis": ["redis"],
    "full": ["full"],
    "refusing": ["full", "refusing"],
    "stopping": ["stopping"],
}
# These would take a bug, 15 minutes, a stuck log, or 8,000 calls.
UNTRIED = {
    "C42cBroken",
    "C42cReaperDead",
    "C42cRestarting",
    "C42cLogDropped",
    "C42cNearLimit",
}


class Prometheus:
    """A Prometheus that scrapes each second."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/api/v1/query"
        ready = f"http://127.0.0.1:{port}/-/ready"
        until(
            lambda: requests.get(ready, timeout=PATIENCE).status_code == 200,
            "Prometheus to be ready",
        )

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return what an expression finds now."""
        answer = requests.get(self._url, {"query": expression}, timeout=PATIENCE).json()
        assert answer["status"] == "success", (expression, answer)
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found

    def values(self, expression: str) -> list[float]:
        """Return the numbers that an expression finds now."""
        return [float(one["value"][1]) for one in self.query(expression)]


class Watched(NamedTuple):
    """Services by their kind of trouble, their ports, and the Prometheus on them."""

    services: dict[str, Service]
    ports: dict[str, int]
    prometheus: Prometheus

    def fired(self) -> dict[str, set[str]]:
        """Return all alerts that have fired so far, by kind."""
        kinds = {f"127.0.0.1:{port}": kind for kind, port in self.ports.items()}
        alerts = defaultdict(set)
        for one in self.prometheus.query(
            'count_over_time(ALERTS{alertstate="firing"}[10m])'
        ):
            alerts[kinds[one["metric"]["instance"]]].add(one["metric"]["alertname"])
        return alerts


def shortened(rules: str) -> str:
    """Return rules whose windows are seconds instead of minutes."""
    return re.sub(r"for: \d+m", "for: 3s", re.sub(r"\[\d+m\]", "[6s]", rules))


class Sites:
    """Starts the services, their upstreams, and their traffic."""

    def __init__(self) -> None:
        self._stack = stack = ExitStack()
        self._upstreams = ExitStack()
        self._over = threading.Event()
        self._clients = stack.enter_context(ThreadPoolExecutor(100))
        self.services: dict[str, Service] = {}
        self._redis_ports = free_ports(2)
        options = (
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--appendonly",
            "no",
            "--dir",
            "/tmp",
            "--port",
        )
        for name, port in zip(("alive", "lost"), self._redis_ports, strict=True):
            redis = stack.enter_context(
                running("redis-server", *options, str(port), ports=[port])
            )
            if name == "lost":
                self._lost_redis = redis

    def add(self, kind: str, token: str = TOKEN, **environ: str) -> Standin:
        """Start a service, and return its upstream, which accepts `token`."""
        upstream = self._upstreams.enter_context(Standin(token=token))
        own = {"C42_EXPIRY": "0.5", "C42_FAULT_EXPIRY": "0.01", **environ}
        self.services[kind] = self._stack.enter_context(
            started(Service(upstream, (), **own))
        )
        return upstream

    def add_all(self) -> None:
        """Start a service for each kind of trouble, and let clients ask it."""
        alive, lost = (f"redis://127.0.0.1:{port}" for port in self._redis_ports)
        alive = patient(alive, 10.0)  # the machine may be busy
        known = new_id()
        self.add("healthy", C42_CACHE_URL=alive).add_event(known, names=["Ella"])
        self.add("faults").rule(status=500)
        self.add("token", token=TOKEN[::-1])
        self.add("pause").rule(status=429, headers={"Retry-After": "60"})
        self.add("redis", C42_CACHE_URL=lost)
        self.add("full", C42_THREADS=FEW_THREADS, C42_TIMEOUT="60").rule(gate=Gate())
        self.add("refusing", C42_THREADS=FEW_THREADS, C42_TIMEOUT="60").rule(
            gate=Gate()
        )
        self.add("slow").rule(delay=6)
        many = new_events(self.add("small", C42_MAX_ENTRIES="20"), 40)
        self.add("stopping", C42_DRAIN="60")
        for kind in "faults", "token", "pause", "redis", "stopping":
            self.ask(kind, new_id)
        self.ask("small", itertools.cycle(many).__next__)
        self.ask("healthy", lambda: known)
        self.ask("healthy", new_id)
        self.ask("slow", new_id, clients=20)
        for kind in "full", "refusing":
            for _ in range(MAX_WAITING):
                self._clients.submit(self.services[kind].event, new_id())
            until(partial(self.is_full, kind), "the limit of waiting requests")
        self.ask("refusing", new_id)
        self._lost_redis.terminate()
        self.services["stopping"].process.terminate()

    def ask(self, kind: str, event_id: Callable[[], str], clients: int = 1) -> None:
        """Let clients ask a service for one event after the other, until the end."""

        def go_on() -> None:
            while not self._over.wait(0.05):
                self.services[kind].event(event_id())

        for _ in range(clients):
            self._clients.submit(go_on)

    def troubles(self, kind: str) -> list[str]:
        """Return what /status.json says of a service."""
        told: list[str] = self.services[kind].get("/status.json").json()["troubles"]
        return told

    def is_full(self, kind: str) -> bool:
        """Tell whether a service has reached its limit of waiting requests."""
        return "full" in self.troubles(kind)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        # Then nobody waits for one, and the services end at once.
        self._upstreams.close()
        self._stack.close()


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """Start services in trouble, and a Prometheus with our rules.

    Only the times of the rules are shortened.
    """
    if lacking := missing("prometheus", "redis-server"):
        pytest.skip(f"needs {lacking}, as Debian has it")
    folder = tmp_path_factory.mktemp("prometheus")
    with Sites() as sites:
        sites.add_all()
        port, down = free_ports(2)
        ports = {kind: service.port for kind, service in sites.services.items()} | {
            "down": down
        }
        config = yaml.safe_load((ROOT / "deploy/prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["scrape_configs"][0]["scrape_timeout"] = "1s"
        config["scrape_configs"][0]["static_configs"] = [
            {"targets": [f"127.0.0.1:{one}" for one in ports.values()]}
        ]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        (folder / RULES.name).write_text(shortened(RULES.read_text()))
        options = [
            f"--config.file={folder}/prometheus.yml",
            f"--storage.tsdb.path={folder}/data",
        ]
        with running(
            "prometheus",
            *options,
            f"--web.listen-address=127.0.0.1:{port}",
            ports=[port],
        ):
            yield Watched(sites.services, ports, Prometheus(port))


def test_each_trouble_fires_its_own_alert(watched: Watched) -> None:
    """Each kind of trouble fires its own alert and no other.

    A healthy service under traffic fires none.
    """
    expected = {kind: {alert} for kind, alert in ALERT.items() if alert}
    try:
        until(
            lambda: watched.fired().keys() >= expected.keys(),
            "all alerts to fire",
            patience=2 * PATIENCE,
        )
    finally:
        assert watched.fired() == expected
    assert {one["alert"] for one in alerts()} == {
        alert for alert in ALERT.values() if alert
    } | UNTRIED


def test_each_trouble_has_its_name(watched: Watched) -> None:
    """/status.json names the trouble of each service, and none where all is well."""

    def told() -> dict[str, list[str]]:
        return {
            kind: watched.services[kind].get("/status.json").json()["troubles"]
            for kind in TROUBLES
        }

    try:
        # The services were put into trouble a moment ago.
        until(lambda: told() == TROUBLES, "all troubles to show", every=0.1)
    finally:
        assert told() == TROUBLES


def test_dashboard_shows_something(watched: Watched) -> None:
    """Each query of the dashboard finds numbers."""
    until(lambda: watched.fired()["faults"], "an alert to show")
    text = (
        DASHBOARD.read_text()
        .replace("$__rate_interval", "10s")
        .replace("$__range", "30s")
        .replace("$instance", ".*")
    )
    queries = [
        target["expr"]
        for panel in json.loads(text)["panels"]
        for target in panel["targets"]
    ]
    assert len(queries) > 15
    empty = [
        one
        for one in queries
        if not any(map(math.isfinite, watched.prometheus.values(one)))
    ]
    assert empty == []


def alerts() -> list[dict[str, Any]]:
    """Return the alerts, as the rules have them."""
    rules: list[dict[str, Any]] = yaml.safe_load(RULES.read_text())["groups"][0][
        "rules"
    ]
    return rules


def test_alerts_say_what_to_do() -> None:
    """Each alert has a summary, a description and a runbook of its own.

    The runbook is its heading in docs/operating.md.
    """
    headings = re.findall(
        r"^### (\w+)$", (ROOT / "docs/operating.md").read_text(), re.M
    )
    assert sorted(headings) == sorted(one["alert"] for one in alerts())
    for one in alerts():
        assert sorted(one["annotations"]) == ["description", "runbook_url", "summary"]
        assert (
            one["annotations"]["runbook_url"]
            == f"https://example.com/operating#{one['alert'].lower()}"
        )
        assert one["labels"]["severity"] in ("page", "ticket")


@needs("promtool", "sed")
def test_rules_are_sound(tmp_path: Path) -> None:
    """promtool accepts the configuration, and the rules do what their own tests say.

    Running `sed` on them, as they ask, leaves them valid.
    """
    for name in ("prometheus.yml", "c42c.rules.yml", "c42c.rules.test.yml"):
        (tmp_path / name).write_bytes((ROOT / "deploy" / name).read_bytes())
    ran("promtool", "check", "config", "prometheus.yml", cwd=tmp_path)
    ran("promtool", "test", "rules", "c42c.rules.test.yml", cwd=tmp_path)
    command = re.search(r"^#   (sed .*)$", RULES.read_text(), re.M)
    assert command is not None
    ran("sh", "-c", command[1], cwd=tmp_path)
    assert "example.com" not in re.sub("#.*", "", (tmp_path / RULES.name).read_text())
    ran("promtool", "check", "rules", RULES.name, cwd=tmp_path)
