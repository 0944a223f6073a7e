"""Runs the tests that `tests/mutants.py` chooses, in a copy of the project, one run
after the other.

Reads an order for each run, a line of JSON, and writes a line of JSON with what came of
it. Each run is a fork of this process, which has imported the libraries already: that
saves most of the time of a run. A test that takes much longer than without a mutant
ends the run. Whatever a run leaves behind, services included, is ended before the next.
"""

import ctypes
import json
import os
import re
import resource
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import Any

import cachecontrol  # noqa: F401 - this and what follows: imported before the forks
import flask.testing
import hishel.httpx  # noqa: F401
import hypothesis.strategies  # noqa: F401
import jsonpath_ng  # noqa: F401
import prometheus_client  # noqa: F401
import pytest
import redis.asyncio  # noqa: F401
import requests_cache  # noqa: F401

OUTSIDE = {
    "service",
    "services",
    "small",
    "start",
    "shared_service",
}  # fixtures that start another process
MEMORY = 8 * 2**30  # bytes of addresses: a mutant may be greedy
OUTCOME = Path("outcome.json")
# Seconds that a test may take, besides four times what it takes without a mutant.
PATIENCE = 10.0
MAX_PAUSE = 120.0  # seconds for a test while it's not known how long it takes
_SUBREAPER = (
    36  # PR_SET_CHILD_SUBREAPER of prctl(2): orphans of our children become ours
)


class Watcher:
    """A pytest plugin that runs the chosen tests in their order, and notes which one
    fails.

    `chosen` says how many seconds each of them usually takes. Without it, all tests
    run, and it notes how long each takes, whether it starts the service, and which
    lines of `files` it runs.
    """

    def __init__(
        self, chosen: Mapping[str, float] | None, files: Sequence[str]
    ) -> None:
        import coverage

        self._chosen = chosen
        self._files = files
        self._coverage = coverage.Coverage(
            data_file=None, source=["."], config_file=False
        )
        self._killer: str | None = None
        self._seconds: dict[str, float] = {}
        self._outside: list[str] = []

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Choose."""
        self._outside = [
            item.nodeid for item in items if OUTSIDE & set(item.fixturenames)
        ]
        if self._chosen is not None:
            place = {test: number for number, test in enumerate(self._chosen)}
            # Some names have the time in them, so that they can't be found again.
            items[:] = [
                one
                for one in items
                if one.nodeid in place or re.search(r"\[.*GMT", one.nodeid)
            ]
            items.sort(key=lambda one: place.get(one.nodeid, len(place)))

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Begin a test. The alarm ends the process, even if it waits for a lock."""
        signal.setitimer(
            signal.ITIMER_REAL,
            PATIENCE + 4 * self._chosen.get(nodeid, 0) if self._chosen else MAX_PAUSE,
        )
        if self._chosen is None:
            self._coverage.switch_context(nodeid)
        self._seconds[nodeid] = -monotonic()

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """End a test."""
        if self._chosen is None:
            self._coverage.switch_context("")
        self._seconds[nodeid] += monotonic()

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Note a failure."""
        if report.failed:
            self._killer = self._killer or report.nodeid

    def run(self, tests: Sequence[str]) -> None:
        """Run the tests of these files and write what was noted."""
        if self._chosen is None:
            self._coverage.start()
        signal.setitimer(signal.ITIMER_REAL, MAX_PAUSE)
        status = pytest.main(
            ["-x", "-q", "-p", "no:cacheprovider", *tests], plugins=[self]
        )
        outcome: dict[str, Any] = {
            "killer": self._killer or (f"pytest: {status!r}" if status else None)
        }
        if self._chosen is None:
            self._coverage.stop()
            data = self._coverage.get_data()
            lines = {
                file: data.contexts_by_lineno(str(Path(file).resolve()))
                for file in self._files
            }
            outcome |= {
                "seconds": self._seconds,
                "outside": self._outside,
                "lines": lines,
            }
        OUTCOME.write_text(json.dumps(outcome))


def run(order: dict[str, Any]) -> dict[str, Any]:
    """Carry out an order in a fork; return what came of it."""
    OUTCOME.unlink(missing_ok=True)
    if not (child := os.fork()):
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        nothing = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nothing, stream)
        try:
            Watcher(order.get("chosen"), order.get("files", ())).run(order["tests"])
        finally:
            os._exit(0)  # without waiting for threads that a mutant left behind
    _, status = os.waitpid(child, 0)
    _end_orphans()
    if OUTCOME.exists():
        outcome: dict[str, Any] = json.loads(OUTCOME.read_text())
        return outcome
    return {
        "killer": "a test took too long"
        if os.WIFSIGNALED(status)
        else "it ended too early"
    }


def _end_orphans() -> None:
    """End all processes that a run left behind: by now, every child of ours is one."""
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    while orphans := children.read_text().split():
        for orphan in map(int, orphans):
            os.kill(orphan, signal.SIGKILL)
            os.waitpid(orphan, 0)


if __name__ == "__main__":
    assert flask.testing
    ctypes.CDLL(None).prctl(_SUBREAPER, 1)
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)
