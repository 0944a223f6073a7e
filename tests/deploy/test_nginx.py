"""deploy/c42c.nginx.conf in a real nginx, with TLS."""

import gzip
import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection, HTTPMessage, HTTPSConnection
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from standin import Standin
from tests.deploy.load import Load
from tests.deploy.tools import free_ports, needs, nginx, trust
from tests.fixtures import (
    PATIENCE,
    PREFIX,
    ROOT,
    Service,
    listed,
    new_events,
    new_id,
    started,
    until,
)

APP = "https://app.example.com"
REQUESTS = 10_000


class NginxAnswer(NamedTuple):
    """What nginx sent."""

    status: int
    headers: HTTPMessage
    body: bytes


class Site:
    """The site, as clients see it."""

    def __init__(self, plain: int, tls: int, certificate: Path, log: Path) -> None:
        self.plain = plain
        self._tls = tls
        self._context = trust(certificate)
        self._log = log

    def connect(self, source: str = "127.0.0.1") -> HTTPSConnection:
        """Return a connection over TLS, from an address of this machine."""
        return HTTPSConnection(
            "localhost",
            self._tls,
            context=self._context,
            source_address=(source, 0),
            timeout=PATIENCE,
        )

    def get(self, path: str, source: str = "127.0.0.1", **headers: str) -> NginxAnswer:
        """GET a path over TLS, from an address of this machine.

        `X_Request_ID="a"` is the header `X-Request-ID: a`.
        """
        connection = self.connect(source)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request("GET", path, headers=named)
        with connection.getresponse() as answer:
            found = NginxAnswer(answer.status, answer.headers, answer.read())
        connection.close()
        return found

    def lines(self) -> list[dict[str, Any]]:
        """Return the lines of the access log."""
        return [json.loads(line) for line in self._log.read_text().splitlines()]


@contextmanager
def site(
    folder: Path,
    certificate: Path,
    *instances: int,
    edit: Callable[[str], str] = lambda text: text,
) -> Iterator[Site]:
    """Run nginx with the site, in front of instances on those ports.

    `edit` changes the site first, as its comments say.
    """
    plain, tls = free_ports(2)
    log = folder / "access.log"
    text = edit((ROOT / "deploy/c42c.nginx.conf").read_text())
    text = re.sub(r"listen \[::\].*", "", text)
    text = text.replace("listen 80", f"listen 127.0.0.1:{plain}")
    text = text.replace("listen 443", f"listen {tls}")
    text = text.replace("/etc/nginx/c42c", str(certificate))
    text = text.replace("/var/log/nginx/c42c.log", str(log))
    for shipped, port in zip(("5001", "5002"), instances, strict=True):
        text = text.replace(f"127.0.0.1:{shipped} ", f"127.0.0.1:{port} ")
    with nginx(folder, text, plain, tls):
        yield Site(plain, tls, certificate, log)


@needs("nginx", "openssl")
def test_serves_events_to_everybody_and_pages_to_operators(
    service: Service, upstream: Standin, certificate: Path, tmp_path: Path
) -> None:
    """nginx serves events to everybody, and the operators' pages to operators alone.

    The contract is for everybody, too. All are served over TLS.
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
        redirect = HTTPConnection("127.0.0.1", front.plain, timeout=PATIENCE)
        redirect.request("GET", "/readyz", headers={"Host": "localhost"})
        assert urlsplit(redirect.getresponse().headers["Location"]).scheme == "https"
        redirect.close()


@needs("nginx", "openssl")
def test_one_instance_is_enough(
    service: Service, upstream: Standin, certificate: Path, tmp_path: Path
) -> None:
    """While one of two instances is down, the other answers every request.

    nginx doesn't replace c42c's errors.
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
    """When no instance answers, nginx answers 502 in the envelope.

    Pages of allowed origins can read it.
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
            "Retry-After": "1",
            "Strict-Transport-Security": "max-age=31536000",
        }
        assert {name: said.headers[name] for name in wanted} == wanted
        until(front.lines, "nginx to write its log")
        (line,) = front.lines()
        assert said.headers["X-Request-ID"] == line["request_id"]
        for origin in ({}, {"Origin": "https://elsewhere.example.com"}):
            assert (
                front.get(PREFIX + new_id(), **origin).headers[
                    "Access-Control-Allow-Origin"
                ]
                is None
            )


@needs("nginx", "openssl")
def test_log_leads_to_the_request(
    service: Service, upstream: Standin, certificate: Path, tmp_path: Path
) -> None:
    """A line of nginx's log has what leads to the request in c42c's log.

    That is the client, the instance, where the answer came from, and the request id. A
    client's own id is kept if c42c would keep it.
    """
    event_id, broken = new_events(upstream, 1)[0], new_id()
    upstream.rule(event_id=broken, status=500)
    with site(tmp_path, certificate, service.port, service.port) as front:
        first = front.get(PREFIX + event_id)
        front.get(PREFIX + event_id, "127.0.0.2")
        front.get(PREFIX + broken, X_Request_ID="button-7")
        front.get(PREFIX + broken, X_Request_ID="two words")
        until(lambda: len(front.lines()) == 4, "nginx to write its log")
        miss, hit, own, replaced = front.lines()
    assert first.headers["X-Request-ID"] == miss["request_id"] == miss["answer_id"]
    until(lambda: f"request={miss['request_id']}" in service.log, "the load's line")
    assert [miss["client"], hit["client"]] == ["127.0.0.1", "127.0.0.2"]
    assert miss["instance"] == f"127.0.0.1:{service.port}"
    assert miss["cache_status"].startswith("c42c; fwd=miss")
    assert hit["cache_status"].startswith("c42c; hit")
    assert hit["request"] == f"GET {PREFIX}{event_id} HTTP/1.1"
    assert [own["status"], own["request_id"]] == [500, "button-7"]
    until(lambda: "request=button-7" in service.log, "the line of the button")
    assert re.fullmatch("[0-9a-f]{32}", replaced["request_id"])


@needs("nginx", "openssl")
def test_lists_are_compressed(
    service: Service, upstream: Standin, certificate: Path, tmp_path: Path
) -> None:
    """A list is sent compressed to a client that can unpack it.

    Its ETag still says when nothing has changed.
    """
    path = listed(new_events(upstream, 30))
    with site(tmp_path, certificate, service.port, service.port) as front:
        plain = front.get(path)
        packed = front.get(path, Accept_Encoding="gzip")
        assert gzip.decompress(packed.body) == plain.body
        assert len(packed.body) < len(plain.body) / 3
        etag = packed.headers["ETag"]
        assert front.get(path, If_None_Match=etag).status == 304


@needs("nginx", "openssl")
def test_operators_stay_on_one_instance(
    upstream: Standin, certificate: Path, tmp_path: Path
) -> None:
    """An operator always sees the status page of the same instance.

    If that one is down, it's the other's. Events are spread over both.
    """
    event_ids = new_events(upstream, 20)
    with ExitStack() as stack:
        services = [Service(upstream), Service(upstream)]
        for service in services:
            stack.enter_context(started(service))
        ports = [service.port for service in services]
        front = stack.enter_context(site(tmp_path, certificate, *ports))
        for event_id in event_ids:
            front.get(PREFIX + event_id)
            front.get("/status.json")
        until(lambda: len(front.lines()) == 40, "nginx to write its log")
        lines = front.lines()
        of_events = {line["instance"] for line in lines[::2]}
        of_pages = {line["instance"] for line in lines[1::2]}
        assert len(of_events) == 2
        assert len(of_pages) == 1
        for service in services:
            if of_pages == {f"127.0.0.1:{service.port}"}:
                service.stop()
        assert front.get("/status.json").status == 200


@needs("nginx", "openssl")
def test_limit_per_client(
    service: Service, upstream: Standin, certificate: Path, tmp_path: Path
) -> None:
    """With limit_req, a client that asks too often gets 429; others are answered.

    It's switched on as the site's comment says. The 429 is in the envelope.
    """

    def edit(text: str) -> str:
        text, count = re.subn(r"# (?=limit_req\S* )", "", text)
        assert count == 3
        # So low that even a slow test is too fast.
        text = text.replace("rate=50r/s", "rate=1r/s")
        return text.replace("burst=100", "burst=1")

    (event_id,) = new_events(upstream, 1)
    with site(tmp_path, certificate, service.port, service.port, edit=edit) as front:
        answers = [front.get(PREFIX + event_id) for _ in range(50)]
        refused = [answer for answer in answers if answer.status == 429]
        assert refused
        error = json.loads(refused[0].body)["error"]
        assert [error["status_code"], error["code"]] == [429, "TOO_MANY_REQUESTS"]
        assert refused[0].headers["Retry-After"] == "1"
        assert refused[0].headers["X-Request-ID"]
        assert front.get(PREFIX + event_id, "127.0.0.2").status == 200


@needs("nginx", "openssl")
def test_rolling_restart_loses_nothing(
    upstream: Standin, certificate: Path, tmp_path: Path
) -> None:
    """While two instances are restarted in turn, none of 10,000 requests fails.

    They are restarted with and without a drain time.
    """
    with ExitStack() as stack:
        instances = [
            stack.enter_context(started(Service(upstream, (), C42_DRAIN="1")))
            for _ in range(2)
        ]
        ports = [instance.port for instance in instances]
        front = stack.enter_context(site(tmp_path, certificate, *ports))
        restarts = 0
        with Load(front.connect, upstream) as load:
            while load.requests < REQUESTS or restarts < 4:
                old = instances[restarts % 2]
                assert old.stop() == 0
                drain = restarts // 2 % 2
                new = Service(
                    upstream, (), C42_PORT=str(old.port), C42_DRAIN=str(drain)
                )
                instances[restarts % 2] = stack.enter_context(started(new))
                restarts += 1
        assert load.failures == []
        assert load.requests >= REQUESTS
