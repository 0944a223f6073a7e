"""Certificates, and what this machine runs out of."""

import logging
import os
import socket
import ssl
import subprocess
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import requests.adapters

from calendar42.calls import CallRecord
from calendar42.errors import Exhausted
from tests.client.callers import check_exhausted, failure
from tests.fixtures import PATIENCE, at_once, no_descriptors, until
from tests.transport.test_replies import ODD
from tests.transport.upstreams import (
    OTHER,
    REPLY,
    Fickle,
    Make,
    Scripted,
    accepting,
    ask,
    no_reply,
    reply_once,
    server_side,
)

# TLS, and this machine's own trouble


def test_tls(scripted: Scripted, make: Make, trusted: ssl.SSLContext) -> None:
    """Over TLS too, a connection is kept, and replaced when it is closed.

    After an odd reply, it isn't used again.
    """
    script = scripted([REPLY, OTHER], [ODD["103"] + REPLY], [OTHER], tls=trusted)
    client = make(script.base_url)
    statuses = [ask(client).status for _ in range(2)]
    assert script.ended.acquire(timeout=PATIENCE)
    statuses += [ask(client).status for _ in range(2)]
    assert statuses == [200, 200, 103, 200]


def test_certificates_are_read_once(
    make: Make, trusted: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All connections share one set of certificates, however many are made at once."""
    read: list[int] = []
    load_locations = ssl.SSLContext.load_verify_locations

    def count(context: ssl.SSLContext, *args: Any, **kwargs: Any) -> None:
        read.append(id(context))
        load_locations(context, *args, **kwargs)

    monkeypatch.setattr(ssl.SSLContext, "load_verify_locations", count)
    with Fickle(lambda is_first: True, trusted) as upstream:
        client = make(upstream.base_url)
        at_once(*[lambda: failure(client)] * 8)
        client.calls.close(wait=True)
    assert len(read) == 1


def test_the_certificates_of_requests(
    scripted: Scripted,
    make: Make,
    trusted: ssl.SSLContext,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If the environment names no certificates, those of `requests` count."""
    script = scripted([REPLY], tls=trusted)
    bundle = os.environ["REQUESTS_CA_BUNDLE"]
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    monkeypatch.delenv("CURL_CA_BUNDLE", raising=False)
    monkeypatch.setattr(requests.adapters, "DEFAULT_CA_BUNDLE_PATH", bundle)
    assert ask(make(script.base_url)).body == b"{}"


def test_a_folder_of_certificates(
    client_of: Make,
    trusted: ssl.SSLContext,
    certificate: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The certificates may be in a folder, as OpenSSL wants it.

    There, each file's name is the hash of its subject.
    """
    pem = certificate / "fullchain.pem"
    command = ["openssl", "x509", "-noout", "-hash", "-in", str(pem)]
    hashed = subprocess.run(command, check=True, capture_output=True, text=True)
    (tmp_path / f"{hashed.stdout.strip()}.0").write_bytes(pem.read_bytes())
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path))
    assert ask(client_of([REPLY], tls=trusted)).body == b"{}"


def test_an_unknown_certificate(
    scripted: Scripted, make: Make, certificate: Path
) -> None:
    """The reason says what is wrong with a certificate."""
    script = scripted([], tls=server_side(certificate))
    with no_reply(r"^certificate: self-signed certificate$"):
        ask(make(script.base_url))


@pytest.mark.parametrize(
    ("bundle", "why"),
    [
        ("missing", r"^certificate bundle: no such file$"),
        ("nonsense", r"no certificate or crl found"),
    ],
)
def test_an_unreadable_bundle(
    make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bundle: str, why: str
) -> None:
    """A missing or invalid certificate bundle is a fault, and the reason says so."""
    (tmp_path / "nonsense").write_text("no certificates")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / bundle))
    with socket.create_server(("127.0.0.1", 0)) as listener, no_reply(why):
        ask(make(f"https://127.0.0.1:{listener.getsockname()[1]}/"))


def test_a_handshake_that_breaks_off(make: Make) -> None:
    """If the upstream hangs up during the TLS handshake, the reason says so."""
    with accepting(lambda sock: sock.recv(65536)) as port, no_reply(r"^broke off$"):
        ask(make(f"https://127.0.0.1:{port}/"))


UNKNOWN = r"^(Name or service not known|Temporary failure in name resolution)$"


@pytest.mark.parametrize(
    ("host", "why"),
    [
        ("127.0.0.1:1", r"^Connection refused$"),
        (f"{'a' * 64}.invalid", r"^not a host name$"),
        ("no..host", r"^not a host name$"),
        ("no-such-host.invalid", UNKNOWN),
    ],
)
def test_unreachable(make: Make, host: str, why: str) -> None:
    """The reason says whether a connection was refused or a name is unknown."""
    with no_reply(why):
        ask(make(f"http://{host}/"))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "no-such-host.invalid"])
def test_no_descriptors(
    make: Make, caplog: pytest.LogCaptureFixture, host: str
) -> None:
    """Without file descriptors, even for a look-up, the answer is a 503 that says so.

    An error in the log names the limit. Once there are some, calls work again.
    """
    calls: list[CallRecord] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://{host}:{listener.getsockname()[1]}/"
        client = make(url, on_call=calls.append)
        with no_descriptors():
            error = failure(client)
            until(lambda: len(calls) == 2)  # or one of them would get the reply
        limit = "c42c has reached its limit of open files (ulimit -n, LimitNOFILE)"
        message = f"{limit} and can't call Calendar42"
        trouble = "Too many open files"
        check_exhausted(error, message, trouble)
        (record,) = caplog.records
        assert record.levelno == logging.ERROR
        assert f": {message} (" in record.getMessage()
        assert trouble in record.getMessage()
        if not host.endswith(".invalid"):
            replies = at_once(partial(ask, client), partial(reply_once, listener))
            assert replies[0].body == b"{}"


def test_no_threads(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If the system allows no more threads, that is an error of c42c that says so.

    The call isn't made later.
    """

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    calls: list[CallRecord] = []
    client = make("http://127.0.0.1:1/", on_call=calls.append)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        error = failure(client)
        with pytest.raises(Exhausted):
            ask(client)
    message = "c42c can't start another thread (ulimit -u, TasksMax)"
    check_exhausted(error, message, "no thread can be started")
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    with no_reply("Connection refused"):
        ask(client)
    assert len(calls) == 1
