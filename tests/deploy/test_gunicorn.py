"""The service under gunicorn, as docs/operating.md says how to run it."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from importlib.util import find_spec

import pytest

from bench.machine import free_port
from standin import Standin
from tests.fixtures import (
    PATIENCE,
    Service,
    at_once,
    listed,
    new_events,
    started,
    until,
)

pytestmark = pytest.mark.skipif(not find_spec("gunicorn"), reason="needs gunicorn")
BOTH = pytest.mark.parametrize(
    "options", [(), ("--preload",)], ids=["plain", "preload"]
)
Serve = Callable[..., Service]


class Gunicorn(Service):
    """The service in two workers of gunicorn, with eight threads each."""

    # Warnings about gunicorn's own code are none of ours.
    program = ("-W", "default", "-m", "gunicorn", "main:create_app()", "--workers=2")

    def __init__(self, upstream: Standin, *options: str, **environ: str) -> None:
        port = str(free_port())
        own = ("--threads=8", f"--bind=127.0.0.1:{port}", "--no-control-socket")
        super().__init__(upstream, (*own, *options), C42_PORT=port, **environ)


@pytest.fixture
def serve(upstream: Standin) -> Iterator[Serve]:
    """Give a test a way to start gunicorn: `serve("--preload", C42_EXPIRY="0.05")`."""
    with ExitStack() as stack:

        def begin(*options: str, **environ: str) -> Service:
            return stack.enter_context(started(Gunicorn(upstream, *options, **environ)))

        yield begin


@BOTH
def test_events(serve: Serve, upstream: Standin, options: tuple[str, ...]) -> None:
    """Each worker is ready from its start, and answers events, lists, errors, hits."""
    service = serve(*options)
    ready = at_once(*[partial(service.get, "/readyz") for _ in range(16)])
    assert [answer.status_code for answer in ready] == [200] * 16
    event_ids = new_events(upstream, 16)
    answers = at_once(*[partial(service.event, event_id) for event_id in event_ids])
    assert [answer.json()["id"] for answer in answers] == event_ids
    assert [answer.status_code for answer in answers] == [200] * 16
    found = service.get(listed(event_ids)).json()["data"]
    assert [event["id"] for event in found] == event_ids
    assert service.event("a.b").status_code == 400
    # Each worker has a cache of its own, so two of three answers are hits at least.
    hits = [service.event(event_ids[0]) for _ in range(3)]
    assert any("hit" in answer.headers["Cache-Status"] for answer in hits)


@BOTH
def test_answers_expire(
    serve: Serve, upstream: Standin, options: tuple[str, ...]
) -> None:
    """In each worker, the reaper deletes what has expired."""
    service = serve(*options, C42_EXPIRY="0.01")
    for event_id in new_events(upstream, 4):
        assert service.event(event_id).status_code == 200

    def left() -> tuple[int, int]:
        """Return how many events the workers loaded, and how many they still have."""
        # Over connections of their own, or one worker might answer them all.
        raw = at_once(*[partial(service.raw, b"/status.json")] * 8)
        answers = [json.loads(answer.body) for answer in raw]
        workers = {answer["instance"]: answer for answer in answers}
        loaded = sum(each["outcomes"]["miss"] for each in workers.values())
        return loaded, sum(each["cache"]["entries"] for each in workers.values())

    until(lambda: left() == (4, 0), "the reapers to delete all answers")


@BOTH
def test_log(serve: Serve, upstream: Standin, options: tuple[str, ...]) -> None:
    """Each load has one line in the log, in whichever worker it was.

    This includes a worker that ends right after it.
    """
    service = serve(*options)
    event_ids = new_events(upstream, 16)
    at_once(*[partial(service.event, event_id) for event_id in event_ids])
    assert service.stop() == 0
    counts = {each: service.log.count(f"load event={each} ") for each in event_ids}
    assert counts == dict.fromkeys(event_ids, 1)


def test_without_a_token(upstream: Standin) -> None:
    """Without a token, gunicorn ends, and its log says what is missing."""
    service = Gunicorn(upstream, C42_TOKEN="")
    with started(service, ready=False):
        # 1 if gunicorn hears of the second worker while it ends because of the first.
        assert service.process.wait(PATIENCE) in (1, 3)
        assert "C42_TOKEN is missing: expected Calendar42's token" in service.log
