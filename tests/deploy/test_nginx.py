"""deploy/c42c.nginx.conf in a real nginx, with TLS."""

import itertools
import json
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection, HTTPException, HTTPMessage, HTTPSConnection
from pathlib import Path
from typing import NamedTuple, Self
from urllib.parse import urlsplit

from standin import Standin
from tests.deploy.tools import free_ports, needs, nginx, trust
from tests.fixtures import PREFIX, ROOT, Service, new_events, new_id, started

APP = "https://app.example.com"
CLIENTS = 8
REQUESTS = 10_000


class Answer(NamedTuple):
    """What nginx sent."""

    status: int
    headers: HTTPMessage
    body: bytes


class Site:
    """The site, as clients see it."""

    def __init__(self, plain: int, tls: int, certificate: Path) -> None:
        self.plain, self._tls, self._context = plain, tls, trust(certificate)

    def connect(self, source: str = "127.0.0.1") -> HTTPSConnection:
        """Return a connection over TLS, from an address of this machine."""
        return HTTPSConnection(
            "localhost",
            self._tls,
            context=self._context,
            source_address=(source, 0),
            timeout=20,
        )

    def get(self, path: str, source: str = "127.0.0.1", **headers: str) -> Answer:
        """GET a path over TLS, from an address of this machine."""
        connection = self.connect(source)
        connection.request("GET", path, headers=headers)
        with connection.getresponse() as answer:
            found = Answer(answer.status, answer.headers, answer.read())
        connection.close()
        return found


@contextmanager
def site(folder: Path, certificate: Path, *instances: int) -> Iterator[Site]:
    """Run nginx with the site, in front of instances on those ports."""
    plain, tls = free_ports(2)
    text = (ROOT / "deploy/c42c.nginx.conf").read_text()
    text = re.sub(r"listen \[::\].*", "", text).replace(
        "/etc/nginx/c42c", str(certificate)
    )
    text = text.replace("listen 80", f"listen 127.0.0.1:{plain}").replace(
        "listen 443", f"listen {tls}"
    )
    for shipped, port in zip(("5001", "5002"), instances, strict=True):
        text = text.replace(f"127.0.0.1:{shipped} ", f"127.0.0.1:{port} ")
    with nginx(folder, text, plain, tls):
        yield Site(plain, tls, certificate)


@needs("nginx", "openssl")
def test_serves_events_to_everybody_and_pages_to_operators(
    service: Service, upstream: Standin, certificate: Path, tmp_path: Path
) -> None:
    """nginx serves events and the contract over TLS to everybody, and the operators'
    pages to operators alone.
    """
    event_id = new_id()
    upstream.add_event(event_id, title="Dîner", names=["Ella"])
    with site(tmp_path, certificate, service.port, service.port) as front:
        status, headers, body = front.get(PREFIX + event_id)
        assert (status, json.loads(body)["names"]) == (200, ["Ella"])
        assert headers["Cache-Status"].startswith("c42c; fwd=miss")
        assert headers["Strict-Transport-Security"]
        for path in ("/metrics", "/status.json", "/"):
            assert front.get(path).status == 200
            assert front.get(path, "127.0.0.2").status == 404
        for path in ("/readyz", "/openapi.json", PREFIX + event_id):
            assert front.get(path, "127.0.0.2").status == 200
        ids = ",".join(f"{number:0128}" for number in range(100))
        assert front.get(f"/events-with-subscriptions?event_ids=[{ids}]").status == 200
        redirect = HTTPConnection("127.0.0.1", front.plain, timeout=20)
        redirect.request("GET", "/readyz", headers={"Host": "localhost"})
        assert urlsplit(redirect.getresponse().headers["Location"]).scheme == "https"
        redirect.close()


@needs("nginx", "openssl")
def test_one_instance_is_enough(
    service: Service, upstream: Standin, certificate: Path, tmp_path: Path
) -> None:
    """While one of two instances is down, the other answers every request; nginx
    doesn't replace c42c's errors.
    """
    down, broken = free_ports(1)[0], new_id()
    upstream.rule(event_id=broken, reset=True)
    with site(tmp_path, certificate, down, service.port) as front:
        assert [front.get("/readyz").status for _ in range(20)] == [200] * 20
        said = front.get(PREFIX + broken)
        assert (said.status, json.loads(said.body)) == (
            502,
            service.event(broken).json(),
        )


@needs("nginx", "openssl")
def test_envelope_when_all_are_down(
    start: Callable[..., Service], certificate: Path, tmp_path: Path
) -> None:
    """When no instance answers, nginx answers 502 in the envelope, which pages of
    allowed origins can read.
    """
    with site(tmp_path, certificate, *free_ports(2)) as front:
        said = front.get(PREFIX + new_id(), Origin=APP)
        assert said.status == 502
        reason = {
            "status_code": 502,
            "message": "the service is down",
            "code": "BAD_GATEWAY",
        }
        assert json.loads(said.body) == {"error": reason}
        wanted = {
            "Content-Type": "application/json",
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            "Access-Control-Allow-Origin": APP,
            "Vary": "Origin",
            "Strict-Transport-Security": "max-age=31536000",
        }
        assert {name: said.headers[name] for name in wanted} == wanted
        for origin in ({}, {"Origin": "https://elsewhere.example.com"}):
            assert (
                front.get(PREFIX + new_id(), **origin).headers[
                    "Access-Control-Allow-Origin"
                ]
                is None
            )


class Load:
    """Clients that ask for one event after the other through the site, and remember
    what went wrong.
    """

    def __init__(self, front: Site, hits: list[str], misses: Iterable[str]) -> None:
        self._front, self._hits, self._misses = front, hits, iter(misses)
        self._over = threading.Event()
        self._lock = (
            threading.Lock()
        )  # guards `_misses`, of which a client takes the next
        self._clients = [threading.Thread(target=self._ask) for _ in range(CLIENTS)]
        self.counts = [0] * CLIENTS
        self.failures: list[str] = []

    def __enter__(self) -> Self:
        for client in self._clients:
            client.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        for client in self._clients:
            client.join()

    def _ask(self) -> None:
        me = self._clients.index(threading.current_thread())
        connection = self._front.connect()
        while not self._over.is_set():
            with self._lock:
                event_id = (
                    next(self._misses) if self.counts[me] % 10 == 0 else self._hits[me]
                )
            try:
                connection.request("GET", PREFIX + event_id)
                answer = connection.getresponse()
                body = answer.read()
                if answer.status != 200 or json.loads(body)["id"] != event_id:
                    self.failures.append(f"{answer.status} {body!r}")
            except (OSError, HTTPException, ValueError) as error:
                self.failures.append(repr(error))
                connection.close()
            self.counts[me] += 1
        connection.close()


@needs("nginx", "openssl")
def test_rolling_restart_loses_nothing(
    upstream: Standin, certificate: Path, tmp_path: Path
) -> None:
    """While two instances are restarted in turn, with and without a drain time, none of
    10,000 requests fails.
    """
    hits, misses = new_events(upstream, CLIENTS), new_events(upstream, REQUESTS // 10)
    with ExitStack() as stack:
        instances = [
            stack.enter_context(started(Service(upstream, (), C42_DRAIN="1")))
            for _ in range(2)
        ]
        front = stack.enter_context(
            site(tmp_path, certificate, *(one.port for one in instances))
        )
        restarts = 0
        with Load(front, hits, itertools.cycle(misses)) as load:
            while sum(load.counts) < REQUESTS or restarts < 4:
                old = instances[restarts % 2]
                assert old.stop() == 0
                new = Service(
                    upstream,
                    (),
                    C42_PORT=str(old.port),
                    C42_DRAIN=str(restarts // 2 % 2),
                )
                instances[restarts % 2] = stack.enter_context(started(new))
                restarts += 1
        assert load.failures == []
        assert sum(load.counts) >= REQUESTS
