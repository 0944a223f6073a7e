"""deploy/c42c.nginx.conf in a real nginx, with TLS."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPMessage, HTTPSConnection
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from standin import Standin
from tests.deploy.tools import free_ports, needs, nginx, trust
from tests.fixtures import PREFIX, ROOT, Service, new_id

APP = "https://app.example.com"


class Answer(NamedTuple):
    """What nginx sent."""

    status: int
    headers: HTTPMessage
    body: bytes


class Site:
    """The site, as clients see it."""

    def __init__(self, plain: int, tls: int, certificate: Path) -> None:
        self.plain, self._tls, self._context = plain, tls, trust(certificate)

    def get(self, path: str, source: str = "127.0.0.1", **headers: str) -> Answer:
        """GET a path over TLS, from an address of this machine."""
        connection = HTTPSConnection(
            "localhost", self._tls, context=self._context, source_address=(source, 0), timeout=20
        )
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
    text = re.sub(r"listen \[::\].*", "", text).replace("/etc/nginx/c42c", str(certificate))
    text = text.replace("listen 80", f"listen 127.0.0.1:{plain}").replace("listen 443", f"listen {tls}")
    for shipped, port in zip(("5001", "5002"), instances, strict=True):
        text = text.replace(f"127.0.0.1:{shipped} ", f"127.0.0.1:{port} ")
    with nginx(folder, text, plain, tls):
        yield Site(plain, tls, certificate)


@needs("nginx", "openssl")
def test_serves_events_to_everybody_and_pages_to_operators(
    service: Service, upstream: Standin, certificate: Path, tmp_path: Path
) -> None:
    """nginx serves events and the contract over TLS to everybody, and the operators' pages to operators alone."""
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
def test_one_instance_is_enough(service: Service, upstream: Standin, certificate: Path, tmp_path: Path) -> None:
    """While one of two instances is down, every request is answered by the other; what c42c says is not replaced."""
    down, broken = free_ports(1)[0], new_id()
    upstream.rule(event_id=broken, reset=True)
    with site(tmp_path, certificate, down, service.port) as front:
        assert [front.get("/readyz").status for _ in range(20)] == [200] * 20
        said = front.get(PREFIX + broken)
        assert (said.status, json.loads(said.body)) == (502, service.event(broken).json())


@needs("nginx", "openssl")
def test_envelope_when_all_are_down(start: Callable[..., Service], certificate: Path, tmp_path: Path) -> None:
    """When no instance answers, nginx answers 502 in the envelope, which pages of allowed origins can read."""
    with site(tmp_path, certificate, *free_ports(2)) as front:
        said = front.get(PREFIX + new_id(), Origin=APP)
        assert said.status == 502
        reason = {"status_code": 502, "message": "the service is down", "code": "BAD_GATEWAY"}
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
            assert front.get(PREFIX + new_id(), **origin).headers["Access-Control-Allow-Origin"] is None
