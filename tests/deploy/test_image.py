"""The Containerfile: really built, and run as a container would be."""

import contextlib
import json
import os
import signal
import subprocess
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import requests

from bench.machine import tree
from standin import Gate, Standin
from tests.deploy.tools import free_ports, listens, missing, ran
from tests.fixtures import PATIENCE, ROOT, TOKEN, new_id, until

MIB = 2**20
# A container as runtimes make one: read-only root file system, /proc and /dev, no
# environment but its own, PID 1.
ENTER = """
mount --bind "$ROOT" "$ROOT" && mount -o remount,bind,ro "$ROOT" &&
mount -t proc proc "$ROOT/proc" && mount --rbind /dev "$ROOT/dev" &&
exec chroot --userspec="$USER_AND_GROUP" "$ROOT" "$@"
"""


def end(container: "subprocess.Popen[bytes]") -> None:
    """End a container. Its service is another user's, so it wouldn't end by itself."""
    for pid in tree(container.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    container.wait()


class Image(NamedTuple):
    """A built image: its configuration, its file system, and that of its base."""

    config: dict[str, Any]
    root: Path
    base: Path

    def command(self, *command: str, **environ: str) -> list[str]:
        """Return what runs a command in a new container of this image."""
        own = [
            *self.config["Env"],
            *(f"{name}={value}" for name, value in environ.items()),
        ]
        inner = ["/usr/bin/env", "-i", "-C", self.config["WorkingDir"], *own, *command]
        return [
            "unshare",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "sh",
            "-c",
            ENTER,
            "sh",
            *inner,
        ]

    @property
    def outside(self) -> dict[str, str]:
        """What `ENTER` wants to know."""
        return {
            **os.environ,
            "ROOT": str(self.root),
            "USER_AND_GROUP": self.config["User"],
        }


@pytest.fixture(scope="module")
def image(debian: Path, memory: Path, pip_mounts: list[tuple[Path, str]]) -> Image:
    """Build the image with buildah, from a Debian of our own.

    So no registry of images is needed.
    """
    if lacking := missing("buildah", "unshare"):
        pytest.skip(f"needs {lacking}, as Debian has it")
    driver = (
        "overlay" if "\toverlay\n" in Path("/proc/filesystems").read_text() else "vfs"
    )
    options = [
        "--root",
        str(memory / "images"),
        "--runroot",
        str(memory / "run"),
        "--storage-driver",
        driver,
    ]
    buildah = partial(ran, "buildah", *options, timeout=600)  # pip may be slow
    base = buildah("from", "scratch").strip()
    buildah("add", "--quiet", base, str(debian), "/")
    buildah("commit", "--quiet", base, "localhost/base")
    mounts = [f"--volume={path}:{target}:ro" for path, target in pip_mounts]
    how = [
        "--isolation=chroot",
        "--network=host",
        "--format=docker",
        "--build-arg=BASE=localhost/base",
        *mounts,
    ]
    buildah(
        "build",
        "--quiet",
        *how,
        "--tag=localhost/c42c",
        "--file",
        str(ROOT / "Containerfile"),
        str(ROOT),
    )
    container = buildah("from", "--pull-never", "localhost/c42c").strip()
    inspected = json.loads(buildah("inspect", "--type=image", "localhost/c42c"))
    roots = [Path(buildah("mount", one).strip()) for one in (container, base)]
    return Image(inspected["Docker"]["config"], *roots)


def test_adds_little(image: Image) -> None:
    """The image adds less than 80 MB to its base, without pip, compilers or caches."""
    size, base = (
        int(ran("du", "-s", "--block-size=1", root).split()[0])
        for root in (image.root, image.base)
    )
    assert 10 * MIB < size - base < 80_000_000
    added = {
        path.name
        for folder in ("venv", "app")
        for path in (image.root / folder).rglob("*")
    }
    assert "flask" in added
    assert not added & {"pip", "setuptools", "wheel", "gcc", "conftest.py", ".git"}
    assert not list((image.root / "root").glob(".cache/*"))
    assert not (image.root / "requirements.lock").exists()


def test_runs_locked_down(image: Image, upstream: Standin) -> None:
    """The service runs as a user without a name, with a read-only root.

    Its health check passes, and SIGTERM ends it in time even if a request hangs.
    """
    event_id, hung, gate = new_id(), new_id(), Gate()
    upstream.add_event(event_id, names=["Ella"])
    upstream.rule(event_id=hung, gate=gate)
    (port,) = free_ports(1)
    timeout = 3
    environ = {
        "C42_TOKEN": TOKEN,
        "C42_BASE_URL": upstream.base_url,
        "C42_TIMEOUT": f"{timeout}",
    }
    assert image.config["User"] not in ("", "root", "0")
    healthy = image.command(
        *image.config["Healthcheck"]["Test"][1:], C42_PORT=f"{port}"
    )
    assert (
        subprocess.run(
            healthy, env=image.outside, check=False, capture_output=True
        ).returncode
        != 0
    )

    start = image.command(*image.config["Entrypoint"], **environ, C42_PORT=f"{port}")
    container = subprocess.Popen(start, env=image.outside)
    try:
        until(lambda: listens(port), "the service to listen")
        ran(*healthy, environ=image.outside)
        url = f"http://127.0.0.1:{port}/events-with-subscriptions/"
        assert requests.get(url + event_id, timeout=PATIENCE).json()["names"] == [
            "Ella"
        ]
        (pid,) = (
            Path(f"/proc/{container.pid}/task/{container.pid}/children")
            .read_text()
            .split()
        )
        status = Path(f"/proc/{pid}/status").read_text()
        assert "Uid:\t10001\t10001\t10001\t10001\n" in status
        assert "CapEff:\t0000000000000000\n" in status
        with subprocess.Popen(
            ["curl", "-sS", url + hung], stdout=subprocess.PIPE
        ) as client:
            gate.wait_for(1)
            told = time.monotonic()
            os.kill(int(pid), signal.SIGTERM)
            assert b'"status_code":504' in client.communicate()[0]
        assert container.wait(PATIENCE) == 0
        assert (
            time.monotonic() - told < timeout + 1 + 5
        )  # some seconds for the container's own end
    finally:
        end(container)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "::1", "127.0.0.2"])
def test_health_check_finds_the_service(
    image: Image, upstream: Standin, host: str
) -> None:
    """The health check asks where the service listens, whatever C42_HOST is."""
    (port,) = free_ports(1)
    own = {"C42_TOKEN": TOKEN, "C42_BASE_URL": upstream.base_url}
    address = {"C42_HOST": host, "C42_PORT": f"{port}"}
    start = image.command(*image.config["Entrypoint"], **own, **address)
    healthy = image.command(*image.config["Healthcheck"]["Test"][1:], **address)

    def is_healthy() -> bool:
        checked = subprocess.run(
            healthy, env=image.outside, check=False, capture_output=True
        )
        return checked.returncode == 0

    assert not is_healthy()
    container = subprocess.Popen(start, env=image.outside)
    try:
        until(is_healthy, "the health check to pass")
    finally:
        end(container)


def test_cannot_write(image: Image) -> None:
    """A process in the container can write nowhere.

    So a read-only root changes nothing for it.
    """
    tries = (
        "for place in /app /venv /tmp /; do"
        " touch $place/x 2>/dev/null && echo $place; done; true"
    )
    assert ran(*image.command("/bin/sh", "-c", tries), environ=image.outside) == ""


def test_shares_answers(image: Image) -> None:
    """What C42_CACHE_URL needs is in the image."""
    ran(*image.command("/venv/bin/python", "-c", "import redis"), environ=image.outside)
