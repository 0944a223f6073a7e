"""deploy/c42c@.service and deploy/c42c@.socket.

systemd checks them, and one that was booted in a container runs them.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from textwrap import dedent
from typing import NamedTuple

import pytest
import requests

import c42client
from operations import settings
from standin import Standin
from tests.deploy.load import Load
from tests.deploy.manual import MANUAL, commands
from tests.deploy.tools import free_ports, listens, missing, needs, ran
from tests.fixtures import PATIENCE, PREFIX, ROOT, TOKEN, new_events, until

SOCKET = ROOT / "deploy/c42c@.socket"
UNIT = ROOT / "deploy/c42c@.service"
REQUESTS = 10_000
RESTARTS = 10


@needs("systemd-analyze")
def test_units_are_sound(tmp_path: Path) -> None:
    """systemd finds nothing wrong with the units.

    It rates the service's exposure below 1.5 of 10.
    """
    socket_unit = tmp_path / "c42c@5001.socket"
    shutil.copy(SOCKET, socket_unit)
    unit = tmp_path / "c42c@5001.service"
    text = UNIT.read_text()
    # systemd-analyze looks for the program.
    unit.write_text(text.replace("/opt/c42c/c42c/bin/python", sys.executable))
    said = ran("systemd-analyze", "verify", "--man=no", unit, socket_unit)
    assert "c42c" not in said
    rated = ran("systemd-analyze", "security", "--offline=true", unit)
    score = re.search(r"exposure level for c42c@5001.service: ([\d.]+)", rated)
    assert score is not None
    assert float(score[1]) < 1.5


def test_unit_waits_long_enough() -> None:
    """systemd waits longer for the service's end than that takes by default."""
    stop = re.search(r"TimeoutStopSec=(\d+)", UNIT.read_text())
    config = settings.read({"C42_TOKEN": TOKEN})
    assert stop is not None
    assert int(stop[1]) > config.drain + config.timeout + 1


def test_unit_allows_all_threads() -> None:
    """systemd allows the threads that the service starts with the default settings.

    They are workers, those for calls to Calendar42, and a reserve.
    """
    tasks = re.search(r"TasksMax=(\d+)", UNIT.read_text())
    config = settings.read({"C42_TOKEN": TOKEN})
    assert tasks is not None
    assert int(tasks[1]) > config.threads + c42client.MAX_CALLS + 100


@needs("systemd-socket-activate")
def test_takes_the_socket_it_is_given(upstream: Standin) -> None:
    """Started with a socket as systemd does it, the service serves on that one.

    It does so whatever C42_HOST and C42_PORT say.
    """
    port, other = free_ports(2)
    own = {"C42_TOKEN": TOKEN, "C42_BASE_URL": upstream.base_url}
    address = {"C42_HOST": "192.0.2.1", "C42_PORT": f"{other}"}
    command = ["systemd-socket-activate", f"--listen=127.0.0.1:{port}"]
    # It hands on no environment but what it is told to.
    environ = os.environ | own | address
    command += [f"--setenv={name}" for name in environ]
    process = subprocess.Popen(
        [*command, sys.executable, str(ROOT / "main.py")],
        env=environ,
        stderr=subprocess.DEVNULL,
    )
    try:
        until(partial(listens, port), "systemd-socket-activate to listen")
        url = f"http://127.0.0.1:{port}"
        assert requests.get(f"{url}/readyz", timeout=PATIENCE).status_code == 200
        assert not listens(other)
    finally:
        process.terminate()
        assert process.wait(PATIENCE) == 0


class Debian:
    """A Debian that was booted."""

    def __init__(self, leader: int) -> None:
        self._leader = leader

    def enter(self, script: str, text: str = "") -> subprocess.CompletedProcess[str]:
        """Run a shell script there as root, whether it succeeds or not.

        The script reads `text`.
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
        return subprocess.run(
            inside,
            check=False,
            input=text,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=400,
        )

    def run(self, script: str, text: str = "") -> str:
        """Run a shell script that must succeed; return what it printed."""
        ended = self.enter(script, text)
        assert ended.returncode == 0, f"{script}\n{ended.stdout}"
        return ended.stdout

    def state(self, unit: str, *properties: str) -> list[str]:
        """Return what systemd says of a unit there."""
        names = ",".join(properties)
        shown = self.run(f"systemctl show --property={names} {unit}").splitlines()
        values = dict(line.split("=", 1) for line in shown)
        return [values[name] for name in properties]

    def pid(self, port: int) -> str:
        """Return the id that the process of an instance has there."""
        return self.state(f"c42c@{port}", "MainPID")[0]


@pytest.fixture(scope="module")
def booted(
    debian: Path,
    pip_mounts: list[tuple[Path, str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Debian]:
    """Boot Debian, with this project in /opt/c42c; its changes are discarded."""
    tmp_path = tmp_path_factory.mktemp("machine")
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
    machines: list[Debian] = []

    def is_up() -> bool:
        if process.poll() is not None:
            said = (tmp_path / "console").read_text()[-300:]
            pytest.skip(f"systemd-nspawn can't boot here: {said}")
        leaders = children.read_text().split()
        if not leaders:
            return False
        # The first child only starts the one that stays, and ends.
        machines[:] = [Debian(int(leaders[0]))]
        return machines[0].enter("systemctl is-system-running").returncode == 0

    try:
        until(is_up, "Debian to boot", patience=3 * PATIENCE)
        yield machines[0]
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()  # a Debian that hasn't booted doesn't hear the signal
            process.wait(PATIENCE)
            raise


class Installed(NamedTuple):
    """A machine on which the service was installed as the manual says."""

    machine: Debian
    ports: list[int]

    def manual(self, heading: str) -> str:
        """Return the commands below a heading of the manual, for these ports."""
        text = commands(heading)
        for shipped, port in zip(("5001", "5002"), self.ports, strict=True):
            text = text.replace(shipped, str(port))
        return text

    def get(self, path: str, at: int = 0) -> requests.Response:
        """GET a path of one of the two instances."""
        return requests.get(
            f"http://127.0.0.1:{self.ports[at]}{path}", timeout=PATIENCE
        )


@pytest.fixture(scope="module")
def installed(booted: Debian, shared_upstream: Standin) -> Installed:
    """Install the service as the manual says."""
    service = Installed(booted, free_ports(2))
    booted.run(f"echo C42_BASE_URL={shared_upstream.base_url} > /etc/c42c.env")
    booted.run(service.manual("Install it with systemd"), TOKEN + "\n")
    return service


def test_runs_as_the_manual_says(installed: Installed, upstream: Standin) -> None:
    """Installed and restarted with the manual's commands, two instances serve.

    The token is in no environment, and the processes have no rights.
    """
    machine = installed.machine
    (event_id,) = new_events(upstream, 1)
    before = []
    for at, port in enumerate(installed.ports):
        assert installed.get(PREFIX + event_id, at).json()["id"] == event_id
        pid = machine.pid(port)
        environ = machine.run(f"tr '\\0' '\\n' < /proc/{pid}/environ")
        assert f"C42_TOKEN_FILE=/run/credentials/c42c@{port}.service/token\n" in environ
        assert TOKEN not in environ
        status = machine.run(f"cat /proc/{pid}/status")
        assert "Uid:\t0" not in status
        assert "CapEff:\t0000000000000000\n" in status
        assert "process_open_fds" in installed.get("/metrics", at).text
        before.append(pid)

    machine.run(installed.manual("Restart without losing requests"))
    for at, port in enumerate(installed.ports):
        assert installed.get("/readyz", at).status_code == 200
        assert machine.pid(port) != before[at]


def test_restart_loses_nobody(installed: Installed, upstream: Standin) -> None:
    """While a single instance is restarted ten times, none of 10,000 requests fails.

    Each request is over a connection of its own.
    """
    port = installed.ports[0]
    connect = partial(HTTPConnection, "127.0.0.1", port, timeout=PATIENCE)
    pids = {installed.machine.pid(port)}
    with Load(connect, upstream, reconnect=True) as load:
        while load.requests < REQUESTS or len(pids) <= RESTARTS:
            if len(pids) <= RESTARTS:
                installed.machine.run(f"systemctl restart c42c@{port}")
                pids.add(installed.machine.pid(port))
            installed.get("/readyz")
    assert load.failures == []


def test_other_signals_change_nothing(installed: Installed) -> None:
    """SIGHUP and the user's signals don't end the service."""
    unit = f"c42c@{installed.ports[0]}.service"
    installed.get("/readyz")
    before = installed.machine.state(unit, "MainPID")
    for signal in ("HUP", "USR1", "USR2"):
        installed.machine.run(f"systemctl kill --signal={signal} {unit}")
    assert installed.get("/readyz").status_code == 200
    assert installed.machine.state(unit, "MainPID") == before


def test_stop_for_good(installed: Installed) -> None:
    """Stopped with the manual's command, an instance stays down.

    If only the service is stopped, the next client starts it.
    """
    machine = installed.machine
    port = installed.ports[1]
    unit = f"c42c@{port}"
    machine.run(f"systemctl stop {unit}.service")
    assert installed.get("/readyz", 1).status_code == 200
    machine.run(installed.manual("Stop it for good"))
    assert not listens(port)
    for name in (f"{unit}.service", f"{unit}.socket"):
        assert machine.state(name, "ActiveState") == ["inactive"]
    assert "enabled" not in machine.run(f"systemctl is-enabled {unit} || true")
    machine.run(f"systemctl enable --now {unit}")
    assert installed.get("/readyz", 1).status_code == 200


def test_address_can_be_changed(installed: Installed) -> None:
    """With the lines of the manual, an instance listens on all addresses."""
    machine = installed.machine
    (port,) = free_ports(1)
    unit = f"c42c@{port}.socket"
    lines = re.search(r"^    \[Socket\]\n(    .+\n)+", MANUAL, re.M)
    assert lines is not None
    folder = f"/run/systemd/system/{unit}.d"
    machine.run(f"systemctl start c42c@{port}")
    assert not listens(port, "127.0.0.2")
    machine.run(f"mkdir {folder}\ncat > {folder}/all.conf", dedent(lines[0]))
    machine.run("systemctl daemon-reload\nsystemctl restart 'c42c@*.socket'")
    for host in ("127.0.0.2", "[::1]"):
        answer = requests.get(f"http://{host}:{port}/readyz", timeout=PATIENCE)
        assert answer.status_code == 200
    for at in (0, 1):
        assert installed.get("/readyz", at).status_code == 200
    machine.run(f"systemctl stop {unit}")


def test_invalid_settings(installed: Installed) -> None:
    """With invalid settings, the service fails and says why.

    It isn't started again by itself. Clients that wait start it a limited number of
    times, then the port closes.
    """
    machine = installed.machine
    (port,) = free_ports(1)
    unit = f"c42c@{port}"
    folder = f"/run/systemd/system/{unit}.service.d"
    machine.run(
        f"mkdir -p {folder}\n"
        f"printf '[Service]\\nEnvironment=C42_EXPIRY=soon\\n' > {folder}/mistake.conf\n"
        f"systemctl daemon-reload\n"
        f"systemctl start {unit}"
    )
    until(
        lambda: machine.state(unit, "ActiveState") == ["failed"],
        "the service to fail",
        every=0.1,
    )
    assert machine.state(unit, "NRestarts", "ExecMainStatus") == ["0", "2"]
    log = f"journalctl --unit={unit} --output=cat"
    assert "C42_EXPIRY=soon is invalid" in machine.run(log)

    with pytest.raises(requests.ConnectionError):
        requests.get(f"http://127.0.0.1:{port}/readyz", timeout=60)
    until(
        lambda: machine.state(f"{unit}.socket", "ActiveState") == ["failed"],
        "the socket to close",
        every=0.1,
    )
    assert machine.run(log).count("C42_EXPIRY=soon is invalid") <= 20
    machine.run(f"rm {folder}/mistake.conf\nsystemctl daemon-reload")
    machine.run(f"systemctl reset-failed '{unit}.*'\nsystemctl start {unit}")
    url = f"http://127.0.0.1:{port}/readyz"
    assert requests.get(url, timeout=PATIENCE).status_code == 200
    machine.run(f"systemctl stop {unit}.socket")
