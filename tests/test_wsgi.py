"""The bridge to the app: what PEP 3333 asks of a server."""

import asyncio
import queue
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any
from wsgiref.validate import validator

import pytest

from serving.interface import Serialized
from serving.request import parse
from serving.wsgi import App, bridge, make_environ, run_app
from tests.fixtures import PATIENCE
from tests.test_connection import GOOD
from tests.wire import Received, responses

BURSTS = 10  # 1,000 have been run once

StartBridge = Callable[..., Callable[[bytes], object]]


def ask(app: App, raw: bytes) -> Received:
    """Have `app` answer a request, and return what would go over the wire."""
    head, end, _ = raw.partition(b"\r\n\r\n")
    request = parse(head + end)
    head, body = run_app(app, make_environ(request, ("127.0.0.1", 5000)))
    (answer,) = responses(head + b"\r\n" + body, [request.method])
    return answer


def get(*lines: bytes, method: bytes = b"GET", body: bytes = b"") -> bytes:
    """Return a request."""
    return b"\r\n".join(
        [method + b" /a%20b?c=d HTTP/1.1", b"Host: a:80", *lines, b"", body]
    )


def answering(
    *chunks: bytes, status: str = "200 OK", headers: tuple[tuple[str, str], ...] = ()
) -> App:
    """Return an app that always answers the same."""

    def app(_: dict[str, Any], start_response: StartBridge) -> list[bytes]:
        start_response(status, list(headers))
        return list(chunks)

    return app


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(raw.removeprefix(b"\r\n"), id=name)
        for name, raw in GOOD.items()
        if b"BREW" not in raw
    ],
)
def test_passes_the_standard_librarys_validator(raw: bytes) -> None:
    """wsgiref.validate finds nothing wrong with how the app is called, for any request.

    The app never sees a body.
    """

    def app(environ: dict[str, Any], start_response: StartBridge) -> Iterator[bytes]:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        assert body == b""
        start_response(
            "200 OK",
            [("Content-Type", "text/plain"), ("Content-Length", "0")],
        )
        return iter([])

    validated: Any = validator(app)
    assert ask(validated, raw).status == 200


def test_environ() -> None:
    """The environment has all of the request that is meant for the app.

    It lacks the body, headers about the connection or the body, and headers with an
    underscore, which could pass for others.
    """
    head = get(
        b"Content-Type: text/x",
        b"Content-Length: 2",
        b"Connection: Upgrade, X-B, Keep-Alive",
        b"Upgrade: websocket",
        b"HTTP2-Settings: AAMAAABkAAQ",
        b"Keep-Alive: timeout=5",
        b"Proxy-Connection: keep-alive",
        b"TE: trailers",
        b"Trailer: X",
        b"X-A: 1",
        b"x-a: 2",
        b"X_A: 3",
        b"X-B: 4",
        method=b"PUT",
    )
    environ = make_environ(parse(head), ("127.0.0.1", 5000))
    assert environ.pop("wsgi.input").read() == b""
    assert environ.pop("wsgi.errors").write
    assert environ == {
        "REQUEST_METHOD": "PUT",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/a b",
        "QUERY_STRING": "c=d",
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "5000",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "CONTENT_TYPE": "",
        "CONTENT_LENGTH": "0",
        "HTTP_HOST": "a:80",
        "HTTP_X_A": "1, 2",
        "HTTP_X_B": "4",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }


def test_answers_are_joined_and_closed() -> None:
    """The app's writes come before its iterable, which is closed once."""
    closed = []

    class Chunks:
        def __iter__(self) -> Iterator[bytes]:
            yield b"c"
            yield b""
            yield b"d"

        def close(self) -> None:
            closed.append(True)

    def app(_: dict[str, Any], start_response: StartBridge) -> Chunks:
        write = start_response("200 OK", [("X", "y")])
        write(b"a")
        write(b"b")
        return Chunks()

    answer = ask(app, get())
    assert (answer.headers, answer.body) == ({"X": "y", "Content-Length": "4"}, b"abcd")
    assert closed == [True]


def test_begins_late() -> None:
    """An app may begin its answer as late as with its first chunk."""

    def app(_: dict[str, Any], start_response: StartBridge) -> Iterator[bytes]:
        start_response("202 Accepted", [])
        yield b"late"

    assert ask(app, get())[::2] == (202, b"late")


def test_changes_its_mind() -> None:
    """With exc_info, an app may replace the status and headers it gave before."""

    def app(_: dict[str, Any], start_response: StartBridge) -> list[bytes]:
        start_response("200 OK", [("X", "y")])
        start_response("503 Service Unavailable", [], (None, None, None))
        return [b"no"]

    assert ask(app, get()) == Received(503, {"Content-Length": "2"}, b"no")


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
def test_statuses_without_a_body(status: str) -> None:
    """An answer that may not have a body is sent without body and Content-Length."""
    assert ask(answering(b"body", status=status), get()) == Received(
        int(status[:3]), {}, b""
    )


def test_head_keeps_its_length() -> None:
    """The app's Content-Length for HEAD is passed on, and none is added."""
    head = get(method=b"HEAD")
    assert ask(answering(headers=(("Content-Length", "42"),)), head).headers == {
        "Content-Length": "42"
    }
    assert ask(answering(), head).headers == {}


@pytest.mark.parametrize("name", ["Content-Length", "content-length"])
def test_length(name: str) -> None:
    """An answer has one Content-Length, the app's if it gives one."""
    without, given = (
        answering(b"he", b"llo"),
        answering(b"he", b"llo", headers=((name, "5"),)),
    )
    assert ask(without, get()) == Received(200, {"Content-Length": "5"}, b"hello")
    assert ask(given, get()) == Received(200, {name: "5"}, b"hello")


def test_the_date_is_the_servers() -> None:
    """An app's own Date is left out, since the server adds one to each answer."""
    assert ask(
        answering(headers=(("DATE", "today"), ("X", "date"))), get()
    ).headers == {
        "X": "date",
        "Content-Length": "0",
    }


def test_an_app_that_begins_no_answer() -> None:
    """An app that returns without calling start_response has failed."""
    with pytest.raises(RuntimeError, match="start_response"):
        ask(lambda *_: [b"x"], get())


def test_closes_what_fails() -> None:
    """The iterable that the app returned is closed even if it raises."""
    closed = []

    class Chunks:
        def __iter__(self) -> Iterator[bytes]:
            raise ZeroDivisionError

        def close(self) -> None:
            closed.append(True)

    def app(_: dict[str, Any], start_response: StartBridge) -> Chunks:
        start_response("200 OK", [])
        return Chunks()

    with pytest.raises(ZeroDivisionError):
        ask(app, get())
    assert closed == [True]


class _Crowded(ThreadPoolExecutor):
    """Starts one thread.

    Then, as on a system that allows no more, it queues what it is given, and raises.
    """

    started = False

    def submit(self, *args: Any, **kwargs: Any) -> Any:
        future = super().submit(*args, **kwargs)
        if self.started:
            raise RuntimeError("can't start new thread")
        self.started = True
        return future


def test_no_further_thread(loop: asyncio.AbstractEventLoop) -> None:
    """If no more threads can be started, a running worker takes the request.

    Nothing is raised in the event loop.
    """
    answers: queue.SimpleQueue[Serialized | None] = queue.SimpleQueue()
    with _Crowded(1) as pool:
        dispatch = bridge(answering(b"x"), ("127.0.0.1", 5000), loop, pool)
        for _ in range(3):
            dispatch(get(), answers.put)
        assert [
            answer and answer[1]
            for answer in (answers.get(timeout=PATIENCE) for _ in range(3))
        ] == [b"x"] * 3


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """Give a test an event loop that runs in a thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def test_bursts(loop: asyncio.AbstractEventLoop) -> None:
    """Each request of a burst gets a thread at once.

    None is done before all of them have met at a barrier.
    """
    rng = random.Random(42)
    for _ in range(BURSTS):
        count, done = rng.randint(8, 240), queue.SimpleQueue[Serialized | None]()
        together = threading.Barrier(count)

        def app(
            _: Any, start_response: Any, together: threading.Barrier = together
        ) -> list[bytes]:
            together.wait(PATIENCE)  # raises if it takes too long
            start_response("200 OK", [])
            return []

        with ThreadPoolExecutor(256) as pool:
            dispatch = bridge(app, ("", 0), loop, pool)
            for _ in range(count):
                dispatch(get(), done.put)
            assert None not in [done.get(timeout=PATIENCE) for _ in range(count)]


@pytest.mark.parametrize("error", [ZeroDivisionError, SystemExit])
def test_bridge(
    loop: asyncio.AbstractEventLoop,
    error: type[BaseException],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An answer, or None if the app raises, is handed over in the event loop.

    What the app raises is logged.
    """
    done = queue.SimpleQueue[tuple[Serialized | None, asyncio.AbstractEventLoop]]()

    def app(environ: dict[str, Any], start_response: StartBridge) -> list[bytes]:
        if environ["REQUEST_METHOD"] == "PUT":
            raise error
        start_response("200 OK", [])
        return [b"hello"]

    with ThreadPoolExecutor(1) as pool:
        dispatch = bridge(app, ("127.0.0.1", 5000), loop, pool)
        for method in (b"PUT", b"GET"):
            dispatch(
                get(method=method),
                lambda answer: done.put((answer, asyncio.get_running_loop())),
            )
        answers = [done.get(timeout=PATIENCE) for _ in range(2)]
    assert answers == [
        (None, loop),
        ((b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n", b"hello"), loop),
    ]
    (record,) = caplog.records
    assert record.name == "c42c"
    assert record.message == "unhandled exception in PUT /a b"
    assert error.__name__ in caplog.text


def test_requests_share_no_context(loop: asyncio.AbstractEventLoop) -> None:
    """What a request sets in its context is gone in the next one on the same thread."""
    variable = ContextVar("variable", default="unset")
    seen = queue.SimpleQueue[str]()

    def app(_: dict[str, Any], start_response: StartBridge) -> list[bytes]:
        seen.put(variable.get())
        variable.set("set")
        start_response("200 OK", [])
        return []

    with ThreadPoolExecutor(1) as pool:
        dispatch = bridge(app, ("127.0.0.1", 5000), loop, pool)
        for _ in range(2):
            dispatch(get(), lambda _: None)
    assert [seen.get_nowait() for _ in range(2)] == ["unset", "unset"]
