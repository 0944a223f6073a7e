"""What the tests of sharing through Redis use."""

import contextlib
import logging
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.machines import Machine, Make, MakeProxy, Proxy, Redis, Said


@pytest.fixture(scope="module")
def shared_redis() -> Iterator[Redis]:
    server = Redis()
    yield server
    server.kill()


@pytest.fixture
def own_redis() -> Iterator[Redis]:
    """Give a test a Redis of its own, to be killed, stopped or filled."""
    server = Redis()
    yield server
    server.kill()


@pytest.fixture
def counts() -> Counter[str]:
    """Count the loads of all machines, by event."""
    return Counter()


@pytest.fixture
def patience() -> float | None:
    """Return how many seconds loads wait for Redis, or None: as long as usual."""
    return 10.0


@pytest.fixture
def machine(counts: Counter[str], patience: float | None) -> Iterator[Make]:
    """Give a test a way to make machines: `machine(url, expiry=60.0)`."""
    with contextlib.ExitStack() as stack:

        def make(url: str, **options: Any) -> Machine:
            made = Machine(url, counts, **{"patience": patience} | options)
            stack.callback(made.end)
            return made

        yield make


@pytest.fixture
def proxy() -> Iterator[MakeProxy]:
    with contextlib.ExitStack() as stack:

        def make(*args: Any) -> Proxy:
            made = Proxy(*args)
            stack.callback(made.end)
            return made

        yield make


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(500) as executor:
        yield executor


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Said:
    """Count the log records about Redis that contain a text."""
    caplog.set_level(logging.INFO, "c42c")
    return lambda text: sum(
        text in one.getMessage() and one.name == "c42c.redis" for one in caplog.records
    )
