"""Runs the tests that `tests/mutants.py` chooses, in a copy of the project, one run after the other.

Reads an order for each run, a line of JSON, and writes a line of JSON with what came of it. The libraries are imported
once, and each run is a fork with the project's modules yet to import: that saves most of the time of a run.
"""

import contextlib
import json
import os
import re
import resource
import select
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import Any

import flask.testing
import jsonpath_ng  # noqa: F401 - this and what follows: imported before the forks
import prometheus_client  # noqa: F401
import pytest
import redis.asyncio  # noqa: F401
import requests  # noqa: F401

OUTSIDE = {"service", "start", "shared_service"}  # fixtures that start the service in a process of its own
MEMORY = 8 * 2**30  # bytes of addresses: a mutant may be greedy
OUTCOME = Path("outcome.json")


class Watcher:
    """A pytest plugin that runs the chosen tests in their order, and notes which one fails.

    Without a choice it runs all, and notes how long each takes, whether it starts the service, and which lines it runs.
    """

    def __init__(self, chosen: Sequence[str] | None, files: Sequence[str]) -> None:
        import coverage

        self._chosen = chosen
        self._files = files
        self._coverage = coverage.Coverage(data_file=None, source=["."], config_file=False)
        self._killer: str | None = None
        self._seconds: dict[str, float] = {}
        self._outside: list[str] = []

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Choose."""
        self._outside = [item.nodeid for item in items if OUTSIDE & set(item.fixturenames)]
        if self._chosen is not None:
            place = {test: number for number, test in enumerate(self._chosen)}
            # Some names have the time in them, so that they can't be found again.
            items[:] = [one for one in items if one.nodeid in place or re.search(r"\[.*GMT", one.nodeid)]
            items.sort(key=lambda one: place.get(one.nodeid, len(place)))

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Begin a test."""
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
        status = pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests], plugins=[self])
        outcome: dict[str, Any] = {"killer": self._killer or (f"pytest: {status!r}" if status else None)}
        if self._chosen is None:
            self._coverage.stop()
            data = self._coverage.get_data()
            lines = {file: data.contexts_by_lineno(str(Path(file).resolve())) for file in self._files}
            outcome |= {"seconds": self._seconds, "outside": self._outside, "lines": lines}
        OUTCOME.write_text(json.dumps(outcome))


def run(order: dict[str, Any]) -> dict[str, Any]:
    """Carry out an order, in a fork; return what came of it, or that its time was up."""
    OUTCOME.unlink(missing_ok=True)
    if not (child := os.fork()):
        os.setsid()
        os.nice(5)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        nothing = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nothing, stream)
        try:
            Watcher(order["chosen"], order["files"]).run(order["tests"])
        finally:
            os._exit(0)  # without waiting for threads that a mutant left behind
    ended = select.select([os.pidfd_open(child)], [], [], order["limit"])[0]
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    if OUTCOME.exists():
        outcome: dict[str, Any] = json.loads(OUTCOME.read_text())
        return outcome
    return {"killer": "it ended too early" if ended else "time is up"}


if __name__ == "__main__":
    assert flask.testing
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)
