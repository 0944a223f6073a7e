"""A stand-in and clients, for the tests of the client."""

from collections.abc import Iterator

import pytest

from standin import Standin
from tests.client.callers import Make, clients
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
    with clients(upstream.base_url, token=TOKEN, timeout=10) as make:
        yield make
