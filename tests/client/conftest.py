"""A stand-in and clients, for the tests of the client."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from c42client import Calls, Client
from calendar42.calls import Pause
from standin import Standin
from tests.client.callers import Make
from tests.fixtures import TOKEN


@pytest.fixture
def upstream() -> Iterator[Standin]:
    """Give a test a stand-in of its own.

    So no call that another test's client makes late can reach it.
    """
    with Standin(token=TOKEN) as standin:
        yield standin


@pytest.fixture
def make(upstream: Standin) -> Iterator[Make]:
    """Give a test a way to make clients: `make(timeout=1)`."""
    with contextlib.ExitStack() as stack:

        def client(**options: Any) -> Client:
            usual: dict[str, Any] = {
                "base_url": upstream.base_url,
                "token": TOKEN,
                "timeout": 10,
                "pause": Pause(6),
                "on_call": lambda call: None,
            }
            on_fault = options.pop("on_fault", lambda error: None)
            calls = Calls(**usual | options)
            stack.callback(calls.close)
            return Client(calls, on_fault)

        yield client
