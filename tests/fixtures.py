"""What the tests share: the service and the stand-in of Calendar42.

The service is really started.
"""

import contextlib
import http.client
import itertools
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pytest
import requests
from flask.testing import FlaskClient

import main
from bench.machine import free_port
from operations import settings
from standin import DEMO_EVENTS, Standin
from tests.cache_callers import Clock

ROOT = Path(__file__).parent.parent
TOKEN = "0123456789abcdef-a-token-for-tests"
PREFIX = "/events-with-subscriptions/"
PATIENCE = 60.0  # seconds until a test gives up waiting for what must happen
LONGEST_NAP = 0.05  # seconds between two looks at what a test waits for

T = TypeVar("T")

_numbers = itertools.count(1)


def until(
    condition: Callable[[], object],
    what: str = "the condition",
    *,
    patience: float = PATIENCE,
    every: float = 0.002,
) -> None:
    """Wait until `condition` holds; fail the test if it never does.

    Look `every` so many seconds, and less often the longer it takes: looking costs
    the CPU time that others wait for.
    """
    began = time.monotonic()
    while not condition():
        waited = time.monotonic() - began
        assert waited < patience, f"waited {patience:g} s for {what}"
        time.sleep(max(every, min(waited / 10, LONGEST_NAP)))


def given_time(check: Callable[[float], object]) -> None:
    """Run `check` with a time-out of 0.3 seconds; if it fails, with longer ones.

    A busy machine may need longer for what isn't meant to take so long. With half a
    minute, it must pass.
    """
    for seconds in (0.3, 3.0):
        with contextlib.suppress(Exception, pytest.fail.Exception):
            check(seconds)
            return
    check(30.0)


def new_id() -> str:
    """Return an event id that no test has used yet.

    The service keeps its answers from one test to the next.
    """
    return f"{next(_numbers):032x}_14602021609581"


def at_once(*actions: Callable[[], T]) -> list[T]:
    """Do all `actions` at once, and return what they return, in their order.

    Each has a thread of its own.
    """
    with ThreadPoolExecutor(len(actions)) as pool:
        return [
            future.result() for future in [pool.submit(action) for action in actions]
        ]


def threads() -> set[threading.Thread]:
    """Return the threads of this process, except for those of stand-ins.

    A service that other tests use may connect to one at any time.
    """
    return {
        thread
        for thread in threading.enumerate()
        if "process_request_thread" not in thread.name
    }


@contextlib.contextmanager
def no_descriptors() -> Iterator[None]:
    """Let this process open no further file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Raw(NamedTuple):
    """A response, with nothing interpreted."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes


def receive(sock: socket.socket, method: str = "GET") -> Raw:
    """Read the response to a request that was sent on `sock`."""
    with http.client.HTTPResponse(sock, method=method) as response:
        response.begin()
        return Raw(response.status, response.headers, response.read())


class Service:
    """A service in a process of its own, and a client of it."""

    program: tuple[str, ...] = ("main.py",)
    inherited: tuple[int, ...] = ()  # descriptors that it gets
    stderr: int | None = None  # None: to the file that `log` reads

    def __init__(
        self, upstream: Standin | None, arguments: tuple[str, ...] = (), **environ: str
    ) -> None:
        self.port = int(environ.get("C42_PORT") or free_port())
        self.url = f"http://127.0.0.1:{self.port}"
        own = {"C42_PORT": str(self.port), "C42_TOKEN": TOKEN}
        if upstream:
            own["C42_BASE_URL"] = upstream.base_url
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not re.match(r"C42_|.*_PROXY$|PYTHONUNBUFFERED$", name, re.I)
        }
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed in end()
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", *self.program, *arguments],
            cwd=ROOT,
            env=inherited | own | environ,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log if self.stderr is None else self.stderr,
            start_new_session=True,
            pass_fds=self.inherited,
        )
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.mount("http://", requests.adapters.HTTPAdapter(pool_maxsize=512))

    @property
    def log(self) -> str:
        """All that the service has printed and logged so far."""
        return os.pread(self._log.fileno(), 2**24, 0).decode()

    def wait_until_ready(self) -> None:
        """Wait until the service answers."""

        def ready() -> bool:
            assert self.process.poll() is None, f"the service has ended:\n{self.log}"
            with contextlib.suppress(OSError, http.client.HTTPException):
                return self.raw(b"/livez").status == 200
            return False

        until(ready, "the service to answer", every=0.01)

    def request(self, method: str, path: str, **options: Any) -> requests.Response:
        """Send one request; redirects are not followed."""
        return self._session.request(
            method, self.url + path, timeout=60, allow_redirects=False, **options
        )

    def get(self, path: str, **options: Any) -> requests.Response:
        """GET a path of the service."""
        return self.request("GET", path, **options)

    def connect(self) -> socket.socket:
        """Open a connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)

    def raw(self, target: bytes, method: bytes = b"GET", *headers: bytes) -> Raw:
        """Send a request line as it is.

        No HTTP client would do so for every address.
        """
        lines = [
            method + b" " + target + b" HTTP/1.1",
            b"Host: c42c",
            b"Connection: close",
            *headers,
            b"",
            b"",
        ]
        with self.connect() as sock:
            sock.sendall(b"\r\n".join(lines))
            return receive(sock, method.decode())

    def event(self, event_id: str, **options: Any) -> requests.Response:
        """GET an event."""
        return self.get(f"/events-with-subscriptions/{event_id}", **options)

    def stop(self, sig: signal.Signals = signal.SIGTERM) -> int:
        """Tell the service to stop, and return its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(sig)
        return self.process.wait(PATIENCE)

    def end(self) -> None:
        """Stop the service whatever it does, and release everything that it used."""
        try:
            self.stop()
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            raise
        finally:
            self._session.close()
            self._log.close()


class Inside:
    """The service in this process, without a server, under a clock of its own."""

    def __init__(self, upstream: Standin, **environ: str) -> None:
        self.clock = Clock()
        config = settings.read(
            {"C42_TOKEN": TOKEN, "C42_BASE_URL": upstream.base_url, **environ}
        )
        self.app = main.create_app(config, clock=self.clock)
        self.components: main.Components = self.app.extensions["c42c"]
        self.cache = self.components.cache
        self.http: FlaskClient = self.app.test_client()

    def event(self, event_id: str, **options: Any) -> Any:
        """GET an event."""
        return self.http.get(f"/events-with-subscriptions/{event_id}", **options)

    def status(self) -> Any:
        """GET /status.json."""
        return self.http.get("/status.json").json

    def close(self) -> None:
        """Stop its threads, and wait for its last calls.

        They would be counted in the next test.
        """
        self.cache.close()
        self.components.metrics.history.close()
        self.components.client.calls.close(wait=True)


S = TypeVar("S", bound=Service)
Start = Callable[..., Service]  # what the fixture `start` gives
MakeInside = Callable[..., Inside]  # what the fixture `inside` gives


@contextlib.contextmanager
def started(service: S, ready: bool = True) -> Iterator[S]:
    """Wait until `service` is ready, and end it with the block."""
    try:
        if ready:
            service.wait_until_ready()
        yield service
    finally:
        service.end()


def listed(event_ids: list[str]) -> str:
    """Return the path of a list of events."""
    return f"{PREFIX}?event_ids=[{','.join(event_ids)}]"


def new_events(upstream: Standin, count: int, people: int = 2) -> list[str]:
    """Add so many events, each with names of its own, and return their ids."""
    event_ids = [new_id() for _ in range(count)]
    for event_id in event_ids:
        upstream.add_event(
            event_id,
            title=f"Title {event_id}",
            names=[f"{event_id} {at}" for at in range(people)],
        )
    return event_ids


def load_outcomes(service: Inside, upstream: Standin) -> dict[str, str]:
    """Have `service` load an event for each outcome; return the ids."""
    ids = {"ok": DEMO_EVENTS["scripts"], "deleted": DEMO_EVENTS["deleted"]}
    for name in ("negative", "refused", "fault", "gone", "empty", "text"):
        ids[name] = new_id()
    ids["429"] = new_id()
    ids["paused"] = new_id()  # asked for last, after the 429
    upstream.rule("events", ids["refused"], status=422, body='{"why":  "not today"}')
    upstream.rule("events", ids["fault"], status=500)
    upstream.rule("events", ids["gone"], reset=True)
    upstream.rule("events", ids["empty"], status=499, body="")
    upstream.rule(
        "events",
        ids["text"],
        status=599,
        body=b"<p>caf\xe9</p>",
        content_type="text/html",
    )
    upstream.rule("events", ids["429"], status=429, headers={"Retry-After": "30"})
    for event_id in ids.values():
        service.event(event_id)
    return ids


def envelope(answer: requests.Response | Raw, status: int) -> str:
    """Check that `answer` is an error in the envelope, and return its message."""
    code, body = (
        (answer.status, answer.body)
        if isinstance(answer, Raw)
        else (answer.status_code, answer.content)
    )
    error = json.loads(body)["error"]
    assert (code, error["status_code"], list(error)) == (
        status,
        status,
        ["status_code", "message", "code"],
    )
    assert re.fullmatch("[A-Z_]+", error["code"])
    assert (
        answer.headers["Content-Type"],
        answer.headers["X-Content-Type-Options"],
    ) == ("application/json", "nosniff")
    return str(error["message"])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Function, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the end of its services' logs to the report of a test that fails."""
    report = yield
    if report.failed and call.when == "call":
        for name, value in item.funcargs.items():
            if isinstance(value, Service) and not name.startswith("shared_"):
                report.sections.append((f"log of {name}", value.log[-4000:]))
    return report


@pytest.fixture(scope="session")
def shared_upstream() -> Iterator[Standin]:
    """Start the stand-in behind the shared service."""
    with Standin(token=TOKEN) as standin:
        yield standin


@pytest.fixture(scope="session")
def shared_service(shared_upstream: Standin) -> Iterator[Service]:
    """Start the service that all tests share that need no other settings."""
    with started(Service(shared_upstream, C42_TIMEOUT="30")) as service:
        yield service


@pytest.fixture(scope="session")
def shared_hasty_service(shared_upstream: Standin) -> Iterator[Service]:
    """Start the service that tests of its time-out share."""
    with started(Service(shared_upstream, C42_TIMEOUT="2")) as service:
        yield service


@pytest.fixture
def upstream(shared_upstream: Standin) -> Iterator[Standin]:
    """Give a test the stand-in, with counts from zero, and take its rules back."""
    shared_upstream.reset_counts()
    yield shared_upstream
    shared_upstream.clear_rules()


@pytest.fixture
def service(shared_service: Service, upstream: Standin) -> Service:
    """Give a test the shared service.

    Use `new_id()`, since it keeps its answers.
    """
    return shared_service


@pytest.fixture
def hasty_service(shared_hasty_service: Service, upstream: Standin) -> Service:
    """Give a test another service, whose time-out is 2 s."""
    return shared_hasty_service


@pytest.fixture
def start(upstream: Standin) -> Iterator[Callable[..., Service]]:
    """Give a test a way to start services of its own.

    For example `start("--flag", C42_EXPIRY="0.05")`.
    """
    with contextlib.ExitStack() as stack:

        def begin(*arguments: str, ready: bool = True, **environ: str) -> Service:
            return stack.enter_context(
                started(Service(upstream, arguments, **environ), ready)
            )

        yield begin


@pytest.fixture
def inside(upstream: Standin) -> Iterator[Callable[..., Inside]]:
    """Give a test a way to make services in this process: `inside(C42_EXPIRY="1")`."""
    made: list[Inside] = []

    def make(**environ: str) -> Inside:
        made.append(Inside(upstream, **environ))
        return made[-1]

    yield make
    for one in made:
        one.close()
