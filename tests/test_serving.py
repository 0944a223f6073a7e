"""The server: starting, listening, stopping."""

import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

import pytest
import requests

from serving import server
from standin import EVENTS, Gate, Standin
from tests.fixtures import (
    PATIENCE,
    PREFIX,
    ROOT,
    TOKEN,
    Service,
    at_once,
    new_id,
    receive,
    until,
)

Start = Callable[..., Service]


def finish(*arguments: str, **environ: str) -> tuple[int, str, str]:
    """Run a program of the project to its end; return its status, and what it said on stdout and stderr."""
    ended = subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith("C42_")} | environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    return ended.returncode, ended.stdout, ended.stderr


def test_exit_status() -> None:
    """The program's own exit status is 2 for a missing token or a wrong setting, and 0 for --help."""
    outcomes = at_once(
        partial(finish, "main.py"),
        partial(finish, "main.py", **{"C42_TOKEN": "line\nbreak"}),
        partial(finish, "main.py", "--demo", C42_PORT="99999"),
        partial(finish, "main.py", "--help"),
        partial(finish, "main.py", "--nonsense"),
    )
    missing, token, port, usage, nonsense = outcomes
    for status, said, complaint in (missing, token, port):
        assert (status, said, complaint.count("\n")) == (2, "", 1)
    assert (usage[0], usage[2]) == (0, "")
    assert (nonsense[0], nonsense[1]) == (2, "")


def test_cannot_listen(service: Service) -> None:
    """A port in use, also by another c42c, and a host that is not this machine's are one line and exit status 1."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        taken = str(holder.getsockname()[1])
        changes = [
            {"C42_PORT": taken},
            {"C42_PORT": str(service.port)},
            {"C42_HOST": "203.0.113.1"},
            {"C42_HOST": "a..b"},
        ]
        outcomes = at_once(*(partial(finish, "main.py", C42_TOKEN=TOKEN, **change) for change in changes))
        demo = finish("main.py", "--demo", C42_PORT=taken)
    for (status, said, complaint), change in zip([*outcomes, demo], [*changes, changes[0]], strict=True):
        (value,) = change.values()
        assert (status, said, complaint.count("\n")) == (1, "", 1), complaint
        assert complaint.startswith("cannot listen on http://")
        assert value in complaint
        assert "; see C42_HOST and C42_PORT" in complaint
    assert "Address already in use" in outcomes[0][2]
    assert "Address already in use" in outcomes[1][2]
    assert service.event(EVENTS["plain"]).status_code == 200


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a" * 64, ".", "::ffff:203.0.113.1", "1.2.3.4.5"])
def test_no_host_of_ours(host: str) -> None:
    """A host that can't be found, or is another machine's, is an OSError with a reason to print."""
    with pytest.raises(OSError, match=r".") as raised:
        server.listen(host, 5000)
    assert raised.value.strerror


@pytest.mark.parametrize("host", ["::1", "localhost", "0.0.0.0"])
def test_other_hosts(start: Start, host: str) -> None:
    """The service listens at an IPv6 address, a name of this machine, or all its addresses."""
    if host == "::1":
        try:
            with socket.socket(socket.AF_INET6) as sock:
                sock.bind((host, 0))
        except OSError:
            pytest.skip("this machine has no IPv6")
    service = start(C42_HOST=host, ready=False)
    address = f"http://{'[::1]' if host == '::1' else host}:{service.port}"

    def answers() -> bool:
        assert service.process.poll() is None, service.log
        try:
            return requests.get(f"{address}/livez", timeout=PATIENCE, proxies={"http": ""}).status_code == 200
        except requests.ConnectionError:
            return False

    until(answers, f"an answer on {address}")
    assert address in service.log


def free(port: int) -> bool:
    """Say whether nobody listens on a port of this machine."""
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED


def clean(log: str) -> bool:
    """Say whether nothing in a log is an error."""
    return not re.search("Traceback|ERROR|CRITICAL|Error|panicked", log)


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT] * 3)
def test_stops_cleanly(start: Start, upstream: Standin, sig: signal.Signals) -> None:
    """Told to stop, the service finishes what is under way, takes nothing new, and exits with 0."""
    service, gate = start(C42_TIMEOUT="10"), Gate()
    event_ids = [new_id() for _ in range(8)]
    for event_id in event_ids:
        upstream.add_event(event_id, names=["Ella"])
        upstream.rule(event_id=event_id, gate=gate)
    socks = [service.connect() for _ in event_ids]
    for sock, event_id in zip(socks, event_ids, strict=True):
        sock.sendall(f"GET {PREFIX}{event_id} HTTP/1.1\r\nHost: c42c\r\n\r\n".encode())
    gate.wait_for(2 * len(event_ids))
    os.killpg(service.process.pid, sig)  # as a terminal does it
    until(partial(free, service.port), "the port to be free")
    gate.open()
    for sock in socks:
        answer = receive(sock)
        assert (answer.status, json.loads(answer.body)["names"]) == (200, ["Ella"])
        sock.close()
    assert service.process.wait(PATIENCE) == 0
    assert clean(service.log), service.log


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_stops_while_starting(start: Start, sig: signal.Signals) -> None:
    """Told to stop as soon as it says that it serves, the service does so, quickly."""
    service = start(C42_TIMEOUT="10", ready=False)
    until(lambda: "serving on" in service.log)
    asked = time.monotonic()
    os.killpg(service.process.pid, sig)
    assert service.process.wait(PATIENCE) == 0
    assert time.monotonic() - asked < 8  # it was not killed for want of an ear
    assert clean(service.log), service.log


def test_stops_without_those_that_wait_for_nothing(start: Start) -> None:
    """An idle kept-alive connection and a request that never ends hold the end up for C42_TIMEOUT and 1 s at most."""
    service = start(C42_TIMEOUT="0.5")
    with service.connect() as idle, service.connect() as half, service.connect() as silent:
        idle.sendall(b"GET /nothing HTTP/1.1\r\nHost: c42c\r\n\r\n")
        receive(idle)
        half.sendall(b"GET /events-with-subscriptions/a HTTP/1.1\r\nHo")
        silent.sendall(b"")
        asked = time.monotonic()
        assert service.stop() == 0
        assert time.monotonic() - asked < 0.5 + 1 + 2
    assert clean(service.log), service.log


def test_second_interrupt_ends_at_once(start: Start, upstream: Standin) -> None:
    """A second Ctrl-C ends the service, whatever is under way."""
    service, event_id, gate = start(C42_TIMEOUT="60"), new_id(), Gate()
    upstream.rule(event_id=event_id, gate=gate)
    with service.connect() as sock:
        sock.sendall(f"GET {PREFIX}{event_id} HTTP/1.1\r\nHost: c42c\r\n\r\n".encode())
        gate.wait_for(2)
        os.killpg(service.process.pid, signal.SIGINT)
        until(partial(free, service.port), "the port to be free")
        os.killpg(service.process.pid, signal.SIGINT)
        assert service.process.wait(PATIENCE) == 1
        assert sock.recv(1) == b""
    gate.open()


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_loses_none_of_fifty(start: Start, upstream: Standin, sig: signal.Signals) -> None:
    """Told to stop with 50 requests under way, the service takes no more, and answers all 50, and what came before."""
    service, gate = start(C42_TIMEOUT="10"), Gate()
    event_ids = [new_id() for _ in range(50)]
    for event_id in event_ids:
        upstream.add_event(event_id, title=event_id)
    upstream.rule(gate=gate)
    socks = [service.connect() for _ in event_ids]
    kept = [service.connect() for _ in range(20)]
    try:
        for sock, event_id in zip(socks, event_ids, strict=True):
            sock.sendall(f"GET {PREFIX}{event_id} HTTP/1.1\r\nHost: c42c\r\n\r\n".encode())
        for sock in kept:
            sock.sendall(b"GET /readyz HTTP/1.1\r\nHost: c42c\r\n\r\n")
            assert receive(sock).status == 200
        gate.wait_for(100)
        service.process.send_signal(signal.SIGSTOP)  # so that what is sent now comes before it hears of the end
        service.process.send_signal(sig)
        for sock in kept:
            sock.sendall(b"GET /readyz HTTP/1.1\r\nHost: c42c\r\n\r\n")
        service.process.send_signal(signal.SIGCONT)
        assert {receive(sock).status for sock in kept} <= {200, 503}
        until(partial(free, service.port), "new connections to be refused")
        gate.open()
        answers = [receive(sock) for sock in socks]
        assert [answer.status for answer in answers] == [200] * 50
        assert [json.loads(answer.body)["title"] for answer in answers] == event_ids
        assert {answer.headers["Connection"] for answer in answers} == {"close"}
    finally:
        for sock in socks + kept:
            sock.close()
    assert service.process.wait(PATIENCE) == 0
    assert [service.log.count(word) for word in ("serving on", "c42c stopping", "c42c stopped")] == [1, 1, 1]


def test_what_does_not_finish_is_cut(start: Start, upstream: Standin) -> None:
    """What has not finished after C42_TIMEOUT and a second is cut off: a client that never takes its answer."""
    service, gate = start(C42_TIMEOUT="0.1"), Gate()
    event_id = new_id()
    upstream.add_event(event_id, names=["x" * 1000] * 3000)
    with service.connect() as sock:
        sock.sendall(f"GET {PREFIX}{event_id} HTTP/1.1\r\nHost: c42c\r\n\r\n".encode() * 20)
        until(lambda: service.log.count("load event=") == 1)
        assert service.stop() == 0
    gate.open()


def test_idle_connections(service: Service) -> None:
    """1,200 idle connections keep nobody else out."""
    socks: list[socket.socket] = []
    try:
        socks += [service.connect() for _ in range(1200)]
        socks[0].sendall(b"GET /nothing HTTP/1.1\r\nHost: c42c\r\n\r\n")
        assert receive(socks[0]).status == 404
        assert service.event(EVENTS["plain"]).status_code == 200
        assert service.raw(PREFIX.encode() + b"a.b").status == 400
    finally:
        for sock in socks:
            sock.close()


def test_demo(start: Start) -> None:
    """--demo serves made-up events without a token; each of the curl lines that it prints gets an answer."""
    service = start("--demo", C42_TOKEN="")
    lines = re.findall(r"^ +curl -i (\S+)  # (.+)$", service.log, re.M)
    assert len(lines) >= 4
    answers = {what: service.get(address.removeprefix(service.url)) for address, what in lines}
    assert [answer.status_code for answer in answers.values()] == [200, 200, 200, 404, 404]
    assert len(answers["one with 250 people, on three pages"].json()["names"]) == 250
    os.killpg(service.process.pid, signal.SIGINT)
    assert service.process.wait(PATIENCE) == 0
    assert clean(service.log), service.log
