"""Where a test belongs.

- `test_cache.py`: the cache by itself; needs nothing but pytest.
- `test_api.py`: the service over HTTP, as a client sees it.
- `tests/test_SUBJECT.py`: everything else, by subject; `tests/fixtures.py` has what several of them share.
- `tests/deploy/`: slow tests of what runs the service: images, nginx, systemd, Prometheus.
- `tests/soak/`, `tests/mutants.py`: tools that take minutes: `make soak`, `make mutants`.
"""

import subprocess
import sys
from importlib.util import find_spec

# The fixtures that start the service need what it needs; test_cache.py needs neither.
pytest_plugins = ["tests.fixtures"] if find_spec("flask") else []


def run_as_script(path: str) -> int:
    """Run the tests of one file; print nothing where all is well, and what pytest says where it is not."""
    command = [sys.executable, "-m", "pytest", path, "-p", "no:cacheprovider", "--tb=short"]
    ended = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if ended.returncode:
        print(ended.stdout, end="")
    return min(ended.returncode, 1)
