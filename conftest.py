"""Where a test belongs.

- `test_cache.py`: the cache by itself; needs nothing but pytest.
- `test_api.py`: the service over HTTP, as a client sees it.
- `tests/test_SUBJECT.py`: everything else, by subject; `tests/fixtures.py` has what
  several of them share.
- `tests/client/`, `tests/transport/`: the client of Calendar42 by itself, and its
  connections.
- `tests/sharing/`: answers shared through Redis; `tests/machines.py` has what those
  tests share.
- `tests/deploy/`: slow tests: deployment (image, nginx, systemd, Prometheus) and
  Schemathesis.
- `tests/soak/`, `tests/mutants.py`: tools that take minutes: `make soak`,
  `make mutants`.
"""

import contextlib
import io
import os
import signal
from importlib.util import find_spec
from typing import NoReturn

import pytest

from bench.machine import tree

# The fixtures that start the service need Flask; test_cache.py needs neither.
pytest_plugins = ["tests.cache_callers"]
if find_spec("flask"):
    pytest_plugins.append("tests.fixtures")


def pytest_sessionstart() -> None:
    """Have SIGTERM end the tests as Ctrl-C does.

    So they end the services that they have started.
    """
    signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(*_: object) -> NoReturn:
    """Pass the signal on, and end the tests.

    Services, browsers and pytest-xdist's workers get it.
    """
    signal.signal(
        signal.SIGTERM, signal.SIG_IGN
    )  # a second one would interrupt the end of the services
    for pid in tree(os.getpid())[1:]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    raise KeyboardInterrupt


def run_as_script(path: str) -> str | int:
    """Run the tests of one file; return what pytest says if any fails."""
    output = io.StringIO()
    options = [
        "-p",
        "no:cacheprovider",
        "-W",
        "ignore::pytest.PytestAssertRewriteWarning",
    ]  # the script imports fixtures
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        status = pytest.main([path, "--tb=short", *options])
    return output.getvalue() if status else 0
