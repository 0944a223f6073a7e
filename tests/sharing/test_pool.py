"""The pool of threads that never keeps the process from ending."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from sharing.pool import DaemonPool
from tests.fixtures import PATIENCE, until


def threads(name: str) -> list[threading.Thread]:
    """Return the threads of a pool."""
    return [one for one in threading.enumerate() if one.name == name]


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Let go of everything that waits at the gate when the test has ended."""
    gate = threading.Event()
    yield gate
    gate.set()


def test_results_and_exceptions() -> None:
    """A future has what its function returned or raised, `SystemExit` included; the
    thread goes on. A task that was cancelled in time isn't run.
    """
    pool = DaemonPool(1, "outcomes")
    assert pool.submit(lambda: 7).result(PATIENCE) == 7
    with pytest.raises(ZeroDivisionError):
        pool.submit(lambda: 1 // 0).result(PATIENCE)
    with pytest.raises(SystemExit):
        pool.submit(sys.exit).result(PATIENCE)
    done, gate = list[str](), threading.Event()
    pool.submit(gate.wait)
    cancelled = pool.submit(lambda: done.append("cancelled"))
    last = pool.submit(lambda: done.append("last"))
    assert cancelled.cancel()
    gate.set()
    last.result(PATIENCE)
    assert done == ["last"]
    pool.close()


def test_threads_are_started_when_needed(gate: threading.Event) -> None:
    """No thread is started in advance, nor beyond the size."""
    pool = DaemonPool(3, "needed")
    assert len(threads("needed")) == 0
    for count in (1, 2, 3, 3, 3):
        pool.submit(gate.wait)
        assert len(threads("needed")) == count
    assert all(one.daemon for one in threads("needed"))


def test_an_idle_thread_is_used_again() -> None:
    """One thread does what comes one by one."""
    pool, used = DaemonPool(100, "again"), set[int | None]()
    for _ in range(50):
        used.add(pool.submit(lambda: threading.current_thread().ident).result(PATIENCE))
        time.sleep(0.001)  # the thread is idle a moment after its result is there
    assert len(used) < 10
    pool.close()


def test_all_threads_end(gate: threading.Event) -> None:
    """`close` ends all threads, after what was submitted before."""
    pool = DaemonPool(2, "closed")
    futures = [pool.submit(gate.wait) for _ in range(4)]
    pool.close()
    gate.set()
    assert [future.result(PATIENCE) for future in futures] == [True] * 4
    until(lambda: not threads("closed"))


def test_no_more_threads(
    gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the system allows no thread, `submit` raises, unless one is running already:
    that takes the task.
    """

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    pool, empty = DaemonPool(2, "limited"), DaemonPool(2, "none")
    first = pool.submit(gate.wait)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    second = pool.submit(lambda: 7)
    with pytest.raises(RuntimeError):
        empty.submit(int)
    gate.set()
    assert first.result(PATIENCE)
    assert second.result(PATIENCE) == 7
    pool.close()


STUCK = """
import threading
from sharing.pool import DaemonPool
DaemonPool(1, "stuck").submit(threading.Event().wait)
"""


def test_the_process_ends() -> None:
    """A function that hangs doesn't keep Python from exiting."""
    subprocess.run([sys.executable, "-c", STUCK], check=True, timeout=PATIENCE)
