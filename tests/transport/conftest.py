"""Upstreams and clients, for the tests of the transport."""

import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.client.callers import Make, clients
from tests.fixtures import PATIENCE
from tests.transport.upstreams import Proxied, Script, Scripted, Sent, server_side


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    """Give a test a way to serve a script: `scripted([b"HTTP/1.1 …"])`.

    Each list is one connection.
    """
    scripts: list[Script] = []

    def serve(*connections: list[Sent], tls: ssl.SSLContext | None = None) -> Script:
        scripts.append(Script(connections, tls))
        return scripts[-1]

    yield serve
    for script in scripts:
        script.end()


@pytest.fixture
def make() -> Iterator[Make]:
    """Give a test a way to make clients: `make(base_url)`."""
    with clients(token="x-sent", timeout=PATIENCE) as make:
        yield make


@pytest.fixture
def client_of(scripted: Scripted, make: Make) -> Make:
    """Give a test a way to make a client of a script: `client_of([b"HTTP/1.1 …"])`."""
    return lambda *script, **tls: make(scripted(*script, **tls).base_url)


@pytest.fixture
def proxied(monkeypatch: pytest.MonkeyPatch) -> Proxied:
    """Give a test a way to name a proxy in the environment."""

    def name(proxy: str) -> None:
        variables = {"http_proxy": proxy, "https_proxy": proxy, "no_proxy": "127.0.0.1"}
        for variable, value in variables.items():
            monkeypatch.setenv(variable, value)
            monkeypatch.setenv(variable.upper(), value)

    return name


@pytest.fixture
def trusted(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """Return a server's side of TLS with a certificate that is trusted."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate / "fullchain.pem"))
    return server_side(certificate)
