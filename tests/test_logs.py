"""The log: what it says, in which form, and what it never says."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from operations import logs
from standin import Gate, Standin
from tests.fixtures import (
    PATIENCE,
    PREFIX,
    ROOT,
    TOKEN,
    MakeInside,
    Service,
    Start,
    new_events,
    new_id,
    started,
    threads,
    until,
)
from tests.test_metrics import samples, value


@pytest.mark.parametrize("form", ["text", "json"])
def test_log(start: Start, upstream: Standin, form: str) -> None:
    """At DEBUG, the log has a line for each load, pause, fault and request.

    It has no secrets, names, forged lines, or other libraries' lines.
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
            re.match(
                r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d [A-Z]+ [\w.]+ ",
                line,
            )
            for line in lines
        )
        return
    records = [json.loads(line) for line in lines]
    assert all(
        record.keys() >= {"time", "level", "logger", "message"} for record in records
    )
    assert {record["logger"].split(".")[0] for record in records} == {"c42c"}
    assert {record["pid"] for record in records} == {service.process.pid}
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
    until(lambda: event_id in service.log, "the line of the load")
    assert service.log.count(event_id) == 1


@pytest.mark.parametrize("form", ["text", "json"])
def test_request_id(start: Start, upstream: Standin, form: str) -> None:
    """X-Request-ID is taken from the request or made, and is in its log lines.

    Every answer has it, but for hits of good ones. Hits of errors have their load's.
    """
    service = start(C42_LOGFORMAT=form)
    good, bad = new_id(), new_id()
    upstream.add_event(good)
    upstream.rule("events", bad, status=500)
    given = {good: "Report-7.a_b", bad: "x" * 64}
    for event_id, its_id in given.items():
        answer = service.event(event_id, headers={"X-Request-ID": its_id})
        assert answer.headers["X-Request-ID"] == its_id
        hit = service.event(event_id, headers={"X-Request-ID": "of-the-hit"})
        assert "hit" in hit.headers["Cache-Status"]
        its_load = None if event_id == good else its_id
        assert hit.headers.get("X-Request-ID") == its_load
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
        assert service.log.count(" request=") == 5  # and two errors
    else:
        assert [json.loads(line)["request_id"] for line in lines] == expected
        assert service.log.count('"request_id"') == 5


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
    """An X-Request-ID is replaced if it is too long or has odd characters.

    Letters, digits, `.`, `-` and `_` are allowed.
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
    def fetch(self, event_ids, deadline, refresh):
        raise ZeroDivisionError("by nought")

config = settings.read({"C42_TOKEN": "12345678"})
logs.configure("INFO", "json", config.token)
client = main.create_app(config, client=Broken()).test_client()
path = "/events-with-subscriptions/a"
answer = client.get(path, headers={"X-Request-ID": "report-8"})
print(answer.status_code, answer.headers["X-Request-ID"])
"""


def test_errors_carry_the_request_id() -> None:
    """A bug's log line has the traceback, and the id that the client was told."""
    ended = subprocess.run(
        [sys.executable, "-c", BROKEN],
        check=True,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert ended.stdout == "500 report-8\n"
    (record,) = (json.loads(line) for line in ended.stderr.splitlines())
    message = "unhandled exception in GET /events-with-subscriptions/a"
    assert (record["message"], record["request_id"]) == (message, "report-8")
    assert "ZeroDivisionError: by nought" in record["exception"]


ODD_TOKENS = [
    TOKEN,
    "quo\"te-to'ken",
    "back\\slash\\\\es",
    "\"first-and-last'",
    "\\first-and-last\\",
    "reg.ular(ex)*[pression]+$",
]
REDACTING = """
import json, logging, sys
from operations import logs

form, *tokens = sys.argv[1:]
log = logging.getLogger("c42c")
for token in tokens:
    logs.configure("INFO", form, token)
    fields = {"text": f"<{token}>", "list": [f"<{token}>"], "odd": ValueError(token)}
    log.info("as it is <%s>", token, extra={"fields": fields})
    log.info("as Python and as JSON: <%r> <%s>", token, json.dumps(token))
    log.info("in a list, and in a path <%s> <C:\\\\%s>", [token, token], token)
    try:
        raise ValueError(f"<{token}>")
    except ValueError:
        log.exception("in an error <%s> <%r>", token, [token])
    logging.shutdown()
"""


def run(code: str, *arguments: str) -> str:
    """Run a program that logs, and return its log."""
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(
        command, check=True, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE
    ).stderr


@pytest.mark.parametrize("form", ["text", "json"])
def test_the_token_is_redacted(form: str) -> None:
    """No line has the token, whatever characters it has, and however it was escaped."""
    lines = run(REDACTING, form, *ODD_TOKENS).splitlines()
    assert len(lines) == 4 * len(ODD_TOKENS)
    for at, token in enumerate(ODD_TOKENS):
        first = lines[4 * at]
        its_log = "\n".join(lines[4 * at : 4 * at + 4])
        assert its_log.count("***") >= 8
        # Its longest part without characters that are escaped.
        part = max(re.split(r"[\\'\"]", token), key=len)
        assert len(part) >= 4
        assert part not in its_log
        if form == "json":
            record = json.loads(first)
            assert record["message"] == "as it is <***>"
            assert record["text"] == "<***>"


CONTROLLING = r"""
import logging, sys
from operations import logs

logs.configure("INFO", sys.argv[1], "12345678")
log = logging.getLogger("c42c")
log.info("a\n\r\t\x00\x1b[2J\x7f\x85\u2028\u202e\ud800z")
try:
    raise ValueError("a\nb\x1b")
except ValueError:
    log.exception("caf\xe9 \N{SNOWMAN}")
"""


@pytest.mark.parametrize("form", ["text", "json"])
def test_control_characters_are_escaped(form: str) -> None:
    """A line has no control characters, and tracebacks are one line too.

    It has no line separators either, and nothing that changes the direction of text.
    """
    first, second = run(CONTROLLING, form).splitlines()
    assert (first + second).isprintable()
    if form == "text":
        escaped = r"a\n\r\t\x00\x1b[2J\x7f\x85\u2028\u202e\ud800z"
        assert first.endswith(f" INFO c42c {escaped}")
        assert " ERROR c42c caf\xe9 \N{SNOWMAN}\\nTraceback " in second
        assert second.endswith(r"ValueError: a\nb\x1b")
    else:
        message = json.loads(first)["message"]
        assert message == "a\n\r\t\x00\x1b[2J\x7f\x85\u2028\u202e\ud800z"
        assert json.loads(second)["exception"].endswith("ValueError: a\nb\x1b")


LEVELS = """
import logging, sys
from operations import logs

logging.getLogger().setLevel("DEBUG")
logs.configure(sys.argv[1], "text", "12345678")
for name in "c42c", "c42c.redis", "urllib3":
    for level in "DEBUG", "INFO", "WARNING", "ERROR":
        logging.getLogger(name).log(getattr(logging, level), "said")
"""


@pytest.mark.parametrize(
    ("level", "ours", "theirs"), [("DEBUG", 4, 2), ("INFO", 3, 2), ("ERROR", 1, 1)]
)
def test_levels(level: str, ours: int, theirs: int) -> None:
    """Our loggers have the level, and libraries at least WARNING.

    So libraries have the level only if it is higher, whatever was set before.
    """
    log = run(LEVELS, level)
    for name, count in ("c42c", ours), ("c42c.redis", ours), ("urllib3", theirs):
        assert log.count(f" {name} said\n") == count


def test_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Text has the local time with its offset, and JSON has UTC."""
    monkeypatch.setenv("TZ", "Asia/Kolkata")
    assert re.match(r"[-\d]+ [.:\d]+\+05:30 ", run(LEVELS, "ERROR"))
    time = json.loads(run(REDACTING, "json", TOKEN).splitlines()[0])["time"]
    assert re.fullmatch(r"[-\d]+T\d\d:\d\d:\d\d\.\d{3}\+00:00", time)


# The questions of docs/operating.md

NEEDS_JQ = pytest.mark.skipif(
    not shutil.which("jq"), reason="needs jq, as Debian has it"
)


def ask(folder: Path, part: str, edit: Mapping[str, str]) -> list[str]:
    """Run the command of docs/operating.md that contains `part`; return its output.

    It runs in `folder`, with what `edit` puts in. The output is split into lines.
    """
    page = (ROOT / "docs/operating.md").read_text()
    section = page.partition("### Questions to the log\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    (command,) = (line for line in "".join(blocks).splitlines() if part in line)
    for old, new in edit.items():
        assert old in command
        command = command.replace(old, new)
    ended = subprocess.run(
        ["sh", "-c", command],
        check=True,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert ended.stderr == ""
    return ended.stdout.splitlines()


class Story(NamedTuple):
    """What a service has logged: a slow load, and one that failed."""

    folder: Path  # with c42c.log
    slow: str
    broken: str


@pytest.fixture
def tell(start: Start, upstream: Standin, tmp_path: Path) -> Callable[[str], Story]:
    """Give a test a way to write such a log, as text or as JSON."""

    def write(form: str) -> Story:
        slow, broken, good = new_id(), new_id(), new_id()
        upstream.add_event(slow)
        upstream.add_event(good)
        upstream.rule("events", slow, delay=0.3)
        upstream.rule("events", broken, reset=True)
        service = start(C42_LOGFORMAT=form)
        for event_id in good, slow, broken:
            service.event(event_id, headers={"X-Request-ID": f"report-{event_id[:32]}"})
        assert service.stop() == 0
        (tmp_path / "c42c.log").write_text(service.log)
        return Story(tmp_path, slow, broken)

    return write


@NEEDS_JQ
def test_questions_to_json(tell: Callable[[str], Story]) -> None:
    """The page's commands find the slow load and the failed one in a log of JSON."""
    folder, slow, broken = tell("json")
    slowest = ask(folder, "map(.seconds)", {})[0].split("\t")
    assert slowest[1:] == [slow, "ok"]
    assert 0.3 <= float(slowest[0]) < 30
    its_id = f"report-{broken[:32]}"
    (line,) = ask(folder, "grep 4f1d2c3b5a697887", {"4f1d2c3b5a697887": its_id})
    record = json.loads(line)
    assert record["event"] == broken
    minute = record["time"][10:16]
    (found,) = ask(folder, "{time, request_id", {"T10:03": minute})
    assert json.loads(found)["request_id"] == its_id
    (failing,) = ask(folder, '.outcome == "fault"', {})
    assert failing.split() == ["1", broken]
    causes = ask(folder, ".trouble", {})
    assert len(causes) == 1


def fill(template: str, values: Mapping[str, str]) -> str:
    """Replace the variables in a log format of nginx; those without a value are 0."""
    return re.sub(r"\$(\w+)", lambda match: values.get(match[1], "0"), template)


@NEEDS_JQ
def test_questions_to_nginx(tmp_path: Path) -> None:
    """The page's commands count clients and where answers came from, in nginx's log.

    The log is as the site in deploy/ has it.
    """
    site = (ROOT / "deploy/c42c.nginx.conf").read_text()
    log_format = re.search(r"log_format c42c escape=json\s+((?:'.*'\s*)+);", site)
    assert log_format is not None
    template = "".join(re.findall("'(.*)'", log_format[1]))
    log = ""
    for cache_status in "hit; ttl=9", "hit; ttl=8", "fwd=miss; stored; ttl=9", "":
        values = {
            "remote_addr": "192.0.2.7",
            "status": "502",
            "time_iso8601": "2026-11-30T10:03:07+01:00",
            "request": "GET / HTTP/1.1",
            "sent_http_x_request_id": "report-8",
            "upstream_http_cache_status": cache_status and f"c42c; {cache_status}",
        }
        log += f"{fill(template, values)}\n"
    (tmp_path / "nginx.log").write_text(log)
    edit = {"/var/log/nginx/c42c.log": "nginx.log"}
    (clients,) = ask(tmp_path, "jq -r .client", edit)
    assert clients.split() == ["4", "192.0.2.7"]
    counts = {tuple(line.split()) for line in ask(tmp_path, ".cache_status", edit)}
    assert counts == {("2", "hit"), ("1", "fwd=miss"), ("1", "none")}
    failed = ask(tmp_path, ".answer_id", edit)
    assert failed == ["192.0.2.7\tGET / HTTP/1.1\treport-8"] * 4


def test_questions_to_text(tell: Callable[[str], Story]) -> None:
    """The page's commands find warnings, an event and a request in a log of text."""
    folder, slow, broken = tell("text")
    (warning,) = ask(folder, "WARNING", {})
    assert f"event={broken} outcome=fault" in warning
    example = "a5d0f1c71b6758f2984da1f85b7384c8_14601157609581"
    (line,) = ask(folder, example, {example: slow})
    assert line.endswith(f" request=report-{slow[:32]}")
    edit = {"4f1d2c3b5a697887": f"report-{slow[:32]}"}
    assert ask(folder, "request=4f1d2c3b5a697887", edit) == [line]


# A log that nobody reads


class FullPipe(Service):
    """A service whose stderr is a pipe that is full and that nobody reads yet."""

    def __init__(self, upstream: Standin, **environ: str) -> None:
        self.lines: list[str] = []
        self.reader, self.stderr = os.pipe()
        os.set_blocking(self.stderr, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(self.stderr, b"-" * 4096)
        os.set_blocking(self.stderr, True)
        super().__init__(upstream, (), **environ)
        os.close(self.stderr)

    def read_log(self) -> None:
        """Add all lines to `lines`, up to the end of the process."""
        with os.fdopen(self.reader, closefd=False) as reader:
            for line in reader:
                self.lines.append(line.strip("-\n"))

    def end(self) -> None:
        super().end()
        os.close(self.reader)


def fill_queue(service: Service) -> None:
    """Have the service log more than its queue and the pipe hold together.

    Its level is DEBUG.
    """
    for _ in range(50):
        assert service.get(f"/{'x' * 30_000}").status_code == 404


def test_a_stuck_log_holds_nobody_up(upstream: Standin) -> None:
    """While stderr takes nothing, the service answers, and SIGTERM ends it with 0.

    The answers are cold ones, and there are more lines than the queue and the pipe
    hold.
    """
    with started(FullPipe(upstream, C42_LOGLEVEL="DEBUG")) as service:
        fill_queue(service)
        for event_id in new_events(upstream, 3):
            assert service.event(event_id).status_code == 200
        assert service.stop() == 0


def test_a_start_that_fails_while_the_log_is_stuck(upstream: Standin) -> None:
    """While stderr takes nothing, a mistake in the settings ends the service."""
    with started(FullPipe(upstream, C42_EXPIRY="soon"), ready=False) as service:
        assert service.process.wait(PATIENCE) == 2


@contextlib.contextmanager
def told_to_stop(upstream: Standin, **environ: str) -> Iterator[FullPipe]:
    """Give a service that has got SIGTERM and has an hour left to finish a request."""
    gate, event_id = Gate(), new_id()
    upstream.rule(event_id=event_id, gate=gate)
    environ |= {"C42_TIMEOUT": "3600", "C42_DRAIN": "3600"}
    stuck = FullPipe(upstream, **environ)
    with started(stuck) as service, ThreadPoolExecutor(1) as pool:
        pool.submit(service.event, event_id)
        gate.wait_for(1)
        service.process.send_signal(signal.SIGTERM)
        until(lambda: service.get("/readyz").status_code == 503, "the service to stop")
        try:
            yield service
        finally:
            gate.open()


def test_a_second_signal_while_the_log_is_stuck(upstream: Standin) -> None:
    """While stderr takes nothing, a second signal ends a service that is busy."""
    with told_to_stop(upstream, C42_LOGLEVEL="DEBUG") as service:
        fill_queue(service)
        assert service.stop() == 1


def test_a_second_signal_waits_for_the_log(upstream: Standin) -> None:
    """Lines logged before a second signal are written, if read within a second."""

    def is_written() -> bool:
        with told_to_stop(upstream) as service:
            service.process.send_signal(signal.SIGTERM)
            service.read_log()
            assert service.stop() == 1
        return any(" INFO c42c stopping" in line for line in service.lines)

    assert any(is_written() for _ in range(3))  # a busy machine may read late


def test_a_slow_log_has_its_lines_in_order(upstream: Standin) -> None:
    """Once somebody reads the log again, it goes on, with lines in their order.

    One line says how many are missing.
    """
    with started(FullPipe(upstream, C42_LOGLEVEL="DEBUG")) as service:
        for number in range(50):
            service.get(f"/{number}/{'x' * 30_000}")
        reader = threading.Thread(target=service.read_log, daemon=True)
        reader.start()

        def is_going_on() -> bool:
            service.get("/again")
            return any("GET '/again'" in line for line in service.lines)

        until(is_going_on, "the log to go on", every=0.05)
        assert value(samples(service), "c42_log_dropped_total") > 0
        assert service.stop() == 0
        reader.join()
    log = "\n".join(service.lines)
    numbers = [int(number) for number in re.findall(r"request GET '/(\d+)/x", log)]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) > 20
    (report,) = re.findall(r"WARNING c42c dropped \d+ log lines: .*", log)
    assert "request=" not in report
    assert service.lines[-1].endswith(" INFO c42c stopped")


DROPPING = """
import logging, sys, threading
from operations import logs

logs.configure("INFO", "text", "12345678")
log = logging.getLogger("c42c")

def write(thread):
    for number in range(200):
        logs.request_id.set(f"{thread}-{number}")
        log.info("x" * 1000)

log.info("first")
threads = [threading.Thread(target=write, args=(thread,)) for thread in range(10)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(logs.dropped(), flush=True)
for text in "early", "later", "last":
    sys.stdin.readline()
    log.info(text)
    print(logs.dropped(), flush=True)
"""


def test_what_was_dropped_is_counted() -> None:
    """Each line is written, or else counted, once; each thread's keep their order.

    Once the queue is full, it takes no line until half of it is empty.
    """
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", DROPPING], cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe
    ) as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        dropped = [int(process.stdout.readline())]
        log = b""
        for characters in 200_000, 800_000, 0:
            while len(log) < characters:
                log += os.read(process.stderr.fileno(), 10_000)
            process.stdin.write(b"\n")
            process.stdin.flush()
            dropped.append(int(process.stdout.readline()))
        log += process.stderr.read()
    first = dropped[0]
    assert first > 0
    assert dropped == [first, first + 1, first + 1, first + 1]
    lines = log.decode().splitlines()
    written = [line.rpartition("request=")[2] for line in lines if "xxx" in line]
    for thread in range(10):
        numbers = [int(one[2:]) for one in written if one.startswith(f"{thread}-")]
        assert numbers == sorted(numbers)
    assert len(written) + first == 2000
    assert [line.partition(" c42c ")[2] for line in lines[-3:]] == [
        f"dropped {first + 1} log lines: stderr is read too slowly",
        "later",
        "last",
    ]


TOO_LONG = """
import logging
from operations import logs

logs.configure("INFO", "text", "12345678")
log = logging.getLogger("c42c")
log.info("x" * logs.MAX_QUEUED)
assert logs.dropped() == 1
log.info("short")
logs.flush()
"""


def test_a_line_that_is_too_long() -> None:
    """A line that is longer than all that may be queued is dropped and counted."""
    report, short = run(TOO_LONG).splitlines()
    assert report.endswith("dropped 1 log lines: stderr is read too slowly")
    assert short.endswith("short")


def test_complaining_takes_no_time(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A complaint at the start ends with its last line, and leaves no thread."""
    monkeypatch.setattr(logs, "FLUSH_SECONDS", PATIENCE)
    others = threads()
    began = time.monotonic()
    logs.complain("one\ntwo", "text")
    assert time.monotonic() - began < PATIENCE
    until(lambda: threads() <= others, "the thread to end")
    assert capsys.readouterr().err == "one\ntwo\n"


CONFIGURING = """
import logging, threading, time
from operations import logs

log = logging.getLogger("c42c")
for number in range(3):
    logs.configure("INFO", "text", "12345678")
    log.info("line %d", number)
end = time.monotonic() + 60
while threading.active_count() > 2:
    assert time.monotonic() < end, "a thread is left"
    time.sleep(0.001)
"""


def test_configuring_again() -> None:
    """Each new configuration ends the thread of the one before, after its lines."""
    lines = [line[-6:] for line in run(CONFIGURING).splitlines()]
    assert sorted(lines) == ["line 0", "line 1", "line 2"]


FORKING = """
import logging, os, sys, threading
from operations import logs

class Stderr:
    def write(self, text):
        if os.getpid() == parent:
            is_forked.wait()
        os.write(2, text.encode())

    def flush(self):
        pass

parent, is_forked = os.getpid(), threading.Event()
sys.stderr = Stderr()
logs.configure("INFO", "text", "12345678")
log = logging.getLogger("c42c")
log.info("parent" + " " * 700_000)
pid = os.fork()
if not pid:
    log.info("child" + " " * 700_000)
    logging.shutdown()
    os._exit(0)
os.waitpid(pid, 0)
is_forked.set()
logs.flush()
log.info("parent again")
"""


def test_a_forked_process_logs() -> None:
    """A process that a server forks after the app was made logs as well.

    gunicorn forks so with `--preload`.
    """
    lines = run(FORKING).splitlines()
    said = [line.partition(" c42c ")[2].strip() for line in lines]
    assert said == ["child", "parent", "parent again"]
