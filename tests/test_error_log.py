"""Errors in the log: each has a line that its X-Request-ID finds, and floods don't."""

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from calendar42.errors import C42Error, Paused
from operations import logs
from operations.error_log import INTERVAL, MAX_LINES, ErrorLog
from standin import Gate, Standin
from tests.cache_callers import Clock
from tests.fixtures import (
    PATIENCE,
    PREFIX,
    ROOT,
    MakeInside,
    Start,
    listed,
    new_id,
    receive,
    until,
)


def lines_with(log: str, its_id: str) -> list[str]:
    """Return what `grep` finds."""
    return [line for line in log.splitlines() if line.endswith(f" request={its_id}")]


def test_every_error_is_found(start: Start, upstream: Standin) -> None:
    """The id that comes with an error leads to its line of the log.

    The line says its status and what it was about, however the error came about.
    """
    service = start(C42_THREADS="18")  # two of them may wait
    unknown, broken, slow, paused = (new_id() for _ in range(4))
    upstream.rule("events", broken, status=500)
    ids: list[tuple[str, Any, str]] = []
    for event_id, status in ((unknown, 404), (broken, 500)):
        for _ in range(2):  # the second one is kept
            answer = service.event(event_id)
            assert answer.status_code == status
            ids.append((answer.headers["X-Request-ID"], status, event_id))
    assert len(set(ids)) == 2
    many = service.get(listed([broken])).json()["errors"][broken]
    ids.append((many["request_id"], 500, broken))

    gate = Gate()
    upstream.rule("events", slow, status=503, gate=gate)
    with ThreadPoolExecutor() as pool:
        waiting = [pool.submit(service.event, slow) for _ in range(2)]
        until(lambda: service.get("/status.json").json()["cache"]["waiting"] == 2)
        refused = service.event("refused")
        assert refused.headers["Retry-After"] == "1"
        ids.append((refused.headers["X-Request-ID"], 503, " event=refused "))
        gate.open()
        collapsed = [future.result().headers["X-Request-ID"] for future in waiting]
    assert collapsed[0] == collapsed[1]
    ids.append((collapsed[0], 503, slow))

    ids.append((service.event("b.c").headers["X-Request-ID"], 400, " event='b.c' "))
    for method, path, status in (
        ("GET", PREFIX + "a.b", 400),
        ("GET", PREFIX + "?event_ids=", 400),
        ("GET", "/nothing", 404),
        ("POST", "/livez", 405),
    ):
        answer = service.request(method, path)
        assert answer.status_code == status
        ids.append((answer.headers["X-Request-ID"], status, f" {method} '{path}"))
    with service.connect() as sock:
        sock.sendall(b"GET / HTTP/3.0\r\n\r\n")
        malformed = receive(sock)
    ids.append((malformed.headers["X-Request-ID"], 505, "only HTTP/1.1"))

    upstream.rule(status=429, headers={"Retry-After": "60"})
    for event_id in (new_id(), paused, paused):
        answer = service.event(event_id)
        assert answer.status_code == 429
        ids.append((answer.headers["X-Request-ID"], 429, event_id))

    assert service.stop() == 0
    for its_id, status, about in ids:
        found = lines_with(service.log, its_id)
        assert any(f" status={status}" in line and about in line for line in found)


def test_floods_are_counted(inside: MakeInside, caplog: Any) -> None:
    """Of many errors of one kind, only a few get a line of the log.

    The others carry the last one's id, and are counted in the next line.
    """
    caplog.set_level(logging.INFO, "c42c.errors")
    service = inside()
    floods: list[tuple[Callable[[], str], str]] = [
        (lambda: service.event("a.b").headers["X-Request-ID"], "status=400"),
        (lambda: service.http.get("/nothing").headers["X-Request-ID"], "status=404"),
        (lambda: rejected(service.components.reject(400, "bad", "")), "route=other"),
    ]
    for ask, expected in floods:
        caplog.clear()
        ids = [ask() for _ in range(50)]
        assert len(set(ids)) == MAX_LINES
        assert set(ids[MAX_LINES - 1 :]) == {ids[MAX_LINES - 1]}
        assert len(caplog.records) == MAX_LINES
        assert all(expected in record.message for record in caplog.records)
        assert f"within {INTERVAL:.0f} s" in caplog.records[-1].message


def rejected(answer: tuple[bytes, bytes]) -> str:
    """Return the X-Request-ID of an answer as it is sent."""
    (line,) = (
        line for line in answer[0].splitlines() if line.startswith(b"X-Request-ID: ")
    )
    return line.partition(b" ")[2].decode()


def test_the_next_line_counts(caplog: Any) -> None:
    """After the interval, the first line says how many errors had none.

    Then there are as many lines as in any interval.
    """
    caplog.set_level(logging.INFO, "c42c.errors")
    clock = Clock()
    errors = ErrorLog(clock)
    for _ in range(MAX_LINES + 7):
        last = errors.on_rejection(400, "bad")
    clock.now += INTERVAL - 0.001
    assert errors.on_rejection(400, "bad") == last
    other = errors.on_rejection(431, "too large")
    assert other != last, "each status has lines of its own"
    left_out = [record.fields["left_out"] for record in caplog.records]
    assert left_out == [0] * (MAX_LINES + 1)
    clock.now += 0.001
    caplog.clear()
    assert errors.on_rejection(400, "bad") not in (last, other)
    assert errors.on_rejection(400, "bad") not in (last, other)
    first, second = (record.message for record in caplog.records)
    assert "(8 errors like it since the last line)" in first
    assert "errors like it" not in second
    assert [record.fields["left_out"] for record in caplog.records] == [8, 0]
    others = {errors.on_rejection(400, "bad") for _ in range(MAX_LINES)}
    assert len(others) == MAX_LINES - 2, "as many lines as in each interval"


def test_paused_loads_are_counted_too(caplog: Any) -> None:
    """A flood of unknown events during a pause gets a few lines of the log.

    Other failed loads get none here, as each has a line of its own elsewhere.
    """
    caplog.set_level(logging.INFO, "c42c.errors")
    errors = ErrorLog()
    before = logs.request_id.set("report-9")
    pause = Paused("events", "a pause", 429, 0)
    ids = {errors.id_for_failed_load(new_id(), pause) for _ in range(100)}
    assert ids == {"report-9"}
    assert len(caplog.records) == MAX_LINES
    assert errors.id_for_failed_load("b", C42Error("events", "no")) == "report-9"
    assert len(caplog.records) == MAX_LINES
    logs.request_id.reset(before)


@pytest.mark.parametrize(
    ("status", "level"), [(400, "INFO"), (499, "INFO"), (500, "WARNING")]
)
def test_levels(caplog: Any, status: int, level: str) -> None:
    """What clients do wrong is no warning; what goes wrong here is."""
    caplog.set_level(logging.INFO, "c42c.errors")
    ErrorLog().on_rejection(status, "no")
    (record,) = caplog.records
    assert record.levelname == level


def test_the_id_of_a_rejection_ends_with_its_line() -> None:
    """What is logged after a rejection isn't logged under its id."""
    before = logs.request_id.set("report-9")
    its_id = ErrorLog().on_rejection(400, "bad")
    assert logs.request_id.get() == "report-9" != its_id
    logs.request_id.reset(before)


def test_hits_of_errors_have_no_line(inside: MakeInside, upstream: Standin) -> None:
    """A kept error is answered with the request id of its load, not of the hit."""
    service, event_id = inside(), new_id()
    upstream.rule("events", event_id, status=500)
    first = service.event(event_id, headers={"X-Request-ID": "the-load"})
    again = service.event(event_id, headers={"X-Request-ID": "a-hit"})
    for answer in (first, again):
        assert answer.headers["X-Request-ID"] == "the-load"


LONG = """
import logging
import main
from operations import logs, settings

config = settings.read({"C42_TOKEN": "abc-12345678"})
logs.configure("INFO", "FORM", config.token)
client = main.create_app(config).test_client()
client.get("/nothing?abc-12345678" + "a" * 5000)
client.get("/events-with-subscriptions/abc-12345678%0ax%20y" + "z" * 5000)
"""


@pytest.mark.parametrize("form", ["text", "json"])
def test_paths_are_cut_and_escaped(form: str) -> None:
    """A long path is cut, a control character escaped, and the token redacted."""
    ended = subprocess.run(
        [sys.executable, "-c", LONG.replace("FORM", form)],
        check=True,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    lines = ended.stderr.splitlines()
    assert len(lines) == 2
    assert all(len(line) < 2000 for line in lines)
    assert "abc-12345678" not in ended.stderr
    if form == "json":
        fields = [json.loads(line) for line in lines]
        assert [one["status"] for one in fields] == [404, 400]
        assert [len(one["path"]) for one in fields] == [291, 291]
        assert fields[1]["event"].startswith("***\nx yz")
        assert fields[1]["route"] == PREFIX + "<event_id>"
