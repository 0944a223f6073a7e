"""Running the tests: what it prints, what it needs, and what it leaves behind."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import run_as_script
from tests.fixtures import PATIENCE, ROOT, until

QUICK = os.environ | {
    "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"
}  # others' plugins take seconds to import
WAITING = """
import pathlib
import subprocess
import threading

def test_that_waits(start):
    command = ["sh", "-c", "sleep 60 & echo $!; wait"]
    shell = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    below = shell.stdout.readline().strip()
    path = pathlib.Path(__file__).with_name("pids")
    path.write_text(f"{start().process.pid} {below}.")
    threading.Event().wait()
"""


def lives(pid: int) -> bool:
    """Say whether there is such a process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(
    "workers", [[], ["-p", "xdist", "-n", "1"]], ids=["alone", "with xdist"]
)
def test_a_killed_run_leaves_nothing_behind(workers: list[str], tmp_path: Path) -> None:
    """If pytest gets SIGTERM, it ends all that its tests have started.

    It is in the middle of a test, and what that has started ends too.
    """
    path, pid_file = tmp_path / "test_that_waits.py", tmp_path / "pids"
    path.write_text(WAITING)
    pid_file.touch()
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "conftest",
        "-p",
        "no:cacheprovider",
        "--assert=plain",  # rewriting takes seconds
        *workers,
        str(path),
    ]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=QUICK,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as run:
        try:
            until(
                lambda: pid_file.read_text().endswith(".") or run.poll() is not None,
                "the service to start",
                patience=3 * PATIENCE,  # pytest and the service start
            )
            service, below = (int(pid) for pid in pid_file.read_text()[:-1].split())
            assert lives(service)
            assert lives(below)
        finally:
            run.terminate()
    assert run.returncode == pytest.ExitCode.INTERRUPTED
    assert not lives(service)
    until(lambda: not lives(below), "the system to reap it, since its parent is gone")


@pytest.mark.parametrize("script", ["test_api.py", "test_cache.py"])
def test_scripts_without_pytest(script: str) -> None:
    """Without pytest, a test script says in one line how to get it.

    It exits with 1.
    """
    code = (
        "import runpy, sys; sys.modules['pytest'] = None; "
        f"runpy.run_path({script!r}, run_name='__main__')"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == "pytest is missing: pip install -r requirements.txt\n"


def test_scripts_print_failures_only(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Run as a script, tests print only what pytest says of failures."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # as in QUICK
    path = tmp_path / "test_few.py"
    path.write_text("def test_that_passes(): print('hello')")
    assert run_as_script(str(path)) == 0
    path = tmp_path / "test_more.py"
    path.write_text("def test_that_fails(): assert 6 * 9 == 42")
    assert "assert (6 * 9) == 42" in str(run_as_script(str(path)))
    assert capfd.readouterr() == ("", "")


def test_without_a_browser() -> None:
    """A test that needs no browser runs without selenium."""
    code = (
        "import sys; sys.modules['selenium'] = None; "
        "import pytest; sys.exit(pytest.main(sys.argv[1:]))"
    )
    command = [
        sys.executable,
        "-c",
        code,
        "-p",
        "no:cacheprovider",
        "--assert=plain",
        "tests/test_lock.py",
    ]
    ended = subprocess.run(
        command,
        check=False,
        cwd=ROOT,
        env=QUICK,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 0, ended.stdout
