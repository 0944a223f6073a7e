"""What operators see and run: metrics, health, logs, stopping, `--check` and what is in
deploy/.
"""

import json
import re
import socket
import ssl
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import pytest
from flask import Flask
from prometheus_client.parser import text_string_to_metric_families

from cache import Cache
from calendar42.calls import CallRecord, Pause
from operations import check, health
from operations.metrics import Metrics
from standin import Gate, Standin
from tests.fixtures import ROOT, TOKEN, MakeInside, Service, at_once, new_id, until

PREFIX = "/events-with-subscriptions/"
ENDPOINTS = ("/metrics", "/livez", "/readyz", "/healthz", "/status.json")
small_metrics = partial(Metrics, expiry=252.0)
SMALL = {
    "C42_THREADS": "20",
    "C42_TIMEOUT": "5",
}  # four requests may wait for the upstream

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]
Start = Callable[..., Service]


def samples(service: Service) -> Samples:
    """Read /metrics as Prometheus does."""
    families = text_string_to_metric_families(service.get("/metrics").text)
    return {
        (one.name, frozenset(one.labels.items())): one.value
        for family in families
        for one in family.samples
    }


def value(found: Samples, name: str, **labels: str) -> float:
    """Return the sum of all samples of that name whose labels include those."""
    return sum(
        number
        for (one, its), number in found.items()
        if one == name and its >= labels.items()
    )


# Numbers


def test_numbers_add_up(start: Start, upstream: Standin) -> None:
    """Under load, each request is counted once, by its outcome, and each call as often
    as the upstream saw it.
    """
    service, gate = start(**SMALL), Gate()
    held, missing, broken = new_id(), new_id(), new_id()
    upstream.add_event(held, names=["Arthur"])
    upstream.add_event(broken)
    upstream.rule(event_id=held, gate=gate)
    upstream.rule(event_id=broken, status=503)
    statuses = Counter[int]()

    def ask(event_id: str, **headers: str) -> None:
        statuses[service.event(event_id, headers=headers).status_code] += 1

    waiting = [threading.Thread(target=ask, args=(held,)) for _ in range(4)]
    for thread in waiting:
        thread.start()
    until(
        lambda: service.get("/status.json").json()["cache"]["waiting"] == 4,
        "the waiting room to be full",
    )
    at_once(*[partial(ask, new_id()) for _ in range(30)])
    assert statuses == {503: 30}
    gate.open()
    for thread in waiting:
        thread.join()
    ask(missing)
    ask(broken)
    tag = service.event(held).headers["ETag"]
    statuses[200] += 1
    for _ in range(20):
        at_once(
            *[partial(ask, event_id) for event_id in (held, missing, broken)],
            partial(ask, held, **{"If-None-Match": tag}),
        )
    until(
        lambda: (
            value(samples(service), "c42_upstream_requests_total") == upstream.calls()
        ),
        "all calls to end",
    )

    found = samples(service)
    results = {
        one: value(found, "c42_cache_requests_total", result=one)
        for one in ("hit", "miss", "collapsed", "refused")
    }
    assert results == {"hit": 81, "miss": 3, "collapsed": 3, "refused": 30}
    assert sum(results.values()) == statuses.total()
    loads = {
        one: value(found, "c42_cache_loads_total", outcome=one)
        for one in ("ok", "negative", "fault", "failed")
    }
    assert loads == {"ok": 1, "negative": 1, "fault": 1, "failed": 0}
    entries = {
        one: value(found, "c42_cache_entries", kind=one)
        for one in ("ok", "negative", "fault")
    }
    assert entries == {"ok": 1, "negative": 1, "fault": 1}
    route = PREFIX + "<event_id>"
    for status, count in statuses.items():
        assert (
            value(found, "c42_http_requests_total", route=route, status=str(status))
            == count
        )
    assert value(found, "c42_http_requests_total", route=route) == statuses.total()
    for endpoint in ("events", "event-subscriptions"):
        assert value(
            found, "c42_upstream_requests_total", endpoint=endpoint
        ) == upstream.calls(endpoint)
        name = "c42_upstream_request_duration_seconds_count"
        assert value(found, name, endpoint=endpoint) == upstream.calls(endpoint)

    page = service.get("/status.json").json()
    hits = {
        kind: value(found, "c42_cache_hits_total", kind=kind)
        for kind in ("ok", "negative", "fault", "paused")
    }
    assert hits == {"ok": 41, "negative": 20, "fault": 20, "paused": 0}
    assert (page["requests"], page["hit_ratio"], page["saved_calls"]) == (
        117,
        61 / 117,
        2 * 61,
    )
    took = value(found, "c42_http_request_duration_seconds_count", route=route)
    assert took == 36, (
        "4 waited, 30 were refused, 2 were loaded later; hits don't count"
    )
    assert not any("_created" in name or name == "c42_process_id" for name, _ in found)
    assert page["upstream"]["requests"] == upstream.calls()
    faults = [
        (fault["endpoint"], fault["status"]) for fault in page["upstream"]["faults"]
    ]
    assert faults == [("events", 503)]


def test_labels_are_bounded(service: Service) -> None:
    """No client can add a series: unknown paths, odd methods and queries don't get
    labels of their own.
    """
    service.get("/no-such-path")
    service.request("BREW", "/livez")
    samples(service)  # the first counts itself only in the next
    before = samples(service).keys()
    paths = [f"/{new_id()}/{number}?{new_id()}" for number in range(20)]
    at_once(
        *[partial(service.get, path) for path in paths],
        partial(service.request, "M" + new_id(), "/livez"),
    )
    assert samples(service).keys() == before


def test_durations_of_the_last_calls() -> None:
    """The median and the 99th percentile are of the last 500 calls, and null before the
    first.
    """
    cache = Cache(max_entries=10, max_waiting=1)
    metrics = small_metrics(cache, Pause(1))
    cache.close()
    numbers = metrics.status()["upstream"]["endpoints"]["events"]
    assert numbers == {"requests": 0, "median_seconds": None, "p99_seconds": None}
    for milliseconds in [9000] * 3 + list(range(1, 501)):
        metrics.on_call(CallRecord("events", 200, milliseconds / 1000))
    numbers = metrics.status()["upstream"]["endpoints"]["events"]
    assert numbers == {"requests": 503, "median_seconds": 0.25, "p99_seconds": 0.495}


# Health


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


# Logs


@pytest.mark.parametrize("form", ["text", "json"])
def test_log(start: Start, upstream: Standin, form: str) -> None:
    """At DEBUG, the log has a line for each load, pause, fault and request, but no
    secrets, names or forged lines.
    """
    service = start(C42_LOGFORMAT=form, C42_LOGLEVEL="DEBUG", C42_FAULT_EXPIRY="0.01")
    good, bad, busy = new_id(), new_id(), new_id()
    upstream.add_event(good, title="Vierundvierzig", names=["Ottilie", "Ottilie"])
    upstream.rule(
        event_id=bad, status=500, body=f"Ottilie\n1970-01-01 INFO forged {TOKEN}"
    )
    upstream.rule(event_id=busy, status=429, headers={"Retry-After": "1"})
    service.event(good)
    service.event(good)
    service.event(bad)
    service.event(TOKEN)
    service.event(busy)
    service.get("/x%0a1970-01-01%20INFO%20forged%1b[2J")
    assert service.stop() == 0
    lines = service.log.splitlines()
    assert not re.search("Ottilie|Vierundvierzig|" + TOKEN, service.log)
    assert not re.search("^1970|\x1b", service.log, re.M)
    loads = [line for line in lines if "load event=" in line]
    assert len(loads) == 3  # a pause has a line of its own
    assert all(
        calls in loads[0]
        for calls in (
            "outcome=ok status=200: 2 names",
            "events ",
            "event-subscriptions ",
            " ms",
        )
    )
    assert "outcome=fault status=500" in loads[1]
    assert len([line for line in lines if "pause: " in line]) == 1
    requests = [line for line in lines if "request GET" in line]
    assert len([line for line in requests if good in line]) == 2
    if form == "text":
        assert all(
            re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [A-Z]+ [\w.]+ ", line)
            for line in lines
        )
        return
    records = [json.loads(line) for line in lines]
    assert all(
        record.keys() >= {"time", "level", "logger", "message"} for record in records
    )
    load = next(record for record in records if record.get("outcome") == "ok")
    assert (load["event"], load["status"], load["names"], load["level"]) == (
        good,
        200,
        2,
        "INFO",
    )
    assert (
        next(record for record in records if record.get("outcome") == "fault")["level"]
        == "WARNING"
    )
    asked = [record for record in records if record.get("path") == PREFIX + good]
    assert [
        (record["method"], record["status"], record["level"]) for record in asked
    ] == [("GET", 200, "DEBUG")] * 2


def test_log_at_info_has_no_requests(service: Service, upstream: Standin) -> None:
    """At INFO, the default, a load is one line, and a hit none."""
    event_id = new_id()
    upstream.add_event(event_id, names=["Ella"])
    for _ in range(3):
        assert service.event(event_id).status_code == 200
    assert service.log.count(event_id) == 1


def test_log_at_debug_is_only_ours(start: Start, upstream: Standin) -> None:
    """At DEBUG, no other library's debug lines are in the log."""
    service = start(C42_LOGFORMAT="json", C42_LOGLEVEL="DEBUG")
    upstream.add_event(event_id := new_id())
    assert service.event(event_id).status_code == 200
    assert service.stop() == 0
    records = [json.loads(line) for line in service.log.splitlines()]
    assert {record["logger"].split(".")[0] for record in records} == {"c42c"}
    assert {record["pid"] for record in records} == {service.process.pid}


@pytest.mark.parametrize("form", ["text", "json"])
def test_request_id(start: Start, upstream: Standin, form: str) -> None:
    """X-Request-ID is taken from the request or made, is in every answer but hits, and
    in that request's log lines.
    """
    service = start(C42_LOGFORMAT=form)
    good, bad = new_id(), new_id()
    upstream.add_event(good)
    upstream.rule("events", bad, status=500)
    given = {good: "Report-7.a_b", bad: "x" * 64}
    for event_id, its_id in given.items():
        answer = service.event(event_id, headers={"X-Request-ID": its_id})
        assert answer.headers["X-Request-ID"] == its_id
        hit = service.event(event_id, headers={"X-Request-ID": its_id})
        assert "hit" in hit.headers["Cache-Status"]
        assert "X-Request-ID" not in hit.headers
    made = [
        service.get(path).headers["X-Request-ID"]
        for path in ("/livez", "/nothing", PREFIX + "a.b", PREFIX + "b")
    ]
    assert all(re.fullmatch("[0-9a-f]{16}", its_id) for its_id in made)
    assert len(set(made)) == 4
    assert service.stop() == 0
    lines = [line for line in service.log.splitlines() if "load event=" in line]
    expected = [*given.values(), made[-1]]
    if form == "text":
        assert [line.split(" request=")[1] for line in lines] == expected
        assert service.log.count(" request=") == 3
    else:
        assert [json.loads(line)["request_id"] for line in lines] == expected
        assert service.log.count('"request_id"') == 3


HOSTILE = [
    b"",
    b"a b",
    b"a" * 65,
    b"a" * 10_240,
    b"caf\xc3\xa9",
    b"\xff",
    b"a,b",
    b"<script>",
    b"../..",
    b"a\tb",
    b'"a"',
]


def test_hostile_request_ids(service: Service, inside: MakeInside) -> None:
    """An X-Request-ID is replaced if it is too long or has other characters than
    letters, digits, `.`, `-` and `_`.
    """
    for hostile in HOSTILE:
        answer = service.raw(b"/livez", b"GET", b"X-Request-ID: " + hostile)
        assert (answer.status, len(answer.headers["X-Request-ID"])) == (200, 16), (
            hostile
        )
    two = service.raw(b"/livez", b"GET", b"X-Request-ID: a", b"X-Request-ID: b")
    assert len(two.headers["X-Request-ID"]) == 16
    for broken in (
        "a\nb",
        "a\n",
        "a\r\nSet-Cookie: b",
        "\x00",
    ):  # which no server lets through
        its_answer = inside().http.get(
            "/livez", environ_overrides={"HTTP_X_REQUEST_ID": broken}
        )
        assert len(its_answer.headers["X-Request-ID"]) == 16, broken


BROKEN = """
import main
from operations import logs, settings

class Broken:
    def fetch(self, event_ids, deadline):
        raise ZeroDivisionError("by nought")

config = settings.read({"C42_TOKEN": "12345678"})
logs.configure("INFO", "json", config.token)
client = main.create_app(config, client=Broken()).test_client()
answer = client.get("/events-with-subscriptions/a", headers={"X-Request-ID": "report-8"})
print(answer.status_code, answer.headers["X-Request-ID"])
"""


def test_errors_carry_the_request_id() -> None:
    """The log line of a mistake in the service has the traceback, and the id that the
    client was told.
    """
    ended = subprocess.run(
        [sys.executable, "-c", BROKEN],
        check=True,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert ended.stdout == "500 report-8\n"
    (record,) = (json.loads(line) for line in ended.stderr.splitlines())
    assert (record["message"], record["request_id"]) == ("a request failed", "report-8")
    assert "ZeroDivisionError: by nought" in record["exception"]


# --check


def checked(
    capsys: pytest.CaptureFixture[str], upstream: Standin | None = None, **environ: str
) -> tuple[int, str]:
    """Run --check in this process; return its exit status and what it printed."""
    base = {"C42_BASE_URL": upstream.base_url} if upstream else {}
    status = check.run({"C42_TOKEN": TOKEN, "C42_TIMEOUT": "5", **base, **environ})
    said = capsys.readouterr().out
    assert TOKEN not in said
    return status, said


def test_check_is_a_program(start: Start, upstream: Standin) -> None:
    """`python main.py --check` prints a line for each thing it checks, and exits with 0
    if all is well.
    """
    upstream.rule(headers={"Date": _http_date(0)})
    service = start("--check", ready=False)
    assert service.process.wait(20) == 0
    checked = ["settings", "answer", "token", "clock"]
    assert [line.split(":")[0] for line in service.log.splitlines()] == [
        f"ok    {one}" for one in checked
    ]
    assert upstream.calls() == 1


def _http_date(offset: float) -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=offset), usegmt=True)


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ({"status": 401}, "FAIL  token: Calendar42 rejects it (401); see C42_TOKEN"),
        ({"status": 403}, "FAIL  token: Calendar42 rejects it (403)"),
        ({"status": 404}, "see C42_BASE_URL"),
        ({"status": 429}, "too many calls (429)"),
        ({"status": 503}, "has a fault (503)"),
        ({"body": "<html>\n\x1b[2J"}, "not Calendar42's API"),
        ({"status": 301, "headers": {"Location": "/"}}, "not Calendar42's API"),
        (
            {"reset": True},
            "(Connection reset by peer); see C42_BASE_URL, DNS, proxies and firewalls",
        ),
        ({"truncate": True}, "(sent no whole answer)"),
        (
            {"headers": {"Date": _http_date(-600)}},
            "ahead of Calendar42; see its time service",
        ),
        (
            {"headers": {"Date": _http_date(600)}},
            "behind Calendar42; see its time service",
        ),
    ],
)
def test_check_finds(
    capsys: pytest.CaptureFixture[str],
    upstream: Standin,
    fault: Mapping[str, object],
    says: str,
) -> None:
    """If the answer to the question is wrong, the check prints one line about it and
    exits with status 1.
    """
    upstream.rule(**fault)  # type: ignore[arg-type]
    status, said = checked(capsys, upstream)
    assert (status, said.count("FAIL")) == (1, 1)
    assert says in said
    assert "\x1b" not in said


def test_check_slow_answer(
    capsys: pytest.CaptureFixture[str],
    upstream: Standin,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An answer that takes longer than clocks may differ doesn't make the clocks
    differ.
    """
    monkeypatch.setattr(check, "MAX_SKEW", 0.9)
    upstream.rule(delay=2, headers={"Date": _http_date(2)})
    status, said = checked(capsys, upstream)
    assert (status, said.splitlines()[-1]) == (
        0,
        "ok    clock: within 1 s of Calendar42's",
    )


def test_check_without_stdout() -> None:
    """`python main.py --check` gives its exit status even if its output goes nowhere."""
    ended = subprocess.run(
        ["sh", "-c", f"exec {sys.executable} main.py --check >&-"],
        env={"C42_TOKEN": ""},
        check=False,
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert (ended.returncode, ended.stderr) == (1, "")


def test_check_wrong_token(
    capsys: pytest.CaptureFixture[str], upstream: Standin
) -> None:
    """If the upstream rejects the token, the check says so."""
    status, said = checked(capsys, upstream, C42_TOKEN="wrong-token")
    assert status == 1
    assert "FAIL  token: Calendar42 rejects it (401)" in said


def test_check_hang(capsys: pytest.CaptureFixture[str], upstream: Standin) -> None:
    """If the upstream never answers, the check gives up after C42_TIMEOUT."""
    upstream.rule(hang=True)
    status, said = checked(capsys, upstream, C42_TIMEOUT="0.2")
    assert status == 1
    assert "FAIL  answer: none within 0.2 s" in said


def test_check_no_way(capsys: pytest.CaptureFixture[str]) -> None:
    """The check names the cause: an unknown host, a port where nobody listens, or a
    missing token.
    """
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        status, said = checked(
            capsys, C42_BASE_URL=f"http://127.0.0.1:{taken.getsockname()[1]}/"
        )
    assert status == 1
    assert "Connection refused" in said
    status, said = checked(capsys, C42_BASE_URL="http://c42c.invalid/")
    assert status == 1
    assert (
        "FAIL  answer: none from c42c.invalid (Name or service not known); see C42_BASE_URL, DNS"
        in said
    )
    assert "warn  encryption: none" in said
    status, said = checked(capsys, C42_TOKEN="")
    assert (status, said.count("\n")) == (1, 1)
    assert said.startswith("FAIL  settings: C42_TOKEN is missing: ")


def test_check_without_descriptors() -> None:
    """If no file descriptor is left for the question, the check says so, and where the
    limit is.
    """
    # Three are for the streams, and three for an event loop.
    limited = 'ulimit -n 6; exec "$0" main.py --check'
    environ = {"C42_TOKEN": TOKEN, "C42_BASE_URL": "http://127.0.0.1:1/"}
    command = ["sh", "-c", limited, sys.executable]
    ended = subprocess.run(
        command, env=environ, cwd=ROOT, check=False, capture_output=True, text=True
    )
    assert (ended.returncode, ended.stderr) == (1, "")
    assert (
        "FAIL  answer: none from 127.0.0.1:1 (Too many open files); see ulimit -n"
        in ended.stdout
    )


def test_check_typing_error(
    capsys: pytest.CaptureFixture[str], upstream: Standin
) -> None:
    """An unknown variable causes a warning, not a failure."""
    status, said = checked(capsys, upstream, C42_EXPIRI="5")
    assert status == 0
    assert (
        "warn  settings: C42_EXPIRI is not a setting; did you mean C42_EXPIRY?" in said
    )


class _List(BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Stay quiet."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"data": []}')


@contextmanager
def tls_upstream(certificate: Path) -> Iterator[int]:
    """Answer every question with an empty list, over TLS; give the port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "fullchain.pem", certificate / "privkey.pem")
    with ThreadingHTTPServer(("127.0.0.1", 0), _List) as server:
        server.socket = context.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
        server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients hang up on what they don't trust
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def test_check_certificate(
    capsys: pytest.CaptureFixture[str],
    certificate: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The check rejects untrusted certificates and those of other hosts, names the
    cause, and accepts trusted ones.
    """
    with tls_upstream(certificate) as port:
        status, said = checked(capsys, C42_BASE_URL=f"https://localhost:{port}/")
        assert status == 1
        assert (
            "(certificate: self-signed certificate); see C42_BASE_URL, REQUESTS_CA_BUNDLE and the clock"
            in said
        )
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate / "fullchain.pem"))
        status, said = checked(capsys, C42_BASE_URL=f"https://127.0.0.1:{port}/")
        assert status == 1
        assert "(certificate: IP address mismatch" in said
        status, said = checked(capsys, C42_BASE_URL=f"https://localhost:{port}/")
        assert (status, said.count("ok    ")) == (0, 4)


def test_check_no_tls_there(
    capsys: pytest.CaptureFixture[str], upstream: Standin
) -> None:
    """If https:// leads to a port that speaks plain HTTP, the failure says that it is
    about TLS.
    """
    status, said = checked(
        capsys, upstream, C42_BASE_URL=upstream.base_url.replace("http:", "https:")
    )
    assert (status, said.count("FAIL")) == (1, 1)
    assert re.search(r"FAIL  answer: none from 127.0.0.1:\d+ \(.*(SSL|TLS)", said)


# deploy/


def test_alerts_are_about_what_is_there(service: Service) -> None:
    """The service has each metric that an alert uses, and docs/operating.md has each
    alert.
    """
    rules = (ROOT / "deploy/c42c.rules.yml").read_text()
    page = (ROOT / "docs/operating.md").read_text()
    service.event(new_id())  # so that there are figures of calls
    had = {name for name, _ in samples(service)} | {
        "up",
        "c42_shared_tier_up",
    }  # the latter with C42_CACHE_URL
    asked = set(re.findall(r"\b(?:c42|process)_[a-z_]+\b", rules))
    assert len(asked) > 8
    assert asked <= had
    alerts = re.findall(r"alert: (\w+)", rules)
    assert [alert for alert in alerts if f"### {alert}\n" not in page] == []
    assert [
        name for name in had if name.startswith("c42_") and not _mentioned(name, page)
    ] == []


def _mentioned(name: str, page: str) -> bool:
    return re.sub("_(bucket|count|sum)$", "", name) in page
