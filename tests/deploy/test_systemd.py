"""deploy/c42c@.service, checked by systemd, and run by one that was booted in a
container.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import requests

from operations import settings
from standin import Standin
from tests.deploy.tools import free_ports, missing, needs, ran
from tests.fixtures import PATIENCE, PREFIX, ROOT, TOKEN, new_id, until

UNIT = ROOT / "deploy/c42c@.service"
MANUAL = ROOT / "docs/operating.md"


@needs("systemd-analyze")
def test_unit_is_sound(tmp_path: Path) -> None:
    """systemd finds nothing wrong with the unit, and rates its exposure below 1.5 of
    10.
    """
    unit = tmp_path / "c42c@5001.service"
    text = UNIT.read_text()
    unit.write_text(
        text.replace("/opt/c42c/c42c/bin/python", sys.executable)
    )  # it wants to see the program
    assert "c42c" not in ran("systemd-analyze", "verify", "--man=no", unit)
    rated = ran("systemd-analyze", "security", "--offline=true", unit)
    score = re.search(r"exposure level for c42c@5001.service: ([\d.]+)", rated)
    assert score is not None
    assert float(score[1]) < 1.5


def test_unit_waits_long_enough() -> None:
    """systemd waits longer for the end of the service than it takes with the default
    settings.
    """
    stop = re.search(r"TimeoutStopSec=(\d+)", UNIT.read_text())
    config = settings.read({"C42_TOKEN": TOKEN})
    assert stop is not None
    assert int(stop[1]) > config.drain + config.timeout + 1


class Machine:
    """A Debian that was booted."""

    def __init__(self, leader: int) -> None:
        self._leader = leader

    def run(self, script: str, text: str = "") -> str:
        """Run a shell script there, as root, which reads `text`; return what it
        printed.
        """
        inside = [
            "nsenter",
            f"--target={self._leader}",
            "--mount",
            "--uts",
            "--ipc",
            "--pid",
            "sh",
            "-e",
            "-c",
            script,
        ]
        ended = subprocess.run(
            inside,
            check=False,
            input=text,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
        )
        assert ended.returncode == 0, f"{script}\n{ended.stdout}"
        return ended.stdout

    def pid(self, port: int) -> str:
        """Return the id that the process of an instance has there."""
        return self.run(
            f"systemctl show --property=MainPID --value c42c@{port}"
        ).strip()


@pytest.fixture
def machine(
    debian: Path, pip_mounts: list[tuple[Path, str]], tmp_path: Path
) -> Iterator[Machine]:
    """Boot Debian, with this project in /opt/c42c; its changes are discarded."""
    if lacking := missing("systemd-nspawn", "nsenter"):
        pytest.skip(f"needs {lacking}, as Debian has it")
    for name in ran(
        "git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"
    ).split("\0"):
        if (ROOT / name).is_file():
            (tmp_path / "c42c" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tmp_path / "c42c" / name)
    mounts = [f"--bind-ro={path}:{target}" for path, target in pip_mounts] + [
        f"--bind={tmp_path}/c42c:/opt/c42c"
    ]
    options = [
        "--quiet",
        "--register=no",
        "--keep-unit",
        "--console=pipe",
        "--boot",
        "--volatile=overlay",
    ]
    options += [f"--directory={debian}", *mounts]
    with (tmp_path / "console").open("w") as console:
        process = subprocess.Popen(
            ["systemd-nspawn", *options],
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=console,
        )
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    booted: list[Machine] = []

    def is_up() -> bool:
        if process.poll() is not None:
            pytest.skip(
                f"systemd-nspawn can't boot here: {(tmp_path / 'console').read_text()[-300:]}"
            )
        leaders = children.read_text().split()
        if leaders:
            booted[:] = [Machine(int(leaders[0]))]
            return "running" in booted[0].run("systemctl is-system-running || true")
        return False

    try:
        until(is_up, "Debian to boot")
        yield booted[0]
    finally:
        process.terminate()
        process.wait(PATIENCE)


def commands(heading: str) -> str:
    """Return the shell commands below a heading of docs/operating.md."""
    section = MANUAL.read_text().partition(f"## {heading}\n")[2].partition("\n## ")[0]
    block = re.search(r"^```sh\n(.*?)^```$", section, re.M | re.S)
    assert block is not None
    return block[1]


def test_runs_as_the_manual_says(machine: Machine, upstream: Standin) -> None:
    """Installed and restarted with the commands of the manual, two instances serve; the
    token is in no environment.
    """
    event_id = new_id()
    upstream.add_event(event_id, names=["Ella"])
    ports = dict(zip(("5001", "5002"), free_ports(2), strict=True))

    def manual(heading: str) -> str:
        return re.sub(
            r"\b500[12]\b", lambda port: str(ports[port[0]]), commands(heading)
        )

    machine.run(f"echo C42_BASE_URL={upstream.base_url} > /etc/c42c.env")
    machine.run(manual("Install it with systemd"), TOKEN + "\n")
    before = {}
    for port in ports.values():
        ask = f"curl -s 127.0.0.1:{port}/readyz || true"
        until(partial(machine.run, ask), "c42c to listen")
        answer = requests.get(
            f"http://127.0.0.1:{port}{PREFIX}{event_id}", timeout=PATIENCE
        )
        assert answer.json()["names"] == ["Ella"]
        before[port] = machine.pid(port)
        environ = machine.run(f"tr '\\0' '\\n' < /proc/{before[port]}/environ")
        assert f"C42_TOKEN_FILE=/run/credentials/c42c@{port}.service/token\n" in environ
        assert TOKEN not in environ
        status = machine.run(f"cat /proc/{before[port]}/status")
        assert "Uid:\t0" not in status
        assert "CapEff:\t0000000000000000\n" in status
        assert (
            "process_open_fds"
            in requests.get(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE).text
        )

    machine.run(manual("Restart without losing requests"))
    for port, pid in before.items():
        assert (
            requests.get(
                f"http://127.0.0.1:{port}/readyz", timeout=PATIENCE
            ).status_code
            == 200
        )
        assert machine.pid(port) != pid

    machine.run("systemctl start c42c@0")  # not a port
    until(
        lambda: machine.run("systemctl is-failed c42c@0 || true") == "failed\n",
        "it to fail",
    )
    shown = machine.run("systemctl show --property=NRestarts,ExecMainStatus c42c@0")
    assert set(shown.split()) == {"NRestarts=0", "ExecMainStatus=2"}
